"""Samplers side by side: the same network, the same starting noise, different schedulers and numbers of steps."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import figures
from ..pipelines import GenerationPipeline
from ..pipelines.batched_generation import seconds_of_choosing
from ..proofs import GaussianMixture, MixtureNetwork
from ..schedulers import SubsequenceDDIMScheduler
from ..schedulers.registry import SamplerChoice, samplers_with
from ..schedulers.scheduling_subsequence import SUBSEQUENCES


@dataclass
class Run:
    """One sampler at one length, on one starting noise.

    Attributes:
        sampler: name in `registry.SAMPLERS`, with a number of inner steps as in `langevin x4` where one was given.
        subsequence: how the length became a list of times; empty for samplers that have their own.
        length: number of steps asked for.
        evaluations: of the network, for each image.
        seconds: wall time of the whole batch.
        rms_error: root mean square difference from the reference, in units of the data (range 2 for images in [-1, 1]).
        frechet_distance: of the samples' features from those of real images, where a classifier and data were given.
    """

    sampler: str
    subsequence: str
    length: int
    evaluations: int
    seconds: float
    rms_error: float
    frechet_distance: float | None = None


def compare(
    pipeline: Any,
    latents: torch.Tensor,
    samplers: Sequence[str | SamplerChoice] = ("ddim", "dpmsolver++", "ddpm"),
    lengths: Sequence[int] = (10, 20, 50, 100),
    subsequences: Sequence[str] = ("uniform", "exp"),
    reference: torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[list[Run], list[torch.Tensor]]:
    """Sample `latents` with every sampler at every length.

    Args:
        pipeline: a `GenerationPipeline`; its scheduler gives the noise path and comes back untouched.
        latents: starting noise of variance 1, shape (batch, channels, height, width).
        samplers: NAME, NAME:LENGTH or NAME:LENGTHxK, see `registry.SamplerChoice`.
        lengths: numbers of steps, for samplers that bring none of their own.
        subsequences: names in `SUBSEQUENCES`, each tried with every sampler that takes one.
        reference: where the exact probability flow ends; `full_flow` of this network when None.
        seed: of the noise that stochastic samplers add.

    Returns:
        The runs, and the samples of each, in the scheduler's data range; images in [-1, 1] where there is a vae.

    Raises:
        ValueError: for an unknown name, or a length that a sampler can't have.
    """
    choices = [SamplerChoice.parse(entry) if isinstance(entry, str) else entry for entry in samplers]
    for tau in subsequences:
        if tau not in SUBSEQUENCES:
            raise ValueError(f"subsequences takes names among {', '.join(SUBSEQUENCES)}, got '{tau}'.")
    if reference is None:
        reference = full_flow(pipeline, latents)
    cells = [
        (choice, tau, length)
        for choice in choices
        for tau in (subsequences if choice.name in samplers_with("subsequence") else [""])
        for length in (lengths if choice.length is None else [choice.length])
    ]
    runs, samples = [], []
    with progress_over([length * (choice.inner_steps or 1) for choice, _, length in cells]) as done:
        for choice, tau, length in cells:
            scheduler = choice.build(pipeline.scheduler.config, subsequence=tau or None)
            result, evaluations, seconds = timed_samples(pipeline, scheduler, latents, seed, num_inference_steps=length)
            error = (result.double() - reference.double()).square().mean().sqrt().item()
            runs.append(Run(choice.label, tau, length, evaluations, seconds, error))
            samples.append(result)
            done()
    return runs, samples


@contextmanager
def progress_over(costs: Sequence[float]) -> Iterator[Callable[[], None]]:
    """A progress bar with the time left over parts of these costs, such as steps; none if the output is no terminal.

    Gives a function to call after each part.
    """
    left = iter(costs)
    with tqdm(total=sum(costs), desc="Comparing", unit="step", leave=False, disable=None) as bar:
        yield lambda: bar.update(next(left)) and None


def full_flow(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """DDIM through every training timestep: the network's own probability flow, as finely as its path has times."""
    scheduler = SubsequenceDDIMScheduler.from_config(pipeline.scheduler.config, subsequence="uniform", eta=0.0)
    every = list(range(scheduler.config.num_train_timesteps))[::-1]
    return timed_samples(pipeline, scheduler, latents, 0, timesteps=every)[0]


