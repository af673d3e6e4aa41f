"""Figures that teach: what noise does to images, what a network makes of it, and how sampling goes.

Every function writes one file. `diffusers-ext figure NAME` calls the function of that name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .. import figures
from ..pipelines.latent_space import LatentSpace
from ..proofs import ExactNetwork, GaussianMixture
from ..proofs.sampling import sample
from ..schedulers import GuidedLangevinScheduler, MixScheduler
from ..schedulers.registry import build_sampler
from .comparison import mixture_pipeline

PathLike = str | Path


def forward(
    images: torch.Tensor, path: Any, times: Sequence[int], file: PathLike, seed: int = 0, fps: float = 12.5
) -> None:
    """Images under growing noise: a row each, a column for each time; or a GIF, when the file is a `.gif`.

    Args:
        images: (count, channels, height, width) in [-1, 1].
        path: a noise path, or a `MixScheduler`.
        times: timesteps; thousandths of the time of a path in continuous time, and of the amount of a `MixScheduler`.
        file: the picture.
        seed: of the noise.
        fps: pictures a second of a GIF.
    """
    noise = _noise(images, seed)
    states = [_noised(images, noise, path, t) for t in times]
    if Path(file).suffix == ".gif":
        figures.save_gif(states, file, duration_ms=round(1000 / fps))
    else:
        figures.strip(states, times, file, "Forward process")


def noised(images: torch.Tensor, path: Any, times: Sequence[int], file: PathLike, seed: int = 0) -> None:
    """The originals in the first column, and beside them the noised images of some times; arguments as `forward`."""
    noise = _noise(images, seed)
    states = [images, *(_noised(images, noise, path, t) for t in times)]
    figures.strip(states, ["original", *(f"t = {t}" for t in times)], file, "Original and noised", column_title="")


def denoiser(pipeline: Any, images: torch.Tensor, times: Sequence[int], file: PathLike, seed: int = 0) -> None:
    """Noised images, what the network takes for the clean ones in a single step, and the clean ones.

    Args:
        pipeline: a `GenerationPipeline`.
        images: (count, channels, height, width) in [-1, 1], of the size that the pipeline makes.
        times: as `forward` takes them.
        file: the picture.
        seed: of the noise.
    """
    encode, decode = _codec(pipeline)
    samples = encode(images)
    noise, path = _noise(samples, seed), path_of(pipeline)
    rows: list[list[torch.Tensor]] = [[], [], []]
    for t in times:
        noisy = _noised(samples, noise, path, t)
        clean = _mixed_clean(pipeline, noisy) if isinstance(path, MixScheduler) else _clean(pipeline, noisy, t)
        for row, batch in zip(rows, (noisy, clean, samples)):
            row.append(decode(batch).float().clamp(-1, 1))
    names = ["input", "output as a clean image", "clean image"]
    figures.comparison_grid(
        names, [f"t = {t}" for t in times], rows, file, title="What the network sees and says", column_title="timestep"
    )


def _codec(pipeline: Any) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """From images in [-1, 1] to the samples of a pipeline's network, and back: its vae's, or nothing to do."""
    if getattr(pipeline, "vae", None) is None:
        return torch.Tensor.float, torch.Tensor.float
    space = LatentSpace(pipeline.vae)
    encode = torch.no_grad()(lambda images: space.encode(images.to(pipeline.vae.device))[0].cpu())
    return encode, lambda samples: space.decode(samples.to(pipeline.vae.device)).cpu()


@torch.no_grad()
def _clean(pipeline: Any, noisy: torch.Tensor, t: int) -> torch.Tensor:
    """The clean images that the network's output at this time means."""
    scheduler = build_sampler("ddim", pipeline.scheduler.config)
    scheduler.set_timesteps(timesteps=[_time_on(scheduler.path, t)])
    (time,) = scheduler.timesteps
    seen = scheduler.scale_model_input(noisy, time).to(pipeline.device)
    output = pipeline.unet(seen, time.to(pipeline.device)).sample.cpu()
    return scheduler.step(output, time, noisy).pred_original_sample


@torch.no_grad()
def _mixed_clean(pipeline: Any, noisy: torch.Tensor) -> torch.Tensor:
    """The output of a network without time, which is the clean images in the data's own range."""
    low, high = pipeline.scheduler.data_range
    seen = low + (noisy + 1) / 2 * (high - low)
    output = pipeline.unet(seen.to(pipeline.device), torch.tensor(0, device=pipeline.device)).sample.cpu()
    return (output - low) / (high - low) * 2 - 1


