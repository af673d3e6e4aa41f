"""One optimizer step of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ..data.base import Batch
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import batch_generator_of, seed_of
from .binding import ConditionBinding
from .efficiency import StepClock
from .ema import WeightAverage
from .sharding import own_parameters, whole


@dataclass(eq=False)
class SampleLosses:
    """The loss of each sample of a training batch, with noise and dropout drawn as a part of the global batch."""

    objective: Any
    accelerator: Accelerator
    seed: int

    def __call__(self, net: ConditionedNetwork, batch: Batch, number: int) -> torch.Tensor:
        """Losses (batch,) of batch `number` of this process.

        Raises:
            ValueError: when the objective gives anything but a loss per sample.
        """
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        torch.manual_seed(seed_of(self.seed, "dropout", number, index))
        noise = batch_generator_of(
            self.seed, "noise", number, num_processes=count, process_index=index, device=self.accelerator.device
        )
        losses = self.objective(net, batch, noise)
        if not isinstance(losses, torch.Tensor) or losses.shape != (len(batch["samples"]),):
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise ValueError(
                f"objective must give one loss per sample, shape ({len(batch['samples'])},), got {shape}; average over "
                "all dimensions but the first."
            )
        return losses


@dataclass(eq=False)
class Step:
    """Learns from the batches of one optimizer step.

    Args:
        model: the network with the wrappers of distributed training.
        network: the network without them.
        optimizer: of the model, as Accelerate prepared it.
        averages: of the network's weights.
        losses: of a batch.
        binding: gives the conditions of a batch.
        learning_rate: of the next step.
        max_grad_norm: gradients are scaled down to it.
        channels_last: memory format of images.
        clock: adds up the time of forward, backward and optimizer.
        watch: takes samples, timesteps and losses of each batch.
    """

    accelerator: Accelerator
    model: Any
    network: torch.nn.Module
    optimizer: Any
    averages: Sequence[WeightAverage]
    losses: SampleLosses
    binding: ConditionBinding
    learning_rate: Callable[[], float]
    max_grad_norm: float
    channels_last: bool
    clock: StepClock
    watch: Callable[[torch.Tensor, Any, torch.Tensor], None]

    def __call__(self, batches: Sequence[tuple[int, Batch]]) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(mean loss, gradient norm, learning rate) of a step on (number, batch) pairs; two of them on the device."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, norm = [], torch.zeros(())
        for number, batch in batches:
            with self.accelerator.accumulate(self.model):
                loss = self._loss(number, batch)
                with self.clock.working():
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            losses.append(loss.detach())
        for average in self.averages:
            average.update(own_parameters(self.network))
        return torch.stack(losses).mean(), whole(norm), rate

    def _loss(self, number: int, batch: Batch) -> torch.Tensor:
        """Mean loss of batch `number` of this process."""
        samples = batch["samples"]
        if self.channels_last and samples.ndim == 4:
            batch = {**batch, "samples": samples.contiguous(memory_format=torch.channels_last)}
        shown: list[tuple[torch.Tensor, torch.Tensor]] = []  # what the objective shows of its losses
        net = self.binding.bind(self.model, batch, number, lambda timesteps, losses: shown.append((timesteps, losses)))
        with self.clock.working():
            losses = self.losses(net, batch, number)
        self.watch(samples, *(shown[-1] if shown else (net.timestep, losses)))
        return losses.mean()
