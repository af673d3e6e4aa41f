"""Pictures of samples, processes, schedules and losses: takes tensors and arrays, gives files.

Images are tensors (number, channels, height, width) in [-1, 1] with 1 or 3 channels. Every file is written beside its
place and then renamed, so that a viewer, or a run that is killed, never leaves half a picture.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike
RANGE_SLACK = 1e-3  # how far rounding may carry an image out of [-1, 1]
DPI = 150
CELL_SIZE, GAP, MAX_WIDTH = 128, 6, 1800  # of tables of pictures, in pixels
LETTER_WIDTH, LINE_HEIGHT = 0.6, 1.35  # of text, as a share of the font size
BETA_LABEL, ALPHA_LABEL = r"variance added, $\beta_t$", r"signal left, $\bar{\alpha}_t$"
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


# --- images ----------------------------------------------------------------------------------------------------------


def tensor_to_uint8(images: torch.Tensor, clip: bool = False) -> np.ndarray:
    """Images (number, channels, height, width) in [-1, 1] as uint8 (number, height, width, channels).

    `clip` cuts values outside the range off, as noisy images have them. Raises TypeError when `images` is no tensor of
    floats, and ValueError for another shape, no images, NaN, or values outside the range.
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = str(images.dtype) if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images takes a tensor of floats in [-1, 1], not {kind}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            "images takes at least one image, in shape (number, 1 or 3 channels, height, width), "
            f"not {tuple(images.shape)}"
        )
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ValueError(f"images has {int((~images.isfinite()).sum())} values that are NaN or infinite")
    low, high = images.min().item(), images.max().item()
    if not clip and max(-low, high) > 1 + RANGE_SLACK:
        raise ValueError(f"images must be in [-1, 1], not in [{low:.3g}, {high:.3g}]")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def image_grid(
    images: torch.Tensor, columns: int | None = None, padding: int = 2, scale: int = 1, clip: bool = False
) -> Image.Image:
    """One picture of many images, row by row on white.

    Args:
        images: (number, channels, height, width) in [-1, 1].
        columns: images a row; None makes the grid about square.
        padding: white pixels between and around the images.
        scale: draw every pixel as a square of `scale` x `scale`.
        clip: cut values outside the range off instead of raising.

    Raises what `tensor_to_uint8` raises, and ValueError for a `columns`, `padding` or `scale` that makes no picture.
    """
    pixels = tensor_to_uint8(images, clip)
    columns = math.ceil(math.sqrt(len(pixels))) if columns is None else columns
    for name, value, least in (("columns", columns, 1), ("padding", padding, 0), ("scale", scale, 1)):
        if value < least:
            raise ValueError(f"{name} takes a number of at least {least}, not {value}")
    return _to_image(_tile(_enlarge(pixels, scale), min(columns, len(pixels)), padding))


def _enlarge(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Pixels (..., height, width, channels) with every one as a square of `scale` x `scale`."""
    return pixels.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _tile(pixels: np.ndarray, columns: int, padding: int) -> np.ndarray:
    """Images (number, height, width, channels) side by side on white, (height, width, channels)."""
    number, height, width, channels = pixels.shape
    rows = math.ceil(number / columns)
    canvas = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8
    )
    for index, image in enumerate(pixels):
        top, left = (padding + place * (side + padding) for place, side in zip(divmod(index, columns), (height, width)))
        canvas[top : top + height, left : left + width] = image
    return canvas


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_gif(
    frames: Sequence[torch.Tensor | Image.Image],
    path: PathLike,
    duration_ms: int = 80,
    hold_last_ms: int = 1500,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Write an endless GIF.

    Args:
        frames: each a batch of images, of which a grid is made, or a picture. Values outside [-1, 1] are cut off.
        path: of the file.
        duration_ms: how long a frame is shown, in milliseconds.
        hold_last_ms: how long the last one is shown.
        columns: images a row of the grid.
        scale: enlargement of the grid's images; None brings small ones to about 64 pixels.

    Raises ValueError when there are no frames or their sizes differ, and what `image_grid` raises.
    """
    if len(frames) == 0:
        raise ValueError("frames takes at least one frame, not an empty list")
    pictures = [
        frame
        if isinstance(frame, Image.Image)
        else image_grid(frame, columns, scale=scale or _legible(frame), clip=True)
        for frame in frames
    ]
    sizes = {f"{picture.width}x{picture.height}" for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"frames must all have one size, not {', '.join(sorted(sizes))}")
    durations = [duration_ms] * (len(pictures) - 1) + [hold_last_ms]
    first, *rest = pictures
    _write(path, lambda part: first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0))


