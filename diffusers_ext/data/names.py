"""What the names of files mean: which split a file belongs to, and which class.

Names are normalised first (`normalised`): zip archives made on Windows separate folders by backslashes, and people
write `Training/` as well as `train/`. Only a whole folder name is a split: `train_tracks/` is a class, as `cat/` is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from ..files import one_line

SPLIT_OF_WORD = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
HIDDEN_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini")
NamePair = tuple[str, str]  # a file's short name, and its full name in the folder or archive


def normalised(name: str) -> str | None:
    """A file's name with `/` between folders, as `a/b.png`; None for hidden files and names that lead upwards."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    hidden = any(part.startswith(".") or part in HIDDEN_NAMES for part in parts)
    return "/".join(parts) if parts and not hidden else None


def without_common_folder(names: Sequence[NamePair]) -> list[NamePair]:
    """Shorten the names by the folders that all of them share (archives often hold one); a split's folder stays."""
    names = list(names)
    while all("/" in name for name, _ in names):
        (top, *others) = {_top(name) for name, _ in names}
        if others or _split_of_folder(top) is not None:
            break
        names = [(_below_top(name), full) for name, full in names]
    return names


def split_folders(names: Sequence[NamePair]) -> dict[str, list[NamePair]]:
    """The files of each split, named without its folder.

    The top folders are splits when all of them, or two or more, are named like splits; otherwise all is "train". Files
    outside of the splits' folders are then in none.
    """
    groups = grouped_by_split([name for name, _ in names], _split_of_top)
    if groups is None:
        return {"train": list(names)}
    return {split: [(_below_top(names[i][0]), names[i][1]) for i in places] for split, places in groups.items()}


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
    """The table files of each split, by a folder or the first or last word of the file's name: `train-00000-of-00003`.

    As with folders, they are splits when all files, or files of two or more splits, are named like that.
    """
    groups = grouped_by_split(names, split_of_file)
    return {"train": list(names)} if groups is None else {s: [names[i] for i in places] for s, places in groups.items()}


def grouped_by_split(names: Sequence[str], split_of: Callable[[str], str | None]) -> dict[str, list[int]] | None:
    """Places in `names` by split, or None when the names do not describe splits."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        split = split_of(name)
        if split is not None:
            groups.setdefault(split, []).append(place)
    if len(groups) >= 2 or sum(map(len, groups.values())) == len(names):
        return dict(sorted(groups.items()))
    return None


def split_of_file(name: str) -> str | None:
    """The split that a table file belongs to by its folders or its own name."""
    *folders, file = name.split("/")
    stem = re.sub(r"[-_]\d+-of-\d+$", "", file.rsplit(".", 1)[0])
    words = re.split(r"[-_. ]+", re.sub(r"[-_.]?\d+$", "", stem))
    candidates = [*reversed(folders), words[0], words[-1]]
    return next((split for word in candidates if (split := _split_of_folder(word)) is not None), None)


def _split_of_folder(folder: str) -> str | None:
    return SPLIT_OF_WORD.get(folder.lower())


def _split_of_top(name: str) -> str | None:
    return _split_of_folder(_top(name)) if "/" in name else None


def labels_of_folders(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels int64 (number of files,) and class names, when every file lies in one of two or more top folders."""
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

    Raises ValueError for a split that is not there, a part that is none, and a part without rows.
    """
    base = split.partition("[")[0]
    if base not in splits:
        raise ValueError(f"split={split!r} is not in {where}, which has: {', '.join(splits)}")
    rows = splits[base] if base == split else _part_of(splits[base], base, split)
    if isinstance(rows, Sized) and len(rows) == 0:
        raise ValueError(f"split={split!r} of {where} holds no rows; '{base}' has {len(splits[base]):,}")
    return rows


def _part_of(rows: Any, base: str, split: str) -> Any:
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        reason = one_line(error)
        raise ValueError(
            f"split={split!r} must be a split, or a part of one such as 'train[:100]' or 'train[50%:]': {reason}"
        ) from error
    start, stop = part.from_ or 0, len(rows) if part.to is None else part.to
    chosen = range(min(start, len(rows)), max(start, min(stop, len(rows))))
    if not chosen:
        return []
    return rows.select(chosen) if hasattr(rows, "select") else rows[chosen.start : chosen.stop]
