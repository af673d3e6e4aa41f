"""One optimizer step of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..data.base import Batch
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import batch_generator_of, seed_of
from .sharding import own_parameters, whole


def take_step(run: Any, batches: list[tuple[int, Batch]]) -> Any:
    """Learn from the batches of one step; (mean loss, gradient norm, learning rate), the former two on the device.

    Args:
        run: whose network learns.
        batches: (number, batch) of every batch of the step.
    """
    rate = run.learning_rate()
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    losses, norm = [], torch.zeros(())
    for number, batch in batches:
        with run.accelerator.accumulate(run.model):
            loss = _training_loss(run, number, batch)
            with run.clock.working():
                run.accelerator.backward(loss)
                if run.accelerator.sync_gradients:
                    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.max_grad_norm)
                run.optimizer.step()
                run.optimizer.zero_grad()
        losses.append(loss.detach())
    for average in run.averages:
        average.update(own_parameters(run.network))
    run.batches.commit()
    return torch.stack(losses).mean(), whole(norm), rate


def _training_loss(run: Any, number: int, batch: Batch) -> torch.Tensor:
    """Mean loss of batch `number` of this process."""
    samples = batch["samples"]
    if run.mode.channels_last and samples.ndim == 4:
        batch = {**batch, "samples": samples.contiguous(memory_format=torch.channels_last)}
    watch = _Watch()
    net = run.binding.bind(run.model, batch, number, watch)
    with run.clock.working():
        losses = losses_of(run, net, batch, number)
    timesteps, shown = watch.seen or (net.timestep, losses)
    run.diagnostics.watch(samples, timesteps, shown)
    return losses.mean()


class _Watch:
    """Keeps what an objective shows of its losses."""

    seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        self.seen = timesteps, losses


def losses_of(run: Any, net: ConditionedNetwork, batch: Batch, number: int) -> torch.Tensor:
    """Losses of batch `number` of this process, drawn as a part of the global batch.

    Raises:
        ValueError: when the objective gives anything but a loss per sample.
    """
    share = run.accelerator.num_processes, run.accelerator.process_index
    torch.manual_seed(seed_of(run.seed, "dropout", number, share[1]))
    draw = partial(batch_generator_of, run.seed, "noise", number, num_processes=share[0], process_index=share[1])
    losses = run.objective(net, batch, draw(device=run.accelerator.device))
    if not isinstance(losses, torch.Tensor) or losses.shape != (len(batch["samples"]),):
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(
            f"objective must give one loss per sample, shape ({len(batch['samples'])},), got {shape}; average over all "
            "dimensions but the first."
        )
    return losses