def trajectory(pipeline: Any, latents: torch.Tensor, steps: int, file: PathLike) -> None:
    """Samples on their way from noise to images: a row each, 16 states evenly over the steps.

    Args:
        pipeline: a `GenerationPipeline`.
        latents: starting noise as the pipeline takes it.
        steps: of sampling.
        file: the picture.
    """
    frames: list[tuple[int, torch.Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        frames.append((step + 1, tensors["latents"].to("cpu", copy=True)))
        return {}

    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "num_inference_steps": steps, "callback_on_step_end": keep}
    pipeline(latents=latents, output_type="latent", **options)
    chosen = figures.evenly(frames, 16)
    states, labels = [_as_images(pipeline, state) for _, state in chosen], [number for number, _ in chosen]
    figures.strip(states, labels, file, "Sampling trajectories", column_title="steps taken")


def lengths(pipeline: Any, latents: torch.Tensor, numbers: Sequence[int], file: PathLike) -> None:
    """DDIM with several numbers of steps from the same noise: a row a noise, a column a length."""
    pipeline.scheduler = build_sampler("ddim", pipeline.scheduler.config)
    states = [_sampled(pipeline, latents, num_inference_steps=n) for n in numbers]
    figures.strip(states, numbers, file, "DDIM from the same noise", column_title="number of steps")


def gamma(pipeline: Any, latents: torch.Tensor, values: Sequence[str], steps: int, file: PathLike) -> None:
    """The ddpm sampler with several factors on its added noise, from the same noise: a row a factor."""
    config, rows = pipeline.scheduler.config, []
    for value in values:
        pipeline.scheduler = build_sampler("ddpm", config, gamma=value)
        generator = torch.Generator().manual_seed(0)
        rows.append(list(_sampled(pipeline, latents, num_inference_steps=steps, generator=generator)))
    title = "Factor gamma on the noise that each step adds"
    numbers = range(1, len(latents) + 1)
    figures.comparison_grid(values, numbers, rows, file, title=title, row_title="gamma", column_title="starting noise")


def guidance(
    pipeline: Any, latents: torch.Tensor, labels: Sequence[int], scales: Sequence[float], steps: int, file: PathLike
) -> None:
    """Samples of some classes at several guidance scales, from the same noise: a row a class, a column a scale.

    Args:
        pipeline: a `GenerationPipeline` whose network has classes.
        latents: starting noise, one for each label.
        labels: classes.
        scales: 0 unconditional, 1 conditional, above 1 more so.
        steps: of sampling.
        file: the picture.

    Raises:
        ValueError: for a network without classes.
    """
    if not getattr(pipeline.unet.config, "num_class_embeds", None):
        raise ValueError("The figure of guidance needs a network with classes, and this one has none.")
    columns = []
    for scale in scales:
        request = {"class_labels": list(labels), "guidance_scale": scale, "num_inference_steps": steps}
        generator = torch.Generator().manual_seed(0)
        columns.append(_sampled(pipeline, latents, generator=generator, **request))
    names = getattr(pipeline.config, "id2label", None) or {}
    rows = [f"class {names.get(str(label), label)}" for label in labels]
    title = "Guidance: null + scale * (conditional - null), from the same noise"
    figures.strip(columns, [f"{scale:g}" for scale in scales], file, title, "guidance scale", rows)


def _sampled(pipeline: Any, latents: torch.Tensor, **request: Any) -> torch.Tensor:
    return _as_images(pipeline, pipeline(latents=latents, output_type="latent", **request).images)


def _as_images(pipeline: Any, samples: torch.Tensor) -> torch.Tensor:
    """Samples of a pipeline's network as images in [-1, 1], decoded where it has a vae."""
    return pipeline.to_images(samples).cpu() * 2 - 1


def langevin(file: PathLike, points: int = 4000, seed: int = 0) -> None:
    """Histograms of what Langevin sampling makes of N(1, 0.1^2) with its exact score, from 300 noise levels.

    U-SURF's rule takes one Langevin step at each level. Several steps a level, or the reverse SDE, end at the data.
    """
    data = GaussianMixture([1.0], [[1.0]], [0.01])
    panels = []
    for label, rule, count in _LANGEVIN:
        with warnings.catch_warnings(action="ignore"):  # that its path does not end at noise is part of the study
            scheduler = GuidedLangevinScheduler(num_train_timesteps=300, rule=rule, inner_steps=count)
        scheduler.set_timesteps(300)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(points, 1, generator=generator, dtype=torch.float64)
        panels.append((label, sample(scheduler, ExactNetwork(data, scheduler.path), noise, generator=generator)[:, 0]))
    places = np.linspace(0, 2, 201)
    density = np.exp(-((places - 1) ** 2) / 0.02) / np.sqrt(0.02 * np.pi)
    with figures.drawing(file, 3.1 * len(panels), 3.4) as figure:
        for axes, (label, values) in zip(figure.subplots(1, len(panels), sharey=True), panels):
            axes.hist(values.numpy(), bins=80, range=(0, 2), density=True, color=figures.COLORS[5], label="samples")
            axes.plot(places, density, color=figures.COLORS[1], label="data, N(1, 0.1²)")
            axes.set_title(f"{label}\nmean {values.mean():.3f}, std {values.std():.3f}")
            axes.set_xlabel("x")
        figure.axes[0].set_ylabel("density")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


_LANGEVIN = (
    ("one Langevin step a level", "original", 1),
    ("4 steps a level", "original", 4),
    ("16 steps a level", "original", 16),
    ("reverse SDE", "reverse_sde", 1),
)


def embedding(file: PathLike, pipeline: Any = None, dimensions: int = 128) -> None:
    """The embedding of time as a map: the sinusoidal one, or what a pipeline's network makes of it.

    Args:
        file: the picture.
        pipeline: a pipeline whose network has a module `time_embedding`; None draws the sinusoidal embedding.
        dimensions: of the sinusoidal embedding.

    Raises:
        ValueError: for a network without such a module.
    """
    if pipeline is None:
        from diffusers.models.embeddings import get_timestep_embedding

        figures.embedding_heatmap(get_timestep_embedding(torch.arange(1000), dimensions), file)
        return
    times, values = _learned_embedding(pipeline)
    name = type(pipeline.unet).__name__
    title = f"Time embedding of {name}, after its layers"
    figures.embedding_heatmap(values, file, title, row_range=(times[0], times[-1]))


class _Found(Exception):
    """The embedding is known: the rest of the network need not run."""


def _learned_embedding(pipeline: Any, count: int = 500) -> tuple[list[float], torch.Tensor]:
    """(timesteps, the network's embedding of them), from its module `time_embedding`."""
    module, found = getattr(pipeline.unet, "time_embedding", None), list[torch.Tensor]()
    if module is None:
        raise ValueError(
            f"{type(pipeline.unet).__name__} has no module `time_embedding`; leave the model out for the map of the "
            "sinusoidal embedding."
        )

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        found.append(output.detach())
        raise _Found

    scheduler, config = pipeline.scheduler, pipeline.unet.config
    scheduler.set_timesteps(min(count, scheduler.config.num_train_timesteps))
    times = scheduler.timesteps.flip(0).to(pipeline.device)
    side = config.sample_size
    size = (side,) * getattr(pipeline.unet, "dims", 2) if isinstance(side, int) else tuple(side)
    hook = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            pipeline.unet(torch.zeros(len(times), config.in_channels, *size, device=pipeline.device), times)
    except _Found:
        pass
    finally:
        hook.remove()
    return times.tolist(), found[0]


def distribution(file: PathLike, frames: int = 40, fps: float = 12.5, seed: int = 0) -> None:
    """A GIF of points in the plane that drift to noise, and back by the exact score's probability flow."""
    pipeline, points = mixture_pipeline(), 1000
    generator = torch.Generator().manual_seed(seed)
    data, path = pipeline.unet.mixture.sample(points, generator).float(), pipeline.scheduler.path
    noise = torch.randn(data.shape, generator=generator)
    times = np.linspace(0, len(path) - 1, frames).round().astype(int).tolist()
    there = [(f"forward, t = {t}", _noised(data, noise, path, t)) for t in times]
    back: list[tuple[str, torch.Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        back.append((f"reverse, step {step + 1} of {frames}", tensors["latents"].float().reshape(points, 2)))
        return {}

    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        latents=there[-1][1].reshape(points, 2, 1, 1),
        num_inference_steps=frames,
        output_type="latent",
        callback_on_step_end=keep,
    )
    figures.save_gif(list(_scatters([*there, *back])), file, duration_ms=round(1000 / fps))


def _scatters(clouds: Sequence[tuple[str, torch.Tensor]]) -> Iterator[Image.Image]:
    """A scatter plot of each cloud beside the histogram of its first coordinate; one figure, drawn again and again."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    dots = left.scatter([], [], s=3, color=figures.COLORS[0])
    left.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="x", ylabel="y")
    edges = np.linspace(-3, 3, 61)
    bars = right.stairs(np.zeros(60), edges, fill=True, color=figures.COLORS[1])
    right.set(xlim=(-3, 3), ylim=(0, 2.5), xlabel="x", ylabel="density")
    for label, cloud in tqdm(clouds, desc="Drawing", leave=False, disable=None):
        dots.set_offsets(cloud.numpy())
        bars.set_data(np.histogram(cloud[:, 0].numpy(), edges, density=True)[0])
        figure.suptitle(label)
        canvas.draw()
        figure.set_layout_engine("none")  # what the first drawing found holds for all
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _noise(images: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def _noised(images: torch.Tensor, noise: torch.Tensor, path: Any, t: int) -> torch.Tensor:
    if not 0 <= t < number_of_times(path):
        raise ValueError(f"times must lie in 0 to {number_of_times(path) - 1}, got {t}.")
    if isinstance(path, MixScheduler):  # its noise is uniform over the range of the data
        return torch.lerp(images, 2 * torch.special.ndtr(noise) - 1, t / (len(path) - 1))
    time = _time_on(path, t)
    return path.alpha(time) * images + path.sigma(time) * noise


def path_of(pipeline: Any) -> Any:
    """What the first argument `path` of `forward` takes for a pipeline."""
    if isinstance(pipeline.scheduler, MixScheduler):
        return pipeline.scheduler
    return build_sampler("ddim", pipeline.scheduler.config).path


def number_of_times(path: Any) -> int:
    """One more than the largest time that the figures take on a path."""
    return len(path) if hasattr(path, "__len__") else 1000


def _time_on(path: Any, t: int) -> float:
    """The path's own time: the timestep itself, or its thousandth where time is continuous."""
    return t if hasattr(path, "__len__") else t / 1000
