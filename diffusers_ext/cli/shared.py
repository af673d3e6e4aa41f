"""What several commands do alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..evaluation.classifier import ImageClassifier

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_HELP = "Numbers the network computes with: float32, bfloat16 or float16."


def best_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_pipeline(model: str, device: str | None, dtype: str = "float32") -> Any:
    """A pipeline by folder or Hub name, on its device. Raises ValueError when there is none, or no such `DTYPES`."""
    from diffusers import DiffusionPipeline

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'.")

    if not model or (model.startswith((".", "/")) and not Path(model).exists()):
        raise ValueError(f"There is no pipeline '{model}'.")
    return DiffusionPipeline.from_pretrained(model, trust_remote_code=False).to(best_device(device), DTYPES[dtype])


def load_classifier(folder: str, device: str | None) -> ImageClassifier:
    """A classifier by folder or Hub name, on its device. Raises ValueError when there is none."""
    from ..evaluation.classifier import ImageClassifier

    if not folder or (folder.startswith((".", "/")) and not (Path(folder) / "config.json").exists()):
        raise ValueError(f"There is no classifier '{folder}'; `diffusers-ext classifier train` makes one.")
    return ImageClassifier.from_pretrained(folder, use_safetensors=True).to(best_device(device)).eval()


def at_least_one(arguments: Any, *names: str) -> None:
    """Raises ValueError for a setting below 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(arguments, name)}.")
