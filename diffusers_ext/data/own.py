"""Data sets of the user: torch data sets, `datasets` tables, lists and iterables of dictionaries.

Every row is a dictionary with one of

- `samples`: numbers (channels, *size) in [-1, 1], used as they are, with any number of dimensions;
- `images`: a Pillow image, an array uint8, or an array of floats in [0, 1]; prepared as `ImageOptions` says;

and, where training needs them, `labels` (an integer or a string), `captions` (a string), `condition` (a second sample
or image of the same kind), and numbers in further columns. The singular names `sample`, `image`, `label`, `caption`,
and `text` mean the same.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .base import Batch, TrainingData, number_column, numbers_of
from .decoding import ImageDecoder
from .images import (
    ImageData,
    ImageOptions,
    Images,
    Preparation,
    counter_hash,
    different_sizes,
    image_data,
    probes,
    size_text,
    stack_if_alike,
)
from .tables import TableSource, find_caption_column, find_image_column, find_label_column, holds_numbers, read_column

logger = logging.getLogger(__name__)

SAMPLE_KEYS = ("samples", "sample")
IMAGE_KEYS = ("images", "image", "img")
LABEL_KEYS = ("labels", "label")
CAPTION_KEYS = ("captions", "caption", "text")
CONDITION_KEYS = ("condition",)
OWN_CODE = 4  # what random numbers are for, after FLIP, CROP, ORDER and SHARDS
STREAM_HEAD = 256  # rows of a stream that are kept at hand, for checks, figures and the fingerprint
SLACK = 1e-3  # by which samples may leave [-1, 1], for rounding


def as_training_data(
    dataset: Any, *, name: str = "train_dataset", streamed_examples: int = STREAM_HEAD, **image_options: Any
) -> TrainingData:
    """A data set of the user as the data that the trainer reads.

    Args:
        dataset: a torch `Dataset`, a `datasets.Dataset` (or its iterable kind), a list, or an iterable of dictionaries;
            see this module's description for the columns. An attribute `label_names` names the classes 0, 1, ...;
            without it the classes are numbered in the order of their sorted values. Rows are read when they are needed,
            with Python's, NumPy's and PyTorch's global random numbers set by (seed, epoch, index): random augmentation
            in `__getitem__` differs between epochs and is the same after a resume.
        name: what to call the data set in messages.
        streamed_examples: how many rows of an iterable without a length are kept at hand.
        image_options: see `ImageOptions`; they apply to `images`. Only `seed` and `resolution`, as a check, apply to
            `samples`.

    Raises ValueError or TypeError, in one sentence, for data that cannot be used.
    """
    options = ImageOptions(**image_options)
    if isinstance(dataset, ImageData):
        return dataset
    if _is_plain_image_table(dataset):
        return _table_data(dataset, options, name)
    if hasattr(dataset, "__getitem__") and _length(dataset) is not None and not isinstance(dataset, (Mapping, str)):
        rows = Rows(dataset, name, options.seed)
        return _row_data(rows, RowFormat.of(rows, options), options, _label_names(dataset))
    if isinstance(dataset, Iterable) and not isinstance(dataset, (Mapping, str)):
        return _streamed_data(dataset, options, name, streamed_examples)
    raise TypeError(
        f"{name} must be a torch Dataset, a datasets.Dataset, a list or an iterable of dictionaries, "
        f"got {type(dataset).__name__}."
    )


def _length(dataset: Any) -> int | None:
    if not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except TypeError:  # how torch's and `datasets`' iterable kinds say that they have no length
        return None


def _label_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "label_names", None)
    features = getattr(dataset, "features", None) or {}  # a ClassLabel of `datasets`
    for key in LABEL_KEYS if names is None and isinstance(features, Mapping) else ():
        names = names or getattr(features.get(key), "names", None)
    return None if names is None else [str(each) for each in names]


def _is_plain_image_table(dataset: Any) -> bool:
    """A `datasets.Dataset` with image files and no transform of the user's: read like every table of the package."""
    import datasets

    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] is not None:
        return False
    named = [key for key in IMAGE_KEYS if key in dataset.features]
    return bool(named) and isinstance(dataset.features[named[0]], datasets.Image)


