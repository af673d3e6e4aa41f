"""`diffusers-ext likelihood`: bits per dimension of real images under a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.images import load_image_data, permutation
from ..evaluation.likelihood import TRACES, VariationalBound, check_likelihood, likelihood, variational_bound
from .shared import at_least_one, load_pipeline


@dataclass
class LikelihoodArguments:
    """Measure bits per dimension of real images under a model, by the probability flow or the variational bound."""

    model: str = field(metadata={"help": "Folder or Hub name of an unconditional pipeline of images."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub name or local folder; embedded digits if not given."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_data_dir: str | None = field(default=None, metadata={"help": "Folder or archive of images."})
    image_column: str | None = field(default=None, metadata={"help": "Column with the images."})
    split: str = field(default="test", metadata={"help": "Split to measure."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads are kept."})
    num_images: int = field(default=256, metadata={"help": "Images to measure; more give a smaller standard error."})
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})
    tolerance: float = field(default=1e-3, metadata={"help": "Error that a step of the adaptive solver may make."})
    steps: int | None = field(
        default=None, metadata={"help": "Fixed Runge-Kutta steps instead, four evaluations each."}
    )
    trace: str = field(default="hutchinson", metadata={"help": f"{' or '.join(TRACES)}, which is slow."})
    eps: float | None = field(
        default=None,
        metadata={"help": "Noise level sigma / alpha where the flow ends; default: the model's lowest."},
    )
    bound_timesteps: int = field(
        default=0, metadata={"help": "Also the variational bound, from this many random timesteps; 0 for none."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of dequantisation and projections."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps; the best there is if not given."})


def measure_likelihood(arguments: LikelihoodArguments) -> None:
    """Print bits per dimension with standard error and evaluations, and write them."""
    at_least_one(arguments, "num_images", "batch_size")
    pipeline = load_pipeline(arguments.model, arguments.device)
    check_likelihood(pipeline)
    images, description = _images(arguments, pipeline.unet.config)
    images = images.to(pipeline.device)
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
        report_progress=lambda done: print(f"{done} of {len(images)} images", flush=True),
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
