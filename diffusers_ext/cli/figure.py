"""`diffusers-ext figure NAME`: the figures that teach how diffusion works, each by one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..modalities import modality_of_pipeline
from ..pipelines.batched_generation import starting_noise
from ..schedulers import SCHEDULES, NoisePath
from ..settings import CheckedSettings, option
from .shared import ModelCode, load_pipeline

NAMES = (
    "forward noised trajectory embedding denoiser distribution schedules lengths gamma guidance langevin".split()  # noqa: SIM905
)
# Of 1000 timesteps; other numbers of timesteps take the same shares.
_TIMES = {"forward": [0, 10, 50, 100, 200, 300, 500, 999], "noised": [100, 300, 600], "denoiser": [50, 200, 400, 700]}


@dataclass
class FigureArguments(CheckedSettings, ModelCode):
    """Draw a figure that teaches: noise, trajectories, schedules, embeddings, samplers, guidance."""

    POSITIONAL: ClassVar[str] = "name"

    name: str = option(text="Which figure.", choices=tuple(NAMES))
    model: str | None = option(
        None,
        "Folder, Hub name or recipe of a model: for trajectory, denoiser, lengths, gamma and guidance; forward and "
        "noised then follow its noise path, and embedding draws its own.",
    )
    schedule: str = option("cosine", "Noise schedule of forward and noised without a model.", choices=tuple(SCHEDULES))
    times: list[int] = option([], "Timesteps of forward, noised and denoiser.", at_least=0)
    dataset_name: str = option("embedded", "Where the images come from.")
    num_images: int = option(4, "Rows, or columns for gamma.", at_least=1, at_most=64)
    num_inference_steps: int = option(
        50, "Sampling steps of trajectory, gamma and guidance.", at_least=1, at_most=100_000
    )
    lengths: list[int] = option([5, 10, 20, 50, 100], "Numbers of steps of lengths.", at_least=1)
    gammas: list[str] = option(["0", "exponential_decay", "sigmoid_decay", "1", "1.3"], "Factors of gamma.")
    guidance_scales: list[float] = option([0.0, 1.0, 2.0, 4.0, 8.0], "Scales of guidance.", at_least=0)
    class_labels: list[int] | None = option(None, "Classes of guidance, a row each; the first ones if not given.")
    fps: float = option(12.5, "Pictures a second of a GIF.", above=0, at_most=50)
    frames: int = option(40, "Pictures of distribution, each way, and of forward as a GIF.", at_least=2, at_most=1000)
    seed: int = option(0, "Seed of the noise.", at_least=0)
    output: str | None = option(
        None,
        "The file; NAME.png, or distribution.gif, if not given. forward can be a .gif too.",
        writes=".png .pdf .svg .jpg .gif",
    )
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def figure(arguments: FigureArguments) -> None:
    """Draw it."""
    suffix = ".gif" if arguments.name == "distribution" else ".png"
    file = Path(arguments.output or f"{arguments.name}{suffix}")
    if (file.suffix == ".gif") != (suffix == ".gif") and arguments.name != "forward":
        raise ValueError(f"output of figure {arguments.name} must end in {suffix}, got '{file}'.")
    _DRAW[arguments.name](arguments, file)
    print(f"Picture in {file}")


def _pipeline(arguments: FigureArguments) -> Any:
    if arguments.model is None:
        raise ValueError(f"figure {arguments.name} needs a --model: a folder, a Hub name or the name of a recipe.")
    return load_pipeline(arguments.model, arguments.device, trust_remote_code=arguments.trust_remote_code)


def _images(arguments: FigureArguments, resolution: int | None = 28, channels: int | None = None) -> torch.Tensor:
    from ..data.images import load_image_data

    data = load_image_data(arguments.dataset_name, None, None, "train", resolution=resolution, channels=channels)
    count = min(arguments.num_images, len(data))
    return torch.stack([data[number * len(data) // count]["samples"] for number in range(count)])


def _process(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    pipeline = None if arguments.name != "denoiser" and arguments.model is None else _pipeline(arguments)
    if pipeline is None:
        path, images = NoisePath.from_schedule(arguments.schedule, 1000), _images(arguments)
    else:
        modality = modality_of_pipeline(pipeline)
        if modality.dims != 2:
            raise ValueError(f"figure {arguments.name} shows images, and '{arguments.model}' makes {modality.noun}.")
        path = process_figures.path_of(pipeline)
        images = _images(arguments, **modality.data_options(pipeline))
    last = process_figures.number_of_times(path) - 1
    shares = [t / 999 for t in _TIMES[arguments.name]]
    if file.suffix == ".gif":
        shares = [number / (arguments.frames - 1) for number in range(arguments.frames)]
    times = arguments.times or [round(share * last) for share in shares]
    if arguments.name == "denoiser":
        process_figures.denoiser(pipeline, images, times, file, arguments.seed)
    elif arguments.name == "forward":
        process_figures.forward(images, path, times, file, arguments.seed, arguments.fps)
    else:
        process_figures.noised(images, path, times, file, arguments.seed)


def _sampling(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    pipeline = _pipeline(arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    noise = starting_noise(pipeline, arguments.num_images, generator)
    if arguments.name == "trajectory":
        process_figures.trajectory(pipeline, noise, arguments.num_inference_steps, file)
    elif arguments.name == "lengths":
        process_figures.lengths(pipeline, noise, arguments.lengths, file)
    elif arguments.name == "guidance":
        classes = getattr(pipeline.unet.config, "num_class_embeds", None) or 1
        labels = arguments.class_labels or [number % classes for number in range(arguments.num_images)]
        noise = starting_noise(pipeline, len(labels), generator.manual_seed(arguments.seed))
        process_figures.guidance(
            pipeline, noise, labels, arguments.guidance_scales, arguments.num_inference_steps, file
        )
    else:
        process_figures.gamma(pipeline, noise, arguments.gammas, arguments.num_inference_steps, file)


def _embedding(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    process_figures.embedding(file, None if arguments.model is None else _pipeline(arguments))


def _langevin(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    process_figures.langevin(file, seed=arguments.seed)


def _distribution(arguments: FigureArguments, file: Path) -> None:
    from ..evaluation import process_figures

    process_figures.distribution(file, arguments.frames, fps=arguments.fps, seed=arguments.seed)


def _schedules(arguments: FigureArguments, file: Path) -> None:
    from .schedules import ScheduleArguments, schedules

    schedules(ScheduleArguments(output=str(file)))


_DRAW: dict[str, Callable[[FigureArguments, Path], None]] = {
    **dict.fromkeys(("forward", "noised", "denoiser"), _process),
    **dict.fromkeys(("trajectory", "lengths", "gamma", "guidance"), _sampling),
    "embedding": _embedding,
    "langevin": _langevin,
    "distribution": _distribution,
    "schedules": _schedules,
}