def _table_data(table: Any, options: ImageOptions, name: str) -> ImageData:
    if len(table) == 0:
        raise ValueError(f"{name} has no rows.")
    features = table.features
    image = find_image_column(features, next(key for key in IMAGE_KEYS if key in features), name)
    caption = next((key for key in CAPTION_KEYS if key in features), None)
    roles = (image, *LABEL_KEYS, *CAPTION_KEYS)
    numbers = [column for column in features if column not in roles and holds_numbers(features[column])]
    label, caption = find_label_column(features, None, name), find_caption_column(features, caption, name)
    source = TableSource(table, image, label, caption)
    source.columns = complete_columns({column: read_column(table, column) for column in numbers}, name)
    return image_data(source, options, name)


def complete_columns(values: Mapping[str, list[Any]], name: str) -> dict[str, np.ndarray]:
    """The columns that hold numbers in every row, float32 (rows, width); others are ignored with a warning."""
    columns = {}
    for column, column_values in values.items():
        try:
            columns[column] = number_column(column_values, column, name)
        except ValueError as error:
            logger.warning("%s The column is ignored.", error)
    return columns


class Rows:
    """The rows of a data set of the user by number, each as a dictionary.

    Args:
        dataset: gives dictionaries by `dataset[index]`.
        name: what to call it in messages.
        seed: of the random numbers that its own code draws.
    """

    def __init__(self, dataset: Any, name: str, seed: int):
        self.name, self._dataset, self._seed = name, dataset, seed
        self._runs_code = not isinstance(dataset, (list, tuple))
        if len(dataset) == 0:
            raise ValueError(f"{name} has no rows.")

    def __len__(self) -> int:
        return len(self._dataset)

    def __call__(self, index: int, epoch: int = 0) -> Mapping[str, Any]:
        """Row `index` as it is in `epoch`. Raises ValueError for a row that is not a dictionary."""
        if self._runs_code:
            with random_numbers_of(self._seed, epoch, index):
                row = self._dataset[index]
        else:
            row = self._dataset[index]
        return _checked_row(row, f"row {index} of {self.name}")


