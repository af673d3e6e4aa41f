"""Reading files of weights so that nothing in them is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_tensors(path: Path) -> Any:
    """What a file of safetensors or of torch.save holds: tensors, in plain containers, on the CPU.

    Raises:
        ValueError: one sentence on a file that is neither, is cut off, or holds something else, which is not unpickled.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is not a whole safetensors file ({error}).") from None


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
            raise ValueError(f"'{path}' is not a file that torch.save wrote.") from None
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"'{path}' holds a pickled {refused[1] if refused else 'object'}, and unpickling it could run any code, so "
            "it is not loaded; save the network's state_dict alone."
        ) from None
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{path}' is cut off or is not a file that torch.save wrote ({reason[:200]}).") from None
