"""The conditions of one batch, as an objective sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..data.base import Batch, TrainingData
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import seed_of


class ConditionBinding:
    """Binds the conditions of batches to the network.

    Args:
        data: to train on.
        batches_per_epoch: of the training data.
    """

    def __init__(
        self,
        conditioning: Any,
        data: TrainingData,
        seed: int,
        batches_per_epoch: int,
        num_processes: int,
        process_index: int,
    ):
        self.conditioning, self._data, self._seed, self._batches_per_epoch = conditioning, data, seed, batches_per_epoch
        self._num_processes, self._process_index = num_processes, process_index

    def bind(
        self,
        module: Any,
        batch: Batch,
        number: int,
        report: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> ConditionedNetwork:
        """The network under the conditions of training batch `number`, some of them dropped."""

        def null() -> dict[str, Any]:
            return self._inputs(batch, number, torch.ones(len(batch["samples"]), dtype=torch.bool))

        return ConditionedNetwork(module, self.of_training(batch, number), null, report)

    def of_training(self, batch: Batch, number: int) -> dict[str, Any]:
        """Conditions of training batch `number` of this process, some of them dropped."""
        count = len(batch["samples"])
        epoch = number // self._batches_per_epoch
        dropped = self.conditioning.dropped(number, epoch, count * self._num_processes)[self._mine(count)]
        return self._inputs(batch, number, dropped)

    def _inputs(self, batch: Batch, number: int, dropped: torch.Tensor) -> dict[str, Any]:
        seed = seed_of(self._seed, "condition", number)
        return self.conditioning.inputs(batch, self._data, dropped, seed, self._mine(len(batch["samples"])))

    def _mine(self, count: int) -> slice:
        """Where in the global batch this process's samples lie."""
        return slice(self._process_index * count, (self._process_index + 1) * count)

    def of_measurement(self, batch: Batch, number: int, data: TrainingData) -> dict[str, Any]:
        """Conditions of batch `number` of a measurement: the same at every call, none dropped."""
        count = len(batch["samples"])
        seed = seed_of(self._seed, "validation condition", number)
        kept = torch.zeros(count, dtype=torch.bool)
        return self.conditioning.inputs(batch, data, kept, seed, slice(0, count))
