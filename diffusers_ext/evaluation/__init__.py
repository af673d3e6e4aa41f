"""Judging samples and samplers. Takes tensors; knows no model and no scheduler."""
