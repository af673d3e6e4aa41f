"""Pipelines, one a file, and the conditions that pipelines and training make alike."""

from ..conditions.image_transforms import IMAGE_TRANSFORMS, image_transform
from ..conditions.text import encode_prompts
from .pipeline_generation import GenerationPipeline
from .pipeline_signal import SignalPipeline

__all__ = ["IMAGE_TRANSFORMS", "GenerationPipeline", "SignalPipeline", "encode_prompts", "image_transform"]
