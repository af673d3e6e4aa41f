"""Images that are read during training: data sets too large to download or to hold as one table.

What a process reads is a function of (seed, number of processes, process) and of a position in the stream. Every batch
holds the position after it, so a checkpoint that keeps the position of the latest batch resumes with the next image.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import torch

from .base import Batch, number_column
from .decoding import ImageDecoder
from .examples import NAMED_WARNINGS, UnreadableImageError, available_cpus, decode
from .images import ExampleData, ImageOptions, image_data
from .opening import read_regular_file
from .randomness import ORDER, SHARDS, counter_hash
from .tables import check_number_columns, find_image_column, find_label_column, load_splits
from .transforms import Transform, stack_if_alike

if TYPE_CHECKING:
    from .sources import DataRequest

logger = logging.getLogger(__name__)

Position = tuple[int, int, int, int]  # epoch; shard among the process's own, and row in it, of a block; rows used of it
START: Position = (0, 0, 0, 0)
ROWS_PER_SHARD = 2**40  # a row's number in the data set is that of its shard times this, and its own
TABLE_SHARDS = 64  # pieces that a table on this machine is streamed in
MOST_UNREADABLE = 10_000  # images in a row that can't be read before the run gives up


@dataclass(frozen=True)
class Row:
    """One row of the stream: its number in the data set, image file, class (-1 without classes) and further numbers."""

    number: int
    image: dict[str, Any] | bytes | None
    label: int
    numbers: tuple[Any, ...] = ()


class RowReader:
    """The rows of a streamed data set, shard by shard.

    Attributes:
        num_shards: in how many pieces the data come.
        class_names: of the label column, or None.

    Raises ValueError for columns that a stream can't be read by.
    """

    def __init__(self, table: Any, request: DataRequest):
        import datasets

        where = request.where
        if table.features is None:
            raise ValueError(f"{where} does not say what its columns hold, which streaming needs to know")
        self._image_column = find_image_column(table.features, request.image_column, where)
        label_column = find_label_column(table.features, request.label_column, where)
        self.class_names = getattr(table.features[label_column], "names", None) if label_column else None
        if request.label_column is not None and self.class_names is None:
            raise ValueError(
                f"label_column={label_column!r} of {where} has no list of its classes, and a stream can't be searched "
                "for them; train without streaming, or give the column the ClassLabel type"
            )
        self._label_column = label_column if self.class_names else None
        check_number_columns(table.features, request.number_columns, where)
        self.number_columns = tuple(request.number_columns)
        columns = [column for column in (self._image_column, self._label_column, *self.number_columns) if column]
        self._table = table.select_columns(columns).cast_column(self._image_column, datasets.Image(decode=False))
        self.num_shards = table.n_shards

    def first(self, count: int) -> RowSource:
        """The first rows of the data, at hand."""
        rows = itertools.chain.from_iterable(self.rows(shard) for shard in range(self.num_shards))
        return RowSource(list(itertools.islice(rows, count)), self.class_names, self.number_columns)

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """The rows of a shard from row `start` on."""
        from datasets.distributed import split_dataset_by_node

        # As many nodes as shards: each gets one.
        rows: Any = split_dataset_by_node(self._table, shard, self.num_shards)
        for number, row in enumerate(rows.skip(start) if start else rows, start=start):
            label = row[self._label_column] if self._label_column else None
            further = tuple(row[column] for column in self.number_columns)
            yield Row(shard * ROWS_PER_SHARD + number, row[self._image_column], -1 if label is None else label, further)


class RowSource:
    """Rows at hand as an `ExampleSource`."""

    captions: list[str] | None = None

    def __init__(self, rows: list[Row], class_names: list[str] | None, number_columns: Sequence[str] = ()):
        self._rows, self.class_names = rows, class_names
        self.columns = numbers_of_rows(rows, number_columns)
        self.labels = np.array([row.label for row in rows], dtype=np.int64) if class_names else None

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """What to call row `index` in a message."""
        row = self._rows[index]
        path = row.image.get("path") if isinstance(row.image, dict) else None
        shard, number = divmod(row.number, ROWS_PER_SHARD)
        return f"row {number} of shard {shard}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        """The bytes of the image file of row `index`. Raises OSError or ValueError when there are none."""
        image = self._rows[index].image
        if image is None:
            raise ValueError("the row holds no image")
        if isinstance(image, bytes):
            return image
        if image["bytes"] is not None:
            return image["bytes"]
        if os.path.exists(image["path"]):
            return read_regular_file(image["path"])
        with fsspec.open(image["path"], "rb") as file:
            return file.read()


def numbers_of_rows(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The further numbers of these rows, float32 (rows, width) by column."""
    numbers = [row.number % ROWS_PER_SHARD for row in rows]
    values = zip(*(row.numbers for row in rows))
    return {name: number_column(column, name, "the stream", numbers) for name, column in zip(columns, values)}


