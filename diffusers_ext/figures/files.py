"""How pictures are drawn and written: one style for all, files that are whole or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PathLike = str | os.PathLike
DPI = 150
# Okabe and Ito's colours, which stay apart for colour-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.")
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextmanager
def drawing(path: PathLike, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches that is written when the block ends.

    Figure's own interface and not pyplot's: it has no global state and needs no display.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        write_whole(path, lambda part: figure.savefig(part, bbox_inches="tight", pad_inches=0.12))


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the curve of this number."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINE_STYLES[number // len(COLORS) % len(LINE_STYLES)]}


def write_whole(path: PathLike, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file beside `path`, then rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_count(name: str, values: Any, count: int, meaning: str) -> None:
    """Raise ValueError unless there are `count` values."""
    if len(values) != count:
        raise ValueError(f"{name} takes {meaning}: {count}, not {len(values)}")
