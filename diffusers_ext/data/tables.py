"""Tables of the `datasets` library: the embedded digits, local folders, and data sets on the Hub."""

from __future__ import annotations

import functools
import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import one_line
from .base import CAPTION_COLUMNS, IMAGE_COLUMNS, LABEL_COLUMNS, number_classes, number_column
from .files import Findings, find_in_folder
from .names import split_files, split_folders, take_split, without_common_folder
from .opening import image_suffixes, read_regular_file

if TYPE_CHECKING:
    import datasets

    from .sources import DataRequest

logger = logging.getLogger(__name__)

EMBEDDED_NAME = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent
TABLE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv"}
LIBRARY_SUFFIXES = {".tar", ".zip", ".gz", ".txt", ".xml", ".h5", ".lance"}  # files that only `datasets` reads
METADATA_FILES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


class TableSource:
    """A column of images of a `datasets.Dataset`, read row by row from the (memory-mapped) table.

    Args:
        table: with the columns.
        column: with the images.
        label_column, caption_column, number_columns: with what belongs to them.
        where: what to call the table in a message.
    """

    noun = "image"

    def __init__(
        self,
        table: datasets.Dataset,
        column: str,
        label_column: str | None,
        caption_column: str | None = None,
        number_columns: Sequence[str] = (),
        where: str = "the table",
    ):
        self._table = self._undecoded(table.select_columns([column]), column).with_format("arrow")
        self._column_name = column
        self.labels: np.ndarray | None = None
        self.class_names: list[str] | None = None
        if label_column is not None:
            self.labels, self.class_names = read_labels(table, label_column)
        self.captions = None if caption_column is None else read_captions(table, caption_column)
        self.columns = {name: number_column(read_column(table, name), name, where) for name in number_columns}

    @staticmethod
    def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
        """The table with the column's files as bytes or paths."""
        import datasets

        return table.cast_column(column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        """The row's number, and its file where it names one."""
        value = self._column[index].as_py()
        path = value.get("path") if isinstance(value, dict) else None
        return f"row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        """The bytes of the row's file. Raises OSError or ValueError when there are none."""
        value = self._column[index].as_py()
        if value is None:
            raise ValueError(f"the row holds no {self.noun}")
        return value["bytes"] if value["bytes"] is not None else read_regular_file(value["path"])

    @functools.cached_property
    def _column(self) -> Any:
        # An arrow column is far quicker to index than the dataset around it.
        return self._table[:][self._column_name]

    def __getstate__(self) -> dict[str, Any]:
        # The dataset pickles as the path of its file; the arrow column would pickle as all of its bytes.
        return {name: value for name, value in self.__dict__.items() if name != "_column"}


def open_table(request: DataRequest) -> TableSource:
    """The image, label, caption and number columns of the embedded set, a local folder, or a data set on the Hub.

    Raises FileNotFoundError for a data set that is not there, ValueError for a wrong split or column.
    """
    table = take_split(load_splits(request), request.split, request.where)
    image_column = find_image_column(table.features, request.image_column, request.where)
    return TableSource(table, image_column, *find_other_columns(table.features, request), request.where)


def find_other_columns(
    features: Mapping[str, Any], request: DataRequest
) -> tuple[str | None, str | None, Sequence[str]]:
    """The columns with classes, with texts, and with numbers. Raises ValueError for one that can't be used."""
    label_column = find_label_column(features, request.label_column, request.where)
    caption_column = find_caption_column(features, request.caption_column, request.where)
    check_number_columns(features, request.number_columns, request.where)
    return label_column, caption_column, request.number_columns


def load_splits(request: DataRequest, streaming: bool = False) -> Mapping[str, Any]:
    """The splits of a data set by name: as `datasets.Dataset`, or when `streaming` as `datasets.IterableDataset`.

    Raises FileNotFoundError, ConnectionError or ValueError, in one sentence.
    """
    import datasets
    from pyarrow import parquet

    name, where = request.name, request.where
    path = Path(name).expanduser()
    if name == EMBEDDED_NAME:
        # Read as plain parquet: it needs no cache folder, and so works where nothing can be written.
        files = {split: EMBEDDED_FOLDER / f"mnist_{split}.parquet" for split in ("train", "test")}
        return {split: datasets.Dataset(parquet.read_table(file)) for split, file in files.items()}
    if not name.strip():
        raise ValueError(f"dataset_name is empty; it takes a Hub name, a folder, or {EMBEDDED_NAME!r}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{where} is a file; it takes a Hub name or a folder, and an archive goes to train_data_dir")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{where} does not exist; it takes a Hub name, a folder, or {EMBEDDED_NAME!r}")
    with _quiet(datasets, local=path.exists()):
        if (path / "dataset_dict.json").is_file():
            with _one_sentence(where):
                return datasets.DatasetDict.load_from_disk(str(path))
        if (path / "state.json").is_file():
            with _one_sentence(where):
                table = datasets.Dataset.load_from_disk(str(path))
            return {str(table.split or "train"): table}
        options = {"cache_dir": request.cache_dir, "token": request.token, "streaming": streaming}
        if not path.exists():
            return _load_dataset(name, where, name=request.dataset_config_name, **options)
        return _load_folder(path, request.dataset_config_name, where, **options)


def _load_folder(path: Path, config_name: str | None, where: str, **options: Any) -> Mapping[str, Any]:
    """The splits of a folder of table files or images.

    Which files belong to which split is decided here and not by `datasets`, which would take a folder's name for a
    pattern, and load only `train_tracks/` where that is one class among others.
    """
    found = Findings(where, image_suffixes() | TABLE_BUILDERS.keys())
    find_in_folder(path, found)
    if config_name is not None or _names_its_files(path) or (not found.files and found.holds(LIBRARY_SUFFIXES)):
        if glob.escape(str(path)) != str(path):
            raise ValueError(f"{where} must not have [ ] * ? in its path, which `datasets` would take for a pattern")
        return _load_dataset(str(path), where, name=config_name, **options)
    builder, splits = _files_by_split(found)
    files = {split: [glob.escape(str(found.files[name])) for name in names] for split, names in splits.items()}
    loaded = _load_dataset(builder, where, data_files=files, **options)
    if builder == "imagefolder" and not options["streaming"]:
        _compare_rows(loaded, splits, where)
    return loaded


def _names_its_files(path: Path) -> bool:
    """Whether the folder's own README says which files belong to which split."""
    card = path / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]


