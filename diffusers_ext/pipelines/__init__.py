"""Pipelines, one a file, and the conditions that pipelines and training make alike."""

from .image_conditions import IMAGE_CONDITIONS, image_condition
from .pipeline_generation import GenerationPipeline
from .text_conditions import encode_prompts

__all__ = ["IMAGE_CONDITIONS", "GenerationPipeline", "encode_prompts", "image_condition"]
