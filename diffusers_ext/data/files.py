"""Files in a folder or an archive that can come from anywhere.

Only regular files are read. Links are followed inside the folder or archive. Number, size and compression ratio have
limits, and what is left out is counted and said.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import itertools
import logging
import lzma
import os
import posixpath
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .names import labels_of_folders, normalised, split_folders, take_split, without_common_folder
from .opening import MAX_IMAGE_BYTES, advice_on_suffix, image_suffixes, read_regular_file
from .sounds import advice_on_sound, signal_suffixes

logger = logging.getLogger(__name__)

MAX_FILES = 20_000_000
MAX_TOTAL_BYTES = 2**42  # 4 TiB
MAX_RATIO = 200  # of the unpacked size to the archive's size, above `UNSUSPICIOUS_BYTES`
UNSUSPICIOUS_BYTES = 2**30  # 1 GiB
MAX_LINK_BYTES = 4096
COPY_BYTES = 2**20
# Files that often lie beside data; they alone are no reason for a warning.
COMPANY = {"", ".txt", ".md", ".json", ".jsonl", ".csv", ".xml", ".yaml", ".yml", ".html", ".pdf", ".py", ".ini", ".db"}


@dataclass(frozen=True)
class FileKind:
    """A kind of files that examples are read from.

    Attributes:
        noun: what one is called in messages.
        examples: some suffixes, for messages.
        suffixes: gives those of the files that are read, in lower case.
        advice: what files of another suffix need in order to be read, or None.
    """

    noun: str
    examples: str
    suffixes: Callable[[], Collection[str]]
    advice: Callable[[str], str | None]


IMAGE_FILES = FileKind("image", ".png, .jpg, ...", image_suffixes, advice_on_suffix)
SIGNAL_FILES = FileKind("signal", ".wav, .flac, .npy, ...", signal_suffixes, advice_on_sound)


class Findings:
    """The files of a folder or archive that are read, and counts of what is left out.

    Args:
        where: what to call the folder or archive in a message.
        suffixes: of the files that are read, in lower case.
        advice: what files of another suffix need in order to be read, or None.

    Attributes:
        files: where each file is, by its normalised name.

    Raises ValueError beyond the limits on number and size.
    """

    def __init__(self, where: str, suffixes: Collection[str], advice: Callable[[str], str | None] = advice_on_suffix):
        self.where, self._suffixes, self._advice = where, suffixes, advice
        self.files: dict[str, Any] = {}
        self.left_out: Counter[str] = Counter()  # by reason
        self._other_suffixes: Counter[str] = Counter()
        self._links: dict[str, str] = {}
        self.total_bytes = 0

    def wanted(self, name: str) -> str | None:
        """The normalised name of a file that is read; others are counted by suffix, hidden ones ignored."""
        normal = normalised(name)
        if normal is None:
            return None
        suffix = posixpath.splitext(normal)[1].lower()
        if suffix in self._suffixes:
            return normal
        self._other_suffixes[suffix] += 1
        return None

    def add(self, name: str, place: Any, size: int) -> None:
        """Add a regular file of `size` bytes."""
        normal = self.wanted(name)
        if normal is None:
            return
        if size > MAX_IMAGE_BYTES:
            self.left_out["file(s) of more than 512 MiB"] += 1
            return
        if normal in self.files:
            self.left_out["file(s) whose name comes twice"] += 1
        self.files[normal] = place
        self.total_bytes += size
        if len(self.files) > MAX_FILES or self.total_bytes > MAX_TOTAL_BYTES:
            raise ValueError(
                f"{self.where} is refused: it has more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES:,} bytes"
            )

    def add_link(self, name: str, target: str) -> None:
        """Add a link to another file of the archive, by the name of that."""
        normal = self.wanted(name)
        if normal is not None:
            self._links[normal] = target

    def add_special(self, name: str) -> None:
        """Count a pipe, a device, or whatever else is no file."""
        if self.wanted(name) is not None:
            self.left_out["special file(s)"] += 1

    def resolve_links(self) -> None:
        """Make links names of the files they lead to; count those that lead nowhere or out of the archive."""
        for name, target in self._links.items():
            for _ in range(10):
                target = self._links.get(target, target)
            if target in self.files:
                self.files[name] = self.files[target]
            else:
                self.left_out["link(s) out of it or to nothing"] += 1

    def check_ratio(self, archive_bytes: int) -> None:
        """Raises ValueError when the files are large, and much larger than the archive."""
        check_ratio(self.total_bytes, archive_bytes, self.where)

    def holds(self, suffixes: Collection[str]) -> bool:
        """Whether some of the files that are left out have one of these suffixes."""
        return any(suffix in suffixes for suffix in self._other_suffixes)

    def summary(self) -> str:
        """What is left out, such as "8 .heic files need pillow-heif, 2 special files"; empty when nothing is."""
        parts = []
        for suffix, count in self._other_suffixes.most_common():
            advice, kind = self._advice(suffix), f"{suffix} " if suffix else ""
            need = f" need{'s' * (count == 1)} {advice}" if advice else ""
            parts.append(f"{count:,} {kind}file{'s' * (count > 1)}{need}" + ("" if suffix else " without a suffix"))
        parts += [f"{count:,} " + reason.replace("(s)", "s" * (count > 1)) for reason, count in self.left_out.items()]
        return ", ".join(parts)

    def report(self) -> None:
        """Say what is left out: as a warning, or as information when it is only what often lies beside data."""
        if summary := self.summary():
            harmless = not self.left_out and self._other_suffixes.keys() <= COMPANY
            logger.log(logging.INFO if harmless else logging.WARNING, "%s: left out %s", self.where, summary)


def check_ratio(unpacked_bytes: int, archive_bytes: int, where: str) -> None:
    """Raises ValueError when an archive unpacks to suspiciously much."""
    if unpacked_bytes > max(UNSUSPICIOUS_BYTES, MAX_RATIO * archive_bytes):
        raise ValueError(
            f"{where} is refused: it unpacks to more than {MAX_RATIO} times its {archive_bytes:,} bytes; unpack it "
            "yourself if you trust it"
        )


class FileSource:
    """Files below a folder or inside an archive, as an `ExampleSource`.

    Args:
        found: the files.
        reader: gives the bytes of a file, and pickles, so that data loader workers can read too.
        split: which split to take when the top folders are splits (`train/`, `test/`).
        kind: of the files.

    Raises FileNotFoundError without files, ValueError for a split that is not there.
    """

    captions: list[str] | None = None
    columns: dict[str, Any] = {}

    def __init__(self, found: Findings, reader: Callable[[Any], bytes], split: str, kind: FileKind = IMAGE_FILES):
        files, where = found.files, found.where
        if not files:
            other = f", but {summary}" if (summary := found.summary()) else ""
            raise FileNotFoundError(
                f"{where} holds no {kind.noun} files ({kind.examples}){other}; an archive is given by its "
                "own path, and parquet or arrow files go to dataset_name"
            )
        splits = split_folders(without_common_folder([(name, name) for name in sorted(files)]))
        outside = len(files) - sum(map(len, splits.values()))
        if outside:
            found.left_out[f"{kind.noun}(s) outside of the folders of the splits"] += outside
        found.report()
        names = take_split(splits, split, where)
        self._names = [full_name for _, full_name in names]
        self._places = [files[full_name] for full_name in self._names]
        self._reader = reader
        self.labels, self.class_names = labels_of_folders([name for name, _ in without_common_folder(names)])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The name of image `index` in the folder or archive."""
        return self._names[index]

    def read(self, index: int) -> bytes:
        """The bytes of image `index`. Raises OSError or ValueError when it can't be read."""
        return self._reader(self._places[index])


