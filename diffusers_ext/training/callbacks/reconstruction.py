"""Shows and measures how well an autoencoder reconstructs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ... import figures
from ...data.base import TrainingData
from ...files import one_line
from ..agreement import Processes
from ..autoencoding import images_of, measure_reconstructions, reconstruct
from ..recording import Recorder
from ..weights import Weights
from .base import TrainerCallback

logger = logging.getLogger(__name__)

SHOWN = 8  # images in the picture of reconstructions


class ReconstructionCallback(TrainerCallback):
    """Pictures of originals beside reconstructions, and the measures of the last weights.

    Args:
        data: held-out images, or the training images where there are none.
        split: what they are called in the records.
        processes: of the run; the main one draws and measures.
        size: images that are measured.
        features: network whose features are compared, or None.
        least_psnr: a worse reconstruction is warned about, in decibels.
        draws: whether to draw the figures of the finished run.
        is_due: whether to draw after a step.
    """

    def __init__(
        self,
        weights: Weights,
        data: TrainingData,
        split: str,
        folder: Path,
        recorder: Recorder,
        processes: Processes,
        size: int,
        features: torch.nn.Module | None,
        least_psnr: float,
        draws: bool,
        is_due: Callable[[Any, Any, Any], bool],
    ):
        self._weights, self._data, self._split, self._folder = weights, data, split, folder
        self._recorder, self._processes, self._is_due = recorder, processes, is_due
        self._size, self._features, self._least_psnr, self._draws = size, features, least_psnr, draws

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw when it is due."""
        if self._is_due(state, control, kwargs["step"]):
            self._weights.model.eval()
            with self._weights.evaluated() as network, self._processes.main_only("The preview failed"):
                if self._processes.is_main:
                    self._draw(network.vae, self._folder / "samples" / f"step-{state.global_step:06d}.png")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the weights that will be saved."""
        measures: dict[str, float] = {}
        self._weights.model.eval()
        with self._weights.with_best() as network, self._processes.main_only("The measurement failed"):
            if self._processes.is_main:
                network.eval()
                measures = measure_reconstructions(network.vae, self._data, self._size, self._features)
        measures = self._processes.of_main(measures)
        self._recorder.log(evaluation_split=self._split, **measures)
        self._report(measures)

    def on_export(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the reconstructions and the losses of the finished run."""
        if kwargs["last"] and self._draws and self._processes.is_main:
            try:
                self._draw(kwargs["pipeline"], self._folder / "figures" / "reconstructions.png")
                figures.plot_losses(self._recorder.file, self._folder / "figures" / "losses.png")
            except (ImportError, ValueError, OSError) as error:
                logger.warning("The figures were not drawn (%s).", one_line(error))

    def _report(self, measures: dict[str, float]) -> None:
        psnr = measures["reconstruction_psnr"]
        shown = ", ".join(f"{name.removeprefix('reconstruction_')} {value:.4g}" for name, value in measures.items())
        self._recorder.say(f"Reconstructions ({self._split}): {shown}.")
        if psnr < self._least_psnr:
            self._recorder.warn(
                f"The reconstructions have a PSNR of {psnr:.1f} dB, below {self._least_psnr:g} (min_psnr): a diffusion "
                "model on these latents can't be sharper; train longer, or take an autoencoder that compresses less."
            )

    def _draw(self, vae: Any, path: Path) -> None:
        images = torch.cat(list(images_of(self._data, 2 * SHOWN, vae.device)))
        both = [images, reconstruct(vae, images)]
        rows = torch.cat([part[start : start + SHOWN] for start in range(0, len(images), SHOWN) for part in both])
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = figures.image_grid(rows.cpu(), columns=min(SHOWN, len(images)), scale=max(1, 64 // images.shape[2]))
        grid.save(path)
