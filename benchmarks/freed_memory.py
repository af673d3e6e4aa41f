"""Images a second in training on a CPU that keeps the memory it frees, as our runs do, against returning it.

Two processes train the same network in bf16, channels-last, and take turns; the median of the turns' ratios is printed
(above 1 keeping is faster), and the page faults of a step.

    python benchmarks/freed_memory.py [--threads 2] [--batch_size 32] [--turns 7] [--turn_seconds 3] [--model small]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

KINDS = ("kept", "returned")


def training_step(model: str, batch_size: int) -> Callable[[], None]:
    """One step of AdamW on a squared error."""
    from diffusers_ext.models import build_model

    network = build_model(model).to(memory_format=torch.channels_last)
    size, channels = network.config["sample_size"], network.config["in_channels"]
    size = size if isinstance(size, int) else size[0]
    images = torch.randn(batch_size, channels, size, size).contiguous(memory_format=torch.channels_last)
    times = torch.arange(batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network(images, times).sample
        torch.nn.functional.mse_loss(predicted.float(), images).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def work(arguments: argparse.Namespace) -> None:
    """The process of one kind: as many steps as each line of standard input says."""
    from diffusers_ext.training.allocator import keep_freed_memory

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.kind == "kept" and not keep_freed_memory():
        sys.exit("This C library is not GNU's; there is nothing to compare.")
    step = training_step(arguments.model, arguments.batch_size)
    for line in sys.stdin:
        faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - began
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps([seconds / int(line), faults / int(line), peak]), flush=True)


def turn(process: subprocess.Popen[str], steps: int) -> list[float]:
    """Seconds and page faults of a step, and the largest resident memory so far."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(steps, file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        sys.exit(f"A process ended with status {process.wait()}.")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--turn_seconds", type=float, default=3.0)
    parser.add_argument("--model", default="small")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # of a process that this one starts
    arguments = parser.parse_args()
    if arguments.kind is not None:
        return work(arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    processes = {
        kind: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--kind", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for kind in KINDS
    }
    try:
        for process in processes.values():
            turn(process, 2)
        steps = max(1, round(arguments.turn_seconds / turn(processes["kept"], 2)[0]))
        turns: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for number in range(arguments.turns):
            for kind in KINDS if number % 2 else reversed(KINDS):
                turns[kind].append(turn(processes[kind], steps))
    finally:
        for process in processes.values():
            process.kill()
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    print(f"{arguments.model}, batches of {arguments.batch_size}, {arguments.turns} turns of {steps} steps")
    for kind in KINDS:
        seconds, faults, peak = (statistics.median(values) for values in zip(*turns[kind], strict=True))
        rate = arguments.batch_size / seconds
        print(f"{kind:10s} {rate:8.1f} images/s {faults:10,.0f} page faults a step {peak / 1e6:8.0f} MB at most")
    pairs = zip(turns["kept"], turns["returned"], strict=True)
    print(f"kept / returned: {statistics.median(b[0] / a[0] for a, b in pairs):.2f}")
    return None


if __name__ == "__main__":
    main()