def open_files(
    path: str | os.PathLike,
    split: str,
    cache_dir: str | None = None,
    kind: FileKind = IMAGE_FILES,
) -> FileSource:
    """The files of a kind in a folder, or in a .zip or .tar(.gz, .bz2, .xz) archive of one, without unpacking it.

    Raises FileNotFoundError when nothing is there or it holds no such file, ValueError for a file that is not an
    archive or beyond the limits.
    """
    where = f"train_data_dir={str(path)!r}"
    wanted = f"it takes a folder of {kind.noun}s or a .zip or .tar archive of one"
    if not str(path):
        raise ValueError(f"train_data_dir is empty; {wanted}")
    path = Path(path).expanduser()
    found = Findings(where, kind.suffixes(), kind.advice)
    if path.is_dir():
        find_in_folder(path, found)
        return FileSource(found, read_regular_file, split, kind)
    if not path.exists():
        raise FileNotFoundError(f"{where} does not exist; {wanted}")
    if not path.is_file():
        raise ValueError(f"{where} is a special file; {wanted}")
    try:
        form = archive_kind(path)
        if form == "zip":
            find_in_zip(path, found)
            return FileSource(found, ZipReader(path), split, kind)
        if form == "tar":
            path = uncompressed_tar(path, cache_dir, where)
            find_in_tar(path, found)
            return FileSource(found, TarReader(path), split, kind)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{where} is a damaged archive: {error}") from error
    raise ValueError(f"{where} is neither a folder nor a .zip or .tar(.gz, .bz2, .xz) archive")


