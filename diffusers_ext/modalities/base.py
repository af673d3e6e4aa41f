"""`Modality`: how samples of one kind leave a pipeline, and how they are drawn and written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch


class Modality(Protocol):
    """One kind of samples.

    Attributes:
        name: in the registry and for `--modality`.
        noun: what several samples are called.
        dims: number of sizes of a sample: 2 for images (height, width), 1 for signals (length,).
        pipeline_class: the pipeline of this package that makes such samples.
    """

    name: str
    noun: str
    dims: int
    pipeline_class: Any

    def pipeline_parts(self, data: Any) -> dict[str, Any]:
        """Keyword arguments of the pipeline that keep what was done to the training data."""

    def data_options(self, pipeline: Any) -> dict[str, Any]:
        """Arguments of `load_image_data` for real examples of the size and in the units of a pipeline's samples."""

    def measures(self, samples: Iterable[torch.Tensor], real: Iterable[torch.Tensor]) -> dict[str, float]:
        """Measures of two sets, in batches (batch, channels, *size), that need no features; none for images."""

    def real(self, data: Any, indices: Sequence[int]) -> torch.Tensor:
        """Examples of the data, as `batched_generation.samples_of` gives samples."""

    def draw(self, samples: torch.Tensor, path: Path, pipeline: Any, columns: int | None = None) -> np.ndarray:
        """Write a picture of the samples; the picture itself as uint8 (1, height, width, 3).

        Args:
            samples: (number, channels, *size), as `batched_generation.samples_of` gives them.
            path: of the picture.
            pipeline: that made them.
            columns: samples a row, where the caller knows.
        """

    def write_each(self, samples: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """Write each sample as a file of its own: 00000.png, 00001.wav, ..."""

    def frame(self, pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
        """A noisy sample on the way, as `draw_process` takes it, on the CPU."""

    def draw_process(self, frames: Sequence[torch.Tensor], folder: Path) -> None:
        """Write a picture `reverse` of how samples came about.

        Args:
            frames: the noisy samples (number, channels, *size) after each step, from `frame`.
            folder: where it goes.
        """

    def draw_beside_real(self, samples: torch.Tensor, real: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """Write further figures that compare samples with as many real examples; none for images."""