def open_stream(request: DataRequest) -> RowReader:
    """The image, label and number columns of a data set that is read as it comes.

    Raises FileNotFoundError for a data set that is not there, ValueError for a wrong split or column.
    """
    split, where = request.split, request.where
    splits = load_splits(request, streaming=True)
    if split not in splits:
        part = " streaming takes whole splits;" if "[" in split else ""
        raise ValueError(f"split={split!r} is not in {where};{part} it has: {', '.join(splits)}")
    table: Any = splits[split]
    if hasattr(table, "to_iterable_dataset"):
        if len(table) == 0:
            raise ValueError(f"split={split!r} of {where} holds no rows")
        table = table.to_iterable_dataset(num_shards=min(TABLE_SHARDS, len(table)))
    return RowReader(table, request)


def streamed_image_data(
    reader: RowReader, options: ImageOptions, title: str, streamed_examples: int, shuffle_buffer_size: int
) -> ExampleData:
    """The first `streamed_examples` images of a stream; all of them in the attribute `stream` of the result."""
    head = reader.first(streamed_examples)
    if len(head) == 0:
        raise ValueError(f"{title} holds no rows")
    data = image_data(head, options, title)
    decoder = replace(options.decoder, channels=data.channels)
    data.stream = ImageStream(reader, decoder, options.transform, options.skip_unreadable, shuffle_buffer_size)
    data.description += f", the first of a stream in {reader.num_shards} shards"
    return data


