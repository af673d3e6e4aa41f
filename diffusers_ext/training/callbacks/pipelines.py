"""Saves the pipeline while a network trains and at the end, draws its figures, and pushes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import attempt
from ..agreement import Processes
from ..checkpoint import own_checkpoints
from ..report import Figures, write_figures
from ..saving import HubPusher, describe, save_pipeline
from ..weights import Weights
from .base import TrainerCallback

logger = logging.getLogger(__name__)


class PipelineCallback(TrainerCallback):
    """Saves the pipeline after every so many epochs.

    Args:
        folder: where it goes.
        recipe: settings of the run, as YAML.
        repo_id: the repository on the Hub, or None.
        every_epochs: after epochs 0, N, 2N, ..., as in diffusers' example.
        announce: fires an event of the callbacks.
    """

    def __init__(
        self,
        weights: Weights,
        pipeline_of: Callable[[Any], Any],
        folder: Path,
        recipe: str,
        repo_id: str | None,
        every_epochs: int,
        processes: Processes,
        announce: Callable[..., None],
    ):
        self._weights, self._pipeline_of, self._folder, self._recipe = weights, pipeline_of, folder, recipe
        self._repo_id, self._every, self._processes, self._announce = repo_id, every_epochs, processes, announce

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save after an epoch that is not the last; a failure is reported and the run goes on."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or not kwargs["step"].completes_one_of(self._every):
            return
        self._weights.model.eval()
        with self._weights.evaluated() as network:
            pipeline = self._pipeline_of(network)
            problem = self._save(pipeline)
            if problem:
                logger.warning(
                    "The pipeline of step %d could not be saved (%s); training goes on.", state.global_step, problem
                )
            if self._processes.nobody_failed(problem):
                self._announce("on_export", pipeline=pipeline, last=False)
        self._processes.wait()

    def save_last(self, pipeline: Any, step: int) -> None:
        """Save the pipeline of a finished run. Raises OSError when that is impossible."""
        problem = self._save(pipeline)
        if not self._processes.nobody_failed(problem):
            kept = own_checkpoints(self._folder)
            goes_on = f"go on from '{kept[-1]}' with --resume_from_checkpoint latest" if kept else "start again"
            what = problem or "see the first process"
            raise OSError(f"The pipeline of step {step} could not be saved ({what}); make room, then {goes_on}.")
        self._announce("on_export", pipeline=pipeline, last=True)

    def _save(self, pipeline: Any) -> str:
        """What went wrong on the main process, or ""."""
        if not self._processes.is_main:
            return ""
        return attempt(lambda: save_pipeline(pipeline, self._folder, self._recipe, self._repo_id))


class FiguresCallback(TrainerCallback):
    """Draws the figures of a finished run, and brings its model card up to date.

    Args:
        figures: what they show; None draws none, for data that are no images.
        repo_id: the repository on the Hub, or None.
        announce: takes a line to print before the figures are drawn.
    """

    def __init__(
        self,
        folder: Path,
        figures: Figures | None,
        repo_id: str | None,
        processes: Processes,
        announce: Callable[[str], None],
    ):
        self._folder, self._figures, self._repo_id, self._processes = folder, figures, repo_id, processes
        self._announce = announce

    def on_export(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw them when the pipeline was saved for the last time."""
        if not kwargs["last"]:
            return
        if self._processes.is_main:
            if self._figures is not None:
                self._announce(f"Sampling, and drawing the figures in '{self._folder / 'figures'}'.")
                write_figures(kwargs["pipeline"], self._folder, self._figures)
            if (self._folder / "model_index.json").is_file():
                describe(self._folder, self._repo_id)
        self._processes.wait()


class PushCallback(TrainerCallback):
    """Pushes the folder whenever the pipeline was saved: in the background while the run goes on."""

    def __init__(self, pusher: HubPusher, processes: Processes):
        self._pusher, self._processes = pusher, processes

    def on_export(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Push what was saved."""
        if not self._processes.is_main:
            return
        if kwargs["last"]:
            self._pusher.push_last(f"Trained {state.global_step} steps")
        else:
            self._pusher.push(f"Step {state.global_step}")
