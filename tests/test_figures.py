"""Pictures: the right pixels and curves in the files, nothing half-written, clear errors."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext import figures

WHITE = 255


def flat(*levels: float, channels: int = 1, size: int = 4) -> torch.Tensor:
    """Images of one level each, in [-1, 1]."""
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, channels, size, size).clone()


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that are saved during the test, still open to questions."""
    from matplotlib.figure import Figure

    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        saved.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


# --- images ----------------------------------------------------------------------------------------------------------


def test_minus_one_to_one_becomes_0_to_255():
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.0005]).reshape(1, 1, 1, 5)
    assert figures.tensor_to_uint8(images).ravel().tolist() == [0, 64, 128, 255, 255]
    assert figures.tensor_to_uint8(images.bfloat16()).shape == (1, 1, 5, 1)
    channels = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert figures.tensor_to_uint8(channels).tolist() == [[[[0, 128, 255]]]]


def test_all_8_bit_levels_survive():
    levels = torch.arange(256).float().reshape(1, 1, 16, 16)
    assert (figures.tensor_to_uint8(levels / 127.5 - 1).ravel() == np.arange(256)).all()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (flat(1.5), ValueError, r"must be in \[-1, 1\], not in \[1.5, 1.5\]"),
        (flat(-7.0), ValueError, r"not in \[-7, -7\]"),
        (flat(float("nan")), ValueError, "16 values that are NaN"),
        (flat(0.0)[0], ValueError, r"not \(1, 4, 4\)"),
        (flat(0.0, channels=2), ValueError, r"1 or 3 channels.*not \(1, 2, 4, 4\)"),
        (flat()[:0], ValueError, "at least one image"),
        (flat(0.0).to(torch.uint8), TypeError, "a tensor of floats in .* not torch.uint8"),
        (flat(0.0).numpy(), TypeError, "not ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_said_in_one_sentence(images, error, message):
    with pytest.raises(error, match=message) as caught:
        figures.image_grid(images)
    assert "\n" not in str(caught.value)


def test_clip_cuts_off_what_is_out_of_range():
    assert figures.tensor_to_uint8(flat(-7.0, 1.5), clip=True)[:, 0, 0, 0].tolist() == [0, 255]


def test_a_grid_runs_row_by_row_with_white_between():
    grid = np.asarray(figures.image_grid(flat(-1.0, -0.5, 0.0, 0.5, -0.9), columns=3, padding=2))
    assert grid.shape == (2 * 4 + 3 * 2, 3 * 4 + 4 * 2)
    blocks = [
        grid[2 + row * 6 : 6 + row * 6, 2 + column * 6 : 6 + column * 6] for row in (0, 1) for column in (0, 1, 2)
    ]
    assert [set(block.ravel().tolist()) for block in blocks] == [{0}, {64}, {128}, {191}, {13}, {WHITE}]
    assert (grid[:2] == WHITE).all()
    assert (grid[:, 6:8] == WHITE).all()


def test_a_grid_is_about_square_and_keeps_its_kind_of_colour():
    assert figures.image_grid(flat(*[0.0] * 10), padding=0).size == (16, 12)
    assert figures.image_grid(flat(0.0)).mode == "L"
    assert figures.image_grid(flat(0.0, channels=3)).mode == "RGB"
    assert figures.image_grid(flat(0.0, 0.0), columns=5, padding=0).size == (8, 4)


def test_scale_makes_squares_of_pixels():
    image = torch.rand(1, 3, 2, 3) * 2 - 1
    once, thrice = (np.asarray(figures.image_grid(image, padding=0, scale=scale)) for scale in (1, 3))
    np.testing.assert_array_equal(thrice, np.kron(once, np.ones((3, 3, 1), np.uint8)))


@pytest.mark.parametrize("options", [{"columns": 0}, {"padding": -1}, {"scale": 0}])
def test_a_grid_that_cannot_be_is_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} takes a number of at least"):
        figures.image_grid(flat(0.0), **options)


# --- GIFs ------------------------------------------------------------------------------------------------------------


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    pictures, durations = [], []
    with Image.open(path) as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            pictures.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return pictures, durations


