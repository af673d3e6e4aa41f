"""Several models side by side: samples of each from the same starting noise and the same classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import figures
from ..pipelines.batched_generation import samples_of, starting_noise

SMALLEST = 28  # pixels


def sample_alike(
    pipeline: Any,
    number: int = 8,
    num_inference_steps: int = 50,
    seed: int = 0,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """Samples of one model, (number, channels, height, width) in [-1, 1].

    Models of the same image size begin at the same noise. One with classes makes class 0, 1, 2, ... in turn; a
    condition that has no default is the null condition.

    Raises:
        ValueError: for a number of steps that the scheduler can't have.
    """
    request: dict[str, Any] = {}
    classes = getattr(pipeline.unet.config, "num_class_embeds", None)
    if classes:
        request = {"class_labels": [p % classes for p in range(number)], "guidance_scale": guidance_scale}
    request["latents"] = starting_noise(pipeline, number, torch.Generator().manual_seed(seed))
    steps = min(num_inference_steps, pipeline.scheduler.config.num_train_timesteps)
    result = pipeline(
        batch_size=number,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **request,
    )
    return samples_of(result).float()


def draw_models(
    models: Mapping[str, Callable[[], Any]], path: Path, title: str, row_title: str = "model", **options: Any
) -> dict[str, torch.Tensor]:
    """Draw a row of samples for each model; the samples by its name.

    Args:
        models: name -> a function that loads the pipeline, so that one at a time is in memory.
        path: of the picture.
        title: above it.
        row_title: what the names are.
        options: of `sample_alike`.

    Raises:
        ValueError: for no models.
    """
    if not models:
        raise ValueError("models must hold at least one model, got none.")
    samples = {name: sample_alike(load(), **options) for name, load in models.items()}
    side = max(max(batch.shape[-2:]) for batch in samples.values())
    channels = max(batch.shape[1] for batch in samples.values())
    rows = [_alike(batch, max(side, SMALLEST), channels) for batch in samples.values()]
    count = len(rows[0])
    table = [[row[place] for place in range(count)] for row in rows]
    figures.comparison_grid(
        list(samples), range(1, count + 1), table, path, title=title, row_title=row_title, column_title="starting noise"
    )
    return samples


def _alike(images: torch.Tensor, side: int, channels: int) -> torch.Tensor:
    """Images in one size and number of channels, to be drawn in one picture."""
    if max(images.shape[-2:]) < side:
        images = torch.nn.functional.interpolate(images, (side, side), mode="nearest")
    return images.expand(-1, channels, -1, -1) if images.shape[1] < channels else images
