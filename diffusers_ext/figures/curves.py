"""Plots of curves: noise schedules, losses, guidance, convergence, and the map of an embedding."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .files import COLORS, PathLike, check_count, drawing, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BETA_LABEL, ALPHA_LABEL = r"variance added, $\beta_t$", r"signal left, $\bar{\alpha}_t$"


def plot_schedule(curves: Mapping[str, Mapping[str, Any]], path: PathLike) -> None:
    """Plot the noise schedules: beta_t and a_bar_t against the timestep.

    Args:
        curves: name of the schedule -> its `betas` and `alphas_cumprod`, arrays or tensors (timesteps,). One schedule
            is drawn on twin axes, several on two panels side by side.
        path: of the file; its suffix says which kind.

    Raises ValueError for no schedules, and for arrays that are empty, not flat, not finite or of different lengths.
    """
    if not curves:
        raise ValueError("curves takes at least one schedule, not an empty dictionary")
    arrays = {
        name: (_flat(name, curve, "betas"), _flat(name, curve, "alphas_cumprod")) for name, curve in curves.items()
    }
    for name, (betas, alphas_cumprod) in arrays.items():
        check_count(f"curves[{name!r}]['alphas_cumprod']", alphas_cumprod, len(betas), "as many values as betas")
    if len(arrays) == 1:
        _plot_one_schedule(*arrays.popitem(), path)
    else:
        _plot_schedules(arrays, path)


def _flat(name: str, curve: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in curve:
        raise ValueError(f"curves[{name!r}] takes 'betas' and 'alphas_cumprod', not {sorted(curve)}")
    values = curve[key].detach().cpu() if isinstance(curve[key], torch.Tensor) else curve[key]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"curves[{name!r}][{key!r}] takes finite numbers of shape (timesteps,), got {array.shape}")
    return array


def _plot_one_schedule(name: str, arrays: tuple[np.ndarray, np.ndarray], path: PathLike) -> None:
    betas, alphas_cumprod = arrays
    timesteps = np.arange(1, len(betas) + 1)
    with drawing(path, 6.4, 3.8) as figure:
        left = figure.add_subplot()
        right = left.twinx()
        left.plot(timesteps, betas, color=COLORS[0])
        right.plot(timesteps, alphas_cumprod, color=COLORS[1], linestyle="--")
        _scale_betas(left, [betas])
        right.set_ylim(-0.02, 1.02)
        left.set_xlabel("timestep t")
        _label_twins(left, BETA_LABEL, right, ALPHA_LABEL)
        left.set_title(f"Noise schedule: {name}, {len(betas)} timesteps")


def _label_twins(left: Axes, left_label: str, right: Axes, right_label: str) -> None:
    """Show which of two curves belongs to which axis."""
    right.grid(False)
    right.spines["right"].set_visible(True)
    for axes, label, color in ((left, left_label, COLORS[0]), (right, right_label, COLORS[1])):
        axes.set_ylabel(label, color=color)
        axes.tick_params(axis="y", colors=color)


def _plot_schedules(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], path: PathLike) -> None:
    lengths = {len(betas) for betas, _ in arrays.values()}
    with drawing(path, 10, 4) as figure:
        left, right = figure.subplots(1, 2)
        for number, (name, (betas, alphas_cumprod)) in enumerate(arrays.items()):
            timesteps = np.arange(1, len(betas) + 1) / (1 if len(lengths) == 1 else len(betas))
            left.plot(timesteps, betas, **line_style(number), label=name)
            right.plot(timesteps, alphas_cumprod, **line_style(number), label=name)
        _scale_betas(left, [betas for betas, _ in arrays.values()])
        right.set_ylim(-0.02, 1.02)
        for axes, label in ((left, BETA_LABEL), (right, ALPHA_LABEL)):
            axes.set_xlabel("timestep t" if len(lengths) == 1 else "timestep as a share of all, t / T")
            axes.set_ylabel(label)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.suptitle("Noise schedules")


def _scale_betas(axes: Axes, betas: Sequence[np.ndarray]) -> None:
    """A logarithmic axis where the last few betas, as the cosine schedule's, would press the others onto the ground."""
    values = np.concatenate(betas)
    if values.min() > 0 and values.max() > 20 * np.median(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def plot_losses(metrics: PathLike | Iterable[Mapping[str, Any]], path: PathLike) -> None:
    """Plot training and validation loss against the optimizer step.

    Args:
        metrics: a file with one JSON object a line, or such records, with `step` and `loss` or `validation_loss`.
        path: of the picture; its suffix says which kind.

    Raises FileNotFoundError for a missing file, ValueError when no record has a finite loss.
    """
    records = read_records(metrics) if isinstance(metrics, (str, os.PathLike)) else list(metrics)
    steps, losses = series(records, "loss")
    validation_steps, validation_losses = series(records, "validation_loss")
    if len(steps) + len(validation_steps) == 0:
        raise ValueError(f"metrics has no record with a step and a finite loss or validation_loss among {len(records)}")
    with drawing(path, 6.4, 3.8) as figure:
        axes = figure.add_subplot()
        if len(steps):
            axes.plot(steps, losses, color=COLORS[0], alpha=0.25, linewidth=1)
            marker = "o" if len(steps) == 1 else ""  # one point makes no line
            axes.plot(steps, smooth(losses), color=COLORS[0], marker=marker, label="training (smoothed)")
        if len(validation_steps):
            axes.plot(
                validation_steps, validation_losses, color=COLORS[1], marker="o", markersize=4, label="validation"
            )
        scale_losses(axes, np.concatenate([losses, validation_losses]))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss")
        axes.set_title("Training")
        axes.legend()


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line. Raises FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"metrics={os.fspath(path)!r} is not a file; it takes a file with one JSON object a line"
        )
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a run that was killed may have left half a line
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def series(records: Iterable[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of the records that have `key`, both float64 (count,)."""
    pairs = [(r["step"], r[key]) for r in records if r.get("step") is not None and r.get(key) is not None]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over a twentieth of the curve.

    It narrows at the start, where the loss falls fast and a wide mean would be wrong, and looks back only at the end.
    """
    places, reach = np.arange(len(values)), len(values) // 40
    low = places - np.minimum(places, reach)
    high = places + np.minimum(np.minimum(places, places[::-1]), reach) + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[high] - sums[low]) / (high - low)


def scale_losses(axes: Axes, losses: np.ndarray) -> None:
    """A logarithmic axis for losses that fall far, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if losses.min() > 0 and losses.max() > 5 * losses.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def plot_guidance_sweep(
    scales: Sequence[float],
    accuracy: Sequence[float],
    diversity: Sequence[float],
    path: PathLike,
    real_accuracy: float | None = None,
    title: str = "Guidance",
) -> None:
    """Plot what a guidance scale gives and takes: class accuracy and diversity, on twin axes.

    Args:
        scales: guidance scales, (count,).
        accuracy: share of the samples that the classifier takes for the class asked for, in [0, 1].
        diversity: as a share of that of real images; 1 is drawn as a line.
        path: of the file; its suffix says which kind.
        real_accuracy: the classifier's share of real images, drawn as a line.
        title: above the plot.

    Raises ValueError for no scales, or lists of different lengths.
    """
    if len(scales) == 0:
        raise ValueError("scales takes at least one guidance scale, not none")
    for name, values in (("accuracy", accuracy), ("diversity", diversity)):
        check_count(name, values, len(scales), "as many values as scales")
    with drawing(path, 6.4, 3.8) as figure:
        left = figure.add_subplot()
        right = left.twinx()
        left.plot(scales, [100 * share for share in accuracy], color=COLORS[0], marker="o", markersize=4)
        right.plot(scales, diversity, color=COLORS[1], linestyle="--", marker="s", markersize=4)
        if real_accuracy is not None:
            left.axhline(100 * real_accuracy, color=COLORS[0], linewidth=0.8, alpha=0.6)
            left.annotate(
                "real images",
                (1, 100 * real_accuracy),
                xycoords=("axes fraction", "data"),
                xytext=(-4, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8,
                color=COLORS[0],
            )
        right.axhline(1, color=COLORS[1], linewidth=0.8, linestyle="--", alpha=0.6)
        left.set_ylim(0, 104)
        right.set_ylim(0, 1.04 * max(1.0, *diversity))
        left.set_xlabel("guidance scale (0 unconditional, 1 conditional)")
        _label_twins(left, "class accuracy by the classifier, %", right, "diversity within a class (real images 1)")
        left.set_title(title)


def plot_convergence(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: PathLike, title: str = "Error against network calls"
) -> None:
    """Draw errors against network calls on logarithmic axes, with lines of order 1 and 2 for comparison.

    Args:
        curves: label -> (network calls, error) pairs. The seven labels that come first get colours of their own and a
            line in the legend each; more are drawn thin and grey.
        path: of the file; its suffix says which kind.
        title: above the plot.

    Raises ValueError for no curves.
    """
    if not curves:
        raise ValueError("curves takes at least one curve, not none")
    with drawing(path, 7.2, 4.8) as figure:
        axes = figure.add_subplot()
        for number, (label, points) in reversed(list(enumerate(curves.items()))):
            values = np.array([(calls, max(error, 1e-7)) for calls, error in points]).T
            shown = number < len(COLORS)
            style: Any = {"color": COLORS[number], "marker": "o", "markersize": 3, "label": label} if shown else {}
            axes.plot(*values, **(style or {"color": "#bbbbbb", "linewidth": 0.7, "zorder": 1}))
        calls = np.array([min(p[0] for c in curves.values() for p in c), max(p[0] for c in curves.values() for p in c)])
        for order, line in ((1, ":"), (2, "--")):
            axes.plot(calls, 0.8 * (calls / calls[0]) ** -order, line, color="#666666", linewidth=1)
            axes.annotate(f"order {order}", (calls[-1], 0.8 * (calls[-1] / calls[0]) ** -order), fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        highest = max(error for points in curves.values() for _, error in points)
        axes.set_ylim(1e-6, 10 * min(max(highest, 1.0), 1e2))
        axes.set_xlabel("network calls")
        axes.set_ylabel("error (rms to the exact flow, or of the exact law)")
        axes.set_title(title)
        axes.legend(fontsize=8, loc="lower left")


def embedding_heatmap(
    embedding: torch.Tensor | np.ndarray,
    path: PathLike,
    title: str = "Timestep embedding",
    row_range: tuple[float, float] | None = None,
) -> None:
    """Draw an embedding (timesteps, dimensions) as a map whose colour is the value.

    Args:
        embedding: row 0 is drawn at the top.
        path: of the file; its suffix says which kind.
        title: above the plot.
        row_range: timesteps of the first and the last row; None counts rows from 0.

    Raises ValueError for another shape, and values that are not finite.
    """
    values = embedding.detach().float().cpu().numpy() if isinstance(embedding, torch.Tensor) else np.asarray(embedding)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"embedding takes finite numbers of shape (timesteps, dimensions), got {values.shape}")
    limit = float(np.abs(values).max()) or 1.0
    with drawing(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        first, last = row_range or (-0.5, len(values) - 0.5)
        image = axes.imshow(
            values,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, values.shape[1] - 0.5, last, first),
        )
        figure.colorbar(image, ax=axes, label="value")
        axes.set_xlabel("dimension")
        axes.set_ylabel("timestep t")
        axes.set_title(title)
        axes.grid(False)
