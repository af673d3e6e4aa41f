"""Pictures of samples: grids, strips, tables and GIFs.

Images are tensors (number, channels, height, width) in [-1, 1] with 1 or 3 channels.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from .files import COLORS, DPI, PathLike, check_count, drawing, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANGE_SLACK = 1e-3  # how far rounding may carry an image out of [-1, 1]
CELL_SIZE, GAP, MAX_WIDTH = 128, 6, 1800  # of tables of pictures, in pixels
LETTER_WIDTH, LINE_HEIGHT = 0.6, 1.35  # of text, as a share of the font size


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
) -> None:
    """Write an endless GIF.

    Args:
        frames: each a batch of images, of which a grid is made, or a picture. Values outside [-1, 1] are cut off, and
            small images are enlarged to about 64 pixels.
        path: of the file.
        duration_ms: how long a frame is shown, in milliseconds.
        hold_last_ms: how long the last one is shown.
        columns: images a row of the grid.

    Raises ValueError when there are no frames or their sizes differ, and what `image_grid` raises.
    """
    if len(frames) == 0:
        raise ValueError("frames takes at least one frame, not an empty list")
    pictures = [
        frame if isinstance(frame, Image.Image) else image_grid(frame, columns, scale=_legible(frame), clip=True)
        for frame in frames
    ]
    sizes = {f"{picture.width}x{picture.height}" for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"frames must all have one size, not {', '.join(sorted(sizes))}")
    durations = [duration_ms] * (len(pictures) - 1) + [hold_last_ms]
    first, *rest = pictures
    write_whole(
        path, lambda part: first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    )


def evenly(frames: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the frames, evenly over all of them and with the last; all when there are no more, or for None."""
    if count is None or count >= len(frames):
        return list(frames)
    return [frames[round((number + 1) * len(frames) / count) - 1] for number in range(count)]


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
) -> None:
    """Draw how samples change along a process: a row a sample, a column a time.

    Args:
        states: one batch (number, channels, height, width) a time; values outside [-1, 1], as noise has, are cut off.
        labels: of the times, one a batch.
        path: of the file; its suffix says which kind.
        title: above the picture.
        column_title: what the labels are.
        row_labels: of the samples.

    Raises ValueError when the labels do not match, and what `tensor_to_uint8` raises.
    """
    if len(states) == 0:
        raise ValueError("states takes at least one batch of images, not none")
    times = [tensor_to_uint8(state, clip=True) for state in states]
    check_count("labels", labels, len(times), "one a batch of states")
    check_count("states", {len(time) for time in times}, 1, "the same number of samples in every batch")
    rows = [[time[sample] for time in times] for sample in range(len(times[0]))]
    _draw_cells(rows, labels, row_labels, path, title=title, column_title=column_title)


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
    check_table("images", images, rows, columns)
    if captions is not None:
        check_table("captions", captions, rows, columns)
    cells = [[None if cell is None else _cell(cell) for cell in row] for row in images]
    shapes = {cell.shape for row in cells for cell in row if cell is not None}
    check_count("images", shapes, 1, "pictures of one shape, and at least one")
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
    check_table("points", points, rows, columns)
    if captions is not None:
        check_table("captions", captions, rows, columns)
    reach = 1.4 * float(reference.abs().max())
    with drawing(path, 2.2 * len(columns) + 1, 2.3 * len(rows) + 0.6) as figure:
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


def check_table(name: str, table: Sequence[Sequence[Any]], rows: Sequence[Any], columns: Sequence[Any]) -> None:
    """Raise ValueError unless the table has a cell for every pair of a row's and a column's label."""
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
        check_count("row_labels", row_labels, len(cells), "one a row")
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

    with drawing(path, canvas.shape[1] / DPI, canvas.shape[0] / DPI) as figure:
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
