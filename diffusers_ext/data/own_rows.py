"""The rows of a data set of the user: how they are read, checked and numbered."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .base import numbers_of
from .decoding import ImageDecoder
from .examples import probes
from .randomness import OWN_CODE, counter_hash
from .transforms import Arrays, stack_if_alike

logger = logging.getLogger(__name__)

SAMPLE_KEYS = ("samples", "sample")
IMAGE_KEYS = ("images", "image", "img")
LABEL_KEYS = ("labels", "label")
CAPTION_KEYS = ("captions", "caption", "text")
CONDITION_KEYS = ("condition",)
SLACK = 1e-3  # by which samples may leave [-1, 1], for rounding


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
        return checked_row(row, f"row {index} of {self.name}")


def checked_row(row: Any, where: str) -> Mapping[str, Any]:
    """The row. Raises ValueError, naming `where` it stands, for anything but a dictionary."""
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
    if array.dtype == np.int64 and array.min() >= 0 and array.max() <= 255:  # how a `datasets.Dataset` gives pixels
        array = array.astype(np.uint8)
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


class RowExamples:
    """The arrays of a data set of the user, read row by row; the `Examples` of an `ExampleData`."""

    where = "read row by row"
    skipped = 0

    def __init__(self, rows: Rows, reader: RowReader):
        self._rows, self._reader = rows, reader
        self.positions = np.arange(len(rows))

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Arrays, np.ndarray]:
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

    def __call__(self, arrays: Arrays, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The samples float32 (B, channels, *size). Raises ValueError when their shapes differ."""
        if isinstance(arrays, list):
            shapes = sorted({array.shape for array in arrays})
            raise ValueError(f"the samples of {self.name} must have one shape, got {shapes[0]} and {shapes[1]}.")
        return arrays


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
