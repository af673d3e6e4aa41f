"""Time of our U-Nets against their peers: forward, and forward with backward, in fp32 and under bf16 autocast.

Ours and theirs take turns in one process, so that both meet the same machine; the median of the turns' ratios is
printed (below 1 ours is faster) with both medians in milliseconds. Processor time is counted, so that other work on the
machine disturbs less. Peers are in the memory layout their projects train in, ours in that of our recipes
(channels-last); `--same_layout` puts ours in theirs.

    python benchmarks/model_speed.py [--threads 1] [--repeats 7] [--same_layout] [--only NAME ...]

Pairs: denoising-diffusion-pytorch's U-Net (needs that package) and our `denoising-diffusion-pytorch` preset of the same
configuration and weights, at several sizes; diffusers' UNet2DModel and our preset `small`, of as many multiply-adds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from peers import package_network
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ext.hub.convert import build_from_weights
from diffusers_ext.models import build_model
from diffusers_ext.training.precision import cpu_multiplies_bf16


def package_pair(dim: int, multipliers: tuple[int, ...], channels: int) -> tuple[Any, Any]:
    """(ours, theirs) of the same weights."""
    theirs = package_network(dim, multipliers, channels)
    return build_from_weights("denoising-diffusion-pytorch", theirs.state_dict()), theirs


def diffusers_pair() -> tuple[Any, Any]:
    """(`small`, diffusers' U-Net with its usual two blocks a level and attention in the middle, sized to match)."""
    theirs = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(24, 40),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return build_model("small"), theirs


# name -> (how to build both, input shape)
PAIRS: dict[str, tuple[Callable[[], tuple[Any, Any]], tuple[int, int, int, int]]] = {
    "package-64-64px": (lambda: package_pair(64, (1, 2, 4, 8), 3), (1, 3, 64, 64)),
    "package-64-32px": (lambda: package_pair(64, (1, 2, 4, 8), 3), (4, 3, 32, 32)),
    "package-28-28px": (lambda: package_pair(28, (1, 2, 4), 1), (16, 1, 28, 28)),
    "package-32-32px": (lambda: package_pair(32, (1, 2, 4, 8), 1), (8, 1, 32, 32)),
    "small-unet2d": (diffusers_pair, (16, 1, 28, 28)),
}


def run(model: Any, x: torch.Tensor, t: torch.Tensor, bf16: bool, backward: bool) -> None:
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model(x, t)
        out = out if torch.is_tensor(out) else out.sample
        loss = out.float().square().mean()
    if backward:
        model.zero_grad(set_to_none=True)
        loss.backward()


def multiply_adds(model: Any, x: torch.Tensor, t: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1], t[:1])
    return counter.get_total_flops() // 2


def compare(name: str, repeats: int, same_layout: bool) -> None:
    build, shape = PAIRS[name]
    torch.manual_seed(0)
    models, x = build(), torch.randn(shape)
    t = torch.randint(0, 1000, (shape[0],)).float()
    for model in models:
        model.train()
    inputs = (x, x)
    if not same_layout:
        models = (models[0].to(memory_format=torch.channels_last), models[1])
        inputs = (x.to(memory_format=torch.channels_last), x)
    sizes = " : ".join(f"{multiply_adds(m, x, t) / 1e6:,.0f} M" for m in models)
    parameters = " : ".join(f"{sum(p.numel() for p in m.parameters()):,}" for m in models)
    print(f"{name} {shape}, multiply-adds {sizes}, parameters {parameters}", flush=True)
    for bf16 in (False, True) if cpu_multiplies_bf16() else (False,):
        for backward in (False, True):
            works = [lambda m=m, y=y, b=bf16, w=backward: run(m, y, t, b, w) for m, y in zip(models, inputs)]
            report(works, repeats, f"  {'bf16' if bf16 else 'fp32'} {'training' if backward else 'forward '}")


def report(works: list[Callable[[], None]], repeats: int, label: str) -> None:
    for work in works:
        work()
    turns = []
    for i in range(repeats):
        times = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            works[which]()
            times[which] = 1e3 * (time.process_time() - start)
        turns.append(times)
    ours, theirs = (statistics.median(column) for column in zip(*turns))
    ratio = statistics.median(a / b for a, b in turns)
    print(f"{label}: ours {ours:8.1f} ms, theirs {theirs:8.1f} ms, ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--same_layout", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads")
    for name in arguments.only:
        compare(name, arguments.repeats, arguments.same_layout)


if __name__ == "__main__":
    main()
