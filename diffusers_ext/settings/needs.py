"""What settings need to have an effect: `Need`, and the needs that most settings have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Need:
    """What settings need to have an effect.

    Args:
        met: whether it is so, given the settings object.
        reason: why not, as the end of "... has no effect: {reason}."
        switches: the settings that decide.
        contradiction: refuse a setting that was given as a flag, instead of warning.
    """

    met: Callable[[Any], bool]
    reason: str
    switches: tuple[str, ...]
    contradiction: bool = False


def equal_to(name: str, value: Any, contradiction: bool = False) -> Need:
    """Setting `name` has this value."""
    return Need(lambda a: getattr(a, name) == value, f"{name} is not {value}", (name,), contradiction)


def switched_on(name: str) -> Need:
    """Switch `name` is on."""
    return Need(lambda a: getattr(a, name), f"{name} is off", (name,))


def given(name: str, reason: str = "") -> Need:
    """Setting `name` is not None."""
    return Need(lambda a: getattr(a, name) is not None, reason or f"there is no {name}", (name,))


def not_given(name: str, reason: str = "", contradiction: bool = False) -> Need:
    """Setting `name`, which would take the setting's place, is None."""
    return Need(lambda a: getattr(a, name) is None, reason or f"{name} takes its place", (name,), contradiction)
