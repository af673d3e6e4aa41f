"""Classes of the user by name: `path/to/file.py:ClassName` or `package.module:ClassName`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..files import one_line


def is_name_of_object(text: str) -> bool:
    """Whether a text names a class in a file or module, rather than a preset or a folder."""
    source, colon, name = text.rpartition(":")
    return bool(colon) and bool(source) and name.isidentifier() and not Path(text).exists()


def load_object(text: str, what: str) -> Any:
    """The class or function that a text names; its file or module is run.

    Args:
        text: "path/to/file.py:Name" or "package.module:Name".
        what: the setting, for messages.

    Raises:
        ValueError: in one sentence, when it can't be imported or has no such name.
    """
    source, _, name = text.rpartition(":")
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise ValueError(f"{what} '{text}': there is no file '{source}'.") from None
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} '{text}': there is no module '{error.name}'.") from None
    except Exception as error:  # code of the user's may raise anything
        raise ValueError(f"{what} '{text}' can't be imported: {type(error).__name__}: {one_line(error)}.") from error
    if not hasattr(module, name):
        raise ValueError(f"{what} '{text}': '{source}' has no '{name}'.")
    return getattr(module, name)


def _load_file(path: Path) -> Any:
    """The module in a file, under a name of its own, so that files of equal names don't meet."""
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
