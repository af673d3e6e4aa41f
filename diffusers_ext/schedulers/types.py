"""Check values against annotations, so that a value of a wrong type is one sentence."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

_LONGEST_SHOWN = 60  # characters of a value


def check_types(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for a value that does not fit its annotation; numbers must be finite.

    Args:
        hints: annotations by argument: bool, int, float, str, None, sequences, mappings, and unions of them.
        values: by argument; those without an annotation are not checked.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_described(hints[name])}, got {_shown(value)}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is types.NoneType:
        return value is None
    if origin is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if origin is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and _is_finite(value)
    if origin is bool:
        return isinstance(value, bool | np.bool_)
    if origin is Sequence:
        entries = value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value
        is_list = isinstance(entries, Sequence) and not isinstance(entries, str | bytes)
        return is_list and all(_fits(each, inner[0]) for each in entries)
    return not isinstance(origin, type) or isinstance(value, origin)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _described(hint: Any) -> str:
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, inner))
    if origin is Sequence:
        return "a list of numbers"
    names = {float: "a finite number", int: "an integer", bool: "true or false", str: "a text", types.NoneType: "None"}
    return names.get(origin, "a dictionary" if origin is Mapping else getattr(origin, "__name__", str(origin)))


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
