"""The loss on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.base import Batch
from ..data.randomness import permutation
from ..objectives.diffusion import Objective
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import generator_of
from .bars import bar_options
from .probe import unchanged

BATCH_SIZE = 16  # a constant, since the noise and the times of an image depend on it


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator,
    model: Any,
    objective: Objective,
    data: Any,
    size: int,
    seed: int,
    conditions: Callable[[int, Batch], dict[str, Any]] = lambda number, batch: {},
) -> float:
    """Mean loss over `size` images of `data`, always the same ones, with noise and timesteps fixed by `seed`.

    Equal networks give equal values at every call, so a difference comes from the network. The network must be in
    evaluation mode; what an objective learns from the losses is undone. Processes share the work; the result is the
    same for any number of them, and for any batch size of training, up to rounding. `conditions` gives the network's
    conditions for a batch and its number.
    """
    size = min(size, len(data))
    chosen = permutation(0, 0, len(data))[:size]  # the first ones of a folder would be of the first classes
    total, count = 0.0, 0
    bar = tqdm(range(0, size, BATCH_SIZE), **bar_options("Validating", accelerator.is_local_main_process))
    for number, start in enumerate(bar):
        if number % accelerator.num_processes != accelerator.process_index:
            continue
        keys = [(int(index), 0) for index in chosen[start : start + BATCH_SIZE]]
        batch = {name: values.to(accelerator.device) for name, values in data.__getitems__(keys).items()}
        generator = generator_of(seed, "validation", number, device=accelerator.device)
        net = ConditionedNetwork(model, conditions(number, batch))
        with unchanged(objective):
            total += objective(net, batch, generator).sum().item()
        count += len(keys)
    sums = accelerator.reduce(torch.tensor([total, count], device=accelerator.device, dtype=torch.float32), "sum")
    return (sums[0] / sums[1]).item()


class EarlyStopping:
    """Stop when the loss has not been lower by `min_delta` for `patience` validations.

    Args:
        patience: None never stops.
        min_delta: how much lower counts as better.
    """

    def __init__(self, patience: int | None, min_delta: float = 0.0):
        self.patience, self.min_delta = patience, min_delta
        self.best, self.waited = math.inf, 0

    def update(self, loss: float) -> bool:
        """Take note of a loss; True when it is the best so far."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.waited >= self.patience