class ImageStream:
    """All images of a streamed data set, in batches, without end.

    An epoch is a new order of the shards. When their number is a multiple of the number of processes, each process
    reads shards of its own; otherwise all read all of them, and each keeps every so-many-th row. So in every epoch the
    processes' rows are disjoint and together the whole. They are shuffled within blocks of `buffer_size` rows. A
    process that has read all of its rows goes on with the next epoch.

    Args:
        reader: of the rows.
        decoder: of the image files.
        transform: crops and flips, drawn for each row by its number.
        skip_unreadable: pass over images that can't be read, with a warning, rather than raise.
        buffer_size: rows to shuffle among one another, held as undecoded files.
    """

    def __init__(
        self,
        reader: RowReader,
        decoder: ImageDecoder,
        transform: Transform,
        skip_unreadable: bool = True,
        buffer_size: int = 1000,
    ):
        self.reader, self.decoder, self.transform = reader, decoder, transform
        self.skip_unreadable, self.buffer_size = skip_unreadable, buffer_size
        self._unreadable = 0

    def batches(
        self, batch_size: int, num_processes: int = 1, process_index: int = 0, position: Position = START
    ) -> StreamedBatches:
        """The batches of a process from `position` on: an iterable data set for a DataLoader without batch size."""
        return StreamedBatches(self, batch_size, num_processes, process_index, position)

    def rows(self, num_processes: int, process_index: int, position: Position) -> Iterator[tuple[int, Row, Position]]:
        """(epoch, row, position after it) of a process's rows, without end. Raises ValueError if there are none."""
        epoch, shard, row, used = position
        while True:
            empty = (shard, row) == (0, 0)
            for place, block in self._blocks(epoch, num_processes, process_index, (shard, row)):
                empty = False
                keys = counter_hash(self.transform.seed, ORDER, epoch, np.array([each.number for each in block]))
                for taken, chosen in enumerate(np.argsort(keys, kind="stable")[used:], start=used + 1):
                    yield epoch, block[chosen], (epoch, *place, taken)
                used = 0
            if empty:
                raise ValueError(f"the data have no row for process {process_index} of {num_processes}")
            epoch, shard, row = epoch + 1, 0, 0

    def _blocks(
        self, epoch: int, num_processes: int, process_index: int, start: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], list[Row]]]:
        """(shard among the process's own, row in it) of the first row of each block, and its rows."""
        rows = self._own_rows(epoch, num_processes, process_index, start)
        while block := list(itertools.islice(rows, self.buffer_size)):
            yield block[0][0], [row for _, row in block]

    def _own_rows(
        self, epoch: int, num_processes: int, process_index: int, start: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], Row]]:
        count = self.reader.num_shards
        order = np.argsort(counter_hash(self.transform.seed, SHARDS, epoch, np.arange(count)), kind="stable")
        by_shard = count % num_processes == 0
        own = order[process_index::num_processes] if by_shard else order
        for place in range(start[0], len(own)):
            shard, first = int(own[place]), start[1] if place == start[0] else 0
            for number, row in enumerate(self.reader.rows(shard, first), start=first):
                if by_shard or (number + place) % num_processes == process_index:
                    yield (place, number), row

    def decoded(self, row: Row) -> np.ndarray | UnreadableImageError:
        """The pixels of a row, (channels, height, width), or why there are none."""
        try:
            return decode(RowSource([row], None), self.decoder, 0)
        except UnreadableImageError as error:
            return error

    def note(self, error: UnreadableImageError) -> None:
        """Take note of an unreadable image. Raises it unless such are skipped."""
        if not self.skip_unreadable:
            raise error
        self._unreadable += 1
        if self._unreadable <= NAMED_WARNINGS:
            logger.warning("%s; it is skipped", error)

    def assemble(self, examples: list[tuple[int, Row, np.ndarray]], position: Position) -> Batch:
        """A batch as `ExampleData` gives it, and the stream's "position" after it, int64 (4,)."""
        epochs, rows, images = zip(*examples)
        numbers = np.array([row.number for row in rows])
        pixels = self.transform(stack_if_alike(list(images)), np.array(epochs), numbers)
        batch = {"samples": torch.from_numpy(pixels), "index": torch.from_numpy(numbers)}
        batch["position"] = torch.tensor(position)
        further = numbers_of_rows(rows, self.reader.number_columns)
        batch |= {name: torch.from_numpy(values) for name, values in further.items()}
        if self.reader.class_names is not None:
            batch["labels"] = torch.tensor([row.label for row in rows])
        return batch


class StreamedBatches(torch.utils.data.IterableDataset):
    """Batches of one process; see `ImageStream.batches`."""

    def __init__(
        self, stream: ImageStream, batch_size: int, num_processes: int, process_index: int, position: Position
    ):
        self._stream, self._batch_size = stream, batch_size
        self._share = num_processes, process_index, position

    def __iter__(self) -> Iterator[Batch]:
        rows = self._stream.rows(*self._share)
        # Threads, not processes: one process reads, and decoding releases the interpreter lock.
        with ThreadPoolExecutor(max_workers=available_cpus()) as pool:
            while True:
                yield self._stream.assemble(*self._readable(rows, pool))

    def _readable(
        self, rows: Iterator[tuple[int, Row, Position]], pool: ThreadPoolExecutor
    ) -> tuple[list[tuple[int, Row, np.ndarray]], Position]:
        """The next examples that can be read, a batch of them, and the position after them."""
        examples: list[tuple[int, Row, np.ndarray]] = []
        tried, last = 0, START
        while len(examples) < self._batch_size:
            wanted = list(itertools.islice(rows, self._batch_size - len(examples)))
            last = wanted[-1][2]
            for (epoch, row, _), image in zip(wanted, pool.map(self._stream.decoded, [w[1] for w in wanted])):
                if isinstance(image, np.ndarray):
                    examples.append((epoch, row, image))
                else:
                    self._stream.note(image)
            tried += len(wanted)
            if not examples and tried >= MOST_UNREADABLE:
                raise UnreadableImageError(f"none of {tried:,} images in a row could be read; the last: {image}")
        return examples, last
