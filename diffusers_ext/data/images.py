"""Images for training: from a data set, a folder or an archive to batches in [-1, 1].

`load_image_data` finds and reads the images, `ImageData` turns keys into batches, and `BatchSchedule` says which keys
come when. All randomness is a function of (seed, epoch, index), so a run can be resumed at any batch and split over any
number of processes without a change of what it sees.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import UnidentifiedImageError

from .base import Batch, ImageSource, Key, Stream
from .decoding import ImageDecoder, natural_channels, parse_background, resize_square
from .opening import open_header

logger = logging.getLogger(__name__)

# One array (B, C, H, W) when the shapes agree, else a list of (C, H, W). In NumPy, since a batch of small images is too
# little work to wake PyTorch's threads for.
Images = np.ndarray | list[np.ndarray]
NAMED_WARNINGS = 10  # unreadable images named in the log before only their count is given
PROBES = 64  # rows read to estimate the size of all images, and for the fingerprint
CHUNK = 256  # images a thread decodes at a time
CROP_ATTEMPTS = 10  # random areas tried before a random resized crop gives up and takes the centre


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
) -> ImageData:
    """Load images for training.

    Args:
        dataset_name: a data set on the Hub, a local folder in the layout of the `datasets` library, or "embedded", the
            MNIST subset inside this package (the default when `train_data_dir` is not given either).
        dataset_config_name: which configuration of `dataset_name`.
        train_data_dir: a folder of images, nested or flat, or a .zip or .tar(.gz, .bz2, .xz) archive of one.
        split: "train", "test", ..., or a part as in "train[:100]".
        settings: the other arguments of `sources.DataRequest`, and those of `ImageOptions`.

    Raises ValueError, FileNotFoundError or ConnectionError, in one sentence, for data that cannot be found or read.
    """

    from .sources import DataRequest, load_data

    prepared = {each.name: settings.pop(each.name) for each in fields(ImageOptions) if each.name in settings}
    request = DataRequest(dataset_name, dataset_config_name, train_data_dir, split, **settings)
    return load_data(request, ImageOptions(**prepared))


def image_data(source: ImageSource, options: ImageOptions, title: str) -> ImageData:
    """The images of a source, decoded now or when they are read."""
    images = read_images(source, options.decoder, options.max_memory_bytes, options.skip_unreadable)
    return ImageData(
        images, options.transform, source.labels, source.class_names, title, source.captions, source.columns
    )


class UnreadableImageError(ValueError):
    """An image file that is empty, truncated, or no image at all; the message names it."""


def decode(source: ImageSource, decoder: ImageDecoder, index: int) -> np.ndarray:
    """Image `index` of the source, (channels, height, width). Raises UnreadableImageError."""
    try:
        data = source.read(index)
        if not data:
            raise ValueError("the file is empty")
        return decoder(data)
    except MemoryError:
        raise
    except Exception as error:  # bytes that can be anything make decoders raise anything
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UnreadableImageError(f"image {source.name(index)!r} could not be read: {reason}") from error


def read_images(
    source: ImageSource, decoder: ImageDecoder, max_memory_bytes: int, skip_unreadable: bool
) -> MemoryImages | DiskImages:
    """Decode all images now when they take at most `max_memory_bytes`, or leave them where they are."""
    if estimated_bytes(source, decoder) <= max_memory_bytes:
        return MemoryImages(source, decoder, skip_unreadable)
    if decoder.channels is None:
        decoder = replace(decoder, channels=common_channels(source, decoder.background))
    return DiskImages(source, decoder, skip_unreadable)


def probes(count: int) -> list[int]:
    """Up to 64 row numbers, spread evenly over `count` rows."""
    return np.unique(np.linspace(0, count - 1, PROBES).astype(int)).tolist()


def source_digest(source: ImageSource, decoder: ImageDecoder) -> bytes:
    """A hash of the number of rows, some of the image files, and how they are decoded."""
    digest = hashlib.sha256(f"{len(source)} {replace(decoder, channels=None)!r}".encode())
    for index in probes(len(source)):
        with contextlib.suppress(Exception):  # an unreadable image counts as an empty one
            digest.update(hashlib.sha256(source.read(index)).digest())
    return digest.digest()


def estimated_bytes(source: ImageSource, decoder: ImageDecoder) -> int:
    """The size of all images when decoded, estimated from the headers of a few of them."""
    sizes = []
    for index in probes(len(source)):
        with contextlib.suppress(Exception):  # an unreadable image is dealt with when it is decoded
            sizes.append(decoder.decoded_bytes(source.read(index)))
    return round(len(source) * float(np.mean(sizes))) if sizes else 0


def common_channels(source: ImageSource, background: tuple[int, int, int]) -> int:
    """1 when every image is greyscale, else 3; reads headers up to the first image with colour."""
    for index in range(len(source)):
        with contextlib.suppress(Exception):
            if natural_channels(open_header(source.read(index)), background) == 3:
                return 3
    return 1


class MemoryImages:
    """All images decoded: one array (number, channels, height, width), or a list when the sizes differ."""

    where = "in memory"

    def __init__(self, source: ImageSource, decoder: ImageDecoder, skip_unreadable: bool):
        arrays: list[np.ndarray] = []
        kept: list[int] = []
        problems: list[UnreadableImageError] = []
        with contextlib.closing(_decode_all(source, decoder)) as results:
            for index, result in enumerate(results):
                if isinstance(result, np.ndarray):
                    arrays.append(result)
                    kept.append(index)
                elif skip_unreadable:
                    problems.append(result)
                else:
                    raise result
        _report(problems, len(source))
        self.skipped = len(problems)
        self.positions = np.array(kept)  # where in the source the images stand
        self._images = assemble(arrays)
        self._digest = source_digest(source, decoder)

    def __len__(self) -> int:
        return len(self.positions)

    def digest(self) -> bytes:
        """A hash of some of the image files."""
        return self._digest

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Images, np.ndarray]:
        """The images at `indices` and their indices."""
        if isinstance(self._images, np.ndarray):
            return self._images[indices], indices
        return stack_if_alike([self._images[index] for index in indices]), indices


def _decode_all(source: ImageSource, decoder: ImageDecoder) -> Generator[np.ndarray | UnreadableImageError, None, None]:
    def decode_some(indices: range) -> list[np.ndarray | UnreadableImageError]:
        results: list[np.ndarray | UnreadableImageError] = []
        for index in indices:
            try:
                results.append(decode(source, decoder, index))
            except UnreadableImageError as error:
                results.append(error)
        return results

    # Threads, not processes: decompression and resizing release the interpreter lock, and nothing has to be copied.
    pool = ThreadPoolExecutor(max_workers=available_cpus())
    try:
        chunks = [range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)]
        for results in pool.map(decode_some, chunks):
            yield from results
    finally:  # an error is told at once, not after the rest has been decoded
        pool.shutdown(cancel_futures=True)


def available_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(problems: Sequence[UnreadableImageError], total: int) -> None:
    """Name unreadable images in the log. Raises UnreadableImageError when no image is left."""
    if len(problems) == total:
        raise UnreadableImageError(f"none of the {total:,} images could be read; the first: {problems[0]}")
    for problem in problems[:NAMED_WARNINGS]:
        logger.warning("%s; it is skipped", problem)
    if problems:
        logger.warning("%d of %d images could not be read and are skipped", len(problems), total)


def assemble(arrays: list[np.ndarray]) -> Images:
    """Make the images one array, or a list when their sizes differ; among colour images grey ones become colour.

    Empties `arrays`, so that the images are not held twice.
    """
    channels = max(len(array) for array in arrays)
    shape = arrays[0].shape[1:]
    if any(array.shape[1:] != shape for array in arrays):
        return [np.broadcast_to(array, (channels, *array.shape[1:])) for array in arrays]
    pixels = np.empty((len(arrays), channels, *shape), dtype=arrays[0].dtype)
    for index in reversed(range(len(arrays))):
        pixels[index] = arrays.pop()
    return pixels


def stack_if_alike(images: list[np.ndarray]) -> Images:
    """One array when all shapes agree, else the list."""
    return np.stack(images) if all(image.shape == images[0].shape for image in images) else images


class DiskImages:
    """Images that are decoded whenever they are read; an unreadable one is replaced by the next readable one."""

    where = "on disk"

    def __init__(self, source: ImageSource, decoder: ImageDecoder, skip_unreadable: bool):
        self._source, self._decoder, self._skip_unreadable = source, decoder, skip_unreadable
        self._unreadable: set[int] = set()
        self.positions = np.arange(len(source))

    @property
    def skipped(self) -> int:
        """How many unreadable images were met so far by this process."""
        return len(self._unreadable)

    def __len__(self) -> int:
        return len(self._source)

    def digest(self) -> bytes:
        """A hash of some of the image files."""
        return source_digest(self._source, self._decoder)

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Images, np.ndarray]:
        """The images at `indices`, or those that replace them, and the indices of what is given."""
        arrays, used = zip(*(self._readable(int(index)) for index in indices))
        return stack_if_alike(list(arrays)), np.array(used)

    def _readable(self, index: int) -> tuple[np.ndarray, int]:
        while True:
            if index not in self._unreadable:
                try:
                    return decode(self._source, self._decoder, index), index
                except UnreadableImageError as error:
                    self._note(index, error)
            index = (index + 1) % len(self)

    def _note(self, index: int, error: UnreadableImageError) -> None:
        if not self._skip_unreadable:
            raise error
        self._unreadable.add(index)
        if len(self._unreadable) == len(self):
            raise UnreadableImageError(f"none of the {len(self):,} images could be read; the last: {error}")
        if len(self._unreadable) <= NAMED_WARNINGS:
            logger.warning("%s; the next readable image stands in for it", error)


@dataclass(frozen=True)
class Transform:
    """What is drawn anew in every epoch: crops and flips. The arguments are those of `load_image_data`."""

    resolution: int | None = None
    center_crop: bool = False
    random_flip: bool = False
    resize_scale: float = 1.0
    random_resized_crop: tuple[float, float] | None = None
    seed: int = field(default=0, repr=False)  # the fingerprint of the data takes the rest

    def __post_init__(self) -> None:
        cropped = self.center_crop or self.random_resized_crop is not None or self.resize_scale != 1
        if self.resolution is None and cropped:
            raise ValueError("center_crop, resize_scale and random_resized_crop need a resolution")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution takes a number of pixels of at least 1, not {self.resolution}")
        if not self.resize_scale >= 1:
            raise ValueError(f"resize_scale takes a factor of at least 1, not {self.resize_scale}")
        if self.random_resized_crop is None:
            return
        low, high = self.random_resized_crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"random_resized_crop takes two shares 0 < low <= high <= 1 of the area, not ({low}, {high})"
            )
        if self.center_crop:
            raise ValueError("center_crop and random_resized_crop exclude each other")

    @property
    def shorter_side(self) -> int | None:
        """What the shorter side is resized to before the crop, in pixels."""
        return None if self.resolution is None else int(self.resize_scale * self.resolution)

    def __call__(self, images: Images, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Crop and flip images (B, C, H, W), or a list of (C, H, W), by their keys (B,); may change them in place.

        Returns float32 (B, C, resolution, resolution) in [-1, 1].

        Raises ValueError when images of different sizes are not cropped to one.
        """
        if self.random_resized_crop is not None:
            images = self._random_resized_crops(images, epochs, indices)
        elif self.resolution is not None:
            images = self._random_crops(images, self.resolution, epochs, indices)
        if not isinstance(images, np.ndarray):
            raise ValueError(different_sizes({image.shape[1:] for image in images}))
        if self.random_flip:
            mirrored = uniforms(self.seed, FLIP, epochs, indices, 1)[:, 0] < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        return symmetric(images)

    def _random_crops(self, images: Images, size: int, epochs: np.ndarray, indices: np.ndarray) -> Images:
        heights, widths = heights_and_widths(images)
        if (heights == size).all() and (widths == size).all():
            return images
        rooms = np.stack([heights - size, widths - size], axis=1) + 1
        corners = (uniforms(self.seed, CROP, epochs, indices, 2) * rooms).astype(np.int64)
        if isinstance(images, list):
            return np.stack([im[:, y : y + size, x : x + size] for im, (y, x) in zip(images, corners)])
        windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(2, 3))
        return windows[np.arange(len(images)), :, corners[:, 0], corners[:, 1]]

    def _random_resized_crops(self, images: Images, epochs: np.ndarray, indices: np.ndarray) -> Images:
        assert self.random_resized_crop is not None
        assert self.resolution is not None
        draws = uniforms(self.seed, CROP, epochs, indices, CROP_ATTEMPTS * 4).reshape(-1, CROP_ATTEMPTS, 4)
        boxes = random_boxes(*heights_and_widths(images), self.random_resized_crop, draws)
        crops = [image[:, y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes)]
        return np.stack([resize_square(crop, self.resolution) for crop in crops])


