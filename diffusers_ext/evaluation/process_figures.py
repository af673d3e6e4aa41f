"""Figures that teach: what noise does to images, what a network makes of it, and how sampling goes.

Every function writes one file. `diffusers-ext figure NAME` calls the function of that name.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import figures
from ..schedulers import NoisePath
from ..schedulers.registry import build_sampler
from .comparison import mixture_pipeline

PathLike = str | Path


def forward(images: torch.Tensor, path: NoisePath, times: Sequence[int], file: PathLike, seed: int = 0) -> None:
    """Images (count, channels, height, width) in [-1, 1] under growing noise: a row each, a column for each time."""
    noise = _noise(images, seed)
    figures.strip([_noised(images, noise, path, t) for t in times], times, file, "Forward process")


def noised(images: torch.Tensor, path: NoisePath, times: Sequence[int], file: PathLike, seed: int = 0) -> None:
    """The originals in the first column, and beside them the noised images of some times."""
    noise = _noise(images, seed)
    states = [images, *(_noised(images, noise, path, t) for t in times)]
    figures.strip(states, ["original", *(f"t = {t}" for t in times)], file, "Original and noised", column_title="")


def denoiser(pipeline: Any, images: torch.Tensor, times: Sequence[int], file: PathLike, seed: int = 0) -> None:
    """Noised images, what the network takes for the clean ones in a single step, and the clean ones."""
    scheduler = build_sampler("ddim", pipeline.scheduler.config)
    path, noise = scheduler.path, _noise(images, seed)
    rows: list[list[torch.Tensor]] = [[], [], []]
    for t in times:
        noisy = _noised(images, noise, path, t)
        scheduler.set_timesteps(timesteps=[t])
        with torch.no_grad():
            output = pipeline.unet(noisy.to(pipeline.device), torch.tensor(t, device=pipeline.device)).sample.cpu()
        clean = scheduler.step(output, t, noisy).pred_original_sample
        for row, batch in zip(rows, (noisy, clean, images)):
            row.append(batch.float().clamp(-1, 1))
    names = ["input", "output as a clean image", "clean image"]
    figures.comparison_grid(
        names, [f"t = {t}" for t in times], rows, file, title="What the network sees and says", column_title="timestep"
    )


def trajectory(pipeline: Any, latents: torch.Tensor, steps: int, file: PathLike) -> None:
    """Samples on their way from noise to images: a row each, 16 states evenly over the steps."""
    frames: list[tuple[int, torch.Tensor]] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        frames.append((step + 1, tensors["latents"].float().cpu()))
        return {}

    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "num_inference_steps": steps, "callback_on_step_end": keep}
    pipeline(latents=latents, output_type="latent", **options)
    chosen = figures.evenly(frames, 16)
    states, labels = [state for _, state in chosen], [number for number, _ in chosen]
    figures.strip(states, labels, file, "Sampling trajectories", column_title="steps taken")


def lengths(pipeline: Any, latents: torch.Tensor, numbers: Sequence[int], file: PathLike) -> None:
    """DDIM with several numbers of steps from the same noise: a row a noise, a column a length."""
    pipeline.scheduler = build_sampler("ddim", pipeline.scheduler.config)
    states = [pipeline(latents=latents, num_inference_steps=n, output_type="latent").images.cpu() for n in numbers]
    figures.strip(states, numbers, file, "DDIM from the same noise", column_title="number of steps")


def gamma(pipeline: Any, latents: torch.Tensor, values: Sequence[str], steps: int, file: PathLike) -> None:
    """The ddpm sampler with several factors on its added noise, from the same noise: a row a factor."""
    config, rows = pipeline.scheduler.config, []
    for value in values:
        pipeline.scheduler = build_sampler("ddpm", config, gamma=value)
        generator = torch.Generator().manual_seed(0)
        result = pipeline(latents=latents, num_inference_steps=steps, generator=generator, output_type="latent")
        rows.append(list(result.images.cpu().float().clamp(-1, 1)))
    title = "Factor gamma on the noise that each step adds"
    numbers = range(1, len(latents) + 1)
    figures.comparison_grid(values, numbers, rows, file, title=title, row_title="gamma", column_title="starting noise")


def embedding(file: PathLike, dimensions: int = 128) -> None:
    """The sinusoidal embedding of time as a map."""
    from diffusers.models.embeddings import get_timestep_embedding

    figures.embedding_heatmap(get_timestep_embedding(torch.arange(1000), dimensions), file)


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
    pictures = [_scatter(label, cloud) for label, cloud in [*there, *back]]
    figures.save_gif(pictures, file, duration_ms=round(1000 / fps))


def _scatter(label: str, cloud: torch.Tensor) -> Image.Image:
    """A scatter plot beside the histogram of its first coordinate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(cloud[:, 0], cloud[:, 1], s=3, color=figures.COLORS[0])
    left.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="x", ylabel="y")
    right.hist(cloud[:, 0].numpy(), bins=60, range=(-3, 3), density=True, color=figures.COLORS[1])
    right.set(xlim=(-3, 3), ylim=(0, 2.5), xlabel="x", ylabel="density")
    figure.suptitle(label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _noise(images: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def _noised(images: torch.Tensor, noise: torch.Tensor, path: NoisePath, t: int) -> torch.Tensor:
    if not 0 <= t < len(path):
        raise ValueError(f"times must lie in 0 to {len(path) - 1}, got {t}.")
    return path.alpha(t) * images + path.sigma(t) * noise
