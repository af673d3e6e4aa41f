"""Images a second of sampling: the pipeline beside a plain loop over its network, and every sampler of the package.

    python benchmarks/sampling_speed.py --model outputs/mnist-classes [--num_images 2000] [--guidance_scale 1.5]

The plain loop calls the network in bf16 (in float32 on a CPU without bf16) and channels-last, and takes Euler steps: no
scheduler, no pipeline. The pipeline computes in float32, as it is loaded, and in what `--dtype auto` chooses; the time
of choosing is not counted. The three take turns, with and without guidance, in batches of `--batch_size`. Then each
sampler makes `--sampler_images` images in the chosen mode. Some samplers call the network more than once a step; the
table counts.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

import diffusers_ext  # noqa: F401  registers its classes with diffusers
from diffusers_ext.pipelines.batched_generation import generate_images, starting_noise
from diffusers_ext.schedulers.registry import SamplerChoice, path_kind, samplers_on
from diffusers_ext.training.allocator import keep_freed_memory
from diffusers_ext.training.fastest import compute_fastest
from diffusers_ext.training.precision import cast_weights, cpu_multiplies_bf16

PLAIN_DTYPE, PLAIN = (
    (torch.bfloat16, "plain loop, bf16") if cpu_multiplies_bf16() else (torch.float32, "plain loop, fp32")
)


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def labels_of(pipeline: Any, number: int) -> torch.Tensor | None:
    classes = pipeline.unet.config.get("num_class_embeds")
    return torch.arange(number) % classes if classes else None


def sample(pipeline: Any, number: int, arguments: argparse.Namespace, scale: float) -> None:
    labels, steps = labels_of(pipeline, number), arguments.num_inference_steps
    options = {"num_inference_steps": steps, **({} if labels is None else {"guidance_scale": scale})}
    generate_images(pipeline, number, labels, arguments.batch_size, **options)


@torch.no_grad()
def plain_loop(network: Any, shape: tuple[int, ...], arguments: argparse.Namespace, scale: float) -> None:
    """Euler steps; the guided network is called with the condition and the null class in one batch."""
    classes = network.config.get("num_class_embeds")
    for start in range(0, arguments.num_images, arguments.batch_size):
        count = min(arguments.batch_size, arguments.num_images - start)
        x = torch.randn(count, *shape)
        copies = 2 if scale != 1 and classes else 1
        labels = torch.arange(count) % classes if classes else None
        given = (
            {} if labels is None else {"class_labels": torch.cat([labels, labels.new_full((count,), classes)][:copies])}
        )
        for step in range(arguments.num_inference_steps):
            timestep = 999 * (1 - step / arguments.num_inference_steps)
            inputs = torch.cat([x] * copies).to(PLAIN_DTYPE, memory_format=torch.channels_last)
            parts = network(inputs, timestep, **given).sample.float().chunk(copies)
            predicted = parts[0] if copies == 1 else parts[1] + scale * (parts[0] - parts[1])
            x = x - predicted / arguments.num_inference_steps


def one_step(arguments: argparse.Namespace) -> argparse.Namespace:
    """For a first call, which prepares and is not timed; for `auto` it is the one that chooses."""
    return argparse.Namespace(**{**vars(arguments), "num_images": arguments.batch_size, "num_inference_steps": 1})


@contextmanager
def calls_of(network: Any) -> Iterator[list[int]]:
    """Counts the calls of the network within the context."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    hook = network.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def beside_a_plain_loop(loaded: Any, fastest: Any, arguments: argparse.Namespace) -> None:
    plain = copy.deepcopy(loaded.unet).to(memory_format=torch.channels_last)
    cast_weights(plain, PLAIN_DTYPE)
    shape = starting_noise(loaded, 1, torch.Generator()).shape[1:]  # of latents, where it makes those
    plain_loop(plain, shape, one_step(arguments), 1.0)
    sample(loaded, arguments.batch_size, one_step(arguments), 1.0)
    sample(fastest, arguments.batch_size, one_step(arguments), 1.0)
    for scale in (1.0, arguments.guidance_scale):
        ways: dict[str, Callable[[], None]] = {
            PLAIN: lambda: plain_loop(plain, shape, arguments, scale),  # noqa: B023  called within the turn
            "pipeline, auto": lambda: sample(fastest, arguments.num_images, arguments, scale),  # noqa: B023
            "pipeline, float32": lambda: sample(loaded, arguments.num_images, arguments, scale),  # noqa: B023
        }
        turns = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(arguments.turns)]
        base = statistics.median(turn[PLAIN] for turn in turns)
        for name in ways:
            seconds = statistics.median(turn[name] for turn in turns)
            print(
                f"guidance {scale:g}, {name:18s} {seconds:6.1f} s for {arguments.num_images:,} images, "
                f"{arguments.num_images / seconds:6.0f} images/s, {seconds / base:.2f} times the plain loop",
                flush=True,
            )


def every_sampler(pipeline: Any, arguments: argparse.Namespace) -> None:
    config = pipeline.scheduler.config
    print(f"\n| sampler | network calls for {arguments.num_inference_steps} steps | images/s |\n|---|---|---|")
    for name in samplers_on(path_kind(config)):
        pipeline.scheduler = SamplerChoice.parse(name).build(config)
        with calls_of(pipeline.unet) as calls:
            seconds = seconds_of(lambda: sample(pipeline, arguments.sampler_images, arguments, 1.0))
        batches = -(-arguments.sampler_images // arguments.batch_size)
        print(f"| {name} | {calls[0] // batches} | {arguments.sampler_images / seconds:.0f} |", flush=True)


def positive(text: str) -> int:
    """A number given on the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a pipeline")
    parser.add_argument("--num_images", type=positive, default=2000)
    parser.add_argument("--sampler_images", type=positive, default=500, help="of each sampler")
    parser.add_argument("--batch_size", type=positive, default=250)
    parser.add_argument("--num_inference_steps", type=positive, default=15)
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--turns", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads")
    loaded, fastest = (DiffusionPipeline.from_pretrained(arguments.model) for _ in range(2))
    for pipeline in (loaded, fastest):
        pipeline.set_progress_bar_config(disable=True)
    compute_fastest(fastest.unet)
    beside_a_plain_loop(loaded, fastest, arguments)
    every_sampler(fastest, arguments)


if __name__ == "__main__":
    main()
