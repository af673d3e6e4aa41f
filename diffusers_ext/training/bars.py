"""Progress bars of what takes long beside the training: they appear after some seconds, and only on a terminal."""

from __future__ import annotations

from typing import Any

SHOWN_AFTER = 3.0  # seconds


def bar_options(what: str, shown: bool = True) -> dict[str, Any]:
    """Options of a tqdm or of a pipeline's progress bar.

    Args:
        what: what is done, in front of the bar.
        shown: whether this process shows it.
    """
    return {"desc": what, "leave": False, "delay": SHOWN_AFTER, "disable": None if shown else True}