def heights_and_widths(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Heights (B,) and widths (B,) of a batch."""
    shapes = np.array([image.shape[-2:] for image in images])
    return shapes[:, 0], shapes[:, 1]


def random_boxes(heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    """Boxes (B, 4) of top, left, height, width, drawn as torchvision's RandomResizedCrop draws them.

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4..4/3, and the first attempt that fits is taken;
    when none fits, the largest central box of an allowed ratio. `draws` (B, attempts, 4) is uniform in [0, 1).
    """
    heights, widths = heights[:, None], widths[:, None]
    areas = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    ratios = np.exp(np.log(3 / 4) + np.log(16 / 9) * draws[..., 1])
    box_widths, box_heights = np.round(np.sqrt(areas * ratios)), np.round(np.sqrt(areas / ratios))
    fits = (box_widths >= 1) & (box_widths <= widths) & (box_heights >= 1) & (box_heights <= heights)
    tops = np.floor(draws[..., 2] * (heights - box_heights + 1))
    lefts = np.floor(draws[..., 3] * (widths - box_widths + 1))
    attempts = np.stack([tops, lefts, box_heights, box_widths], axis=-1)
    chosen = np.take_along_axis(attempts, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1)[:, None], chosen, _central_boxes(heights[:, 0], widths[:, 0])).astype(np.int64)


def _central_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    box_widths = np.minimum(widths, np.round(heights * 4 / 3))
    box_heights = np.minimum(heights, np.round(widths * 4 / 3))
    return np.stack([(heights - box_heights) // 2, (widths - box_widths) // 2, box_heights, box_widths], axis=-1)


class Examples(Protocol):
    """Where the arrays of the examples are: in memory, on disk, or in a data set of the user.

    Attributes:
        positions: which rows of the source the examples are, int64 (number of examples,).
        skipped: how many rows could not be read so far.
        where: what to call the place in a description.
    """

    positions: np.ndarray
    where: str

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Images, np.ndarray]:
        """The arrays at `indices`, and the indices of what is given: another example may replace an unreadable one."""

    def digest(self) -> bytes:
        """A hash of some of the rows."""


# Arrays of examples and their keys, epochs (B,) and indices (B,), to float32 (B, C, *size) in [-1, 1].
Preparation = Callable[[Images, np.ndarray, np.ndarray], np.ndarray]


class ImageData(torch.utils.data.Dataset):
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
        self.companion: ImageData | None = None
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
        pairs = np.asarray(keys, dtype=np.int64).reshape(len(keys), -1)
        indices, epochs = pairs[:, 0], pairs[:, 1] if pairs.shape[1] > 1 else np.zeros(len(pairs), dtype=np.int64)
        arrays, used, beside = self._rows(indices, epochs)
        batch = {"samples": self._prepared(arrays, epochs, indices), "index": torch.from_numpy(used)}
        if self.labels is not None:
            batch["labels"] = self.labels[batch["index"]]
        batch |= {name: values[batch["index"]] for name, values in self.columns.items()}
        if self.companion is not None and beside is not None:
            batch["condition"] = self.companion._prepared(beside, epochs, indices)
        return batch

    def _prepared(self, arrays: Images, epochs: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        samples = self._prepare(arrays, epochs, indices)
        if self.size and samples.shape[1:] != (self.channels, *self.size):
            raise ValueError(different_sizes([self.size, samples.shape[2:]]))
        return torch.from_numpy(samples)

    def _rows(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Images, np.ndarray, Images | None]:
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

    def accompany(self, companion: ImageData) -> None:
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
        """A short hash of the number of examples, some of their contents, their labels and their preparation.

        Equal for the same data on another machine or in another folder. The seed is no part of it.
        """
        digest = hashlib.sha256(self._examples.digest())
        parts: list[Any] = [len(self), self.channels, self.size, self._prepare, self.label_names, self.captions]
        digest.update("\n".join(map(repr, parts)).encode())
        for name, values in sorted({"": self.labels, **self.columns}.items()):
            digest.update(name.encode() + (b"" if values is None else values.numpy().tobytes()))
        if self.companion is not None:
            digest.update(self.companion.fingerprint().encode())
        return digest.hexdigest()[:16]


def size_text(size: Sequence[int]) -> str:
    """A size as people write it: 640x480 for height 480 and width 640."""
    return "x".join(str(length) for length in reversed(size))


def different_sizes(sizes: Iterable[Sequence[int]]) -> str:
    """The message about images of different sizes."""
    first, second, *_ = sorted(map(size_text, sizes))
    return f"resolution must be given when the images differ in size ({first}, {second}, ...)"


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

    def epoch_of(self, batch: int) -> int:
        """The epoch of batch number `batch` of the run; with fewer examples than a batch, every batch is an epoch."""
        return batch // self.batches_per_epoch

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


def identity(batch: Batch) -> Batch:
    """The `collate_fn` for a DataLoader over ImageData, whose batches are made whole already."""
    return batch


def symmetric(images: np.ndarray) -> np.ndarray:
    """Images uint8 in 0..255 or float32 in [0, 1] as float32 in [-1, 1]."""
    pixels = images.astype(np.float32)
    pixels /= 127.5 if images.dtype == np.uint8 else 0.5
    pixels -= 1
    return np.ascontiguousarray(pixels)


# Counter-based random numbers: hashes of (seed, what for, epoch, index). Unlike a generator's stream, they need no
# state, do not depend on who draws first, and stay the same from one version of a library to the next.
FLIP, CROP, ORDER = range(3)


def counter_hash(*words: Any) -> np.ndarray:
    """A uint64 hash of integers or arrays of them, broadcast against one another: splitmix64, word by word."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        # An array of at least one dimension wraps around in silence; NumPy's scalars would warn.
        state = state ^ np.atleast_1d(np.asarray(word)).astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniforms(seed: int, purpose: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 (B, count), for the keys `epochs` (B,) and `indices` (B,)."""
    bits = counter_hash(seed, purpose, epochs[:, None], indices[:, None], np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The numbers 0 to `count` - 1 in an order that depends on (seed, epoch) only, int64 (count,)."""
    return np.argsort(counter_hash(seed, ORDER, epoch, np.arange(count)), kind="stable")
