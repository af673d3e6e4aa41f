"""Where the arrays of the examples are: decoded in memory, or in their files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import UnidentifiedImageError

from .base import ExampleSource
from .transforms import Arrays, stack_if_alike

logger = logging.getLogger(__name__)

NAMED_WARNINGS = 10  # unreadable images named in the log before only their count is given
PROBES = 64  # rows read to estimate the size of all images, and for the fingerprint
CHUNK = 256  # images a thread decodes at a time


class UnreadableImageError(ValueError):
    """A file that is empty, truncated, or not of the kind that is read; the message names it."""


class Decoder(Protocol):
    """Turns the bytes of one example into an array.

    Attributes:
        channels: number of channels of all arrays, or None as each has them.
        noun: what to call an example in a message: "image", "signal".
    """

    @property
    def channels(self) -> int | None: ...

    @property
    def noun(self) -> str: ...

    def __call__(self, data: bytes) -> np.ndarray:
        """The array (channels, *size). Raises anything for bytes that can't be decoded."""

    def decoded_bytes(self, data: bytes) -> int:
        """How many bytes the array will take."""

    def for_source(self, source: ExampleSource) -> Any:
        """The decoder with the number of channels that all examples of a source can have."""

    def without_channels(self) -> Any:
        """The decoder as a fingerprint of the data takes it."""


def decode(source: ExampleSource, decoder: Decoder, index: int) -> np.ndarray:
    """Example `index` of the source, (channels, *size). Raises UnreadableImageError, or ImportError by the decoder."""
    try:
        data = source.read(index)
        if not data:
            raise ValueError("the file is empty")
        return decoder(data)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # bytes that can be anything make decoders raise anything
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UnreadableImageError(f"{decoder.noun} {source.name(index)!r} could not be read: {reason}") from error


def read_examples(
    source: ExampleSource, decoder: Decoder, max_memory_bytes: int, skip_unreadable: bool
) -> MemoryExamples | DiskExamples:
    """Decode all examples now when they take at most `max_memory_bytes`, or leave them where they are."""
    if estimated_bytes(source, decoder) <= max_memory_bytes:
        return MemoryExamples(source, decoder, skip_unreadable)
    if decoder.channels is None:
        decoder = decoder.for_source(source)
    return DiskExamples(source, decoder, skip_unreadable)


def probes(count: int) -> list[int]:
    """Up to 64 row numbers, spread evenly over `count` rows."""
    return np.unique(np.linspace(0, count - 1, PROBES).astype(int)).tolist()


def source_digest(source: ExampleSource, decoder: Decoder) -> bytes:
    """A hash of the number of rows, some of the image files, and how they are decoded."""
    digest = hashlib.sha256(f"{len(source)} {decoder.without_channels()!r}".encode())
    for index in probes(len(source)):
        with contextlib.suppress(Exception):  # an unreadable image counts as an empty one
            digest.update(hashlib.sha256(source.read(index)).digest())
    return digest.digest()


def estimated_bytes(source: ExampleSource, decoder: Decoder) -> int:
    """The size of all images when decoded, estimated from the headers of a few of them."""
    sizes = []
    for index in probes(len(source)):
        with contextlib.suppress(Exception):  # an unreadable image is dealt with when it is decoded
            sizes.append(decoder.decoded_bytes(source.read(index)))
    return round(len(source) * float(np.mean(sizes))) if sizes else 0


class MemoryExamples:
    """All images decoded: one array (number, channels, height, width), or a list when the sizes differ."""

    where = "in memory"

    def __init__(self, source: ExampleSource, decoder: Decoder, skip_unreadable: bool):
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
        _report(problems, len(source), decoder.noun)
        self.skipped = len(problems)
        self.positions = np.array(kept)  # where in the source the images stand
        self._images = assemble(arrays)
        self._digest = source_digest(source, decoder)

    def __len__(self) -> int:
        return len(self.positions)

    def digest(self) -> bytes:
        """A hash of some of the image files."""
        return self._digest

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """The images at `indices` and their indices."""
        if isinstance(self._images, np.ndarray):
            return self._images[indices], indices
        return stack_if_alike([self._images[index] for index in indices]), indices


def _decode_all(source: ExampleSource, decoder: Decoder) -> Generator[np.ndarray | UnreadableImageError, None, None]:
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


def _report(problems: Sequence[UnreadableImageError], total: int, noun: str) -> None:
    """Name unreadable examples in the log. Raises UnreadableImageError when none is left."""
    if len(problems) == total:
        raise UnreadableImageError(f"none of the {total:,} {noun}s could be read; the first: {problems[0]}")
    for problem in problems[:NAMED_WARNINGS]:
        logger.warning("%s; it is skipped", problem)
    if problems:
        logger.warning("%d of %d %ss could not be read and are skipped", len(problems), total, noun)


def assemble(arrays: list[np.ndarray]) -> Arrays:
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


class DiskExamples:
    """Images that are decoded whenever they are read; an unreadable one is replaced by the next readable one."""

    where = "on disk"

    def __init__(self, source: ExampleSource, decoder: Decoder, skip_unreadable: bool):
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

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Arrays, np.ndarray]:
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
            raise UnreadableImageError(
                f"none of the {len(self):,} {self._decoder.noun}s could be read; the last: {error}"
            )
        if len(self._unreadable) <= NAMED_WARNINGS:
            logger.warning("%s; the next readable %s stands in for it", error, self._decoder.noun)


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

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[Arrays, np.ndarray]:
        """The arrays at `indices`, and the indices of what is given: another example may replace an unreadable one."""

    def digest(self) -> bytes:
        """A hash of some of the rows."""
