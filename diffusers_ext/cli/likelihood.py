"""`diffusers-ext likelihood`: bits per dimension of real images under a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.images import load_image_data
from ..data.randomness import permutation
from ..evaluation.likelihood import TRACES, VariationalBound, check_likelihood, likelihood, variational_bound
from ..settings import CheckedSettings, option
from .shared import ModelCode, load_pipeline, progress_bar


@dataclass
class LikelihoodArguments(CheckedSettings, ModelCode):
    """Measure bits per dimension of real images under a model, by the probability flow or the variational bound."""

    model: str = option(text="Folder or Hub name of an unconditional pipeline of images.")
    dataset_name: str | None = option(None, "Hub name or local folder; the digits inside the package if not given.")
    dataset_config_name: str | None = option(None, "Configuration of the data set.")
    train_data_dir: str | None = option(None, "Folder or archive of images.")
    image_column: str | None = option(None, "Column with the images.")
    split: str = option("test", "Split to measure.")
    cache_dir: str | None = option(None, "Where downloads are kept.")
    num_images: int = option(256, "Images to measure; more give a smaller standard error.", at_least=1)
    batch_size: int = option(64, "Images at a time.", at_least=1)
    tolerance: float = option(1e-3, "Error that a step of the adaptive solver may make.", above=0)
    steps: int | None = option(None, "Fixed Runge-Kutta steps instead, of four evaluations each.", at_least=1)
    trace: str = option("hutchinson", "hutchinson, one random projection, or exact, which is slow.", choices=TRACES)
    eps: float | None = option(None, "Noise level sigma / alpha where the flow ends; default: the model's lowest.")
    bound_timesteps: int = option(0, "Random timesteps for the variational bound; 0 leaves it out.", at_least=0)
    seed: int = option(0, "Seed of dequantisation and projections.")
    output: str | None = option(None, "JSON file to write.")
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def measure_likelihood(arguments: LikelihoodArguments) -> None:
    """Print bits per dimension with standard error and evaluations, and write them."""
    pipeline = load_pipeline(arguments.model, arguments.device, trust_remote_code=arguments.trust_remote_code)
    check_likelihood(pipeline)
    images, description = _images(arguments, pipeline.unet.config)
    images = images.to(pipeline.device)
    with tqdm(total=len(images), desc="Likelihood", unit="img", **progress_bar(leave=False)) as bar:
        found = likelihood(
            pipeline.unet.eval().requires_grad_(False),
            pipeline.scheduler,
            images,
            tolerance=arguments.tolerance,
            steps=arguments.steps,
            trace=arguments.trace,
            eps=arguments.eps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            report_progress=lambda done: bar.update(done - bar.n) and None,
        )
    print(f"{found} of {description}")
    record: dict[str, Any] = {**asdict(found), "per_image": found.per_image.tolist(), "data": description}
    if arguments.bound_timesteps:
        bound = variational_bound(
            pipeline.unet, pipeline.scheduler, images, arguments.bound_timesteps, arguments.batch_size, arguments.seed
        )
        _print_bound(bound)
        record["variational_bound"] = asdict(bound)
    if arguments.output is not None:
        Path(arguments.output).write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(f"Numbers in {arguments.output}")


def _print_bound(bound: VariationalBound) -> None:
    along = bound.total - bound.prior - bound.decoder
    print(
        f"Variational bound {bound.total:.4f} +- {bound.standard_error:.4f} bits per dimension: prior "
        f"{bound.prior:.4f}, diffusion {along:.4f} (from {len(bound.diffusion)} timesteps), decoder {bound.decoder:.4f}"
    )


def _images(arguments: LikelihoodArguments, config: Any) -> tuple[torch.Tensor, str]:
    """The images, in a random order that is always the same, at the model's resolution; and what they are."""
    data = load_image_data(
        arguments.dataset_name,
        arguments.dataset_config_name,
        arguments.train_data_dir,
        arguments.split,
        image_column=arguments.image_column,
        cache_dir=arguments.cache_dir,
        resolution=config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0],
        center_crop=True,
        channels=config.in_channels,
    )
    chosen = permutation(0, 0, len(data))[: arguments.num_images]
    return data.__getitems__(chosen.tolist())["samples"], f"{data.description} ({arguments.split})"
