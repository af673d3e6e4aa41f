"""Data sets of the user that are iterated over, with exact resume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .base import Batch, number_column
from .examples import probes
from .images import ImageOptions
from .own_rows import AsTheyAre, Classes, Columns, RowReader, Rows, checked_row, random_numbers_of
from .transforms import Preparation, different_sizes, stack_if_alike


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a data set of the user become samples.

    Attributes:
        columns: which column means what.
        sample: reads the array of a row.
        condition: reads the second array of a row, or None.
        prepare: turns the arrays of a batch into samples.
    """

    columns: Columns
    sample: RowReader
    condition: RowReader | None
    prepare: Preparation

    @classmethod
    def of(cls, rows: Rows, options: ImageOptions) -> RowFormat:
        """The format of a data set, from its first row, and for the number of channels from up to 64 rows."""
        columns = Columns.of(rows(0), rows.name)
        readers = {column: _reader(rows, column, columns.is_image, options) for column in columns.arrays}
        prepare: Preparation = options.transform if columns.is_image else AsTheyAre(rows.name)
        return cls(columns, readers[columns.sample], readers.get(columns.condition or ""), prepare)


def _reader(rows: Rows, column: str, is_image: bool, options: ImageOptions) -> RowReader:
    reader = RowReader(column, options.decoder if is_image else None, rows.name)
    if not is_image or options.channels is not None:
        return reader
    channels = max(len(reader(rows(index), index)) for index in probes(len(rows)))
    return replace(reader, decoder=replace(options.decoder, channels=channels))


Position = tuple[int, int, int, int]  # epoch, rows used of it, and two zeros


class Iterated:
    """The rows of an iterable, from any row on."""

    def __init__(self, dataset: Any, name: str, seed: int):
        self.name, self._dataset, self._seed = name, dataset, seed

    def rows(self, epoch: int, start: int) -> Iterator[tuple[Mapping[str, Any], int]]:
        """(row, its number) of the rows of an epoch from number `start` on. Earlier rows are read and thrown away."""
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        with random_numbers_of(self._seed, epoch, 0):
            rows = iter(self._dataset)
        for number in itertools.count():
            with random_numbers_of(self._seed, epoch, number):
                row = next(rows, None)
            if row is None:
                return
            if number >= start:
                yield checked_row(row, f"row {number} of {self.name}"), number


class OwnStream:
    """All rows of an iterable of the user in batches, epoch after epoch; see `Stream`.

    Every process reads all rows and keeps every `num_processes`-th. The order is the iterable's own.

    Args:
        rows: of the iterable.
        form: how rows become samples.
        classes: of the rows, or None.
        shape: of a sample, (channels, *size).
    """

    def __init__(self, rows: Iterated, form: RowFormat, classes: Classes | None, shape: tuple[int, ...]):
        self._rows, self._form, self._classes, self._shape = rows, form, classes, shape

    def batches(
        self, batch_size: int, num_processes: int = 1, process_index: int = 0, position: Position = (0, 0, 0, 0)
    ) -> OwnBatches:
        """The batches of one process from `position` on."""
        return OwnBatches(self, batch_size, num_processes, process_index, position)

    def examples(self, num_processes: int, process_index: int, position: Position) -> Iterator[tuple[Any, int, int]]:
        """(row, its number, its epoch) of the rows of a process, without end."""
        epoch, start = position[:2]
        while True:
            found = False
            for row, number in self._rows.rows(epoch, start):
                if number % num_processes == process_index:
                    found = True
                    yield row, number, epoch
            if not found and start == 0:
                raise ValueError(f"{self._rows.name} has no row for process {process_index} of {num_processes}.")
            epoch, start = epoch + 1, 0

    def assemble(self, examples: list[tuple[Any, int, int]]) -> Batch:
        """A batch of these rows, and the "position" after them."""
        form, name = self._form, self._rows.name
        rows, numbers, epochs = zip(*examples)
        batch = {"samples": self._samples(form.sample, *map(list, (rows, numbers, epochs)))}
        if batch["samples"].shape[1:] != self._shape:
            raise ValueError(different_sizes([self._shape[1:], batch["samples"].shape[2:]]))
        batch["index"] = torch.tensor(numbers)
        batch["position"] = torch.tensor((epochs[-1], numbers[-1] + 1, 0, 0))
        if self._classes is not None and form.columns.label is not None:
            values = [row.get(form.columns.label) for row in rows]
            batch["labels"] = torch.tensor([self._classes.number(v, n) for v, n in zip(values, numbers)])
        for column in form.columns.numbers:
            batch[column] = torch.from_numpy(number_column([row.get(column) for row in rows], column, name, numbers))
        if form.condition is not None:
            batch["condition"] = self._samples(form.condition, *map(list, (rows, numbers, epochs)))
        return batch

    def _samples(self, reader: RowReader, rows: list[Any], numbers: list[int], epochs: list[int]) -> torch.Tensor:
        arrays = stack_if_alike([reader(row, number) for row, number in zip(rows, numbers)])
        return torch.from_numpy(self._form.prepare(arrays, np.array(epochs), np.array(numbers)))


class OwnBatches(torch.utils.data.IterableDataset):
    """The batches of one process; see `OwnStream.batches`."""

    def __init__(self, stream: OwnStream, *share: Any):
        self._stream, self._share = stream, share

    def __iter__(self) -> Iterator[Batch]:
        batch_size, num_processes, process_index, position = self._share
        examples = self._stream.examples(num_processes, process_index, position)
        while rows := list(itertools.islice(examples, batch_size)):
            yield self._stream.assemble(rows)