def _checked_row(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be a dictionary with 'images' or 'samples', got {type(row).__name__}.")
    return row


@contextmanager
def random_numbers_of(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Set the global random numbers of Python, NumPy and PyTorch (on the CPU) for one row, and restore them."""
    number = int(counter_hash(seed, OWN_CODE, epoch, index)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class Columns:
    """Which columns of a row mean what.

    Attributes:
        sample: the column with the sample.
        is_image: whether that holds images to prepare, rather than finished samples.
        label: the column with the class, or None.
        caption: the column with the text, or None.
        condition: the column with the second sample or image, or None.
        numbers: further columns with numbers.
    """

    sample: str
    is_image: bool
    label: str | None
    caption: str | None
    condition: str | None
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> Columns:
        """The columns of a data set whose first row is `row`. Raises ValueError without a column of samples."""
        samples, images = _first(SAMPLE_KEYS, row), _first(IMAGE_KEYS, row)
        sample = samples or images
        if sample is None:
            raise ValueError(
                f"the rows of {name} must have 'images' or 'samples', but the first row has {', '.join(map(str, row))}."
            )
        roles = (*SAMPLE_KEYS, *IMAGE_KEYS, *LABEL_KEYS, *CAPTION_KEYS, *CONDITION_KEYS, "index", "position")
        numbers = tuple(str(key) for key, value in row.items() if key not in roles and numbers_of(value) is not None)
        left_out = [str(key) for key in row if key not in roles and key not in numbers]
        if left_out:
            logger.warning(
                "columns of %s that hold neither images nor numbers are ignored: %s", name, ", ".join(left_out)
            )
        return cls(
            sample,
            samples is None,
            _first(LABEL_KEYS, row),
            _first(CAPTION_KEYS, row),
            _first(CONDITION_KEYS, row),
            numbers,
        )

    @property
    def arrays(self) -> list[str]:
        """The columns with samples or images."""
        return [self.sample] if self.condition is None else [self.sample, self.condition]

    @property
    def light(self) -> list[str]:
        """The columns that are read whole at the start: class, text and numbers."""
        return [name for name in (self.label, self.caption, *self.numbers) if name is not None]


def _first(keys: Sequence[str], row: Mapping[str, Any]) -> str | None:
    return next((key for key in keys if key in row), None)


@dataclass(frozen=True)
class RowReader:
    """The arrays of a row, (channels, *size): finished samples as float32, images as uint8 or float32 in [0, 1]."""

    column: str
    decoder: ImageDecoder | None  # None for finished samples
    name: str

    def __call__(self, row: Mapping[str, Any], number: int) -> np.ndarray:
        """The array of row `number`. Raises ValueError, naming the row."""
        where = f"'{self.column}' in row {number} of {self.name}"
        if self.column not in row:
            raise ValueError(f"row {number} of {self.name} has no '{self.column}', which the first row has.")
        value = row[self.column]
        if self.decoder is None:
            return finished_sample(value, where)
        if isinstance(value, Image.Image):
            return self.decoder.pixels(value)
        array = image_array(value, where)
        if array.dtype == np.uint8:
            plain = array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
            return self.decoder.pixels(Image.fromarray(plain))
        return self.decoder.float_pixels(array)


def _array(value: Any, where: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "buif":
        raise ValueError(f"{where} must hold numbers, got {type(value).__name__}.")
    if array.size == 0:
        raise ValueError(f"{where} is empty.")
    return array


def finished_sample(value: Any, where: str) -> np.ndarray:
    """A sample float32 (channels, *size). Raises ValueError for other shapes, and for values outside [-1, 1]."""
    array = _array(value, where)
    if array.dtype.kind != "f":
        raise ValueError(f"{where} must be floats in [-1, 1], got {array.dtype}; give 8-bit pixels as 'images'.")
    if array.ndim < 2:
        raise ValueError(f"{where} must have the shape (channels, *size), got {array.shape}.")
    low, high = array.min(), array.max()
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # written so that NaN fails too
        raise ValueError(f"{where} must be in [-1, 1], got values from {low:g} to {high:g}.")
    return array.astype(np.float32)


def image_array(value: Any, where: str) -> np.ndarray:
    """An image uint8 or float32 in [0, 1], (1 or 3, height, width).

    Arrays are (height, width, channels) and tensors (channels, height, width) where their shape allows both. Raises
    ValueError for other shapes, kinds and ranges.
    """
    array = _array(value, where)
    array = _channels_first(array, isinstance(value, torch.Tensor), where)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"{where} must be uint8 or floats in [0, 1], got {array.dtype}.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{where} must be uint8 or floats in [0, 1], got floats from {low:g} to {high:g}; "
            "give data in [-1, 1] as 'samples'."
        )
    return array.astype(np.float32)


def _channels_first(array: np.ndarray, is_tensor: bool, where: str) -> np.ndarray:
    if array.ndim == 2:
        return array[None]
    first, last = (array.ndim == 3 and array.shape[axis] in (1, 3) for axis in (0, -1))
    if first and (is_tensor or not last):
        return array
    if last:
        return array.transpose(2, 0, 1)
    raise ValueError(
        f"{where} must be a Pillow image or an array of 1 or 3 channels, (height, width, channels) or "
        f"(channels, height, width), got the shape {array.shape}."
    )


class OwnData(ImageData):
    """The data of a data set of the user, with how its rows are read."""

    form: RowFormat
    classes: Classes | None


class RowExamples:
    """The arrays of a data set of the user, read row by row; the `Examples` of an `ImageData`."""

    where = "read row by row"
    skipped = 0

    def __init__(self, rows: Rows, reader: RowReader):
        self._rows, self._reader = rows, reader
        self.positions = np.arange(len(rows))

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Images, np.ndarray]:
        """The arrays at `indices` as they are in `epochs`, and `indices`."""
        return stack_if_alike([self.array(int(i), int(e)) for i, e in zip(indices, epochs)]), indices

    def array(self, index: int, epoch: int = 0) -> np.ndarray:
        """The array of one row."""
        return self._reader(self._rows(index, epoch), index)

    def digest(self) -> bytes:
        """A hash of some of the arrays."""
        digest = hashlib.sha256()
        for index in probes(len(self)):
            digest.update(self.array(index).tobytes())
        return digest.digest()


@dataclass(frozen=True)
class AsTheyAre:
    """The preparation of finished samples: none, but all must have one shape."""

    name: str

    def __call__(self, arrays: Images, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The samples float32 (B, channels, *size). Raises ValueError when their shapes differ."""
        if isinstance(arrays, list):
            shapes = sorted({array.shape for array in arrays})
            raise ValueError(f"the samples of {self.name} must have one shape, got {shapes[0]} and {shapes[1]}.")
        return arrays


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


def _row_data(rows: Rows, form: RowFormat, options: ImageOptions, label_names: list[str] | None) -> OwnData:
    columns = form.columns
    light = _read_light_columns(rows, columns)
    classes = None if columns.label is None else Classes.of(light[columns.label], label_names, rows.name)
    labels = None
    if classes is not None and columns.label is not None:
        labels = np.array(
            [classes.number(value, row) for row, value in enumerate(light[columns.label])], dtype=np.int64
        )
    data = OwnData(
        RowExamples(rows, form.sample),
        form.prepare,
        labels,
        None if classes is None else classes.names,
        rows.name,
        None if columns.caption is None else [str(text) for text in light[columns.caption]],
        complete_columns({name: light[name] for name in columns.numbers}, rows.name),
        "images" if columns.is_image else "samples",
    )
    columns = replace(columns, numbers=tuple(data.columns))
    data.form, data.classes = replace(form, columns=columns), classes
    if not columns.is_image and options.resolution is not None and set(data.size) != {options.resolution}:
        raise ValueError(
            f"the samples of {rows.name} have the size {size_text(data.size)} and are used as they are, but resolution "
            f"is {options.resolution}; leave resolution out, or give 'images', which are resized."
        )
    if form.condition is not None:
        data.companion = ImageData(RowExamples(rows, form.condition), form.prepare, title=rows.name)
    return data


def _read_light_columns(rows: Rows, columns: Columns) -> dict[str, list[Any]]:
    """Labels, captions and numbers of all rows: a first pass over the data, only where there are such columns."""
    found: dict[str, list[Any]] = {name: [] for name in columns.light}
    for index in range(len(rows)) if found else ():
        row = rows(index)
        for name, values in found.items():
            if row.get(name) is None and name not in columns.numbers:
                raise ValueError(f"row {index} of {rows.name} has no '{name}', which the first row has.")
            values.append(row.get(name))
    return found


def _label(value: Any, where: str) -> int | str:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and np.asarray(value).size == 1:
        value = value.item()
    if isinstance(value, (int, str)):
        return int(value) if isinstance(value, bool) else value
    raise ValueError(f"{where} must be one integer or string, got {value!r}.")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set of the user.

    Attributes:
        names: a name for each class number.
        numbers: the class number of each value of the label column.
        dataset: what to call the data set in messages.
    """

    names: list[str]
    numbers: dict[int | str, int]
    dataset: str

    @classmethod
    def of(cls, values: list[Any], names: list[str] | None, dataset: str) -> Classes:
        """The classes with these names, or else those that occur among `values`, in the order of their values."""
        if names is not None:
            return cls(
                names, {**{name: i for i, name in enumerate(names)}, **{i: i for i in range(len(names))}}, dataset
            )
        labels = [_label(value, f"the label in row {index} of {dataset}") for index, value in enumerate(values)]
        if len({type(label) for label in labels}) > 1:
            raise ValueError(f"the labels of {dataset} must be all integers or all strings.")
        found = sorted(set(labels))
        return cls([str(label) for label in found], {label: i for i, label in enumerate(found)}, dataset)

    def number(self, value: Any, row: int) -> int:
        """The class number of a value of the label column. Raises ValueError for an unknown class."""
        label = _label(value, f"the label in row {row} of {self.dataset}")
        if label not in self.numbers:
            raise ValueError(
                f"the label in row {row} of {self.dataset} is {label!r}, which is not among its {len(self.names)} "
                "classes; list all classes in the attribute label_names of the data set."
            )
        return self.numbers[label]


# --- iterables without a length --------------------------------------------------------------------------------------

Position = tuple[int, int, int, int]  # epoch, rows used of it, and two zeros


def _streamed_data(dataset: Any, options: ImageOptions, name: str, streamed_examples: int) -> OwnData:
    if iter(dataset) is dataset:
        raise ValueError(
            f"{name} can be read only once, but training reads it again in every epoch and after a resume; "
            "give a list, a torch Dataset, or an IterableDataset whose __iter__ starts from the beginning."
        )
    iterated = Iterated(dataset, name, options.seed)
    head = Rows([row for row, _ in itertools.islice(iterated.rows(0, 0), streamed_examples)], name, options.seed)
    form = RowFormat.of(head, options)
    if form.columns.caption is not None:
        logger.warning("captions of %s are ignored: texts need a data set with a length", name)
        form = replace(form, columns=replace(form.columns, caption=None))
    data = _row_data(head, form, options, _label_names(dataset))
    data.stream = OwnStream(iterated, data.form, data.classes, (data.channels, *data.size))
    data.description += f", the first {len(data)} of a stream"
    return data


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
                yield _checked_row(row, f"row {number} of {self.name}"), number


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