def test_a_gif_shows_every_frame_holds_the_last_and_repeats(tmp_path):
    levels = [-3.0, -0.5, 0.0, 1.0]
    figures.save_gif([flat(level, level) for level in levels], tmp_path / "a.gif", duration_ms=50, hold_last_ms=900)
    pictures, durations = frames_of(tmp_path / "a.gif")
    assert durations == [50, 50, 50, 900]
    assert [picture[10, 10].tolist() for picture in pictures] == [[level] * 3 for level in (0, 64, 128, 255)]
    assert Image.open(tmp_path / "a.gif").info["loop"] == 0


def test_a_gif_takes_pictures_and_enlarges_small_images(tmp_path):
    figures.save_gif([Image.new("RGB", (7, 5), color) for color in ("red", "blue")], tmp_path / "b.gif")
    assert [picture[0, 0].tolist() for picture in frames_of(tmp_path / "b.gif")[0]] == [[255, 0, 0], [0, 0, 255]]
    figures.save_gif([flat(0.0, size=28)], tmp_path / "c.gif")
    assert Image.open(tmp_path / "c.gif").size == (60, 60)


def test_gif_frames_must_be_there_and_of_one_size(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        figures.save_gif([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one size, not 68x68, 72x72"):
        figures.save_gif([flat(0.0, size=4), flat(0.0, size=17)], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


# --- tables of pictures ----------------------------------------------------------------------------------------------


def levels_of_cells(path: Path, rows: int, columns: int, colors: set[int]) -> list[list[int]]:
    """What stands where in a written table: the cells' levels; the edges of letters cover too little to count."""
    pixels = np.asarray(Image.open(path).convert("L"))
    inside = np.isin(pixels, list(colors))
    lines = [np.flatnonzero(inside.sum(axis=axis) > 100) for axis in (1, 0)]
    starts = [line[np.flatnonzero(np.diff(line, prepend=-9) > 1)] for line in lines]
    assert (len(starts[0]), len(starts[1])) == (rows, columns)
    return [[int(pixels[top + 40, left + 40]) for left in starts[1]] for top in starts[0]]


def labels_of(axes) -> tuple[list[str], list[str]]:
    return [label.get_text() for label in axes.get_xticklabels()], [
        label.get_text() for label in axes.get_yticklabels()
    ]


def test_a_strip_has_a_row_a_sample_and_a_column_a_time(tmp_path, drawn):
    states = [flat(-0.9, -0.2), flat(-0.6, 0.1), flat(-5.0, 0.4)]
    figures.strip(states, [0, 50, 999], tmp_path / "strip.png", title="Noising", row_labels=["a", "b"])
    cells = levels_of_cells(tmp_path / "strip.png", 2, 3, {13, 51, 0, 102, 140, 178})
    assert cells == [[13, 51, 0], [102, 140, 178]]
    axes = drawn[0].axes[0]
    assert labels_of(axes) == (["0", "50", "999"], ["a", "b"])
    assert (axes.get_title(), axes.get_xlabel()) == ("Noising", "timestep t")


def test_a_comparison_has_its_labels_captions_and_gaps(tmp_path, drawn):
    images = [[flat(-0.9), flat(-0.6)[0]], [flat(0.1), None]]
    captions = [["1 s", "2 s"], ["3 s", "a long caption that must be broken"]]
    figures.comparison_grid(["DDPM", "DDIM"], [10, 50], images, tmp_path / "new" / "grid.png", captions, "Speed", "by")
    assert levels_of_cells(tmp_path / "new" / "grid.png", 2, 2, {13, 51, 140, 238}) == [[13, 51], [140, 238]]
    axes = drawn[0].axes[0]
    assert labels_of(axes) == (["10", "50"], ["DDPM", "DDIM"])
    assert axes.get_ylabel() == "by"
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["1 s", "2 s", "3 s"]
    assert texts[3].split() == captions[1][1].split()
    assert "\n" in texts[3]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_a_cell_of_several_images_is_a_grid_of_them(tmp_path):
    figures.comparison_grid(["a"], ["b"], [[flat(-1.0, -0.5, 0.0, 0.5, size=64)]], tmp_path / "cell.png")
    pixels = np.asarray(Image.open(tmp_path / "cell.png").convert("L"))
    assert all(64 * 64 <= (pixels == level).sum() < 65 * 64 for level in (64, 128, 191))  # the labels have edges


def test_many_columns_keep_labels_apart_and_the_picture_in_bounds(tmp_path, drawn):
    times = list(range(999, 951, -1))
    figures.strip([flat(0.0, size=28)] * 48, times, tmp_path / "wide.png")
    boxes = [label.get_window_extent() for label in drawn[0].axes[0].get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert Image.open(tmp_path / "wide.png").width < 2000


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda path: figures.strip([flat(0.0)] * 2, [1], path), "labels takes one a batch of states: 2, not 1"),
        (lambda path: figures.strip([flat(0.0)], [1], path, row_labels="ab"), "row_labels takes one a row: 1, not 2"),
        (lambda path: figures.strip([flat(0.0), flat(0.0, 0.0)], [1, 2], path), "same number of samples"),
        (lambda path: figures.strip([flat(float("nan"))], [1], path), "NaN"),
        (lambda path: figures.strip([], [], path), "states takes at least one"),
        (
            lambda path: figures.comparison_grid(["a"], [1, 2], [[flat(0.0)]], path),
            r"1 rows and 2 columns.*\[1\] cells",
        ),
        (lambda path: figures.comparison_grid(["a"], [1], [[None]], path), "at least one"),
        (lambda path: figures.comparison_grid(["a"], [1], [[flat(2.0)]], path), r"must be in \[-1, 1\]"),
        (lambda path: figures.comparison_grid(["a"], [1], [[flat(0.0)]], path, [[]]), "captions takes a table"),
    ],
)
def test_tables_that_do_not_fit_are_named(tmp_path, draw, message):
    with pytest.raises(ValueError, match=message) as caught:
        draw(tmp_path / "table.png")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- curves ----------------------------------------------------------------------------------------------------------


def curve(betas: np.ndarray) -> dict[str, np.ndarray]:
    return {"betas": betas, "alphas_cumprod": np.cumprod(1 - betas)}


LINEAR = curve(np.linspace(1e-4, 0.02, 100))
SPIKED = curve(np.append(np.full(99, 1e-3), 0.999))


def test_one_schedule_has_two_axes(tmp_path, drawn):
    tensors = {name: torch.tensor(values) for name, values in LINEAR.items()}
    figures.plot_schedule({"linear": tensors}, tmp_path / "schedule.png")
    left, right = drawn[0].axes
    assert left.get_position().bounds == right.get_position().bounds
    for axes, key in ((left, "betas"), (right, "alphas_cumprod")):
        (line,) = axes.get_lines()
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 101))
        np.testing.assert_array_equal(line.get_ydata(), LINEAR[key])
        assert axes.get_ylabel() != ""
    assert "linear, 100 timesteps" in left.get_title()
    assert (left.get_yscale(), left.get_xlabel()) == ("linear", "timestep t")


