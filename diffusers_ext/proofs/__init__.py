"""Exact solutions to check samplers against."""
