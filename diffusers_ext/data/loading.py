"""Batches from worker processes, whose errors arrive as they were raised."""

from __future__ import annotations

import contextlib
import pickle
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import Batch, Key


class LostWorkerError(RuntimeError):
    """A worker process was killed, most often for lack of memory."""


class _WorkerTraceback(Exception):
    """The cause of an error that a worker process raised: its traceback as text."""


@dataclass(frozen=True)
class _Failure:
    error: Exception
    text: str


def _failure(error: Exception) -> _Failure:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error that can't travel between processes travels as its text
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failure(error, traceback.format_exc())


class _Guarded(torch.utils.data.Dataset):
    """A data set that gives its errors instead of raising them: torch would give all errors a text of many lines."""

    def __init__(self, data: Any):
        self._data = data

    def __getitems__(self, keys: Sequence[Key]) -> Batch | _Failure:
        try:
            return self._data.__getitems__(keys)
        except Exception as error:
            return _failure(error)


class _GuardedStream(torch.utils.data.IterableDataset):
    def __init__(self, batches: Any):
        self._batches = batches

    def __iter__(self) -> Iterator[Batch | _Failure]:
        try:
            yield from self._batches
        except Exception as error:
            yield _failure(error)


def load_batches(
    data: Any, keys: Iterable[Sequence[Key]] | None = None, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches of `data`, prepared by worker processes.

    Args:
        data: `TrainingData`, or the batches of a stream.
        keys: of each batch; None for the batches of a stream.
        num_workers: number of worker processes; 0 prepares the batches in this process. A stream has at most one.
        pin_memory: whether the batches lie in memory from which a GPU copies quickly.

    Raises what reading the data raises, and LostWorkerError when a worker process is killed.
    """
    source: dict[str, Any] = {"dataset": _GuardedStream(data), "batch_size": None}
    if keys is not None:
        source = {"dataset": _Guarded(data), "batch_sampler": keys, "collate_fn": _unchanged}
    else:
        num_workers = min(num_workers, 1)
    batches = iter(torch.utils.data.DataLoader(**source, num_workers=num_workers, pin_memory=pin_memory))
    while True:
        try:
            batch = next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # an error of the data arrives as a _Failure
            if num_workers == 0:
                raise
            if not isinstance(error, RuntimeError):
                _await_signal()
            raise LostWorkerError(
                f"A process that loads data was killed, most often for lack of memory; use fewer than {num_workers} of "
                "them (dataloader_num_workers)"
            ) from error
        if batch is None:
            return
        if isinstance(batch, _Failure):
            raise batch.error from _WorkerTraceback(batch.text)
        yield batch


def _await_signal() -> None:
    """Take the error that torch raises when it hears of a killed process, a moment after a broken connection."""
    with contextlib.suppress(RuntimeError):
        time.sleep(5)  # the signal ends it


def _unchanged(batch: Any) -> Any:
    return batch
