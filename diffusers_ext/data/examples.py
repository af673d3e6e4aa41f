"""Where the pixels of the images are: decoded in memory, or in their files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
from PIL import UnidentifiedImageError

from .base import ImageSource
from .decoding import ImageDecoder, natural_channels
from .opening import open_header
from .transforms import Images, stack_if_alike

logger = logging.getLogger(__name__)

NAMED_WARNINGS = 10  # unreadable images named in the log before only their count is given
PROBES = 64  # rows read to estimate the size of all images, and for the fingerprint
CHUNK = 256  # images a thread decodes at a time


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
    finally:  # an error ends the work at once, not after the rest has been decoded
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


class DiskImages:
    """Images that are decoded whenever they are read; an unreadable one is replaced by the next readable one."""

    where = "on disk"

    def __init__(self, source: ImageSource, decoder: ImageDecoder, skip_unreadable: bool):
        self._source, self._decoder, self._skip_unreadable = source, decoder, skip_unreadable
        self._unreadable: set[int] = set()
        self.positions = np.arange(len(source))

    @property
    def skipped(self) -> int:
        """How many unreadable images this process has met so far."""
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
