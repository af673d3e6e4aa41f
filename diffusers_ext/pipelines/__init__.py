"""Pipelines, one a file."""

from .pipeline_generation import GenerationPipeline

__all__ = ["GenerationPipeline"]