def _legible(images: torch.Tensor) -> int:
    """The whole number that brings small images to about 64 pixels."""
    return max(1, round(64 / images.shape[-2])) if isinstance(images, torch.Tensor) and images.ndim == 4 else 1


def strip(
    states: Sequence[torch.Tensor] | torch.Tensor,
    labels: Sequence[Any],
    path: PathLike,
    title: str | None = None,
    column_title: str = "timestep t",
    row_labels: Sequence[Any] | None = None,
    row_title: str | None = None,
) -> None:
    """Draw how samples change along a process: a row a sample, a column a time.

    Args:
        states: one batch (number, channels, height, width) a time; values outside [-1, 1], as noise has, are cut off.
        labels: of the times, one a batch.
        path: of the file; its suffix says which kind.
        title: above the picture.
        column_title: what the labels are.
        row_labels: of the samples.
        row_title: what the row labels are.

    Raises ValueError when the labels do not match, and what `tensor_to_uint8` raises.
    """
    if len(states) == 0:
        raise ValueError("states takes at least one batch of images, not none")
    times = [tensor_to_uint8(state, clip=True) for state in states]
    _check_count("labels", labels, len(times), "one a batch of states")
    _check_count("states", {len(time) for time in times}, 1, "the same number of samples in every batch")
    rows = [[time[sample] for time in times] for sample in range(len(times[0]))]
    _draw_cells(rows, labels, row_labels, path, title=title, column_title=column_title, row_title=row_title)


def comparison_grid(
    rows: Sequence[Any],
    columns: Sequence[Any],
    images: Sequence[Sequence[torch.Tensor | None]],
    path: PathLike,
    captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
    row_title: str | None = None,
    column_title: str | None = None,
) -> None:
    """Draw a table of pictures, such as samplers against numbers of steps.

    Args:
        rows: labels of the rows.
        columns: labels of the columns.
        images: for each row and column an image (channels, height, width) or a batch of them, in [-1, 1], or None.
        path: of the file; its suffix says which kind.
        captions: for each row and column a few words below the picture.
        title: above the picture.
        row_title: what the rows are.
        column_title: what the columns are.

    Raises ValueError when the table is not full, and what `tensor_to_uint8` raises.
    """
    _check_table("images", images, rows, columns)
    if captions is not None:
        _check_table("captions", captions, rows, columns)
    cells = [[None if cell is None else _cell(cell) for cell in row] for row in images]
    shapes = {cell.shape for row in cells for cell in row if cell is not None}
    _check_count("images", shapes, 1, "pictures of one shape, and at least one")
    blank = np.full(shapes.pop(), 238, np.uint8)
    filled = [[blank if cell is None else cell for cell in row] for row in cells]
    _draw_cells(filled, columns, rows, path, captions, title, column_title, row_title)


def scatter_grid(
    rows: Sequence[Any],
    columns: Sequence[Any],
    points: Sequence[Sequence[torch.Tensor | None]],
    path: PathLike,
    reference: torch.Tensor,
    captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
) -> None:
    """Draw a table of point clouds in the plane, each over where its points should be.

    Args:
        rows: labels of the rows.
        columns: labels of the columns.
        points: for each row and column a tensor (number, 2), or None.
        path: of the file; its suffix says which kind.
        reference: the right places, (number, 2), drawn below every cloud.
        captions: for each row and column a few words above the cloud.
        title: above the picture.

    Raises ValueError when the table is not full.
    """
    _check_table("points", points, rows, columns)
    if captions is not None:
        _check_table("captions", captions, rows, columns)
    reach = 1.4 * float(reference.abs().max())
    with _drawing(path, 2.2 * len(columns) + 1, 2.3 * len(rows) + 0.6) as figure:
        table = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        for (row, column), cloud in _places(points):
            axes = table[row][column]
            if cloud is None:
                axes.set_axis_off()
                continue
            axes.scatter(*reference.T.tolist(), s=3, color="#bbbbbb", label="exact")
            axes.scatter(*cloud.T.tolist(), s=2, color=COLORS[0], label="sampler")
            axes.set_xlim(-reach, reach)
            axes.set_ylim(-reach, reach)
            axes.set_title(captions[row][column] if captions is not None else "", fontsize=8)
            if column == 0:
                axes.set_ylabel(str(rows[row]))
            if row == len(rows) - 1:
                axes.set_xlabel(str(columns[column]))
        figure.suptitle(title or "")


