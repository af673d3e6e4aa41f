"""What a sample is to its viewer: an image or a signal. A new kind is a file with its class, and its line here."""

from __future__ import annotations

from typing import Any

from .base import Modality
from .images import ImageModality
from .signals import SignalModality

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (ImageModality(), SignalModality())}


def modality_of_size(size: tuple[int, ...]) -> Modality | None:
    """The kind of samples (channels, *size), or None for tensors of another number of sizes."""
    return next((modality for modality in MODALITIES.values() if modality.dims == len(size)), None)


def modality_of_pipeline(pipeline: Any) -> Modality:
    """The kind of samples that a pipeline makes; pipelines of diffusers count as pipelines for images."""
    found = [modality for modality in MODALITIES.values() if type(pipeline) is modality.pipeline_class]
    return found[0] if found else MODALITIES["image"]


__all__ = ["MODALITIES", "Modality", "modality_of_pipeline", "modality_of_size"]
