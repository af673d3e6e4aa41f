"""How well a run used its machine: images per second, arithmetic over the machine's peak, time lost, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Sides of the matrices whose product measures a machine's peak, and how much of a run may be spent on it.
PEAK_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
PEAK_SHARE, PEAK_SECONDS = 0.01, 1.0
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names


class StepClock:
    """Adds up the time that a run spends in forward, backward and optimizer, without waiting for the device.

    A GPU notes the times itself, and they are read when it has come to them.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._seconds = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time within counts as forward, backward or optimizer."""
        began = self._now()
        yield
        if self._on_cuda:
            self._spans.append((began, self._now()))
        else:
            self._seconds += self._now() - began

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """The time up to where the device has come."""
        done = 0
        for first, last in self._spans:
            if not last.query():
                break
            self._seconds += first.elapsed_time(last) / 1000
            done += 1
        del self._spans[:done]
        return self._seconds


@dataclass
class Efficiency:
    """Figures of one process of a run, times without validation, previews and saving.

    Attributes:
        images_per_second: of all processes together.
        flops_per_image: floating-point operations of forward and backward, a multiply-add counting two.
        flops: floating-point operations a second, of this process.
        peak_flops: what this process reaches in a product of matrices in the precision of the run.
        outside: part of the time outside forward, backward and optimizer.
        peak_memory: bytes; of the device where it has memory of its own, else of the process.
    """

    images_per_second: float
    flops_per_image: float
    flops: float
    peak_flops: float
    outside: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"{self.images_per_second:.0f} images/s of {self.flops_per_image / 1e9:.3g} GFLOP each; "
            f"{self.flops / 1e9:,.0f} GFLOP/s, {self.flops / self.peak_flops:.0%} of the {self.peak_flops / 1e9:,.0f} "
            f"GFLOP/s of a large matrix product on this machine; {self.outside:.1%} of the time outside forward, "
            f"backward and optimizer; peak memory {self.peak_memory / 2**30:.2f} GiB"
        )

    def metrics(self) -> dict[str, float]:
        """As they stand in metrics.jsonl."""
        return {
            "mean_images_per_second": self.images_per_second,
            "flops_per_image": self.flops_per_image,
            "flops_over_peak": self.flops / self.peak_flops,
            "peak_flops": self.peak_flops,
            "time_outside_steps": self.outside,
            "peak_memory_bytes": self.peak_memory,
        }


def flops_of(compute_loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter]) -> int:
    """Floating-point operations of a loss and its gradients: products and convolutions, a multiply-add counting two.

    Gradients are neither kept nor handed to hooks, so that nothing of the run is touched.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    # PyTorch counts no fused attention on CPUs; as two products it is counted everywhere.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(compute_loss(), wanted, allow_unused=True)
    return counter.get_total_flops()


@contextmanager
def kept_buffers(network: torch.nn.Module) -> Iterator[None]:
    """Context that leaves the buffers, such as a BatchNorm's statistics, as they were."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in network.named_buffers():
            if name in before and before[name].shape == buffer.shape:
                buffer.copy_(before[name])


def peak_flops(device: torch.device, precision: str | None, run_seconds: float) -> float:
    """The most floating-point operations a second that a product of square matrices reaches on this machine, now.

    With as many threads as training has. Larger matrices come nearer to the peak and are tried where a run of
    `run_seconds` makes their time small; the largest as often as there is time. On a CPU it is what the threads would
    reach if other work left them alone.
    """
    best, end = 0.0, time.perf_counter() + min(PEAK_SHARE * run_seconds, PEAK_SECONDS)
    sizes = PEAK_SIZES.get(device.type, PEAK_SIZES["cpu"])
    for size in sizes:
        if best and time.perf_counter() + 4 * 2 * size**3 / best > end:
            break
        matrix = torch.ones(size, size, device=device, dtype=DTYPES.get(precision or "no", torch.float32))
        multiply = partial(torch.mm, matrix, matrix)
        multiply()  # prepares the others
        taken = [_seconds(multiply, device) for _ in range(3)]
        while size == sizes[-1] and time.perf_counter() < end:
            taken.append(_seconds(multiply, device))
        best = max(best, 2 * size**3 / min(taken))
    return best


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long it takes; of processor time on a CPU, which other work does not lengthen."""
    wait_for(device)
    began, processor_began = time.perf_counter(), time.process_time()
    work()
    wait_for(device)
    wall, processor = time.perf_counter() - began, time.process_time() - processor_began
    return undisturbed(wall, processor, torch.get_num_threads()) if device.type == "cpu" else wall


def undisturbed(wall: float, processor: float, threads: int) -> float:
    """Seconds that work would take without other work, never too few.

    Processor time is shared by as many threads as were seen at work: a short product may use one alone, and the kernel
    counts the time of the others late.

    Args:
        wall, processor: seconds that it took, above 0, and seconds of all threads together.
        threads: that there are.
    """
    seen = int(processor / wall + 0.1)
    return processor / min(max(seen, 1), threads) if processor else wall


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes held at the most since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
