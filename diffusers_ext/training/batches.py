"""The batches of a run, from any step on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.base import Batch, TrainingData
from ..data.loading import LostWorkerError, load_batches
from ..data.schedule import BatchSchedule
from ..data.streaming import START

logger = logging.getLogger(__name__)


class Batches:
    """What each process reads of the data, batch by batch; a function of (seed, number of the batch, process).

    Args:
        data: to train on.
        batch_size: of one process.
        seed: of the order.
        num_workers: processes that prepare batches; 0 prepares them in this one.
        batches_of_stream: how many batches count as one epoch of a stream, which does not say how long it is.
    """

    def __init__(
        self,
        data: TrainingData,
        accelerator: Accelerator,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        batches_of_stream: int = 1,
    ):
        self.data, self.batch_size, self.seed, self._num_workers = data, batch_size, seed, num_workers
        self._accelerator = accelerator
        self._position = self._learned = START
        streamed = data.stream is not None
        self.batches_per_epoch = batches_of_stream if streamed else self._schedule(0).batches_per_epoch

    def use(self, accelerator: Accelerator) -> None:
        """Go on with another Accelerator of the same processes."""
        self._accelerator = accelerator

    @property
    def _share(self) -> tuple[int, int]:
        return self._accelerator.num_processes, self._accelerator.process_index

    def _schedule(self, first: int) -> BatchSchedule:
        return BatchSchedule(len(self.data), self.batch_size, *self._share, self.seed, first)

    def since(self, first: int) -> Iterator[tuple[int, Batch]]:
        """(number, batch on the device) of every batch from number `first` on, without end.

        A worker process that is killed, for want of memory for instance, costs nothing: its batch and those after it
        are prepared in this process.
        """
        number = first
        while True:
            try:
                for batch in self._loader(number):
                    if "position" in batch:
                        self._position = tuple(batch.pop("position").tolist())
                    yield number, self.on_device(batch)
                    number += 1
            except LostWorkerError as error:
                self._num_workers = 0
                logger.warning("%s. Training goes on without such processes.", error)

    def _loader(self, first: int) -> Iterator[Batch]:
        pinned = self._accelerator.device.type == "cuda"
        if self.data.stream is not None:
            batches = self.data.stream.batches(self.batch_size, *self._share, self._position)
            return load_batches(batches, None, self._num_workers, pinned)
        return load_batches(self.data, self._schedule(first), self._num_workers, pinned)

    def first(self, count: int) -> Batch:
        """A batch of the first `count` examples, on the device; of fewer, repeated."""
        return self.on_device(self.data.__getitems__([(index % len(self.data), 0) for index in range(count)]))

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the device of the run."""
        device = self._accelerator.device
        return {name: values.to(device, non_blocking=True) for name, values in batch.items()}

    def commit(self) -> None:
        """All batches that were read have been learned from."""
        self._learned = self._position

    def state_dict(self) -> dict[str, Any]:
        """Where each process is in the stream, after the batches that it has learned from."""
        if self.data.stream is None:
            return {}
        own = [list(self._learned)]
        return {"positions": gather_object(own) if self._accelerator.num_processes > 1 else own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at these positions. Raises ValueError for those of another number of processes, or of no stream."""
        if self.data.stream is None:
            return
        if "positions" not in state:
            raise ValueError("it is not of a run with streaming")
        saved, now = len(state["positions"]), self._accelerator.num_processes
        if saved != now:
            raise ValueError(
                f"it is of a streamed run by {saved} processes, whose shares {now} processes can't take over; resume "
                f"it with --num_processes {saved}"
            )
        self._position = self._learned = tuple(state["positions"][self._accelerator.process_index])
