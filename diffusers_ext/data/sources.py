"""Where image files come from: a table of the `datasets` library, a folder, or an archive of a folder.

A source knows its images by number: `name(i)` says which one it is in a message, `read(i)` gives its file's bytes.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from huggingface_hub import constants

if TYPE_CHECKING:
    import datasets

EMBEDDED_NAME = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent
IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip
SPLIT_OF_FOLDER = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
CUSTOMARY_IMAGE_COLUMNS = ("image", "img")
CUSTOMARY_LABEL_COLUMNS = ("label", "labels")
CUSTOMARY_CAPTION_COLUMNS = ("text", "caption")
NamePair = tuple[str, str]  # a file's short name, and its full name in the folder or archive


class ImageSource(Protocol):
    """Numbered image files; `labels` is int64 (number of images,) or None, `captions` a text for each image or None."""

    labels: np.ndarray | None
    class_names: list[str] | None
    captions: list[str] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call image `index` in a message."""

    def read(self, index: int) -> bytes:
        """The bytes of image `index`'s file. Raises OSError or ValueError when there are none."""


class TableSource:
    """The image column of a `datasets.Dataset`, read row by row from the (memory-mapped) table."""

    def __init__(
        self, table: datasets.Dataset, image_column: str, label_column: str | None, caption_column: str | None = None
    ):
        import datasets

        images = table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._table = images.with_format("arrow")
        self._image_column = image_column
        self.labels: np.ndarray | None = None
        self.class_names: list[str] | None = None
        if label_column is not None:
            self.labels, self.class_names = read_labels(table, label_column)
        self.captions = None if caption_column is None else read_captions(table, caption_column)

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        value = self._column[index].as_py() or {}
        return f"row {index}" + (f" ({value['path']})" if value.get("path") else "")

    def read(self, index: int) -> bytes:
        value = self._column[index].as_py()
        if value is None:
            raise ValueError("the row holds no image")
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    @functools.cached_property
    def _column(self) -> Any:
        # An arrow column is far quicker to index than the dataset around it.
        return self._table[:][self._image_column]

    def __getstate__(self) -> dict[str, Any]:
        # The dataset pickles as the path of its file; the arrow column would pickle as all of its bytes.
        return {name: value for name, value in self.__dict__.items() if name != "_column"}


class FileSource:
    """Image files below a folder or inside an archive.

    Args:
        files: relative name of each image file -> what `reader` needs to find it.
        reader: gives the bytes of a file, and pickles, so that data loader workers can read too.
        split: which split to take when the top folders are splits (`train/`, `test/`).
        where: what to call the folder or archive in a message.
    """

    captions: list[str] | None = None

    def __init__(self, files: Mapping[str, Any], reader: Callable[[Any], bytes], split: str, where: str):
        if not files:
            raise FileNotFoundError(
                f"{where} holds no image files (.png, .jpg, ...); parquet or arrow files go to dataset_name"
            )
        names = take_split(split_folders(without_common_folder([(name, name) for name in sorted(files)])), split, where)
        self._names = [full_name for _, full_name in names]
        self._places = [files[full_name] for full_name in self._names]
        self._reader = reader
        self.labels, self.class_names = labels_of_folders([name for name, _ in without_common_folder(names)])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> bytes:
        return self._reader(self._places[index])


def open_files(path: str | os.PathLike, split: str, cache_dir: str | None = None) -> FileSource:
    """The images of a folder, or of a .zip or .tar(.gz, .bz2, .xz) archive of one, without unpacking it.

    Raises FileNotFoundError when nothing is there or it holds no image, ValueError for a file that is not an archive.
    """
    path, where = Path(path).expanduser(), f"train_data_dir={str(path)!r}"
    if not path.exists():
        raise FileNotFoundError(f"{where} does not exist; it takes a folder of images or a .zip or .tar archive of one")
    if path.is_dir():
        return FileSource(_files_of_folder(path), Path.read_bytes, split, where)
    try:
        if zipfile.is_zipfile(path):
            return FileSource(_files_of_zip(path), ZipReader(path), split, where)
        if tarfile.is_tarfile(path):
            path = _uncompressed_tar(path, cache_dir)
            return FileSource(_files_of_tar(path), TarReader(path), split, where)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{where} is a damaged archive: {error}") from error
    raise ValueError(f"{where} is neither a folder nor a .zip or .tar(.gz, .bz2, .xz) archive")


