"""The losses of steps, read from the device in groups, and what a loss that is not finite means."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

# Off the CPU, reading a loss makes the host wait for the device; so it is read in groups of this many steps.
STEPS_BETWEEN_READS = 10


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message gives the step and the likely cause."""


class LossReader:
    """Collects the loss of each step without waiting for the device, and reads them together.

    Args:
        learning_rate: the highest of the run, for the message about a loss that is not finite.
        warmup_steps: steps before that learning rate is reached.
    """

    def __init__(self, accelerator: Accelerator, learning_rate: float, warmup_steps: int):
        self._accelerator, self._learning_rate, self._warmup_steps = accelerator, learning_rate, warmup_steps
        self._unread: list[tuple[int, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        """Take the loss of a step, a scalar on the device."""
        self._unread.append((step, loss))

    def is_due(self, step: int) -> bool:
        """Whether to wait for the device: on a CPU always, elsewhere every so many steps."""
        return self._accelerator.device.type == "cpu" or step % STEPS_BETWEEN_READS == 0

    def read(self, seconds: float, signal_number: int) -> tuple[list[float], float, int]:
        """(losses since the last time as means over processes, seconds, signal); all processes get the same.

        Raises:
            TrainingDiverged: for a loss that is not finite.
        """
        losses = torch.stack([loss.float() for _, loss in self._unread])
        if self._accelerator.num_processes > 1:
            losses = self._accelerator.reduce(losses, "mean")
            own = torch.tensor([seconds, signal_number], device=self._accelerator.device, dtype=torch.float32)
            gathered = self._accelerator.gather(own[None])
            seconds, signal_number = gathered[0, 0].item(), int(gathered[:, 1].max())
        values = losses.tolist()
        for (step, _), value in zip(self._unread, values, strict=True):
            self.check(step, value)
        self._unread.clear()
        return values, seconds, signal_number

    def check(self, step: int, value: float) -> None:
        """Raise TrainingDiverged for a loss that is not finite, with its likely cause."""
        if math.isfinite(value):
            return
        rate = self._learning_rate
        if self._accelerator.mixed_precision == "fp16":
            cause = "fp16 overflowed; try mixed_precision bf16 or no"
        elif step <= max(self._warmup_steps, 1):
            cause = f"learning_rate {rate:g} is too large for the start; try a tenth, or more lr_warmup_steps"
        else:
            cause = f"learning_rate {rate:g} is too large, or the data hold values that are not numbers"
        raise TrainingDiverged(f"The loss became {value} at step {step}; likely cause: {cause}")
