"""How few steps give samples as good as 1,000 steps of DDPM, and in what share of the time.

Samples of one network, from one list of classes and one seed, are compared with test images by Frechet distance in a
classifier's features: first by 1,000 ancestral steps, then by other samplers at more and more steps until one is
within 5 % of that. Wall times are of the whole sampling. The distance of as many other real images is printed too. The
ancestral sampler bounds its x0, as training with `--sampler ddpm` does, whatever the pipeline's own sampler does.

    python benchmarks/sampling_steps.py --classifier classifier --model outputs/mnist-classes [--dataset_name DIR]
    python benchmarks/sampling_steps.py --classifier classifier --train_seconds 120 [--recipe RECIPE]

The second trains the network first. Distances of few samples (`--num_samples`) are larger than those of many by about
the same amount, which makes 5 % of them more than 5 % of what is left: take thousands where a ratio near 1 matters.
Where distances are noisy, `--seeds` takes the mean over several.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_ext.cli.evaluate import Bench, SamplingArguments, prepare
from diffusers_ext.evaluation.features import compare_sets
from diffusers_ext.schedulers.registry import SamplerChoice
from diffusers_ext.training import train
from diffusers_ext.training.arguments import TrainingArguments
from diffusers_ext.training.precision import cpu_multiplies_bf16

FASTER_DTYPE = "bfloat16" if cpu_multiplies_bf16() else "float32"

REFERENCE_STEPS = 1000
TOLERANCE = 1.05
TARGET_STEPS, TARGET_RATIO = 20, 50
# label -> (sampler, subsequence, network calls a step)
SAMPLERS = {
    "ddim": ("ddim", "uniform", 1),
    "ddim-exp": ("ddim", "exp", 1),
    "ddim-quadratic": ("ddim", "quadratic", 1),
    "dpmsolver++": ("dpmsolver++", "uniform", 1),
    "unipc": ("unipc", "uniform", 1),
    "heun": ("heun", "uniform", 2),
    "ddpm": ("ddpm", "uniform", 1),
}
# Heun's step of diffusers starts from a variable that is boundless where alpha is near 0, as on the cosine path.
DEFAULT_SAMPLERS = ["ddim", "ddim-exp", "ddim-quadratic", "dpmsolver++", "unipc"]


@dataclass
class Run:
    """A sampler at a number of steps: mean distance over the seeds, seconds of one sampling."""

    label: str
    steps: int
    calls: int
    frechet: float
    seconds: float


def measure(bench: Bench, config: Any, label: str, steps: int, arguments: argparse.Namespace) -> Run:
    name, subsequence, calls = SAMPLERS[label]
    scheduler = SamplerChoice.parse(name).build(config, subsequence=subsequence if name == "ddim" else None)
    if name == "ddpm":
        scheduler = scheduler.from_config(scheduler.config, clip_sample=True)
    bench.pipeline.scheduler = scheduler
    bench.options["num_inference_steps"] = steps
    distances, times = [], []
    for seed in arguments.seeds:
        bench.seed = seed
        measures, seconds = bench.measures(arguments.guidance_scale)
        distances.append(measures["frechet_distance"])
        times.append(seconds)
    return Run(label, steps, steps * calls, statistics.mean(distances), statistics.mean(times))


def tell(run: Run, reference: Run) -> None:
    within = run.frechet <= TOLERANCE * reference.frechet
    print(
        f"{run.label:16s} {run.steps:5d} steps {run.calls:5d} calls: Frechet {run.frechet:8.3f}, "
        f"{run.frechet / reference.frechet:5.2f} of the reference{' (within 5 %)' if within else '':14s} "
        f"{run.seconds:7.1f} s, {reference.seconds / run.seconds:5.1f} times less",
        flush=True,
    )


def compare(bench: Bench, arguments: argparse.Namespace) -> None:
    config = bench.pipeline.scheduler.config
    baseline = compare_sets(bench.baseline, bench.real)["frechet_distance"]
    print(
        f"{len(bench.baseline):,} other real images against the {len(bench.real):,}: Frechet {baseline:.3f}", flush=True
    )
    reference = measure(bench, config, "ddpm", REFERENCE_STEPS, arguments)
    tell(reference, reference)
    good = []
    for label in arguments.samplers:
        for steps in sorted(arguments.steps):
            run = measure(bench, config, label, steps, arguments)
            tell(run, reference)
            if run.frechet <= TOLERANCE * reference.frechet:
                good.append(run)
                break
    conclude(good, reference)


def conclude(good: list[Run], reference: Run) -> None:
    if not good:
        print(f"No sampler came within 5 % of {REFERENCE_STEPS} steps of DDPM.")
        return
    best = min(good, key=lambda run: (run.calls, run.seconds))
    ratio = reference.seconds / best.seconds
    print(
        f"Fewest: {best.label} at {best.steps} steps, {best.calls} network calls "
        f"({'meets' if best.calls <= TARGET_STEPS else 'misses'} {TARGET_STEPS}), in {ratio:.1f} times less time "
        f"({'meets' if ratio >= TARGET_RATIO else 'misses'} {TARGET_RATIO})"
    )


def trained(arguments: argparse.Namespace, folder: str) -> str:
    """The folder of a network trained for `train_seconds`."""
    train(
        TrainingArguments.from_recipe(
            arguments.recipe,
            dataset_name=arguments.dataset_name,
            max_train_seconds=arguments.train_seconds,
            num_epochs=10**4,
            validation_steps=10**9,
            checkpointing_steps=10**9,
            logger="none",
            output_dir=folder,
        )
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", required=True, help="folder of a classifier (`diffusers-ext classifier train`)")
    parser.add_argument("--model", help="folder of a pipeline")
    parser.add_argument("--train_seconds", type=float, help="train one for so long instead")
    parser.add_argument("--recipe", default="mnist-classes")
    parser.add_argument("--dataset_name", default="embedded")
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=DEFAULT_SAMPLERS)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=FASTER_DTYPE)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.train_seconds is None):
        parser.error("give --model or --train_seconds")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        settings = SamplingArguments(
            model=arguments.model or trained(arguments, folder),
            classifier=arguments.classifier,
            dataset_name=arguments.dataset_name,
            num_images=arguments.num_samples,
            batch_size=min(250, arguments.num_samples),
            device="cpu",
            dtype=arguments.dtype,
        )
        compare(prepare(settings), arguments)


if __name__ == "__main__":
    main()
