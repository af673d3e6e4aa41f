"""What the trainer expects of its data: `TrainingData`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

# Names of columns that mean the same in every data set, unless the user names others.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
CAPTION_COLUMNS = ("text", "caption")

Batch = dict[str, torch.Tensor]
Key = int | tuple[int, int]  # the index of an example, or (index, epoch)


@runtime_checkable
class TrainingData(Protocol):
    """Numbered examples with their labels, read in batches.

    `ExampleData` follows this protocol, and so does the result of `as_training_data` for every data set of the user.

    Attributes:
        channels: number of channels of a sample.
        size: the other dimensions of a sample: (height, width) of an image, (length,) of a signal.
        labels: class numbers, int64 (number of examples,), or None.
        label_names: a name for every class number, or None without labels.
        captions: a text for each example, or None.
        columns: further numbers of each example by column name, float32 (number of examples, width).
        companion: a second image of each example, given as "condition" in the batches, or None.
        stream: all batches of a data set that is read as a stream, or None. The examples of this object are then the
            first ones of the stream.
        description: one line about the data.
        skipped: how many examples could not be read so far.
    """

    channels: int
    size: tuple[int, ...]
    labels: torch.Tensor | None
    label_names: list[str] | None
    captions: list[str] | None
    columns: dict[str, torch.Tensor]
    description: str

    @property
    def companion(self) -> TrainingData | None: ...

    @property
    def stream(self) -> Stream | None: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Batch:
        """One example by its key, without the batch dimension."""

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch by its keys.

        Returns "samples" float32 (B, channels, *size) in [-1, 1], "index" int64 (B,), and where the data have them
        "labels" int64 (B,), "condition" float32 (B, C, *size), and each of `columns` float32 (B, width).
        """

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Give each class the number that its name has in `names`, the classes of the training data.

        Raises ValueError for data without classes, or with a class that is not in `names`.
        """

    def fingerprint(self) -> str:
        """A short hash that changes when the examples, their size or their labels change."""


class Stream(Protocol):
    """All batches of a data set that is read from its beginning to its end again and again."""

    def batches(
        self, batch_size: int, num_processes: int = 1, process_index: int = 0, position: Any = ...
    ) -> torch.utils.data.IterableDataset:
        """The batches of one process from `position` on.

        Each batch holds the "position" after it, int64 (4,). A stream that starts at
        `position=tuple(batch["position"].tolist())` goes on with the next batch.
        """


class ExampleSource(Protocol):
    """Numbered image files.

    Attributes:
        labels: class numbers int64 (number of images,), or None.
        class_names: a name for each class number, or None.
        captions: a text for each image, or None.
        columns: further numbers of each image by column name, float32 (number of images, width).
    """

    labels: np.ndarray | None
    class_names: list[str] | None
    captions: list[str] | None
    columns: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image `index` in a message."""

    def read(self, index: int) -> bytes:
        """The bytes of image `index`'s file. Raises OSError or ValueError when there are none."""


def number_classes(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number the classes that occur in the order of their values.

    Returns class numbers int64 (rows,) and the values as names: the ids 5 and 20240101 become the classes 0 and 1.
    """
    found, labels = np.unique(values, return_inverse=True)
    return labels.reshape(-1).astype(np.int64), [str(value) for value in found.tolist()]


def number_column(values: Sequence[Any], column: str, where: str, rows: Sequence[int] | None = None) -> np.ndarray:
    """A column of numbers, or of lists of equally many numbers, as float32 (rows, width).

    Args:
        values: one for each row.
        column: its name in messages.
        where: what to call the data set in messages.
        rows: the rows' numbers in messages; None counts from 0.

    Raises ValueError, naming the row, for what is no finite number, or not as many as in the first row.
    """
    arrays = [numbers_of(value) for value in values]
    width = 1 if arrays[0] is None else len(arrays[0])
    for row, array in zip(range(len(values)) if rows is None else rows, arrays):
        if array is None or len(array) != width or not np.isfinite(array).all():
            raise ValueError(
                f"'{column}' in row {row} of {where} must hold finite numbers, as many as the other rows ({width})."
            )
    return np.stack([array for array in arrays if array is not None])


def numbers_of(value: Any) -> np.ndarray | None:
    """A number or a plain list of numbers as float32 (width,), or None for anything else."""
    if isinstance(value, (str, bytes)) or value is None:
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        return None
    return array.astype(np.float32).reshape(-1) if array.dtype.kind in "biuf" and array.ndim <= 1 else None