def test_several_schedules_share_two_panels_and_look_different(tmp_path, drawn):
    curves = {f"schedule {number}": LINEAR for number in range(11)} | {"spiked": SPIKED}
    figures.plot_schedule(curves, tmp_path / "schedules.png")
    left, right = drawn[0].axes
    assert [line.get_label() for line in left.get_lines()] == list(curves)
    np.testing.assert_array_equal(right.get_lines()[-1].get_ydata(), SPIKED["alphas_cumprod"])
    assert len({(line.get_color(), line.get_linestyle()) for line in left.get_lines()}) == 12
    assert left.get_yscale() == "log"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(curves)


def test_schedules_of_different_lengths_share_their_relative_time(tmp_path, drawn):
    figures.plot_schedule({"long": LINEAR, "short": curve(np.full(10, 0.1))}, tmp_path / "schedules.png")
    assert [line.get_xdata()[-1] for line in drawn[0].axes[0].get_lines()] == [1, 1]
    assert "t / T" in drawn[0].axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one schedule"),
        ({"a": {"betas": [0.1]}}, r"takes 'betas' and 'alphas_cumprod', not \['betas'\]"),
        ({"a": {"betas": [0.1], "alphas_cumprod": [0.9, 0.8]}}, "as many values as betas: 1, not 2"),
        ({"a": {"betas": [float("nan")], "alphas_cumprod": [0.9]}}, "takes finite numbers"),
        ({"a": {"betas": [[0.1]], "alphas_cumprod": [0.9]}}, r"got \(1, 1\)"),
        ({"a": {"betas": [], "alphas_cumprod": []}}, r"got \(0,\)"),
    ],
)
def test_what_is_no_schedule_is_named(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_schedule(curves, tmp_path / "schedule.png")


def test_losses_come_from_the_log_of_a_run_that_was_killed(tmp_path, drawn):
    records = [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in range(1, 201)]
    records += [{"step": 100, "validation_loss": 0.02}, {"step": 200, "validation_loss": float("nan")}]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 201, "lo')
    figures.plot_losses(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    raw, smooth, validation = drawn[0].axes[0].get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), [1 / step for step in range(1, 201)])
    np.testing.assert_allclose(smooth.get_ydata()[100], np.mean([1 / step for step in range(96, 107)]))
    assert smooth.get_ydata()[0] == 1
    assert (validation.get_xdata().tolist(), validation.get_ydata().tolist()) == ([100], [0.02])
    assert (drawn[0].axes[0].get_yscale(), drawn[0].axes[0].get_xlabel()) == ("log", "optimizer step")