class ZipReader:
    """Read members of a zip archive by name; safe across threads, forks and pickling."""

    def __init__(self, path: Path):
        self._path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def __call__(self, name: str) -> bytes:
        # A fork shares the file position of an open archive with its parent, so every process opens its own.
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self._path)
        return self._open[1].read(name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_open": None}


class TarReader:
    """Read members of an uncompressed tar archive by their place, (offset, size) in bytes."""

    def __init__(self, path: Path):
        self._path = path

    def __call__(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _is_image_name(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _files_of_folder(root: Path) -> dict[str, Path]:
    files, seen = {}, set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it would never end
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if _is_image_name(relative):
                files[relative] = path
    return files


def _files_of_zip(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {_relative(name): name for name in archive.namelist() if _is_image_name(_relative(name))}


def _files_of_tar(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path, "r:") as archive:
        members = [member for member in archive if member.isfile() and _is_image_name(_relative(member.name))]
    return {_relative(member.name): (member.offset_data, member.size) for member in members}


def _relative(member_name: str) -> str:
    """`./a/b.png`, as `tar -c .` writes it, and `a/b.png` are the same file."""
    return member_name.removeprefix("./")


def _uncompressed_tar(path: Path, cache_dir: str | None) -> Path:
    """The archive itself, or, when it is compressed and so has no random access, a plain copy of it in the cache."""
    opener = _decompressor(path)
    if opener is None:
        return path
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = Path(cache_dir or Path(constants.HF_HOME, "diffusers_ext"))
    plain = folder / f"{path.name.split('.')[0]}-{key}.tar"
    if not plain.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with opener(path) as compressed, _written_whole(plain) as copy:
            shutil.copyfileobj(compressed, copy, length=2**20)
    return plain


def _decompressor(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    return next((opener for magic, opener in openers.items() if start.startswith(magic)), None)


@contextmanager
def _written_whole(path: Path) -> Iterator[Any]:
    """A file that appears under its name only when it is complete, however many processes write it at once."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def without_common_folder(names: Sequence[NamePair]) -> list[NamePair]:
    """Shorten the names by the folders that all of them share (archives often hold one); a split's folder stays."""
    names = list(names)
    while all("/" in name for name, _ in names):
        (top, *others) = {_top(name) for name, _ in names}
        if others or top in SPLIT_OF_FOLDER:
            break
        names = [(_below_top(name), full) for name, full in names]
    return names


def split_folders(names: Sequence[NamePair]) -> dict[str, list[NamePair]]:
    """The files of each split, named without its folder.

    The top folders are splits when all of them, or two or more, are named like splits; otherwise all is "train".
    """
    tops = {_top(name) for name, _ in names if "/" in name}
    splits = {SPLIT_OF_FOLDER[top] for top in tops if top in SPLIT_OF_FOLDER}
    if len(splits) < 2 and not (splits and tops <= SPLIT_OF_FOLDER.keys()):
        return {"train": list(names)}
    found: dict[str, list[NamePair]] = {split: [] for split in sorted(splits)}
    for name, full in names:
        if "/" in name and _top(name) in SPLIT_OF_FOLDER:
            found[SPLIT_OF_FOLDER[_top(name)]].append((_below_top(name), full))
    return found


def labels_of_folders(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels int64 (number of images,) and class names, when every image lies in one of two or more top folders."""
    class_names = sorted({_top(name) for name in names})
    if len(class_names) < 2 or not all("/" in name for name in names):
        return None, None
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([number[_top(name)] for name in names], dtype=np.int64), class_names


def _top(name: str) -> str:
    return name.split("/", 1)[0]


def _below_top(name: str) -> str:
    return name.split("/", 1)[1]


def take_split(splits: Mapping[str, Any], split: str, where: str) -> Any:
    """One split by name, or a part of it in the notation of `datasets`: "train", "train[:100]", "test[50%:]".

    Raises ValueError for a split that is not there.
    """
    base = split.partition("[")[0]
    if base not in splits:
        raise ValueError(f"split={split!r} is not in {where}, which has: {', '.join(splits)}")
    rows = splits[base]
    if base == split:
        return rows
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split={split!r} takes a part such as 'train[:100]' or 'train[50%:]': {error}") from error
    chosen = range(part.from_ or 0, len(rows) if part.to is None else part.to)
    return rows.select(chosen) if hasattr(rows, "select") else rows[chosen.start : chosen.stop]


def open_table(
    dataset_name: str,
    config_name: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    cache_dir: str | None,
    token: str | bool | None,
    caption_column: str | None = None,
) -> TableSource:
    """The image, label and caption columns of the embedded set, a local folder, or a data set on the Hub.

    Raises FileNotFoundError for a data set that is not there, ValueError for a wrong split or column.
    """
    where = f"dataset_name={dataset_name!r}"
    table = take_split(load_splits(dataset_name, config_name, cache_dir, token), split, where)
    if len(table) == 0:
        raise ValueError(f"split={split!r} of {where} holds no rows")
    image_column = find_image_column(table.features, image_column, where)
    label_column = find_label_column(table.features, label_column, where)
    caption_column = find_caption_column(table.features, caption_column, where)
    return TableSource(table, image_column, label_column, caption_column)


def load_splits(
    name: str, config_name: str | None, cache_dir: str | None, token: str | bool | None, streaming: bool = False
) -> Mapping[str, Any]:
    """The splits of a data set by name: as `datasets.Dataset`, or when `streaming` as `datasets.IterableDataset`.

    Raises FileNotFoundError, ConnectionError or ValueError, in one sentence.
    """
    import datasets
    from pyarrow import parquet

    path, where = Path(name).expanduser(), f"dataset_name={name!r}"
    if name == EMBEDDED_NAME:
        # Read as plain parquet: it needs no cache folder, and so works where nothing can be written.
        files = {split: EMBEDDED_FOLDER / f"mnist_{split}.parquet" for split in ("train", "test")}
        return {split: datasets.Dataset(parquet.read_table(file)) for split, file in files.items()}
    if path.is_file():
        raise ValueError(f"{where} is a file; it takes a Hub name or a folder, and an archive goes to train_data_dir")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{where} does not exist; it takes a Hub name, a folder, or {EMBEDDED_NAME!r}")
    with _quiet(datasets, local=path.exists()):
        if (path / "dataset_dict.json").exists():
            return datasets.DatasetDict.load_from_disk(str(path))
        if (path / "state.json").exists():
            table = datasets.Dataset.load_from_disk(str(path))
            return {str(table.split or "train"): table}
        options = {"cache_dir": cache_dir, "token": token, "streaming": streaming}
        return _load_dataset(str(path) if path.exists() else name, config_name, where, **options)


def _load_dataset(name: str, config_name: str | None, where: str, **options: Any) -> Mapping[str, datasets.Dataset]:
    """`datasets.load_dataset`, whose many kinds of long errors become three kinds of one sentence."""
    import datasets

    try:
        return datasets.load_dataset(name, config_name, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} could not be found: {_one_line(error)}") from error
    except ConnectionError as error:
        raise ConnectionError(
            f"{where} is no folder here, and the Hub could not be reached: {_one_line(error)}"
        ) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{where} could not be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
    candidates = candidates or [
        name for name in CUSTOMARY_IMAGE_COLUMNS if name in features and _holds_bytes(features[name])
    ]
    if image_column is not None:
        _check_column("image_column", image_column, features, where)
        if image_column not in candidates and not _holds_bytes(features[image_column]):
            raise ValueError(
                f"image_column={image_column!r} of {where} holds no images; its columns are: {', '.join(features)}"
            )
        return image_column
    chosen = (
        candidates if len(candidates) == 1 else [name for name in CUSTOMARY_IMAGE_COLUMNS if name in candidates][:1]
    )
    if not chosen:
        problem = f"has several image columns ({', '.join(candidates)})" if candidates else "has no image column"
        raise ValueError(f"{where} {problem}; name one of its columns as image_column: {', '.join(features)}")
    return chosen[0]


def find_label_column(features: Mapping[str, Any], label_column: str | None, where: str) -> str | None:
    """The named column, or else `label` or `labels` when it holds one class an image. Raises ValueError."""
    if label_column is None:
        return next(
            (name for name in CUSTOMARY_LABEL_COLUMNS if name in features and _holds_classes(features[name])), None
        )
    _check_column("label_column", label_column, features, where)
    if not _holds_classes(features[label_column]):
        raise ValueError(f"label_column={label_column!r} of {where} must hold integers or strings, one class an image")
    return label_column


def find_caption_column(features: Mapping[str, Any], caption_column: str | None, where: str) -> str | None:
    """The named column, or else `text` or `caption` when it holds one text an image. Raises ValueError."""
    if caption_column is None:
        return next(
            (name for name in CUSTOMARY_CAPTION_COLUMNS if name in features and _holds_text(features[name])), None
        )
    _check_column("caption_column", caption_column, features, where)
    if not _holds_text(features[caption_column]):
        raise ValueError(f"caption_column={caption_column!r} of {where} must hold strings, one text an image")
    return caption_column


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


def _holds_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def read_captions(table: datasets.Dataset, caption_column: str) -> list[str]:
    """A text for every row; an empty cell is an empty text."""
    column = table.select_columns([caption_column]).with_format("arrow")[:][caption_column]
    return [value or "" for value in column.to_pylist()]


def read_labels(table: datasets.Dataset, label_column: str) -> tuple[np.ndarray, list[str] | None]:
    """Labels int64 (number of rows,), and class names where the column has some. Raises ValueError for empty cells."""
    column = table.select_columns([label_column]).with_format("arrow")[:][label_column]
    if column.null_count:
        raise ValueError(
            f"label_column={label_column!r} has {column.null_count} empty cells; every image needs a class"
        )
    values = np.asarray(column.to_pylist())
    if values.dtype.kind == "U":
        names, labels = np.unique(values, return_inverse=True)
        return labels.astype(np.int64), names.tolist()
    return values.astype(np.int64), getattr(table.features[label_column], "names", None)
