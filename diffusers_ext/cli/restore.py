"""`diffusers-ext restore`: an image-conditional pipeline on held-out images, beside its condition."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..conditions.image_transforms import ImageTransform, image_transform
from ..evaluation.comparison import write_csv
from ..evaluation.metrics import peak_signal_to_noise_ratio
from ..modalities import modality_of_pipeline
from ..pipelines.batched_generation import image_shape, samples_of
from ..settings import option
from .real_images import RealDataArguments, real_and_baseline
from .shared import DTYPE_CHOICES, DTYPE_HELP, ModelCode, load_pipeline, progress_bar

SHOWN = 8  # images in the picture


@dataclass
class RestoreArguments(RealDataArguments, ModelCode):
    """Super-resolution, colourisation or inpainting of held-out images: a picture, and PSNR beside the condition's."""

    model: str = option(text="Folder or Hub name of a pipeline with an image condition.")
    num_images: int = option(100, "Number of images.", at_least=1, at_most=10_000_000)
    num_samples: int = option(4, "Samples an image; their mean is measured too.", at_least=1, at_most=10_000_000)
    guidance_scale: float = option(1.0, "0 unconditional, 1 conditional, above 1 more so.", at_least=0)
    num_inference_steps: int = option(25, "Sampling steps.", at_least=1, at_most=100_000)
    seed: int = option(0, "Seed of all randomness.", at_least=0)
    output_dir: str = option("restoration", "Where restoration.png and .csv go.", writes="folder")
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPE_CHOICES)


def restore(arguments: RestoreArguments) -> None:
    """Write a picture (condition, sample, mean of samples, target) and a table of PSNR, and print the means.

    The condition is measured too: for super-resolution it is bicubic interpolation.
    """
    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype, arguments.trust_remote_code)
    pipeline.set_progress_bar_config(**progress_bar(leave=False))
    modality = modality_of_pipeline(pipeline)
    if modality.dims != 2:
        raise ValueError(f"restore measures images, and '{arguments.model}' makes {modality.noun}.")
    condition = _condition_of(pipeline, arguments.model)
    real, _ = real_and_baseline(arguments, arguments.num_images, modality.data_options(pipeline), None)
    targets = torch.cat(list(real.batches()))
    generator = torch.Generator().manual_seed(arguments.seed)
    given = condition.user_input(targets, generator)
    seen = condition.from_user(given["image"], given.get("mask_image"), (targets.shape[2], targets.shape[3]))
    began = time.perf_counter()
    options = {"guidance_scale": arguments.guidance_scale, "num_inference_steps": arguments.num_inference_steps}
    results = (
        pipeline(**given, **options, generator=generator, output_type="pt") for _ in range(arguments.num_samples)
    )
    samples = torch.stack([samples_of(result) for result in results])
    seconds = time.perf_counter() - began
    shown = seen[:, : targets.shape[1]].expand_as(targets)
    columns = {"condition": shown, "sample": samples[0], "mean of samples": samples.mean(dim=0)}
    decibels = {name: peak_signal_to_noise_ratio(images, targets) for name, images in columns.items()}
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _draw(columns, targets, decibels, folder / "restoration.png", condition.name)
    texts = {name: [f"{value:.4f}" for value in column] for name, column in decibels.items()}
    rows = [{"image": i, **{name: column[i] for name, column in texts.items()}} for i in range(len(targets))]
    write_csv(rows, folder / "restoration.csv")
    each = f"{arguments.num_samples} samples each"
    print(f"{condition.name} of {len(targets)} images ({real.split}), {each}, {seconds:.1f} s")
    for name, values in decibels.items():
        error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{name:16} PSNR {values.mean():.2f} dB (standard error {error:.2f})")
    print(f"Picture and table in {folder}")


def _condition_of(pipeline: Any, model: str) -> ImageTransform:
    name = getattr(pipeline.config, "condition", None)
    if name in (None, "image"):
        raise ValueError(f"'{model}' was not trained on a condition made from its target, so there is none to make.")
    return image_transform(name, image_shape(pipeline)[0])


def _draw(
    columns: dict[str, torch.Tensor], targets: torch.Tensor, decibels: dict[str, torch.Tensor], path: Path, title: str
) -> None:
    from .. import figures

    rows = range(min(SHOWN, len(targets)))
    table = [[*(images[i].clamp(-1, 1) for images in columns.values()), targets[i]] for i in rows]
    captions = [[*(f"{values[i]:.1f} dB" for values in decibels.values()), ""] for i in rows]
    figures.comparison_grid(["" for _ in rows], [*columns, "target"], table, path, captions, title)
