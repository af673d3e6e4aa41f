"""Images: drawn as grids, written as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import figures
from ..pipelines import GenerationPipeline
from ..pipelines.batched_generation import image_shape

CELL = 64  # pixels that small images are enlarged to


class ImageModality:
    """Images (number, channels, height, width); see `Modality`."""

    name, noun, dims = "image", "images", 2
    pipeline_class = GenerationPipeline

    def pipeline_parts(self, data: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def data_options(self, pipeline: Any) -> dict[str, Any]:
        """The channels, and the side of square images."""
        channels, height, width = image_shape(pipeline)
        return {"channels": channels, "resolution": height if height == width else None}

    def measures(self, samples: Iterable[torch.Tensor], real: Iterable[torch.Tensor]) -> dict[str, float]:
        """Nothing."""
        return {}

    def real(self, data: Any, indices: Sequence[int]) -> torch.Tensor:
        """Images of the data in [-1, 1]."""
        return data.__getitems__(list(indices))["samples"]

    def draw(self, samples: torch.Tensor, path: Path, pipeline: Any, columns: int | None = None) -> np.ndarray:
        """A grid."""
        samples = _shown(samples)
        grid = figures.image_grid(samples, columns=columns, scale=max(1, CELL // samples.shape[-2]))
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        return np.asarray(grid.convert("RGB"))[None]

    def write_each(self, samples: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """PNG files."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(_shown(samples)):
            figures.image_grid(image[None], columns=1, padding=0).save(folder / f"{number:05}.png")

    def frame(self, pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1], decoded from latents where the pipeline has a vae."""
        return (pipeline.to_images(latents).nan_to_num(0.0) * 2 - 1).cpu()

    def draw_process(self, frames: Sequence[torch.Tensor], folder: Path) -> None:
        """An endless GIF."""
        figures.save_gif([_shown(frame) for frame in frames], folder / "reverse.gif", hold_last_ms=1500)

    def draw_beside_real(self, samples: torch.Tensor, real: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """Nothing: images are looked at one by one."""


def _shown(samples: torch.Tensor) -> torch.Tensor:
    """Samples that are neither gray nor RGB, with their channels as gray images one below the other."""
    return samples if samples.shape[1] in (1, 3) else samples.flatten(1, 2)[:, None]
