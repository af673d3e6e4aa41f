"""Samplers with a perfect network: the closed form for a Gaussian mixture in the plane, against its exact flow."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .. import figures
from ..evaluation.comparison import exact_flow, mixture_pipeline
from ..pipelines.batched_generation import starting_noise
from ..proofs import rms
from .sampling import Process, Setting, check_seed, follow

POINTS = 256
LENGTHS = (5, 10, 20, 40, 80)  # of the curves

# matplotlib's settings belong to the whole process.
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class MixtureRuns:
    """Runs from the same noise.

    Attributes:
        settings: of the runs.
        processes: the runs.
        exact: where the exact probability flow takes the noise, shape (`POINTS`, 2).
        errors: root mean square distance of each run's end from `exact`.
        curves: label -> (network calls, error) pairs of the samplers that draw no noise.
    """

    settings: tuple[Setting, ...]
    processes: tuple[Process, ...]
    exact: torch.Tensor
    errors: tuple[float, ...]
    curves: dict[str, list[tuple[float, float]]]


def run_mixture(settings: Sequence[Setting], seed: int) -> MixtureRuns:
    """Sample the mixture with each setting, from the same noise.

    Raises:
        ValueError: one sentence on a setting that can't be.
    """
    check_seed(seed)
    pipeline = mixture_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    processes = [follow(pipeline, setting, POINTS, seed, estimates=False) for setting in settings]
    noise = starting_noise(pipeline, POINTS, torch.Generator().manual_seed(seed)).double()
    exact = exact_flow(pipeline, noise).flatten(1)
    errors = [rms(process.samples.flatten(1), exact) for process in processes]
    curves = {}
    for number, (setting, process) in enumerate(zip(settings, processes)):
        if not process.stochastic:
            runs = [
                follow(pipeline, Setting(setting.sampler, length, setting.subsequence), POINTS, seed, estimates=False)
                for length in LENGTHS
            ]
            curve = [(float(run.calls), rms(run.samples.flatten(1), exact)) for run in runs]
            curves[f"{'AB'[number]}: {setting.label}"] = curve
    return MixtureRuns(tuple(settings), tuple(processes), exact, tuple(errors), curves)


def frame_at(process: Process, percent: float) -> int:
    """The place of the frame after this share of the run."""
    return round(percent / 100 * (len(process.frames) - 1))


def caption(process: Process, percent: float) -> str:
    """Where in the run the frame after this share is."""
    frame = process.frames[frame_at(process, percent)]
    if frame.timestep is None:
        return f"end, after {process.steps} steps"
    return f"step {frame.step} of {process.steps}, t = {frame.timestep:.4g}"


def draw_points(runs: MixtureRuns, percent: float) -> Image.Image:
    """The points of each run after this share of it, over the exact ones."""
    clouds = [process.frames[frame_at(process, percent)].sample.flatten(1) for process in runs.processes]
    labels = [f"{letter}: {setting.label}" for letter, setting in zip("AB", runs.settings)]
    captions = [caption(process, percent) for process in runs.processes]
    return _drawn(lambda path: figures.scatter_grid([""], labels, [clouds], path, runs.exact, [captions]))


def draw_curves(runs: MixtureRuns) -> Image.Image | None:
    """Error against network calls, of the samplers that draw no noise; None where both do."""
    if not runs.curves:
        return None
    return _drawn(lambda path: figures.plot_convergence(runs.curves, path))


def _drawn(draw) -> Image.Image:
    with _DRAWING, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw(path)
        with Image.open(path) as picture:
            return picture.convert("RGB")


def error_table(runs: MixtureRuns) -> str:
    """Markdown: steps, network calls, time and error of each run."""
    lines = ["| | sampler | steps | network calls | error (rms) |", "|---|---|---:|---:|---:|"]
    for letter, setting, process, error in zip("AB", runs.settings, runs.processes, runs.errors):
        shown = "draws noise" if process.stochastic else f"{error:.2g}"
        lines.append(f"| {letter} | {setting.label} | {setting.steps} | {process.calls} | {shown} |")
    lines += [
        "",
        "The error is the distance of the samples from where the exact flow takes the same noise.",
    ]
    if any(process.stochastic for process in runs.processes):
        lines.append("A sampler that draws noise ends at other points of the distribution, so it has no such error.")
    return "\n".join(lines) + "\n"
