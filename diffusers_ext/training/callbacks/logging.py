"""Writes the loss, the speed, the learning rate and the gradient norm every so many steps."""

from __future__ import annotations

from typing import Any

from ..ema import WeightAverage
from ..recording import Recorder
from .base import TrainerCallback


class LoggingCallback(TrainerCallback):
    """One line of metrics every `every` steps.

    Args:
        recorder: writes it.
        every: optimizer steps.
        ema: the average whose decay is written, or None.
    """

    def __init__(self, recorder: Recorder, every: int, ema: WeightAverage | None = None):
        self._recorder, self._every, self._ema = recorder, every, ema

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the steps since the last line were."""
        if state.global_step % self._every == 0:
            step = kwargs["step"]
            values = {"learning_rate": step.learning_rate, "gradient_norm": float(step.gradient_norm)}
            if self._ema is not None:
                values["ema_decay"] = self._ema.decay()
            self._recorder.log_training(**values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what no line holds yet."""
        if self._recorder.has_unlogged:
            self._recorder.log_training()
