"""Draws some samples, from noise that is the same at every preview."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...objectives.randomness import seed_of
from ..agreement import Processes
from ..recording import Recorder
from ..report import preview
from ..weights import Weights
from .base import TrainerCallback


class PreviewCallback(TrainerCallback):
    """A picture of samples into `samples/` and the trackers when it is due, and of the saved pipeline at the end.

    Args:
        request: pipeline arguments of the preview.
        num_inference_steps: of the sampler.
        folder: of the pictures.
        seed: of the noise.
        is_due: whether to draw after a step.
    """

    def __init__(
        self,
        weights: Weights,
        pipeline_of: Callable[[Any], Any],
        request: dict[str, Any],
        num_inference_steps: int,
        folder: Path,
        recorder: Recorder,
        processes: Processes,
        seed: int,
        is_due: Callable[[Any, Any, Any], bool],
    ):
        self._weights, self._pipeline_of, self._request, self._steps = (
            weights,
            pipeline_of,
            request,
            num_inference_steps,
        )
        self._folder, self._recorder, self._processes = folder, recorder, processes
        self._seed, self._is_due = seed, is_due

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw when it is due."""
        if self._is_due(state, control, kwargs["step"]):
            self._weights.model.eval()
            with self._weights.evaluated() as network, self._processes.main_only("The preview failed"):
                if self._processes.is_main:
                    self._draw(self._pipeline_of(network), state.global_step)

    def on_export(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw samples of the pipeline that is saved last."""
        if kwargs["last"]:
            with self._processes.main_only("The preview failed"):
                if self._processes.is_main:
                    self._draw(kwargs["pipeline"], state.global_step)

    def _draw(self, pipeline: Any, step: int) -> None:
        generator = torch.Generator().manual_seed(seed_of(self._seed, "preview"))
        path = self._folder / f"step-{step:06d}.png"
        self._recorder.announce(f"Sampling a preview for '{path}', {self._steps} steps.")
        grid = preview(pipeline, self._steps, generator, path, **self._request)
        self._recorder.log_images(grid)