def test_the_labels_of_the_loss_axis_do_not_overlap(tmp_path, drawn):
    figures.plot_losses([{"step": step, "loss": 2.0 ** (-step / 50)} for step in range(500)], tmp_path / "losses.png")
    axis = drawn[0].axes[0].yaxis
    labels = [label for label in axis.get_ticklabels(which="both") if label.get_text() and label.get_visible()]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert len(boxes) >= 3
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_losses_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl' is not a file"):
        figures.plot_losses(tmp_path / "nowhere.jsonl", tmp_path / "losses.png")
    with pytest.raises(ValueError, match=r"no record with a step and a finite loss .* among 1"):
        figures.plot_losses([{"step": 1, "loss": float("inf")}], tmp_path / "losses.png")


def test_an_embedding_is_drawn_with_white_at_zero(tmp_path, drawn):
    values = torch.tensor([[-0.5, 0.0, 2.0]])
    figures.embedding_heatmap(values, tmp_path / "map.png", "After its layers")
    assert drawn[0].axes[0].get_title() == "After its layers"
    (image,) = drawn[0].axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), values)
    assert image.get_clim() == (-2, 2)
    with pytest.raises(ValueError, match=r"shape \(timesteps, dimensions\), got \(3,\)"):
        figures.embedding_heatmap(values[0], tmp_path / "map.png")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_suffix_says_which_kind_of_file(tmp_path, suffix):
    figures.plot_schedule({"linear": LINEAR}, tmp_path / f"schedule{suffix}")
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert (tmp_path / f"schedule{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_picture_that_fails_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "reverse.gif"
    figures.save_gif([flat(0.0)], path)
    before = path.read_bytes()

    def fail(self, target, *arguments, **options):
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        figures.save_gif([flat(0.5)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_leaves_the_user_s_matplotlib_settings(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 17.0)
    figures.plot_schedule({"linear": LINEAR}, tmp_path / "schedule.png")
    assert matplotlib.rcParams["font.size"] == 17


def test_the_module_stands_alone_and_loads_plotting_only_to_plot(tmp_path):
    code = (
        f"import sys, numpy; sys.path.insert(0, {str(Path(figures.__file__).parents[1])!r}); import figures;"
        "assert not {'matplotlib', 'diffusers', 'diffusers_ext'} & sys.modules.keys();"
        f"figures.embedding_heatmap(numpy.eye(2), {str(tmp_path / 'map.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "map.png").exists()


def test_guidance_sweep_is_drawn_and_checked(tmp_path):
    path = tmp_path / "sweep.png"
    figures.plot_guidance_sweep([0, 1, 3], [0.1, 0.9, 0.99], [2.0, 1.0, 0.6], path, real_accuracy=0.98)
    with Image.open(path) as picture:
        assert picture.width > 600
    with pytest.raises(ValueError, match="diversity takes as many values as scales: 2, not 1"):
        figures.plot_guidance_sweep([0, 1], [0.1, 0.9], [1.0], path)
    with pytest.raises(ValueError, match="at least one guidance scale"):
        figures.plot_guidance_sweep([], [], [], path)


def test_experiments_validated_once_show_the_curves_of_their_training(tmp_path, drawn):
    run = [{"step": 10, "loss": 0.9}, {"step": 20, "loss": 0.5}, {"step": 20, "validation_loss": 0.6}]
    figures.plot_experiments({"a": [run], "b": [run]}, tmp_path / "once.png")
    left, right = drawn[0].axes
    assert (left.get_ylabel(), right.get_xlabel()) == ("training loss (smoothed)", "last validation loss")
    figures.plot_experiments({"a": [[*run, {"step": 30, "validation_loss": 0.4}]]}, tmp_path / "twice.png")
    assert drawn[1].axes[0].get_ylabel() == "validation loss"
