"""Check values against annotations, so that a value of a wrong type is one sentence."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

_LONGEST_SHOWN = 60  # characters of a value


def check_types(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for a value that does not fit its annotation; numbers must be finite.

    Args:
        hints: annotations by argument: bool, int, float, str, None, sequences, tuples, mappings, and unions of them.
            A tuple is any sequence of its entries' kind and number, since a JSON file makes it a list.
        values: by argument; those without an annotation are not checked.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_described(hints[name])}, got {_shown(value)}.")


def check_counts(hints: Mapping[str, Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for an integer below 1, or below 0 where 0 is the default.

    Args:
        hints: annotations by argument; those of integers and of sequences of them count.
        values: by argument, of fitting types.
        defaults: by argument.
    """
    for name, value in values.items():
        least = 0 if defaults.get(name) == 0 else 1
        numbers = value if isinstance(value, Sequence) else [value]
        if _is_of_integers(hints.get(name)) and any(number is not None and number < least for number in numbers):
            raise ValueError(f"{name} must be at least {least}, got {_shown(value)}.")


def _is_of_integers(hint: Any) -> bool:
    inner = [each for each in typing.get_args(hint) if each not in (types.NoneType, Ellipsis)]
    return hint is int or (bool(inner) and all(map(_is_of_integers, inner)))


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
        return isinstance(value.tolist() if hasattr(value, "tolist") else value, bool)  # NumPy's too
    if origin in (Sequence, tuple):
        entries = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
            return False
        kinds = inner if origin is tuple and Ellipsis not in inner else inner[:1] * len(entries)
        return len(entries) == len(kinds) and all(map(_fits, entries, kinds))
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
    if origin in (Sequence, tuple):
        number = f"{len(inner)} " if origin is tuple and Ellipsis not in inner else ""
        is_of_numbers = typing.get_origin(inner[0]) is None and inner[0] in (int, float)
        return f"a list of {number}{'numbers' if is_of_numbers else 'entries'}"
    names = {float: "a finite number", int: "an integer", bool: "true or false", str: "a text", types.NoneType: "None"}
    return names.get(origin, "a dictionary" if origin is Mapping else getattr(origin, "__name__", str(origin)))


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
