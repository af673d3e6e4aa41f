"""Pictures of many runs: their losses on shared axes, and where they ended."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curves import scale_losses, series, smooth
from .files import PathLike, drawing, line_style

_MANY = 12  # experiments whose names stand in a legend


def plot_experiments(experiments: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], path: PathLike) -> None:
    """Draw the loss curves of experiments on shared axes, and their last losses with the standard error over seeds.

    The validation loss where every run has one, the training loss otherwise; and as a curve, the training loss also
    where runs were validated only once.

    Args:
        experiments: name -> one list of records for each seed, with `step` and `loss` or `validation_loss`.
        path: of the file; its suffix says which kind.

    Raises ValueError when no record has a finite loss.
    """
    with_losses = {
        name: [run for run in runs if any(len(series(run, key)[0]) for key in ("loss", "validation_loss"))]
        for name, runs in experiments.items()
    }
    with_losses = {name: runs for name, runs in with_losses.items() if runs}
    if not with_losses:
        raise ValueError("experiments has no record with a step and a finite loss or validation_loss")
    counts = {
        key: min(len(series(run, key)[0]) for runs in with_losses.values() for run in runs)
        for key in ("validation_loss", "loss")
    }
    key = "validation_loss" if counts["validation_loss"] else "loss"
    curve = "loss" if counts["validation_loss"] < 2 <= counts["loss"] else key
    height = max(3.8, 0.34 * len(with_losses) + 1.6)
    with drawing(path, 10.5, height) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_curves(left, with_losses, curve)
        _draw_ends(right, with_losses, key)
        figure.suptitle("Experiments")


def _draw_curves(axes: Any, experiments: Mapping[str, Any], key: str) -> None:
    losses = []
    for number, runs in enumerate(experiments.values()):
        for run in runs:
            steps, values = series(run, key)
            values = smooth(values) if key == "loss" else values
            axes.plot(steps, values, **line_style(number), marker="o", markersize=3 if len(steps) < 30 else 0)
            losses.append(values)
    scale_losses(axes, np.concatenate(losses))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss" if key == "validation_loss" else "training loss (smoothed)")


def _draw_ends(axes: Any, experiments: Mapping[str, Any], key: str) -> None:
    names = list(experiments)
    for place, runs in enumerate(experiments.values()):
        ends = np.array([(series(run, key)[1] if key != "loss" else smooth(series(run, key)[1]))[-1] for run in runs])
        error = ends.std(ddof=1) / np.sqrt(len(ends)) if len(ends) > 1 else None
        axes.errorbar(ends.mean(), place, xerr=error, fmt="o", color=line_style(place)["color"], capsize=3)
        axes.scatter(ends, [place] * len(ends), s=8, color="#999999", zorder=1)
    axes.set_yticks(range(len(names)), [_wrapped(name) for name in names], fontsize=8 if len(names) <= _MANY else 6)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    several = max(len(runs) for runs in experiments.values()) > 1
    what = "validation loss" if key == "validation_loss" else "training loss"
    axes.set_xlabel(f"last {what}" + (" (mean ± standard error over seeds)" if several else ""))
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_color(line_style(number)["color"])


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 28)[:3])
