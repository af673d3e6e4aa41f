"""Time of a scheduler's step against diffusers' own, and its share of a whole sampling.

Ours and theirs walk in alternation in one process, so that both meet the same machine; the median of the walks' ratios
is printed with both medians. A walk is `set_timesteps` and 50 steps; the network is left out of it.

    python benchmarks/scheduler_step.py [--device cuda] [--threads 1] [--repeats 31]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_ext.schedulers import AncestralDDPMScheduler, SubsequenceDDIMScheduler

SHAPES = ((64, 3, 32, 32), (4, 4, 64, 64))
PAIRS = {
    "ddim": (SubsequenceDDIMScheduler, DDIMScheduler, {}),
    "ddim, eta=1": (SubsequenceDDIMScheduler, DDIMScheduler, {"eta": 1.0}),
    "ddpm": (AncestralDDPMScheduler, DDPMScheduler, {}),
}
STEPS = 50
TARGET = 0.7


class Counter(TorchDispatchMode):
    """Counts operations: all, those that give new memory, those that read or move data between devices or dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.allocations = self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        self.copies += "_to_copy" in str(function) or "_local_scalar_dense" in str(function)
        if isinstance(result, torch.Tensor) and result.numel() > 1:
            inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            self.allocations += result.untyped_storage().data_ptr() not in inputs
        return result


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def walk(scheduler, output: torch.Tensor, sample: torch.Tensor, generator: torch.Generator, options: dict) -> None:
    scheduler.set_timesteps(STEPS, device=sample.device)
    for t in scheduler.timesteps:
        sample = scheduler.step(output, t, sample, generator=generator, **options).prev_sample


def seconds(work: Callable[[], None], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def compare(name: str, shape: tuple[int, ...], device: str, repeats: int) -> float:
    """Print one line; return the ratio of ours to theirs."""
    ours_class, theirs_class, options = PAIRS[name]
    generator = torch.Generator(device).manual_seed(0)
    output, sample = (torch.randn(shape, device=device, generator=generator) for _ in range(2))
    works = [lambda s=s: walk(s, output, sample, generator, options) for s in (ours_class(), theirs_class())]
    for work in works:
        work()
    times = [[seconds(work, device) / STEPS for work in works] for _ in range(repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(a / b for a, b in times)
    counts = []
    for s in (ours_class(), theirs_class()):
        s.set_timesteps(STEPS, device=device)
        with Counter() as counter:
            s.step(output, s.timesteps[10], sample, generator=generator, **options)
        counts.append(f"{counter.operations}/{counter.allocations}/{counter.copies}")
    print(
        f"{name:12s} {shape!s:18s} ours {ours * 1e6:8.1f} us  theirs {theirs * 1e6:8.1f} us  ratio {ratio:.2f} "
        f"({'meets' if ratio <= TARGET else 'misses'} {TARGET})  "
        f"operations/allocations/copies {counts[0]} : {counts[1]}"
    )
    return ratio


def noise_floor(shape: tuple[int, ...], device: str, repeats: int) -> None:
    """What drawing the noise alone costs: neither scheduler can be faster."""
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda: torch.randn(shape, device=device, generator=generator)  # noqa: E731
    median = statistics.median(seconds(draw, device) for _ in range(repeats * 5))
    print(f"{'noise alone':12s} {shape!s:18s} {median * 1e6:8.1f} us")


def share_of_sampling(device: str, repeats: int) -> None:
    """Share of the steps in sampling a small U-Net, (8, 3, 32, 32)."""
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).to(device)
    scheduler, x = SubsequenceDDIMScheduler(), torch.randn(8, 3, 32, 32, device=device)
    scheduler.set_timesteps(10, device=device)
    shares = []
    with torch.inference_mode():
        for _ in range(max(repeats // 4, 3)):
            network = step = 0.0
            for t in scheduler.timesteps:
                output: list[torch.Tensor] = []
                network += seconds(lambda t=t, o=output: o.append(model(x, t).sample), device)
                step += seconds(lambda t=t, o=output: scheduler.step(o[0], t, x), device)
            shares.append(step / (step + network))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"share of steps in sampling a U-Net of {parameters:.1f} M parameters: {statistics.median(shares):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=31)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for shape in SHAPES:
        for name in PAIRS:
            compare(name, shape, arguments.device, arguments.repeats)
        noise_floor(shape, arguments.device, arguments.repeats)
    share_of_sampling(arguments.device, arguments.repeats)


if __name__ == "__main__":
    main()
