"""SDEdit: noise an image to a middle level and sample from there (Meng et al. 2022, arXiv:2108.01073, algorithm 1)."""

from __future__ import annotations

from typing import Any

from ..pipelines.call_arguments import is_number
from .levels import WrappedScheduler, begins_at


def from_the_middle(scheduler: Any, strength: float) -> WrappedScheduler:
    """The last `strength` of a scheduler's steps, rounded to at least one.

    Args:
        scheduler: with its timesteps set.
        strength: above 0, at most 1: the share of the steps that are sampled, and so of how much changes.

    Raises:
        ValueError: for a strength outside that range.
    """
    if not is_number(strength) or not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}.")
    steps = len(begins_at(scheduler))
    return WrappedScheduler(scheduler, steps - max(1, round(strength * steps)))
