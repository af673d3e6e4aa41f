"""The figures that a training run leaves behind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .. import figures
from ..conditions.base import spread
from ..files import one_line
from ..modalities import modality_of_pipeline
from ..objectives.randomness import seed_of
from ..pipelines import GenerationPipeline
from ..pipelines.batched_generation import samples_of
from ..schedulers import NoisePath
from .bars import bar_options

logger = logging.getLogger(__name__)

GIF_STEPS = 50
GIF_IMAGES = 16


def preview(
    pipeline: DiffusionPipeline, steps: int, generator: torch.Generator, path: Path, **request: Any
) -> np.ndarray:
    """Sample what is asked for, draw it into `path`, and give the picture as uint8 (1, height, width, 3)."""
    samples = sample(pipeline, steps, generator, **request)
    return draw(samples, path, pipeline, request)


def draw(samples: torch.Tensor, path: Path, pipeline: Any, request: Mapping[str, Any]) -> np.ndarray:
    """Draw samples that were asked for by `request`; the picture as uint8 (1, height, width, 3)."""
    columns = _columns(request.get("class_labels"))
    try:
        return modality_of_pipeline(pipeline).draw(samples, path, pipeline, columns)
    except OSError as error:  # a full disk must not cost the run
        logger.warning("The picture '%s' could not be saved (%s).", path, error)
        return np.zeros((1, 1, 1, 3), dtype=np.uint8)


def _columns(class_labels: list[int] | None) -> int | None:
    """A row a class when all classes have equally many samples."""
    counts = set(Counter(class_labels or []).values())
    return counts.pop() if len(counts) == 1 and counts != {1} else None


def sample(pipeline: Any, steps: int, generator: torch.Generator, **request: Any) -> torch.Tensor:
    """Samples (count, channels, *size) as their `Modality` draws them.

    Values that are no numbers become 0, and are warned about: a picture must not cost the run.
    """
    pipeline.set_progress_bar_config(**bar_options("Sampling"))
    steps = min(steps, pipeline.scheduler.config.num_train_timesteps)
    try:
        result = pipeline(num_inference_steps=steps, generator=generator, output_type="pt", **request)
    finally:
        pipeline.set_progress_bar_config()
    modality = modality_of_pipeline(pipeline)
    samples = samples_of(result).float()
    broken = int((~samples.isfinite()).flatten(1).any(1).sum())
    if broken:
        logger.warning(
            "%d of %d sampled %s hold values that are no numbers; they are drawn as 0.",
            broken,
            len(samples),
            modality.noun,
        )
    return samples.nan_to_num(0, 0, 0)


def examples_like(request: Mapping[str, Any], data: Any) -> list[int]:
    """Examples of the data for comparison with samples: as many, of the same classes, spread over each class."""
    classes = request.get("class_labels")
    if classes is None or data.labels is None:
        return spread(len(data), min(len(data), int(request.get("batch_size", 16))))
    places = {}
    for label, number in Counter(classes).items():
        found = (data.labels == label).nonzero()[:, 0]
        places[label] = found[spread(len(found), min(number, len(found)))].tolist()
    return [places[label].pop(0) for label in classes if places[label]]


@dataclass(frozen=True)
class Figures:
    """What the figures of a finished run show.

    Attributes:
        samples, reverse: pipeline arguments for the grid of samples and for the GIF of the reverse process.
        num_inference_steps: of the sampler.
        seed: of the noise.
        path: the noise path of the training, or None.
        schedule: its name.
        real: gives real examples to compare the samples with.
    """

    samples: Mapping[str, Any]
    reverse: Mapping[str, Any]
    num_inference_steps: int
    seed: int
    path: Any = None
    schedule: str = ""
    real: Callable[[], torch.Tensor] | None = None


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
        logger.warning("Not all figures were drawn (%s).", one_line(error))


def _write_figures(pipeline: Any, output_dir: Path, folder: Path, wanted: Figures) -> None:
    generator = torch.Generator().manual_seed(seed_of(wanted.seed, "figures"))
    steps = min(wanted.num_inference_steps, 100)
    samples, modality = sample(pipeline, steps, generator, **wanted.samples), modality_of_pipeline(pipeline)
    draw(samples, folder / "samples.png", pipeline, wanted.samples)
    if wanted.real is not None:
        modality.draw_beside_real(samples, wanted.real(), folder, pipeline)
    path = wanted.path
    if isinstance(path, NoisePath):
        figures.plot_schedule(
            {wanted.schedule: {"betas": path.betas, "alphas_cumprod": path.alphas_cumprod}}, folder / "schedule.png"
        )
    if isinstance(pipeline, GenerationPipeline):
        generator = torch.Generator().manual_seed(seed_of(wanted.seed, "reverse"))
        steps = min(wanted.num_inference_steps, GIF_STEPS)
        _write_reverse(pipeline, folder, steps, generator, wanted.reverse)
    figures.plot_losses(output_dir / "metrics.jsonl", folder / "losses.png")


def _write_reverse(
    pipeline: Any, folder: Path, steps: int, generator: torch.Generator, request: Mapping[str, Any]
) -> None:
    frames: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        frames.append(modality_of_pipeline(pipeline).frame(pipeline, tensors["latents"]))
        return {}

    sample(pipeline, steps, generator, callback_on_step_end=keep, **request)
    modality_of_pipeline(pipeline).draw_process(frames, folder)
