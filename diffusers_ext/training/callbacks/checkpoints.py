"""Saves checkpoints, and the snapshots of averages, every so many steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checkpointing import Checkpoints
from ..ema import PowerFunctionAverage
from .base import TrainerCallback


class SnapshotCallback(TrainerCallback):
    """Keeps the power-function averages every so many steps, and at the end.

    Args:
        averages: to keep.
        every: optimizer steps.
    """

    def __init__(self, checkpoints: Checkpoints, averages: Sequence[PowerFunctionAverage], every: int):
        self._checkpoints, self._averages, self._every = checkpoints, averages, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep them when it is due."""
        if state.global_step % self._every == 0:
            self._checkpoints.save_snapshot(self._averages)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the last ones unless that has been done."""
        if state.global_step % self._every != 0:
            self._checkpoints.save_snapshot(self._averages)


class CheckpointCallback(TrainerCallback):
    """Saves a checkpoint every so many steps, when a callback asks for it, and at the end.

    Args:
        every: optimizer steps.
    """

    def __init__(self, checkpoints: Checkpoints, every: int):
        self._checkpoints, self._every = checkpoints, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save when it is due."""
        if control.should_save or state.global_step % self._every == 0:
            self._checkpoints.save()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what no checkpoint holds yet."""
        self._checkpoints.save_what_is_new()