def first_kind(path: str | os.PathLike, kinds: Sequence[FileKind]) -> FileKind | None:
    """The first of `kinds` that a folder or archive holds a file of, or None; nothing is raised."""
    found: set[str] = set()
    with contextlib.suppress(Exception):  # what is wrong with it is said when it is opened
        for name in _names_in(Path(path).expanduser()):
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in kinds[0].suffixes() and normalised(name) is not None:
                return kinds[0]
            found.add(suffix)
    return next((kind for kind in kinds if found & set(kind.suffixes())), None)


def _names_in(path: Path) -> Iterator[str]:
    """The names of the files of a folder or archive; of a tar only the first 1000."""
    if path.is_dir():
        for folder, _, names in os.walk(path, followlinks=False):
            yield from (posixpath.join(os.path.relpath(folder, path), name) for name in names)
    elif path.is_file() and archive_kind(path) == "zip":
        with zipfile.ZipFile(path) as archive:
            yield from archive.namelist()
    elif path.is_file() and archive_kind(path) == "tar":
        with tarfile.open(path) as tar:
            yield from (member.name for member in itertools.islice(tar, 1000))


def archive_kind(path: Path) -> str | None:
    """ "zip", "tar" or None, by the contents of the file: a tar whose last member is a zip is a tar."""
    with path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if not starts_as_zip and tarfile.is_tarfile(path):
        return "tar"
    return "zip" if zipfile.is_zipfile(path) else None


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


def find_in_folder(root: Path, found: Findings) -> None:
    """Add the regular files below a folder."""
    real_root, seen = os.path.realpath(root), set()

    def unreadable(error: OSError) -> None:
        found.left_out["folder(s) that could not be opened"] += 1

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if not _is_inside(real, real_root) or real in seen:  # a link to a folder above it would never end
            found.left_out["linked folder(s) outside of it or read already"] += 1
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for name in names:
            path = os.path.join(folder, name)
            _add_file(path, os.path.relpath(path, root), real_root, found)


def _add_file(path: str, name: str, real_root: str, found: Findings) -> None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        if not _is_inside(os.path.realpath(path), real_root) or not os.path.exists(path):
            if found.wanted(name) is not None:
                found.left_out["link(s) out of it or to nothing"] += 1
            return
        status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        found.add(name, path, status.st_size)
    else:
        found.add_special(name)


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def find_in_zip(path: Path, found: Findings) -> None:
    """Add the regular members of a zip archive. Raises ValueError when they unpack to too much."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
            if member.is_dir():
                continue
            if kind == stat.S_IFLNK and member.file_size <= MAX_LINK_BYTES:
                target = archive.read(member).decode("utf-8", "replace")
                found.add_link(member.filename, _target(posixpath.dirname(member.filename), target))
            elif kind in (0, stat.S_IFREG):
                found.add(member.filename, member.filename, member.file_size)
            else:
                found.add_special(member.filename)
    found.resolve_links()
    found.check_ratio(path.stat().st_size)


def find_in_tar(path: Path, found: Findings) -> None:
    """Add the regular members of a tar archive. Raises tarfile.ReadError when it is cut short."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isreg() and not member.issparse():
                found.add(member.name, (member.offset_data, member.size), member.size)
            elif member.issym():
                found.add_link(member.name, _target(posixpath.dirname(member.name), member.linkname))
            elif member.islnk():
                found.add_link(member.name, _target("", member.linkname))
            elif not member.isdir():
                found.add_special(member.name)
        end = archive.offset
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"there is no end marker at byte {end:,}, so it is cut short or damaged there")
    found.resolve_links()


def _target(folder: str, link: str) -> str:
    """The normalised name that a link leads to; empty when that is outside."""
    joined = posixpath.normpath(posixpath.join(folder, link.replace("\\", "/")))
    return "" if joined.startswith(("..", "/")) else normalised(joined) or ""


def uncompressed_tar(path: Path, cache_dir: str | None, where: str) -> Path:
    """The archive itself, or, when it is compressed and so has no random access, a plain copy of it in the cache.

    Raises ValueError when it unpacks to too much.
    """
    opener = _decompressor(path)
    if opener is None:
        return path
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = Path(cache_dir or Path(constants.HF_HOME, "diffusers_ext"))
    plain = folder / f"{path.name.split('.')[0]}-{key}.tar"
    if not plain.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with opener(path) as compressed, _written_whole(plain) as copy:
            while block := compressed.read(COPY_BYTES):
                copy.write(block)
                check_ratio(copy.tell(), status.st_size, where)
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