def _files_by_split(found: Findings) -> tuple[str, dict[str, list[str]]]:
    """The builder of `datasets` for the files of a folder, and the files by split."""
    images = sorted(name for name in found.files if _suffix(name) in image_suffixes())
    metadata = sorted(name for name in found.files if name.rsplit("/", 1)[-1] in METADATA_FILES)
    kinds = {TABLE_BUILDERS[_suffix(name)] for name in found.files if _suffix(name) in TABLE_BUILDERS}
    if images and (metadata or not kinds & {"parquet", "arrow"}):
        splits = split_folders(without_common_folder([(name, name) for name in images + metadata]))
        return "imagefolder", {split: [full for _, full in names] for split, names in splits.items()}
    for builder in ("parquet", "arrow", "json", "csv"):
        if builder in kinds:
            tables = [name for name in sorted(found.files) if TABLE_BUILDERS.get(_suffix(name)) == builder]
            return builder, split_files(tables)
    other = f", but {summary}" if (summary := found.summary()) else ""
    raise FileNotFoundError(f"{found.where} holds no parquet, arrow, json, csv or image files{other}")


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _compare_rows(loaded: Mapping[str, Any], splits: Mapping[str, list[str]], where: str) -> None:
    """Say when a folder holds more images than its metadata name."""
    for split, names in splits.items():
        images = sum(_suffix(name) in image_suffixes() for name in names)
        if split in loaded and len(loaded[split]) < images:
            logger.warning(
                "%s: split %s has %d rows for %d image files; the metadata do not name the others",
                where, split, len(loaded[split]), images,
            )  # fmt: skip


def _load_dataset(builder: str, where: str, **options: Any) -> Mapping[str, Any]:
    """`datasets.load_dataset`, with errors of one sentence; it runs no code of the data set."""
    import datasets

    if int(datasets.__version__.split(".")[0]) < 4:  # later versions run no code of a data set
        options["trust_remote_code"] = False
    with _one_sentence(where):
        return datasets.load_dataset(builder, **options)


