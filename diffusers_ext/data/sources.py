"""Where training data come from, by name: a new source is one class, and one line in `SOURCES`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .files import IMAGE_FILES, SIGNAL_FILES, first_kind, open_files
from .images import ExampleData, ImageOptions, image_data
from .signal_tables import holds_sounds, is_array_file, open_array_file, open_signal_table
from .signals import SignalData, SignalOptions, signal_data
from .tables import EMBEDDED_NAME, load_splits, open_table

MODALITIES = ("image", "signal")


@dataclass(frozen=True)
class DataRequest:
    """Which data are wanted.

    Args:
        dataset_name: a data set on the Hub, a local folder in the layout of the `datasets` library, or "embedded", the
            MNIST subset inside this package (the default when `train_data_dir` is not given either).
        dataset_config_name: which configuration of `dataset_name`.
        train_data_dir: a folder of images or signals, nested or flat, or a .zip or .tar(.gz, .bz2, .xz) archive of one.
            Top folders named train, test or validation are splits; other top folders are classes. For signals also one
            .npy or .npz file with all of them.
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
        modality: "image" or "signal"; None finds out from the files or the columns.
        signals: how signals are read.
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
    modality: str | None = None
    signals: SignalOptions = field(default_factory=SignalOptions)

    def __post_init__(self) -> None:
        if self.modality not in (None, *MODALITIES):
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got '{self.modality}'.")

    @property
    def name(self) -> str:
        """The data set's name."""
        return EMBEDDED_NAME if self.dataset_name is None else self.dataset_name

    @property
    def where(self) -> str:
        """What messages call the data set."""
        return f"dataset_name={self.name!r}"

    @property
    def title(self) -> str:
        """What descriptions call the data."""
        name = self.name if self.train_data_dir is None else Path(self.train_data_dir).absolute().name
        return f"{name} ({self.split})"


class Source(Protocol):
    """A kind of data source."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether the request is for this kind of source."""

    def load(self, request: DataRequest, options: ImageOptions) -> ExampleData:
        """The data. Raises ValueError, FileNotFoundError or ConnectionError, in one sentence."""


def check_has_no_columns(request: DataRequest) -> None:
    """Raise ValueError where a folder or archive comes with a data set's name or with columns."""
    if request.dataset_name is not None:
        path = str(request.train_data_dir)
        raise ValueError(f"give dataset_name={request.dataset_name!r} or train_data_dir={path!r}, not both")
    columns = (request.image_column, request.label_column, request.caption_column)
    if request.number_columns or request.signals.columns or any(column is not None for column in columns):
        raise ValueError(
            "image_column, signal_columns, label_column, caption_column and number_columns name columns of "
            "dataset_name; a train_data_dir has no columns"
        )


class SignalFiles:
    """Sounds and arrays in a folder or archive, or all signals in one file of NumPy."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether `train_data_dir` holds signals and no images, or `modality` says so."""
        if request.train_data_dir is None or request.modality == "image":
            return False
        found = request.modality == "signal" or is_array_file(request.train_data_dir)
        return found or first_kind(request.train_data_dir, (IMAGE_FILES, SIGNAL_FILES)) is SIGNAL_FILES

    def load(self, request: DataRequest, options: ImageOptions) -> SignalData:
        """The signals of the folder, archive or file."""
        check_has_no_columns(request)
        path = Path(request.train_data_dir or "")
        if is_array_file(path):
            return signal_data(open_array_file(path, request.split), request.signals, request.title)
        source = open_files(request.train_data_dir or "", request.split, request.cache_dir, kind=SIGNAL_FILES)
        return signal_data(source, request.signals, request.title)


class SignalTable:
    """A table of the `datasets` library with a column of sounds, of lists of numbers, or of plain numbers."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether `modality` or the columns say that the table holds signals."""
        return request.modality == "signal" or bool(request.signals.columns)

    def load(self, request: DataRequest, options: ImageOptions) -> SignalData:
        """The signals of the table."""
        if request.streamed_examples is not None:
            raise ValueError("streaming reads images only; leave it out for signals.")
        return signal_data(open_signal_table(request), request.signals, request.title)


class FolderOrArchive:
    """Image files in a folder or archive; see `files`."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether `train_data_dir` is given."""
        return request.train_data_dir is not None

    def load(self, request: DataRequest, options: ImageOptions) -> ExampleData:
        """The images of the folder or archive."""
        check_has_no_columns(request)
        source = open_files(request.train_data_dir or "", request.split, request.cache_dir)
        return image_data(source, options, request.title)


class Streamed:
    """A table of the `datasets` library that is read while the run goes on; see `streaming`."""

    def accepts(self, request: DataRequest) -> bool:
        """Whether a number of `streamed_examples` is given."""
        return request.streamed_examples is not None

    def load(self, request: DataRequest, options: ImageOptions) -> ExampleData:
        """The first images of the stream, and all of them as the attribute `stream`."""
        from .streaming import open_stream, streamed_image_data

        held = request.streamed_examples or 1
        return streamed_image_data(open_stream(request), options, request.title, held, request.shuffle_buffer_size)


class Table:
    """A table of the `datasets` library with images, or else with signals; see `tables`."""

    def accepts(self, request: DataRequest) -> bool:
        """Always: what no other source accepts is the name of a data set."""
        return True

    def load(self, request: DataRequest, options: ImageOptions) -> ExampleData:
        """The images of the table, or its sounds where it has sounds and no images."""
        if request.modality is None and request.name != EMBEDDED_NAME and self._holds_sounds(request):
            return SignalTable().load(request, options)
        return image_data(open_table(request), options, request.title)

    def _holds_sounds(self, request: DataRequest) -> bool:
        if request.image_column is not None:
            return False
        splits = load_splits(request)
        return holds_sounds(next(iter(splits.values())).features)


# The first source that accepts a request loads it.
SOURCES: dict[str, Source] = {
    "signal files": SignalFiles(),
    "signal table": SignalTable(),
    "folder or archive": FolderOrArchive(),
    "stream": Streamed(),
    "table": Table(),
}


def load_data(request: DataRequest, options: ImageOptions) -> ExampleData:
    """The data that a request is for, from the first source that accepts it."""
    return next(source for source in SOURCES.values() if source.accepts(request)).load(request, options)
