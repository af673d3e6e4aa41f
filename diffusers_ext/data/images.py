"""Images for training: options, and batches by keys.

`load_image_data` finds and reads the images, and `ExampleData` turns keys into batches. All randomness is a function of
(seed, epoch, index), so a run can be resumed at any batch and split over any number of processes without a change of
what it sees.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from .base import Batch, ExampleSource, Key, Stream
from .decoding import ImageDecoder, parse_background
from .examples import Examples, UnreadableImageError, read_examples
from .transforms import Arrays, Preparation, Transform, different_sizes, size_text


@dataclass(frozen=True)
class ImageOptions:
    """How images are decoded, resized, cropped and flipped.

    Args:
        resolution: side in pixels of the square images to train on; None keeps the images' own size, which must then be
            the same for all.
        channels: 1 or 3; None gives 1 when all images are greyscale and 3 otherwise.
        center_crop: crop the centre, instead of a random place, of images that are not square after the resize.
        random_flip: mirror every other image left to right.
        resize_scale: resize the shorter side to `int(resize_scale * resolution)`, at least 1, before the crop.
        random_resized_crop: crop a random share of the area, within this range, and resize it to `resolution`.
        preserve_input_precision: keep 16-bit and float images, and the results of resizing, unrounded as float32.
        alpha_background: the colour behind transparent pixels, as Pillow names it.
        on_unreadable_image: "skip" unreadable images with a warning, or raise an "error".
        max_memory_bytes: decode all images once into memory when they take less than this, else decode when read.
        seed: of the crops and flips.

    Raises ValueError for a value that is out of range, or for two that contradict each other.
    """

    resolution: int | None = None
    channels: int | None = None
    center_crop: bool = False
    random_flip: bool = False
    resize_scale: float = 1.0
    random_resized_crop: tuple[float, float] | None = None
    preserve_input_precision: bool = False
    alpha_background: str = "white"
    on_unreadable_image: str = "skip"
    max_memory_bytes: int = 2 * 1024**3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"channels must be 1 (greyscale), 3 (colour) or None (as the images are), got {self.channels!r}"
            )
        if self.on_unreadable_image not in ("skip", "error"):
            raise ValueError(f"on_unreadable_image must be 'skip' or 'error', got {self.on_unreadable_image!r}")
        _ = self.transform, self.decoder  # they check the other values

    @property
    def transform(self) -> Transform:
        """The part of the preparation that is drawn anew in every epoch."""
        return Transform(
            self.resolution, self.center_crop, self.random_flip, self.resize_scale, self.random_resized_crop, self.seed
        )

    @property
    def decoder(self) -> ImageDecoder:
        """The part of the preparation that is the same in every epoch."""
        return ImageDecoder(
            self.channels,
            shorter_side=self.transform.shorter_side,
            center_crop=self.resolution if self.center_crop else None,
            precise=self.preserve_input_precision,
            background=parse_background(self.alpha_background),
        )

    @property
    def skip_unreadable(self) -> bool:
        """Whether an unreadable image is skipped with a warning."""
        return self.on_unreadable_image == "skip"


def load_image_data(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | os.PathLike | None = None,
    split: str = "train",
    **settings: Any,
) -> ExampleData:
    """Load images for training.

    Args:
        dataset_name, dataset_config_name, train_data_dir, split: where the images are; see `sources.DataRequest`.
        settings: the other arguments of `sources.DataRequest`, and those of `ImageOptions`.

    Raises ValueError, FileNotFoundError or ConnectionError, in one sentence, for data that cannot be found or read.
    """

    from .sources import DataRequest, load_data

    prepared = {each.name: settings.pop(each.name) for each in fields(ImageOptions) if each.name in settings}
    request = DataRequest(dataset_name, dataset_config_name, train_data_dir, split, **settings)
    return load_data(request, ImageOptions(**prepared))


def image_data(source: ExampleSource, options: ImageOptions, title: str) -> ExampleData:
    """The images of a source, decoded now or when they are read."""
    images = read_examples(source, options.decoder, options.max_memory_bytes, options.skip_unreadable)
    return ExampleData(
        images, options.transform, source.labels, source.class_names, title, source.captions, source.columns
    )


def indices_and_epochs(keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """The two parts of the keys of a batch, int64 (B,) each; indices alone are of epoch 0."""
    pairs = np.asarray(keys, dtype=np.int64).reshape(len(keys), -1)
    return pairs[:, 0], pairs[:, 1] if pairs.shape[1] > 1 else np.zeros(len(pairs), dtype=np.int64)


class ExampleData(torch.utils.data.Dataset):
    """Numbered examples with their labels, read in batches by keys (index, epoch). Follows `TrainingData`.

    Args:
        examples: the arrays.
        prepare: turns the arrays of a batch into samples.
        labels: class numbers for every row of the source, int64, or None.
        label_names: a name for each class number; None takes the numbers themselves.
        title: what the description calls the data.
        captions: a text for every row of the source, or None.
        columns: further numbers for every row of the source by column name, float32 (rows, width).
        noun: what the description calls the examples.
    """

    def __init__(
        self,
        examples: Examples,
        prepare: Preparation,
        labels: np.ndarray | None = None,
        label_names: list[str] | None = None,
        title: str = "images",
        captions: Sequence[str] | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        noun: str = "images",
    ):
        self._examples, self._prepare = examples, prepare
        positions = examples.positions
        self.captions = None if captions is None else [captions[position] for position in positions]
        self.columns = {name: torch.from_numpy(values[positions]) for name, values in (columns or {}).items()}
        self.labels = None if labels is None else torch.from_numpy(labels[positions])
        self.label_names = label_names
        if self.labels is not None and label_names is None:
            self.label_names = [str(number) for number in range(int(self.labels.max()) + 1)]
        self.companion: ExampleData | None = None
        self.stream: Stream | None = None
        self.size: tuple[int, ...] = ()  # until the first example has been read
        self.channels, *size = self[0]["samples"].shape
        self.size = tuple(size)
        color = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        classes = f", {len(self.label_names)} classes" if self.label_names else ""
        self.description = f"{title}: {len(self):,} {noun}, {size_text(self.size)}, {color}{classes}, {examples.where}"

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def skipped(self) -> int:
        """How many examples could not be read (for images on disk: so far)."""
        return self._examples.skipped

    def __getitem__(self, key: Key) -> Batch:
        """One example, without the batch dimension, by its index (epoch 0) or its (index, epoch)."""
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch by its keys (index, epoch), or by indices alone (epoch 0); see `TrainingData`."""
        indices, epochs = indices_and_epochs(keys)
        arrays, used, beside = self._rows(indices, epochs)
        batch = {"samples": self._prepared(arrays, epochs, indices), "index": torch.from_numpy(used)}
        if self.labels is not None:
            batch["labels"] = self.labels[batch["index"]]
        batch |= {name: values[batch["index"]] for name, values in self.columns.items()}
        if self.companion is not None and beside is not None:
            batch["condition"] = self.companion._prepared(beside, epochs, indices)
        return batch

    def _prepared(self, arrays: Arrays, epochs: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        samples = self._prepare(arrays, epochs, indices)
        if self.size and samples.shape[1:] != (self.channels, *self.size):
            raise ValueError(different_sizes([self.size, samples.shape[2:]]))
        return torch.from_numpy(samples)

    def _rows(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Arrays, np.ndarray, Arrays | None]:
        """Arrays, their indices, and the companion's arrays of the same rows.

        Raises UnreadableImageError when no row is readable in both.
        """
        arrays, used = self._examples.read(indices, epochs)
        if self.companion is None:
            return arrays, used, None
        for _ in range(len(self)):
            beside, rows = self.companion._examples.read(used, epochs)
            if np.array_equal(rows, used):
                return arrays, used, beside
            # A row with one unreadable image is replaced whole: the two must show the same scene.
            arrays, used = self._examples.read(rows, epochs)
        raise UnreadableImageError("no row of the data has readable images in both columns")

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Give each class the number that its name has in `names`. A split that is read alone numbers its own classes.

        Raises ValueError for data without classes, or with a class that is not in `names`.
        """
        if self.labels is None or self.label_names is None:
            raise ValueError(f"{self.description} has no classes, but the training data have.")
        numbers = {name: number for number, name in enumerate(names)}
        found, places = self.labels.unique(return_inverse=True)
        called = [self.label_names[label] if label >= 0 else str(label) for label in found.tolist()]
        unknown = [name for name in called if name not in numbers]
        if unknown:
            raise ValueError(f"{self.description} has a class '{unknown[0]}', which the training data do not have.")
        self.labels = torch.tensor([numbers[name] for name in called])[places]
        self.label_names = list(names)

    def accompany(self, companion: ExampleData) -> None:
        """Add the images of `companion`, another column of the same rows, to every batch as "condition".

        Raises ValueError when rows do not match, because some images of either could not be read.
        """
        if self.skipped or companion.skipped or len(companion) != len(self):
            raise ValueError(
                "condition_image_column needs every row to be readable in both columns; "
                f"{self.skipped + companion.skipped} images could not be read."
            )
        self.companion = companion

    def fingerprint(self) -> str:
        """A short hash of the number of examples, some of their contents, their size and their labels.

        Equal for the same data on another machine or in another folder. How they are cropped and flipped
        is no part of it.
        """
        digest = hashlib.sha256(self._examples.digest())
        parts: list[Any] = [len(self), self.channels, self.size, self.label_names, self.captions]
        digest.update("\n".join(map(repr, parts)).encode())
        for name, values in sorted({"": self.labels, **self.columns}.items()):
            digest.update(name.encode() + (b"" if values is None else values.numpy().tobytes()))
        if self.companion is not None:
            digest.update(self.companion.fingerprint().encode())
        return digest.hexdigest()[:16]