@contextmanager
def _one_sentence(where: str) -> Iterator[None]:
    """Turn the many kinds of long errors of `datasets` into three kinds of one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} could not be found: {one_line(error)}") from error
    except ConnectionError as error:
        raise ConnectionError(
            f"{where} is no folder here, and the Hub could not be reached: {one_line(error)}"
        ) from error
    except (OSError, MemoryError):  # a full disk, for instance
        raise
    except Exception as error:  # damaged files make it raise anything
        raise ValueError(f"{where} could not be loaded: {one_line(error)}") from error


@contextmanager
def _quiet(datasets: Any, local: bool) -> Iterator[None]:
    """Silence `datasets` while it reads, and leave its settings as they were; a download keeps its progress bar."""
    had_bars, level = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    if local and had_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if local and had_bars:
            datasets.enable_progress_bars()


def find_image_column(features: Mapping[str, Any], image_column: str | None, where: str) -> str:
    """The named column, or else the only image column, or else `image` or `img`. Raises ValueError."""
    import datasets

    candidates = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    candidates = candidates or [name for name in IMAGE_COLUMNS if name in features and _holds_bytes(features[name])]
    if image_column is not None:
        _check_column("image_column", image_column, features, where)
        if image_column not in candidates and not _holds_bytes(features[image_column]):
            raise ValueError(
                f"image_column={image_column!r} of {where} holds no images; its columns are: {', '.join(features)}"
            )
        return image_column
    chosen = candidates if len(candidates) == 1 else [name for name in IMAGE_COLUMNS if name in candidates][:1]
    if not chosen:
        problem = f"has several image columns ({', '.join(candidates)})" if candidates else "has no image column"
        raise ValueError(f"{where} {problem}; name one of its columns as image_column: {', '.join(features)}")
    return chosen[0]


def find_label_column(features: Mapping[str, Any], label_column: str | None, where: str) -> str | None:
    """The named column, or else `label` or `labels` when it holds one class an image. Raises ValueError."""
    if label_column is None:
        return next((name for name in LABEL_COLUMNS if name in features and _holds_classes(features[name])), None)
    _check_column("label_column", label_column, features, where)
    if not _holds_classes(features[label_column]):
        raise ValueError(f"label_column={label_column!r} of {where} must hold integers or strings, one class an image")
    return label_column


def find_caption_column(features: Mapping[str, Any], caption_column: str | None, where: str) -> str | None:
    """The named column, or else `text` or `caption` when it holds one text an image. Raises ValueError."""
    if caption_column is None:
        return next((name for name in CAPTION_COLUMNS if name in features and _holds_text(features[name])), None)
    _check_column("caption_column", caption_column, features, where)
    if not _holds_text(features[caption_column]):
        raise ValueError(f"caption_column={caption_column!r} of {where} must hold strings, one text an image")
    return caption_column


def check_number_columns(features: Mapping[str, Any], columns: Sequence[str], where: str) -> None:
    """Raises ValueError for a column that is not there, or that holds no numbers."""
    for column in columns:
        _check_column("number_columns", column, features, where)
        if not holds_numbers(features[column]):
            raise ValueError(f"number_columns={column!r} of {where} must hold numbers, or lists of as many numbers")


def _check_column(argument: str, column: str, features: Mapping[str, Any], where: str) -> None:
    if column not in features:
        raise ValueError(f"{argument}={column!r} is not a column of {where}, which has: {', '.join(features)}")


def _holds_bytes(feature: Any) -> bool:
    """Image files stored without the library's image type: bytes, or a struct with bytes."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _holds_classes(feature: Any) -> bool:
    # A ClassLabel's dtype is int64; lists and structs have none that matches.
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string", "bool"))


def holds_numbers(feature: Any) -> bool:
    """Whether a column holds numbers, or lists of numbers."""
    return str(getattr(getattr(feature, "feature", feature), "dtype", "")).startswith(("int", "uint", "float"))


def _holds_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def read_captions(table: datasets.Dataset, caption_column: str) -> list[str]:
    """A text for every row; an empty cell is an empty text."""
    return [value or "" for value in read_column(table, caption_column)]


def read_column(table: datasets.Dataset, column: str) -> list[Any]:
    """The values of a column, None for an empty cell."""
    return table.select_columns([column]).with_format("arrow")[:][column].to_pylist()


def read_labels(table: datasets.Dataset, label_column: str) -> tuple[np.ndarray, list[str]]:
    """Labels int64 (number of rows,), and class names. Raises ValueError for empty cells.

    A column without names of its own has the classes that occur, numbered in the order of their values.
    """
    column = table.select_columns([label_column]).with_format("arrow")[:][label_column]
    if column.null_count:
        raise ValueError(
            f"label_column={label_column!r} has {column.null_count} empty cells; every image needs a class"
        )
    names = getattr(table.features[label_column], "names", None)
    values = np.asarray(column.to_pylist())
    if names is not None:
        return values.astype(np.int64), names
    labels, names = number_classes(values)
    if len(names) > max(100, len(labels) // 2):
        logger.warning(
            "label_column=%r has %d different values in %d rows; is it a class?", label_column, len(names), len(labels)
        )
    return labels, names
