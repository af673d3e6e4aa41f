"""Pipelines, one a file, and the conditions that pipelines and training make alike."""

from ..conditions.image_transforms import IMAGE_TRANSFORMS, image_transform
from ..conditions.text import encode_prompts
from .pipeline_generation import GenerationPipeline

__all__ = ["IMAGE_TRANSFORMS", "GenerationPipeline", "encode_prompts", "image_transform"]
