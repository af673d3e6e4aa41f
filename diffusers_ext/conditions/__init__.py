"""What a network is conditioned on, one file per condition; training and `GenerationPipeline` use the same classes."""

from .base import Condition
from .class_label import ClassCondition
from .image import ImageCondition
from .registry import CONDITIONS, condition_class, register
from .text import TextCondition
from .vector import VectorCondition

__all__ = [
    "CONDITIONS",
    "ClassCondition",
    "Condition",
    "ImageCondition",
    "TextCondition",
    "VectorCondition",
    "condition_class",
    "register",
]