def timed_samples(
    pipeline: Any, scheduler: Any, latents: torch.Tensor, seed: int, batch_size: int | None = None, **options: Any
) -> tuple[torch.Tensor, int, float]:
    """(samples, network evaluations for each, seconds of sampling) with `scheduler` in the pipeline's place of one.

    Options that are tensors hold an entry an image. A guided prediction is two evaluations, formed in one call or not.
    Where there is a vae, the samples are decoded to images in [-1, 1]. The seconds leave that out, and the time in
    which `--dtype auto` chooses.
    """
    rows = 0

    def count(network: Any, arguments: tuple, named: dict[str, Any], output: Any) -> None:
        nonlocal rows
        rows += len(arguments[0] if arguments else named["sample"])

    own, pipeline.scheduler = pipeline.scheduler, scheduler
    hook = pipeline.unet.register_forward_hook(count, with_kwargs=True)
    generator = torch.Generator().manual_seed(seed)
    results = []
    try:
        began = time.perf_counter() - seconds_of_choosing(pipeline)
        for part in torch.arange(len(latents)).split(batch_size or len(latents)):
            given = {name: value[part] if isinstance(value, torch.Tensor) else value for name, value in options.items()}
            results.append(pipeline(latents=latents[part], generator=generator, output_type="latent", **given).images)
        seconds = time.perf_counter() - began - seconds_of_choosing(pipeline)
    finally:
        hook.remove()
        pipeline.scheduler = own
    samples = torch.cat(results)
    if getattr(pipeline, "vae", None) is not None:
        samples = pipeline.to_images(samples) * 2 - 1
    return samples.cpu(), round(rows / len(latents)), seconds


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a table whose columns are those of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def mixture_pipeline() -> GenerationPipeline:
    """A pipeline whose network is perfect: the closed form for three Gaussians in the plane, on a cosine path."""
    mixture = GaussianMixture([0.5, 0.3, 0.2], [[0.7, 0.1], [-0.5, 0.6], [-0.4, -0.7]], [0.01, 0.03, 0.005])
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return GenerationPipeline(MixtureNetwork(mixture, scheduler.path, "v_prediction"), scheduler)


def exact_flow(pipeline: GenerationPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Where the exact probability flow of a `mixture_pipeline` takes the starting noise."""
    path, last = pipeline.scheduler.path, len(pipeline.scheduler) - 1
    return pipeline.unet.mixture.flow(latents, (path.alpha(last), path.sigma(last)), (1.0, 0.0))


def draw(
    runs: Sequence[Run], samples: Sequence[torch.Tensor], path: Path, reference: torch.Tensor | None = None
) -> None:
    """One picture: a row a sampler (and subsequence), a column a length, with evaluations, seconds and error.

    Images are shown as they are; samples of a `mixture_pipeline` as points, over those of `reference`.
    """
    rows = list(dict.fromkeys((run.sampler, run.subsequence) for run in runs))
    columns = sorted({run.length for run in runs})
    cell = {(run.sampler, run.subsequence, run.length): i for i, run in enumerate(runs)}

    def caption(run: Run | None) -> str:
        if run is None:
            return ""
        frechet = "" if run.frechet_distance is None else f"\nFrechet {run.frechet_distance:.2f}"
        return f"{run.evaluations} network calls\n{run.seconds:.1f} s\nrms {run.rms_error:.3f}{frechet}"

    table = [[cell.get((*row, column)) for column in columns] for row in rows]
    names = [" ".join(filter(None, row)) for row in rows]
    of_cell = [[None if i is None else runs[i] for i in line] for line in table]
    if reference is not None:
        points = [[None if i is None else samples[i].flatten(1) for i in line] for line in table]
        captions = [
            ["" if run is None else f"{run.evaluations} network calls, rms {run.rms_error:.4f}" for run in line]
            for line in of_cell
        ]
        figures.scatter_grid(names, columns, points, path, reference.flatten(1), captions, "Three Gaussians")
        return
    figures.comparison_grid(
        names,
        columns,
        [[None if i is None else samples[i].float().clamp(-1, 1) for i in line] for line in table],
        path,
        captions=[[caption(run) for run in line] for line in of_cell],
        title="The same starting noise through every sampler",
        row_title="sampler",
        column_title="length (steps asked for)",
    )