def _cell(images: torch.Tensor) -> np.ndarray:
    pixels = tensor_to_uint8(images if images.ndim == 4 else images[None])
    return _tile(pixels, math.ceil(math.sqrt(len(pixels))), padding=1) if len(pixels) > 1 else pixels[0]


def _check_count(name: str, values: Any, count: int, meaning: str) -> None:
    if len(values) != count:
        raise ValueError(f"{name} takes {meaning}: {count}, not {len(values)}")


def _check_table(name: str, table: Sequence[Sequence[Any]], rows: Sequence[Any], columns: Sequence[Any]) -> None:
    lengths = [len(row) for row in table]
    if not rows or not columns or lengths != [len(columns)] * len(rows):
        raise ValueError(
            f"{name} takes a table of {len(rows)} rows and {len(columns)} columns, as there are labels, "
            f"not rows of {lengths} cells"
        )


def _draw_cells(
    cells: Sequence[Sequence[np.ndarray]],
    column_labels: Sequence[Any],
    row_labels: Sequence[Any] | None,
    path: PathLike,
    captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
    column_title: str | None = None,
    row_title: str | None = None,
) -> None:
    """Draw uint8 pictures (height, width, channels) as one image on one pair of axes, whose ticks are the labels.

    One image and not a subplot a cell: hundreds of cells stay quick, and the pixels stay square.
    """
    if row_labels is not None:
        _check_count("row_labels", row_labels, len(cells), "one a row")
    height, width = cells[0][0].shape[:2]
    scale = max(1, min(round(CELL_SIZE / height), MAX_WIDTH // (width * len(column_labels))))
    height, width = height * scale, width * scale
    column_labels, label_size = _fitted(column_labels, width)
    texts, text_size = _fitted(list(itertools.chain(*captions or [])), width)
    lines = max((1 + text.count("\n") for text in texts), default=0)
    row_step = height + GAP + math.ceil(lines * LINE_HEIGHT * text_size * DPI / 72) + (GAP if lines else 0)
    canvas = np.full((len(cells) * row_step - GAP, len(column_labels) * (width + GAP) - GAP, 3), 255, np.uint8)
    for (row, column), cell in _places(cells):
        top, left = row * row_step, column * (width + GAP)
        canvas[top : top + height, left : left + width] = _enlarge(cell, scale)

    with _drawing(path, canvas.shape[1] / DPI, canvas.shape[0] / DPI) as figure:
        figure.set_layout_engine("none")  # the axes are the whole picture, pixel by pixel
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(canvas, interpolation="nearest")
        column_centers = np.arange(len(column_labels)) * (width + GAP) + width / 2
        row_tops = np.arange(len(cells)) * row_step
        axes.set_xticks(column_centers, column_labels, fontsize=label_size)
        axes.set_yticks(row_tops + height / 2, list(map(str, row_labels or [""] * len(cells))))
        _strip_frame(axes)
        axes.set_xlabel(column_title or "", labelpad=8)
        axes.set_ylabel(row_title or "", labelpad=8)
        axes.set_title(title or "", pad=12)
        for number, text in enumerate(texts):
            row, column = divmod(number, len(column_labels))
            x, y = column_centers[column], row_tops[row] + height + 4
            axes.text(x, y, text, ha="center", va="top", fontsize=text_size, color="#444444")


def _places(table: Sequence[Sequence[Any]]) -> Iterator[tuple[tuple[int, int], Any]]:
    """((row, column), value) of every cell."""
    return (((row, column), value) for row, line in enumerate(table) for column, value in enumerate(line))


def _strip_frame(axes: Axes) -> None:
    """Leave only labels around a picture: those of the columns above it."""
    axes.tick_params(length=0, pad=6, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _fitted(texts: Sequence[Any], width: int) -> tuple[list[str], float]:
    """The texts broken into lines that fit into `width` pixels, and the size in points, 5 to 10, at which they do."""
    longest_word = max((len(word) for text in texts for word in str(text).split()), default=1)
    size = min(10.0, max(5.0, width / (LETTER_WIDTH * longest_word) * 72 / DPI))
    letters = max(longest_word, int(width / (LETTER_WIDTH * size * DPI / 72)))
    return [textwrap.fill(str(text), letters, break_long_words=False) for text in texts], size


# --- curves ----------------------------------------------------------------------------------------------------------


def plot_schedule(curves: Mapping[str, Mapping[str, Any]], path: PathLike, title: str | None = None) -> None:
    """Plot the noise schedules: beta_t and a_bar_t against the timestep.

    Args:
        curves: name of the schedule -> its `betas` and `alphas_cumprod`, arrays or tensors (timesteps,). One schedule
            is drawn on twin axes, several on two panels side by side.
        path: of the file; its suffix says which kind.
        title: above the plot.

    Raises ValueError for no schedules, and for arrays that are empty, not flat, not finite or of different lengths.
    """
    if not curves:
        raise ValueError("curves takes at least one schedule, not an empty dictionary")
    arrays = {
        name: (_flat(name, curve, "betas"), _flat(name, curve, "alphas_cumprod")) for name, curve in curves.items()
    }
    for name, (betas, alphas_cumprod) in arrays.items():
        _check_count(f"curves[{name!r}]['alphas_cumprod']", alphas_cumprod, len(betas), "as many values as betas")
    if len(arrays) == 1:
        _plot_one_schedule(*arrays.popitem(), path, title)
    else:
        _plot_schedules(arrays, path, title)


def _flat(name: str, curve: Mapping[str, Any], key: str) -> np.ndarray:
    if key not in curve:
        raise ValueError(f"curves[{name!r}] takes 'betas' and 'alphas_cumprod', not {sorted(curve)}")
    values = curve[key].detach().cpu() if isinstance(curve[key], torch.Tensor) else curve[key]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"curves[{name!r}][{key!r}] takes finite numbers of shape (timesteps,), got {array.shape}")
    return array


def _plot_one_schedule(name: str, arrays: tuple[np.ndarray, np.ndarray], path: PathLike, title: str | None) -> None:
    betas, alphas_cumprod = arrays
    timesteps = np.arange(1, len(betas) + 1)
    with _drawing(path, 6.4, 3.8) as figure:
        left = figure.add_subplot()
        right = left.twinx()
        left.plot(timesteps, betas, color=COLORS[0])
        right.plot(timesteps, alphas_cumprod, color=COLORS[1], linestyle="--")
        _scale_betas(left, [betas])
        right.set_ylim(-0.02, 1.02)
        right.grid(False)
        right.spines["right"].set_visible(True)
        left.set_xlabel("timestep t")
        for axes, label, color in ((left, BETA_LABEL, COLORS[0]), (right, ALPHA_LABEL, COLORS[1])):
            axes.set_ylabel(label, color=color)
            axes.tick_params(axis="y", colors=color)
        left.set_title(title or f"Noise schedule: {name}, {len(betas)} timesteps")


def _plot_schedules(arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], path: PathLike, title: str | None) -> None:
    lengths = {len(betas) for betas, _ in arrays.values()}
    with _drawing(path, 10, 4) as figure:
        left, right = figure.subplots(1, 2)
        for number, (name, (betas, alphas_cumprod)) in enumerate(arrays.items()):
            timesteps = np.arange(1, len(betas) + 1) / (1 if len(lengths) == 1 else len(betas))
            look = {
                "color": COLORS[number % len(COLORS)],
                "linestyle": LINE_STYLES[number // len(COLORS) % 3],
                "label": name,
            }
            left.plot(timesteps, betas, **look)
            right.plot(timesteps, alphas_cumprod, **look)
        _scale_betas(left, [betas for betas, _ in arrays.values()])
        right.set_ylim(-0.02, 1.02)
        for axes, label in ((left, BETA_LABEL), (right, ALPHA_LABEL)):
            axes.set_xlabel("timestep t" if len(lengths) == 1 else "timestep as a share of all, t / T")
            axes.set_ylabel(label)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.suptitle(title or "Noise schedules")


def _scale_betas(axes: Axes, betas: Sequence[np.ndarray]) -> None:
    """A logarithmic axis where the last few betas, as the cosine schedule's, would press the others onto the ground."""
    values = np.concatenate(betas)
    if values.min() > 0 and values.max() > 20 * np.median(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def plot_losses(metrics: PathLike | Iterable[Mapping[str, Any]], path: PathLike, title: str = "Training") -> None:
    """Plot training and validation loss against the optimizer step.

    Args:
        metrics: a file with one JSON object a line, or such records, with `step` and `loss` or `validation_loss`.
        path: of the picture; its suffix says which kind.
        title: above the plot.

    Raises FileNotFoundError for a missing file, ValueError when no record has a finite loss.
    """
    records = _read_records(metrics) if isinstance(metrics, (str, os.PathLike)) else list(metrics)
    steps, losses = _series(records, "loss")
    validation_steps, validation_losses = _series(records, "validation_loss")
    if len(steps) + len(validation_steps) == 0:
        raise ValueError(f"metrics has no record with a step and a finite loss or validation_loss among {len(records)}")
    with _drawing(path, 6.4, 3.8) as figure:
        axes = figure.add_subplot()
        if len(steps):
            axes.plot(steps, losses, color=COLORS[0], alpha=0.25, linewidth=1)
            marker = "o" if len(steps) == 1 else ""  # one point makes no line
            axes.plot(steps, _smooth(losses), color=COLORS[0], marker=marker, label="training (smoothed)")
        if len(validation_steps):
            axes.plot(
                validation_steps, validation_losses, color=COLORS[1], marker="o", markersize=4, label="validation"
            )
        _scale_losses(axes, np.concatenate([losses, validation_losses]))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss")
        axes.set_title(title)
        axes.legend()


def _read_records(path: PathLike) -> list[dict[str, Any]]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"metrics={os.fspath(path)!r} is not a file; it takes a file with one JSON object a line"
        )
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # a run that was killed may have left half a line
            continue
    return records


def _series(records: Iterable[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of the records that have `key`, both float64 (count,)."""
    pairs = [(r["step"], r[key]) for r in records if r.get("step") is not None and r.get(key) is not None]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """A running mean over a twentieth of the curve.

    It narrows at the start, where the loss falls fast and a wide mean would be wrong, and looks back only at the end.
    """
    places, reach = np.arange(len(values)), len(values) // 40
    low = places - np.minimum(places, reach)
    high = places + np.minimum(np.minimum(places, places[::-1]), reach) + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[high] - sums[low]) / (high - low)


def _scale_losses(axes: Axes, losses: np.ndarray) -> None:
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
        _check_count(name, values, len(scales), "as many values as scales")
    with _drawing(path, 6.4, 3.8) as figure:
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
        right.grid(False)
        right.spines["right"].set_visible(True)
        left.set_xlabel("guidance scale (0 unconditional, 1 conditional)")
        left.set_ylabel("class accuracy by the classifier, %", color=COLORS[0])
        right.set_ylabel("diversity within a class (real images 1)", color=COLORS[1])
        for axes, color in ((left, COLORS[0]), (right, COLORS[1])):
            axes.tick_params(axis="y", colors=color)
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
    with _drawing(path, 7.2, 4.8) as figure:
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
    row_title: str = "timestep t",
    column_title: str = "dimension",
) -> None:
    """Draw an embedding (timesteps, dimensions) as a map whose colour is the value. Raises ValueError."""
    values = embedding.detach().float().cpu().numpy() if isinstance(embedding, torch.Tensor) else np.asarray(embedding)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"embedding takes finite numbers of shape (timesteps, dimensions), got {values.shape}")
    limit = float(np.abs(values).max()) or 1.0
    with _drawing(path, 6.4, 4.2) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="value")
        axes.set_xlabel(column_title)
        axes.set_ylabel(row_title)
        axes.set_title(title)
        axes.grid(False)


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _drawing(path: PathLike, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches that is written when the block ends.

    Figure's own interface and not pyplot's: it has no global state and needs no display.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        _write(path, lambda part: figure.savefig(part, bbox_inches="tight", pad_inches=0.12))


def _write(path: PathLike, save: Callable[[Path], Any]) -> None:
    """Let `save` write a file beside `path`, then rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
