"""Warns, once each, of what looks wrong with a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...data.base import Batch, TrainingData
from ..diagnostics import Diagnostics
from ..ema import WeightAverage
from .base import TrainerCallback


class DiagnosticsCallback(TrainerCallback):
    """Calls `Diagnostics` at logging steps and at evaluations.

    Args:
        every: optimizer steps between two looks at the losses.
        ema: the average whose length is checked, or None.
        max_seconds: after which the run ends, or None.
    """

    def __init__(
        self, diagnostics: Diagnostics, every: int, ema: WeightAverage | None = None, max_seconds: float | None = None
    ):
        self._diagnostics, self._every, self._ema, self._max_seconds = diagnostics, every, ema, max_seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the noise path."""
        self._diagnostics.check_path()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the losses and the data so far."""
        if state.global_step % self._every == 0:
            self._diagnostics.check(state.global_step)
            self._diagnostics.check_ema_early(
                self._ema, state.global_step, state.max_steps, state.seconds, self._max_seconds
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the whole run."""
        self._diagnostics.check(state.global_step)
        self._diagnostics.check_ema(self._ema, state.global_step)


class ConditionCheckCallback(TrainerCallback):
    """Warns when the network ignores its condition.

    Args:
        model: the network as it is trained.
        data: whose conditions are exchanged.
        conditions: the network's conditions for a batch.
        is_due: whether the check runs after a step.
    """

    def __init__(
        self,
        diagnostics: Diagnostics,
        model: Any,
        data: TrainingData,
        conditions: Callable[[Batch], dict[str, Any]],
        is_due: Callable[[Any, Any, Any], bool],
    ):
        self._diagnostics, self._model, self._data = diagnostics, model, data
        self._conditions, self._is_due = conditions, is_due
        self._checked_at = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check at every validation."""
        if self._is_due(state, control, kwargs["step"]):
            self._check(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the trained network."""
        if self._checked_at != state.global_step:
            self._check(state.global_step)

    def _check(self, step: int) -> None:
        self._checked_at = step
        self._model.eval()
        self._diagnostics.check_condition(self._model, self._data, self._conditions, step)
