"""Measures the loss on held-out data, keeps the best weights, and stops a run that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..recording import Recorder
from ..validation import EarlyStopping
from ..weights import Weights
from .base import TrainerCallback

VALIDATION = "validation_loss"


class ValidationCallback(TrainerCallback):
    """Validates when it is due, and at the end of the run.

    Args:
        measure: the loss of a network on held-out data; all processes call it.
        check: raises for a loss that is not finite, given the step and the loss.
        stopping: decides when the run ends early; its patience None keeps no best weights.
        is_due: whether to validate after a step.
        announce: fires an event of the callbacks.
    """

    name = "validation"

    def __init__(
        self,
        weights: Weights,
        measure: Callable[[Any], float],
        check: Callable[[int, float], None],
        recorder: Recorder,
        stopping: EarlyStopping,
        is_due: Callable[[Any, Any, Any], bool],
        announce: Callable[..., None],
    ):
        self._weights, self._measure, self._check, self._recorder = weights, measure, check, recorder
        self.stopping, self._is_due, self._announce = stopping, is_due, announce
        self.validated_at = self.best_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was resumed after its early stopping has nothing to do."""
        self._stop_if_exhausted(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate when it is due."""
        if self._is_due(state, control, kwargs["step"]):
            self._validate(state.global_step)
            self._stop_if_exhausted(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate the last state unless that has been done."""
        if self.validated_at != state.global_step:
            self._validate(state.global_step)

    def measured_again(self, step: int) -> list[str]:
        """The loss of `step` is measured again by a resumed run whose checkpoint was saved before it."""
        return [] if self.validated_at == step else [VALIDATION]

    def _validate(self, step: int) -> None:
        self.validated_at = step
        self._weights.model.eval()
        with self._weights.evaluated() as network:
            loss = self._measure(network)
        self._check(step, loss)
        self._recorder.log(**{VALIDATION: loss})
        if self.stopping.update(loss) and self.stopping.patience is not None:
            self._weights.remember_best()
            self.best_at = step
        self._announce("on_evaluate", metrics={VALIDATION: loss})

    def _stop_if_exhausted(self, control: Any) -> None:
        if self.stopping.exhausted:
            control.stop(
                f"Stopped early: the validation loss has not been below {self.stopping.best:.4g}, that of step "
                f"{self.best_at}, for {self.stopping.waited} validations (early_stopping_patience)."
            )

    def state_dict(self) -> dict[str, Any]:
        """The best loss so far, its step and its weights."""
        counters = {
            "validated_at": self.validated_at,
            "best_at": self.best_at,
            "best_loss": None if self.stopping.best == float("inf") else self.stopping.best,
            "waited": self.stopping.waited,
        }
        return {**counters, **(self._weights.best or {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up; without early stopping the best weights are left out."""
        self.validated_at = state["validated_at"]
        best = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if self.stopping.patience is not None and not best:
            return  # nobody kept the weights of the best loss so far
        self._weights.best = best if self.stopping.patience is not None else None
        self.best_at, self.stopping.waited = state["best_at"], state["waited"]
        self.stopping.best = math.inf if state["best_loss"] is None else state["best_loss"]

    def start_afresh(self) -> None:
        """Begin to validate in the middle of a run."""
