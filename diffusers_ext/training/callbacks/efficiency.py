"""Says at the end of a run how well its steps used the machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from ...files import one_line
from ..efficiency import Efficiency, StepClock, flops_of, kept_buffers, peak_flops, peak_memory
from ..precision import Mode
from ..recording import Recorder
from .base import TrainerCallback

logger = logging.getLogger(__name__)


class EfficiencyCallback(TrainerCallback):
    """Figures of one launch: time, arithmetic, memory.

    Args:
        clock: adds up the time within forward, backward and optimizer.
        precision: of the run, as Accelerate names it.
        mode: how steps are computed.
        loss_of_one: the loss of one sample, whose operations are counted.
        network: that is trained.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: StepClock,
        device: torch.device,
        num_processes: int,
        precision: str | None,
        mode: Mode,
        loss_of_one: Callable[[], torch.Tensor],
        network: torch.nn.Module,
    ):
        self._recorder, self._clock, self._device, self._num_processes = recorder, clock, device, num_processes
        self._precision, self._mode, self._loss_of_one, self._network = precision, mode, loss_of_one, network
        self._first_step, self._began = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._first_step, self._began = state.global_step, time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the figures among the metrics and print them."""
        steps = state.global_step - self._first_step
        seconds = time.monotonic() - self._began - self._recorder.seconds_not_training
        if steps == 0:
            return
        samples_per_second = steps * self._recorder.samples_per_step / seconds
        try:
            with kept_buffers(self._network):
                flops = flops_of(self._loss_of_one, list(self._network.parameters()))
            peak = peak_flops(self._device, self._precision, seconds)
        except (RuntimeError, NotImplementedError, ValueError) as error:  # the run itself is well
            logger.warning("The operations of a step could not be counted (%s).", one_line(error)[:200])
            return
        figures = Efficiency(
            samples_per_second,
            flops,
            flops * samples_per_second / self._num_processes,
            peak,
            1 - self._clock.seconds() / seconds,
            peak_memory(self._device),
        )
        self._recorder.log(mode=str(self._mode), **figures.metrics())
        self._recorder.say(f"In {self._mode}: {figures}.")
