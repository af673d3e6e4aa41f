"""The table of models: parameters, multiply-adds, images per second, and samples of each after the same short training.

Speed is counted in processor time of this process, so that other work on the machine slows a model down as little as
can be. Multiply-adds are half of the operations that torch counts in convolutions and matrix products, for one image.

    python benchmarks/model_table.py [--threads 1] [--batch 4] [--repeats 3]
    python benchmarks/model_table.py --train_seconds 120 --output table.png     # processor seconds of training each

Training is that of `diffusers_ext/recipes/mnist.yaml` for every model: real digits of one channel, v-prediction on the
cosine path (the toy keeps its own objective), as many steps as the budget holds by a measurement just before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ext.models import PRESETS, build_model
from diffusers_ext.training.precision import cpu_multiplies_bf16

# Whether in bf16, which takes minutes on other CPUs.
PRECISIONS = (False, True) if cpu_multiplies_bf16() else (False,)

ROOT = Path(__file__).parent.parent
DIGITS_BATCH = 16


def multiply_adds(model: Any, sample: torch.Tensor) -> int:
    """Of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(sample[:1], torch.zeros(1))
    return counter.get_total_flops() // 2


def processor_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median over `repeats` calls, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def forward(model: Any, sample: torch.Tensor, bf16: bool) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(sample, torch.full((len(sample),), 500))


def training_step(model: Any, sample: torch.Tensor, bf16: bool) -> None:
    """Forward and backward, no optimizer."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(sample, torch.full((len(sample),), 500)).sample.float().square().mean()
    loss.backward()


def row(name: str, batch: int, repeats: int) -> str:
    """A line of the table: fp32 and, after the stroke, bf16 autocast on a CPU that multiplies it."""
    preset = PRESETS[name]
    torch.manual_seed(0)
    model: Any = build_model(name)
    sample = torch.randn(batch, *preset.shape)
    if preset.dims == 2:  # the layout that training uses, and the faster one for convolutions on a CPU
        model, sample = model.to(memory_format=torch.channels_last), sample.to(memory_format=torch.channels_last)
    speeds = [
        "/".join(f"{batch / processor_seconds(partial(work, model, sample, bf16), repeats):.3g}" for bf16 in PRECISIONS)
        for work in (forward, training_step)
    ]
    size = "x".join(map(str, preset.shape))
    return (
        f"| `{name}` | `{type(model).__name__}` | {preset.source} | {model.num_parameters():,} | {size} "
        f"| {multiply_adds(model, sample) / 1e6:,.0f} M | {speeds[0]} | {speeds[1]} |"
    )


def digits_size(name: str) -> int:
    """28, or 32 where a model needs a multiple of 8."""
    model = build_model(name, in_channels=1)
    return 28 if 28 % getattr(model, "downsample_factor", 4) == 0 else 32


def train_and_sample(name: str, seconds: float, repeats: int) -> tuple[torch.Tensor, str]:
    """(eight samples in [-1, 1] at 32x32 or less, a caption), after `seconds` of processor time."""
    from diffusers_ext.training import TrainingArguments, train

    size = digits_size(name)
    model: Any = build_model(name, in_channels=1, sample_size=size).to(memory_format=torch.channels_last)
    batch = torch.randn(DIGITS_BATCH, 1, size, size).to(memory_format=torch.channels_last)
    optimizer, average = torch.optim.AdamW(model.parameters()), [p.detach().clone() for p in model.parameters()]

    def whole_step() -> None:
        training_step(model, batch, PRECISIONS[-1])
        optimizer.step()
        torch._foreach_lerp_(average, list(model.parameters()), 0.1)

    steps = max(1, int(seconds / processor_seconds(whole_step, repeats)))
    toy = PRESETS[name].beta_schedule is None
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments.from_recipe(
            str(ROOT / "diffusers_ext/recipes/mnist.yaml"),
            model=name,
            resolution=size,
            prediction_type="sample" if toy else "v_prediction",
            train_batch_size=DIGITS_BATCH,
            optimizer="adamw",
            learning_rate=1e-3,
            lr_warmup_steps=min(50, steps // 4 + 1),
            num_epochs=1000,
            max_train_steps=steps,
            max_train_seconds=None,
            mixed_precision="bf16" if PRECISIONS[-1] else "no",
            validation_steps=10**9,
            validation_size=16,
            eval_batch_size=1,
            ddpm_num_inference_steps=1,
            checkpointing_steps=10**9,
            logger="none",
            output_dir=folder,
        )
        start = time.process_time()
        pipeline = train(arguments)
        spent = time.process_time() - start
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        batch_size=8,
        num_inference_steps=20 if toy else 25,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    )
    return result.images * 2 - 1, f"{steps:,} steps of {DIGITS_BATCH}, {spent:.0f} s"


def picture(names: list[str], seconds: float, repeats: int, output: str) -> None:
    """One row of eight digits for each model."""
    from diffusers_ext import figures

    rows, captions = [], []
    for name in names:
        samples, caption = train_and_sample(name, seconds, repeats)
        margin = (32 - samples.shape[-1]) // 2
        rows.append(list(torch.nn.functional.pad(samples, (margin,) * 4, value=-1)))
        captions.append(caption)
        print(f"{name}: {caption}", flush=True)
        # Drawn after every model, so that an interrupted run leaves what it has.
        labels = [f"{name}\n{caption}" for name, caption in zip(names, captions)]
        figures.comparison_grid(labels, [""] * 8, rows, output)
    print(f"Picture in {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), help="default: all, or all for images to draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train_seconds", type=float, help="train each model for so long and draw samples instead")
    parser.add_argument("--output", default="model_samples.png")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.train_seconds is not None:
        for_images = [name for name, preset in PRESETS.items() if preset.dims == 2]
        picture(arguments.models or for_images, arguments.train_seconds, arguments.repeats, arguments.output)
        return
    print("| preset | class | source | parameters | size | multiply-adds | forward, images/s | training, images/s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models or PRESETS:
        print(row(name, arguments.batch, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
