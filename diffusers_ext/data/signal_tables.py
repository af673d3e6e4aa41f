"""Signals in tables of the `datasets` library and in files of NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import one_line
from .base import ExampleSource, number_classes, number_column
from .names import take_split
from .signals import ArraySource, npy_bytes
from .tables import TableSource, find_other_columns, holds_numbers, load_splits, read_column

if TYPE_CHECKING:
    import datasets

    from .sources import DataRequest

SIGNAL_COLUMNS = ("audio", "signal", "signals", "series")
ARRAY_FILES = (".npy", ".npz")


# --- files of NumPy ---------------------------------------------------------------------------------------------------


def is_array_file(path: str | os.PathLike) -> bool:
    """Whether a path is one .npy or .npz file."""
    return Path(path).suffix.lower() in ARRAY_FILES and Path(path).is_file()


def open_array_file(path: Path, split: str) -> ArraySource:
    """All signals in one file.

    Args:
        path: a .npy file with an array (number, frames) or (number, channels, frames), or an .npz file with such an
            array, named `signals` if it is not the only one, and optionally `labels` (number,).
        split: "train", or a part of it such as "train[:80%]".

    Raises ValueError, in one sentence, for other contents.
    """
    where = f"train_data_dir={str(path)!r}"
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        arrays = (
            {"signals": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        )
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{where} could not be read: {one_line(error)}") from None
    others = [name for name in arrays if name not in ("label", "labels")]
    name = "signals" if "signals" in arrays else others[0] if len(others) == 1 else None
    if name is None:
        raise ValueError(f"{where} must hold an array named 'signals', got {', '.join(arrays) or 'nothing'}.")
    signals, labels = arrays[name], arrays.get("labels", arrays.get("label"))
    if signals.dtype.kind not in "biuf" or signals.ndim not in (2, 3) or 0 in signals.shape:
        raise ValueError(
            f"{where} must hold numbers of shape (number, frames) or (number, channels, frames), got {signals.dtype} "
            f"of shape {signals.shape}."
        )
    if labels is not None and labels.shape != (len(signals),):
        raise ValueError(f"labels in {where} must have the shape ({len(signals)},), got {labels.shape}.")
    rows = np.asarray(take_split({"train": range(len(signals))}, split, where))
    numbers, names = (None, None) if labels is None else number_classes(labels)
    return ArraySource(signals[rows], None if numbers is None else numbers[rows], names)


# --- tables -----------------------------------------------------------------------------------------------------------


def holds_sounds(features: Mapping[str, Any]) -> bool:
    """Whether a table has a column of sounds and none of images."""
    import datasets

    kinds = [type(feature) for feature in features.values()]
    return datasets.Audio in kinds and datasets.Image not in kinds


def open_signal_table(request: DataRequest) -> ExampleSource:
    """The signals of a table.

    `request.signals.columns` names a column of sounds or of lists of numbers, whose rows are the signals; or columns of
    plain numbers, which are the channels of one long signal with a row per frame. That is cut into windows.

    Raises ValueError, in one sentence, for columns that hold no signals.
    """
    where, options = request.where, request.signals
    table = take_split(load_splits(request), request.split, where)
    columns = [find_signal_column(table.features, where)] if not options.columns else list(options.columns)
    for column in columns:
        if column not in table.features:
            raise ValueError(
                f"signal_columns={column!r} is not a column of {where}, which has: {', '.join(table.features)}"
            )
    if all(_is_plain_number(table.features[column]) for column in columns):
        return Windows(_long_signal(table, columns, where), options.length, where)
    if len(columns) > 1:
        raise ValueError(f"signal_columns of {where} takes one column of signals, or several of plain numbers.")
    return SignalRows(table, columns[0], *find_other_columns(table.features, request), where)


def find_signal_column(features: Mapping[str, Any], where: str) -> str:
    """The only column of sounds, else a column of lists of numbers by name or alone. Raises ValueError."""
    import datasets

    sounds = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    lists = [name for name, feature in features.items() if _is_list(feature)]
    for found in (sounds, [name for name in SIGNAL_COLUMNS if name in lists][:1], lists):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{where} has no single column of sounds or of lists of numbers; name columns among {', '.join(features)} as "
        "signal_columns."
    )


def _is_list(feature: Any) -> bool:
    return isinstance(feature, list) or hasattr(feature, "feature") or type(feature).__name__.startswith("Array")


def _is_plain_number(feature: Any) -> bool:
    return not _is_list(feature) and holds_numbers(feature)


class SignalRows(TableSource):
    """A column of sounds or of lists of numbers, a signal in each row."""

    noun = "signal"

    @staticmethod
    def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
        import datasets

        is_sound = isinstance(table.features[column], datasets.Audio)
        return table.cast_column(column, datasets.Audio(decode=False)) if is_sound else table

    def read(self, index: int) -> bytes:
        """The bytes of the sound, or of the list as a .npy file."""
        value = self._column[index].as_py()
        if value is None or isinstance(value, dict):
            return super().read(index)
        return npy_bytes(np.asarray(value, dtype=np.float32))


def _long_signal(table: Any, columns: Sequence[str], where: str) -> np.ndarray:
    """float32 (channels, rows)."""
    return np.concatenate([number_column(read_column(table, name), name, where).T for name in columns])


class Windows(ArraySource):
    """One long signal in windows, one per `length` frames, as an `ExampleSource`.

    Each is up to twice as long as `length`, so that a random crop can start at any frame.
    """

    def __init__(self, signal: np.ndarray, length: int | None, where: str):
        if length is None:
            raise ValueError(f"length must be set, for {where} holds one signal of {signal.shape[1]:,} frames.")
        if signal.shape[1] < length:
            raise ValueError(f"length must be at most the {signal.shape[1]:,} frames of {where}, got {length:,}.")
        starts = range(0, signal.shape[1] - length + 1, length)
        super().__init__([signal[:, start : start + 2 * length - 1] for start in starts])

    def name(self, index: int) -> str:
        """What to call a window in a message."""
        return f"window {index}"
