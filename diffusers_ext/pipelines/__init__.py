"""Pipelines, one a file, and the conditions that pipelines and training make alike."""

from ..conditions.image import IMAGE_CONDITIONS, image_condition
from ..conditions.text import encode_prompts
from .pipeline_generation import GenerationPipeline

__all__ = ["IMAGE_CONDITIONS", "GenerationPipeline", "encode_prompts", "image_condition"]
