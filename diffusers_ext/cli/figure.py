"""`diffusers-ext figure NAME`: the figures that teach how diffusion works, each by one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..pipelines.batched_generation import starting_noise
from ..schedulers import SCHEDULES, NoisePath
from ..settings import CheckedSettings, option
from .shared import load_pipeline, run_folder

NAMES = "forward noised trajectory embedding denoiser distribution schedules lengths gamma".split()  # noqa: SIM905
_TIMES = {"forward": [0, 10, 50, 100, 200, 300, 500, 999], "noised": [100, 300, 600], "denoiser": [50, 200, 400, 700]}


@dataclass
class FigureArguments(CheckedSettings):
    """Draw a figure: forward, noised, trajectory, embedding, denoiser, distribution, schedules, lengths or gamma."""

    POSITIONAL: ClassVar[str] = "name"

    name: str = option(text="Which figure.", choices=tuple(NAMES))
    model: str | None = option(
        None, "Folder, Hub name or recipe of the network of trajectory, denoiser, lengths and gamma."
    )
    schedule: str = option("cosine", "Noise schedule of forward and noised without a model.", choices=tuple(SCHEDULES))
    times: list[int] = option([], "Timesteps of forward, noised and denoiser.", at_least=0)
    dataset_name: str = option("embedded", "Where the images come from.")
    num_images: int = option(4, "Rows, or columns for gamma.", at_least=1, at_most=64)
    num_inference_steps: int = option(50, "Sampling steps of trajectory and gamma.", at_least=1, at_most=100_000)
    lengths: list[int] = option([5, 10, 20, 50, 100], "Numbers of steps of lengths.", at_least=1)
    gammas: list[str] = option(["0", "exponential_decay", "sigmoid_decay", "1", "1.3"], "Factors of gamma.")
    fps: float = option(12.5, "Pictures a second of distribution.", above=0, at_most=50)
    frames: int = option(40, "Pictures of distribution, each way.", at_least=2, at_most=1000)
    seed: int = option(0, "Seed of the noise.", at_least=0)
    output: str | None = option(
        None, "The file; NAME.png, or distribution.gif, if not given.", writes=".png .pdf .svg .jpg .gif"
    )
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def figure(arguments: FigureArguments) -> None:
    """Draw it."""
    suffix = ".gif" if arguments.name == "distribution" else ".png"
    file = Path(arguments.output or f"{arguments.name}{suffix}")
    if (file.suffix == ".gif") != (suffix == ".gif"):
        raise ValueError(f"output of figure {arguments.name} must end in {suffix}, got '{file}'.")
    _DRAW[arguments.name](arguments, file)
    print(f"Picture in {file}")


def _pipeline(arguments: FigureArguments) -> Any:
    if arguments.model is None:
        raise ValueError(f"figure {arguments.name} needs a --model: a folder, a Hub name or the name of a recipe.")
    return load_pipeline(run_folder(arguments.model), arguments.device)


def _images(arguments: FigureArguments, resolution: int = 28, channels: int | None = None) -> torch.Tensor:
    from ..data.images import load_image_data

    data = load_image_data(arguments.dataset_name, None, None, "train", resolution=resolution, channels=channels)
    count = min(arguments.num_images, len(data))
    return torch.stack([data[number * len(data) // count]["samples"] for number in range(count)])


def _path(arguments: FigureArguments) -> Any:
    if arguments.model is not None:
        return _pipeline(arguments).scheduler.path
    return NoisePath.from_schedule(arguments.schedule, 1000)


def _process(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    draw: Callable[..., None] = getattr(process_figures, arguments.name)
    times = arguments.times or _TIMES[arguments.name]
    if arguments.name == "denoiser":
        pipeline = _pipeline(arguments)
        config = pipeline.unet.config
        draw(pipeline, _images(arguments, config.sample_size, config.in_channels), times, file, arguments.seed)
    else:
        draw(_images(arguments), _path(arguments), times, file, arguments.seed)


def _sampling(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    pipeline = _pipeline(arguments)
    noise = starting_noise(pipeline, arguments.num_images, arguments.seed)
    if arguments.name == "trajectory":
        process_figures.trajectory(pipeline, noise, arguments.num_inference_steps, file)
    elif arguments.name == "lengths":
        process_figures.lengths(pipeline, noise, arguments.lengths, file)
    else:
        process_figures.gamma(pipeline, noise, arguments.gammas, arguments.num_inference_steps, file)


def _embedding(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    process_figures.embedding(file)


def _distribution(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    process_figures.distribution(file, arguments.frames, fps=arguments.fps, seed=arguments.seed)


def _schedules(arguments: FigureArguments, file: Path) -> None:
    from .schedules import ScheduleArguments, schedules

    schedules(ScheduleArguments(output=str(file)))


_DRAW: dict[str, Callable[[FigureArguments, Path], None]] = {
    **dict.fromkeys(("forward", "noised", "denoiser"), _process),
    **dict.fromkeys(("trajectory", "lengths", "gamma"), _sampling),
    "embedding": _embedding,
    "distribution": _distribution,
    "schedules": _schedules,
}
