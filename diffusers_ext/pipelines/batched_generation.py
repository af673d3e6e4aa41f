"""Many images from a pipeline, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils.logging import tqdm

from .latent_space import LatentSpace
from .pipeline_signal import SignalPipeline


def samples_of(result: Any) -> torch.Tensor:
    """The samples of a pipeline's `pt` result, on the CPU: images in [-1, 1], signals in the units of the data."""
    if hasattr(result, "audios"):
        return torch.as_tensor(result.audios).cpu()
    return as_tensor(result.images) * 2 - 1


def as_tensor(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A pipeline's `pt` images (batch, channels, height, width), on the CPU.

    In diffusers 0.33, DDPMPipeline and DDIMPipeline give (batch, height, width, channels) in NumPy.
    """
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).permute(0, 3, 1, 2)
    return images.cpu()


def generate_images(
    pipeline: Any,
    number: int,
    labels: torch.Tensor | None = None,
    batch_size: int = 100,
    seed: int = 0,
    show_progress: bool = False,
    each: Mapping[str, Sequence[Any] | torch.Tensor] | None = None,
    **options: Any,
) -> torch.Tensor:
    """`number` samples (number, channels, *size), on the CPU: images in [-1, 1], signals in the units of the data.

    Args:
        pipeline: a `GenerationPipeline` or a `SignalPipeline`.
        number: of images.
        labels: the class of each (number,), or None for none.
        batch_size: images at a time.
        seed: of one generator for all batches, on the CPU; equal seeds and batch sizes give equal images.
        show_progress: show a progress bar with the time left, unless the output is no terminal.
        each: other arguments of the pipeline's call with an entry for each sample, such as `prompt`.
        options: of the pipeline's call, the same for every batch.

    Raises ValueError for labels or entries of another number, and what the pipeline raises.
    """
    if labels is not None and labels.shape != (number,):
        raise ValueError(f"labels must have shape ({number},), one an image, got {tuple(labels.shape)}.")
    each = {**({} if labels is None else {"class_labels": labels}), **(each or {})}
    for name, values in each.items():
        if len(values) != number:
            raise ValueError(f"{name} must have {number} entries, one a sample, got {len(values)}.")
    generator = torch.Generator().manual_seed(seed)
    images = []
    with tqdm(total=number, desc="Sampling", unit="img", leave=False, disable=None if show_progress else True) as bar:
        for start in range(0, number, batch_size):
            count = min(batch_size, number - start)
            given = {name: values[start : start + count] for name, values in each.items()}
            result = pipeline(batch_size=count, generator=generator, output_type="pt", **given, **options)
            images.append(samples_of(result))
            bar.update(count)
    return torch.cat(images)


def seconds_of_choosing(pipeline: Any) -> float:
    """Seconds in which the network has chosen how it computes (`--dtype auto`), so far; 0 for one that chooses nothing.

    To be left out of times of sampling.
    """
    hooks = getattr(pipeline.unet, "_forward_pre_hooks", {}).values()
    return sum(getattr(hook, "seconds_of_choosing", 0.0) for hook in hooks)


def starting_noise(pipeline: Any, number: int, generator: torch.Generator) -> torch.Tensor:
    """Noise of variance 1 in the shape of `number` images of the network, on the CPU; the toy's noise is uniform.

    Raises:
        ValueError: for a pipeline of signals, or a network that does not say how large its images are.
    """
    if isinstance(pipeline, SignalPipeline):
        raise ValueError(
            "This is for images, and the model makes signals; `sample` draws them, `evaluate` measures them."
        )
    shape = (number, pipeline.unet.config.in_channels, *_image_size(pipeline))
    prior = getattr(pipeline.scheduler, "sample_prior", None)
    return torch.randn(shape, generator=generator) if prior is None else prior(shape, generator)


def image_shape(pipeline: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a pipeline makes when it is asked for no size."""
    config, vae = pipeline.unet.config, getattr(pipeline, "vae", None)
    height, width = _image_size(pipeline)
    if vae is None:
        return config.in_channels, height, width
    space = LatentSpace(vae)
    return space.image_channels, height * space.factor, width * space.factor


def _image_size(pipeline: Any) -> tuple[int, int]:
    """(height, width) of the network's samples."""
    size = pipeline.unet.config.sample_size
    if size is None:
        raise ValueError(
            "The network's configuration has no sample_size, so that nothing says how large its images are."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
