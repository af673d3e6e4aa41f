"""Editing and inverse problems with models that were trained for none of it: one method a file."""

from .interpolate import slerp
from .operators import LinearOperator, blur, down_sampling, grey, masking, of_matrix, random_projection
from .pipeline import EditingPipeline

__all__ = [
    "EditingPipeline",
    "LinearOperator",
    "blur",
    "down_sampling",
    "grey",
    "masking",
    "of_matrix",
    "random_projection",
    "slerp",
]
