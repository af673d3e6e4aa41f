"""Files that are whole or absent, written beside their place and then renamed; and errors in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def partial_path(path: Path) -> Path:
    """The place beside `path` where it is written before it is renamed."""
    return path.with_name(f".{path.name}.partial")


def atomic_write(path: Path, write: Callable[[Path], Any] | str) -> None:
    """Write a file such that nobody ever sees a part of it.

    Args:
        path: of the file; one that is there is replaced.
        write: writes to the path that it is given, or the text of the file.
    """
    partial = partial_path(path)
    partial.unlink(missing_ok=True)  # it may be a link, which is not followed
    try:
        if isinstance(write, str):
            partial.write_text(write, encoding="utf-8")
        else:
            write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def attempt(save: Callable[[], Any]) -> str:
    """Do it; what went wrong, in one line, or an empty string."""
    try:
        save()
    except (OSError, RuntimeError, SafetensorError) as error:
        return one_line(error)
    return ""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
