"""Which examples make up which batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from .randomness import permutation

MAX_REPEATS = 1000  # of an example within a batch: more is a slip of the pen


class BatchSchedule:
    """Which examples make up which batch: an infinite batch sampler that can start anywhere.

    The examples form one stream, an epoch's permutation after the other; batch k of the run is its k-th piece of
    `batch_size * num_processes` positions, of which each process takes a contiguous slice. So the processes together
    see what one process with the larger batch would see. The rest of an epoch that does not fill a batch is left out;
    a set smaller than one batch is repeated within it.

    Args:
        num_examples: how many examples there are.
        batch_size: examples a process takes a batch.
        num_processes: how many processes share the batches.
        process_index: which of them this one is.
        seed: of the permutations.
        start_batch: the batch that the iteration starts with.

    Raises ValueError for numbers that make no batches.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
        start_batch: int = 0,
    ):
        for name, number in (
            ("num_examples", num_examples),
            ("batch_size", batch_size),
            ("num_processes", num_processes),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be 0 to num_processes - 1 = {num_processes - 1}, got {process_index}")
        if start_batch < 0:
            raise ValueError(f"start_batch must be at least 0, got {start_batch}")
        if batch_size * num_processes > MAX_REPEATS * num_examples:
            raise ValueError(
                f"train_batch_size {batch_size:,} would repeat each of the {num_examples:,} examples more than "
                f"{MAX_REPEATS:,} times in one batch; use at most {max(1, num_examples // num_processes):,}"
            )
        self.num_examples, self.batch_size, self.seed, self.start_batch = num_examples, batch_size, seed, start_batch
        self.num_processes, self.process_index = num_processes, process_index
        self._global_batch_size = batch_size * num_processes
        self.batches_per_epoch = max(1, num_examples // self._global_batch_size)
        self._used_per_epoch = min(num_examples, self.batches_per_epoch * self._global_batch_size)
        self._permutation: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def keys(self, batch: int) -> list[tuple[int, int]]:
        """The (index, epoch) of the examples of batch number `batch` of the run, for this process."""
        start = batch * self._global_batch_size + self.process_index * self.batch_size
        epochs, places = np.divmod(np.arange(start, start + self.batch_size), self._used_per_epoch)
        indices = np.concatenate([self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])
        return list(zip(indices.tolist(), epochs.tolist()))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.keys, itertools.count(self.start_batch))

    def _order(self, epoch: int) -> np.ndarray:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, permutation(self.seed, epoch, self.num_examples))
        return self._permutation[1]
