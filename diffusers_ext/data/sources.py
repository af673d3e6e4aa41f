"""Where training data come from, by name: a new source is one class in a file of its own, and one line in `SOURCES`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .files import open_files
from .images import ImageData, ImageOptions, image_data
from .tables import EMBEDDED_NAME, open_table


@dataclass(frozen=True)
class DataRequest:
    """Which data are wanted.

    Args:
        dataset_name: a data set on the Hub, a local folder in the layout of the `datasets` library, or "embedded", the
            MNIST subset inside this package (the default when `train_data_dir` is not given either).
        dataset_config_name: which configuration of `dataset_name`.
        train_data_dir: a folder of images, nested or flat, or a .zip or .tar(.gz, .bz2, .xz) archive of one. Top
            folders named train, test or validation are splits; other top folders are classes.
        split: "train", "test", ..., or a part as in "train[:100]".
        image_column: the column with the images; None takes the only one, or `image` or `img`.
        label_column: the column with the classes; None takes `label` or `labels` if there is one.
        caption_column: the column with the texts; None takes `text` or `caption` if there is one.
        number_columns: further columns with numbers, or lists of numbers, that batches hold under their names.
        cache_dir: where downloads and decompressed archives are kept.
        token: the Hub's token, for private data sets.
        streamed_examples: read `dataset_name` as a stream and load only its first `streamed_examples` images. The
            attribute `stream` of the result gives all of them.
        shuffle_buffer_size: number of rows of the stream that are shuffled among one another.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_data_dir: str | os.PathLike | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    number_columns: Sequence[str] = ()
    cache_dir: str | None = None
    token: str | bool | None = None
    streamed_examples: int | None = None
    shuffle_buffer_size: int = 1000

    @property
    def name(self) -> str:
        """The data set's name."""
        return EMBEDDED_NAME if self.dataset_name is None else self.dataset_name

    @property
    def columns(self) -> tuple[str | None, str | None, str | None]:
        """The columns that are named: image, class, text."""
        return self.image_column, self.label_column, self.caption_column


class Source(Protocol):
    """A kind of data source."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether the request is for this kind of source."""

    def load(self, request: DataRequest, options: ImageOptions) -> ImageData:
        """The data. Raises ValueError, FileNotFoundError or ConnectionError, in one sentence."""


class FolderOrArchive:
    """Image files in a folder or archive; see `files`."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether `train_data_dir` is given."""
        return request.train_data_dir is not None

    def load(self, request: DataRequest, options: ImageOptions) -> ImageData:
        """The images of the folder or archive."""
        path = request.train_data_dir
        assert path is not None
        if request.dataset_name is not None:
            raise ValueError(f"give dataset_name={request.dataset_name!r} or train_data_dir={str(path)!r}, not both")
        if request.number_columns or any(column is not None for column in request.columns):
            raise ValueError(
                "image_column, label_column, caption_column and number_columns name columns of dataset_name; "
                "a train_data_dir has no columns"
            )
        source = open_files(path, request.split, request.cache_dir)
        return image_data(source, options, f"{Path(path).absolute().name} ({request.split})")


class Streamed:
    """A table of the `datasets` library that is read while the run goes on; see `streaming`."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether a number of `streamed_examples` is given."""
        return request.streamed_examples is not None

    def load(self, request: DataRequest, options: ImageOptions) -> ImageData:
        """The first images of the stream, and all of them as the attribute `stream`."""
        from .streaming import open_stream, streamed_image_data

        reader = open_stream(
            request.name, request.dataset_config_name, request.split, request.image_column, request.label_column,
            request.cache_dir, request.token, request.number_columns,
        )  # fmt: skip
        title, held = f"{request.name} ({request.split})", request.streamed_examples or 1
        return streamed_image_data(reader, options, title, held, request.shuffle_buffer_size)


class Table:
    """A table of the `datasets` library; see `tables`."""

    def accepts(self, request: DataRequest) -> bool:
        """Always: what no other source accepts is the name of a data set."""
        return True

    def load(self, request: DataRequest, options: ImageOptions) -> ImageData:
        """The images of the table."""
        source = open_table(
            request.name, request.dataset_config_name, request.split, *request.columns[:2], request.cache_dir,
            request.token, request.caption_column, request.number_columns,
        )  # fmt: skip
        return image_data(source, options, f"{request.name} ({request.split})")


# The first source that accepts a request loads it.
SOURCES: dict[str, Source] = {"folder or archive": FolderOrArchive(), "stream": Streamed(), "table": Table()}


def load_data(request: DataRequest, options: ImageOptions) -> ImageData:
    """The data that a request is for, from the first source that accepts it."""
    return next(source for source in SOURCES.values() if source.accepts(request)).load(request, options)
