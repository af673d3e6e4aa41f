"""The figures that a training run leaves behind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .. import figures
from ..objectives.randomness import seed_of
from ..pipelines import GenerationPipeline
from ..schedulers import NoisePath

logger = logging.getLogger(__name__)

GIF_STEPS = 50
GIF_IMAGES = 16


def preview_grid(
    pipeline: DiffusionPipeline, steps: int, generator: torch.Generator, path: Path, **request: Any
) -> np.ndarray:
    """Sample what is asked for, write the grid to `path`, and give the grid as uint8 (1, height, width, 3)."""
    images = sample(pipeline, steps, generator, **request)
    columns = _columns(request.get("class_labels"))
    grid = figures.image_grid(
        torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1, columns=columns, scale=_scale(images)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
    except OSError as error:  # a full disk must not cost the run
        logger.warning("The grid '%s' could not be saved (%s).", path, error)
    return np.asarray(grid.convert("RGB"))[None]


def _columns(class_labels: list[int] | None) -> int | None:
    """A row a class when all classes have equally many images."""
    counts = set(Counter(class_labels or []).values())
    return counts.pop() if len(counts) == 1 and counts != {1} else None


def sample(pipeline: Any, steps: int, generator: torch.Generator, **request: Any) -> np.ndarray:
    """Images as floats in [0, 1], shape (count, height, width, channels), without a progress bar.

    Pixels that are no numbers are black, and warned about: a picture must not cost the run.
    """
    pipeline.set_progress_bar_config(disable=True)
    steps = min(steps, pipeline.scheduler.config.num_train_timesteps)
    try:
        images = pipeline(num_inference_steps=steps, generator=generator, output_type="np", **request).images
    finally:
        pipeline.set_progress_bar_config()
    broken = np.isnan(images).any(axis=(1, 2, 3)).sum()
    if broken:
        logger.warning(
            "%d of %d sampled images hold pixels that are no numbers; they are drawn black.", broken, len(images)
        )
    return np.nan_to_num(images)


def _scale(images: np.ndarray) -> int:
    return max(1, 64 // images.shape[1])


@dataclass(frozen=True)
class Figures:
    """What the figures of a finished run show.

    Attributes:
        samples, reverse: pipeline arguments for the grid of samples and for the GIF of the reverse process.
        num_inference_steps: of the sampler.
        seed: of the noise.
        path: the noise path of the training, or None.
        schedule: its name.
    """

    samples: Mapping[str, Any]
    reverse: Mapping[str, Any]
    num_inference_steps: int
    seed: int
    path: Any = None
    schedule: str = ""


def write_figures(pipeline: Any, output_dir: Path, wanted: Figures) -> None:
    """Samples, the noise schedule, the loss curve, and a GIF of the reverse process, below `figures/`."""
    folder = output_dir / "figures"
    try:
        folder.mkdir(exist_ok=True)
        _write_figures(pipeline, output_dir, folder, wanted)
    except ImportError as error:
        logger.warning("No figures were drawn (%s); install 'diffusers_ext[train]' for them.", error)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # The pipeline is saved; a figure must not cost the run.
        logger.warning("Not all figures were drawn (%s).", " ".join(str(error).split()))


def _write_figures(pipeline: Any, output_dir: Path, folder: Path, wanted: Figures) -> None:
    generator = torch.Generator().manual_seed(seed_of(wanted.seed, "figures"))
    steps = min(wanted.num_inference_steps, 100)
    preview_grid(pipeline, steps, generator, folder / "samples.png", **wanted.samples)
    path = wanted.path
    if isinstance(path, NoisePath):
        figures.plot_schedule(
            {wanted.schedule: {"betas": path.betas, "alphas_cumprod": path.alphas_cumprod}}, folder / "schedule.png"
        )
    if isinstance(pipeline, GenerationPipeline):
        generator = torch.Generator().manual_seed(seed_of(wanted.seed, "reverse"))
        steps = min(wanted.num_inference_steps, GIF_STEPS)
        _write_reverse(pipeline, folder / "reverse.gif", steps, generator, wanted.reverse)
    figures.plot_losses(output_dir / "metrics.jsonl", folder / "losses.png")


def _write_reverse(
    pipeline: Any, path: Path, steps: int, generator: torch.Generator, request: Mapping[str, Any]
) -> None:
    frames: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        frames.append((pipeline.to_images(tensors["latents"]).nan_to_num(0.0) * 2 - 1).cpu())
        return {}

    sample(pipeline, steps, generator, callback_on_step_end=keep, **request)
    figures.save_gif(frames, path, hold_last_ms=1500)
