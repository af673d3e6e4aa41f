"""Images per second and peak memory of our training loop against its peers', on one network, batch and data set.

Every loop runs in a process of its own, all of one precision take turns of equal length, and the median of the turns'
ratios is printed (above 1 ours is faster), by wall time and by processor time, which other work on the machine disturbs
less. Peers get the embedded digits as tensors that are ready in memory; ours makes its batches as in every run.

    python benchmarks/train_throughput.py [--threads 2] [--batch_size 64] [--turns 5] [--turn_seconds 4] [--no_average]

Loops: `Trainer` with exponential average, gradient clipping and its usual records; diffusers' unconditional example
with `--use_ema`; denoising-diffusion-pytorch's `Trainer`; smalldiffusion's `training_loop`, which averages and clips
nothing (with `--no_average` ours averages nothing either). Networks: `course`, diffusers' UNet2DModel as Hugging
Face's course has it; `package`, denoising-diffusion-pytorch's Unet of dim 28. Each loop trains the very same network,
in fp32, in bf16, and ours also in what `--mixed_precision auto` chooses. `outside` is the share of a loop's time that
is neither the network's forward nor backward pass nor the optimizer's step.

benchmarks/gpu.py uses the same processes on an accelerator, with the networks `cifar10` (diffusers' UNet2DModel as
google/ddpm-cifar10-32 has it) and `tiny`, on random images, with and without torch.compile.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import peers
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

NETWORKS: dict[str, Callable[[], Any]] = {
    "course": peers.course_network,
    "package": peers.package_network,
    "cifar10": peers.cifar10_network,
    "tiny": peers.tiny_network,
}
CPU_NETWORKS = ("course", "package")
PEERS = ("diffusers", "denoising-diffusion-pytorch", "smalldiffusion")
# precision -> the loops that take turns, the first being ours that the ratios are of
GROUPS = {
    "fp32": [("ours", "no"), *((peer, "no") for peer in PEERS)],
    "auto": [("ours", "auto"), *((peer, precision) for precision in ("no", "bf16") for peer in PEERS)],
}
TARGETS = {"fp32": 1.0, "auto": 1.5}
OUTSIDE_TARGET = 0.03


@dataclass
class Turn:
    """What a loop did in a turn.

    Attributes:
        images: number of images trained on.
        seconds, processor_seconds: of the whole turn.
        inside: seconds in forward pass, backward pass and optimizer; 0 on an accelerator, which works on its own.
        peak_bytes: largest resident memory of the process so far; on an accelerator, of its own memory.
        mode: how ours computes its steps.
    """

    images: int
    seconds: float
    processor_seconds: float
    inside: float
    peak_bytes: int
    mode: str


# --- the process of one loop -----------------------------------------------------------------------------------------


class InsideClock:
    """Adds up the time in a network's forward pass, in backward passes and in optimizers' steps of this process.

    `mode` is what a loop says of how it computes them.
    """

    def __init__(self) -> None:
        self.seconds, self.mode, self._began = 0.0, "", 0.0

    def start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began

    def watch(self, network: torch.nn.Module) -> None:
        network.register_forward_pre_hook(self.start)
        network.register_forward_hook(self.stop)
        register_optimizer_step_pre_hook(self.start)
        register_optimizer_step_post_hook(self.stop)
        backward = torch.Tensor.backward

        def timed(*arguments: Any, **options: Any) -> None:
            self.start()
            backward(*arguments, **options)
            self.stop()

        torch.Tensor.backward = timed  # type: ignore[method-assign]


def turns(clock: InsideClock, batch_size: int, answers: Any) -> Iterator[int]:
    """The number of steps of every turn that is asked for; a turn ends when the next number is fetched."""
    for line in sys.stdin:
        steps = int(line)
        clock.seconds = 0.0
        began, processor = time.perf_counter(), time.process_time()
        yield steps
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        answer = Turn(steps * batch_size, seconds, processor, clock.seconds, peak_memory(), clock.mode)
        print(json.dumps(vars(answer)), file=answers, flush=True)


def peak_memory() -> int:
    """Largest memory of this process so far, in bytes: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def advance(loop: Iterator[Any], asked: Iterator[int]) -> None:
    for steps in asked:
        collections.deque(itertools.islice(loop, steps), maxlen=0)


def train_ours(
    network: Any,
    batch_size: int,
    precision: str,
    folder: str,
    clock: InsideClock,
    asked: Iterator[int],
    average: bool = True,
) -> None:
    from diffusers_ext.training import Trainer, TrainerCallback, TrainingArguments

    class TakingTurns(TrainerCallback):
        left = next(asked)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.left -= 1
            if self.left == 0:
                self.left = next(asked, None) or sys.exit()

    arguments = TrainingArguments(
        mixed_precision=precision,
        train_batch_size=batch_size,
        num_epochs=10**4,
        use_ema=average,
        resolution=network.config.sample_size,
        channels=network.config.in_channels,
        logger="none",
        output_dir=folder,
        **dict.fromkeys(("save_images_epochs", "save_model_epochs", "checkpointing_steps"), peers.FOREVER),
    )
    trainer = Trainer(arguments, model=network, callbacks=[TakingTurns()])
    clock.mode = str(trainer.mode)
    trainer.train()


def work(arguments: argparse.Namespace) -> None:
    """The process of one loop: takes the turns that standard input asks for until it is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock, inner = InsideClock(), NETWORKS[arguments.network]()
    if arguments.network in CPU_NETWORKS:
        clock.watch(inner)
    asked = turns(clock, arguments.batch_size, answers)
    network = peers.ForeignNetwork.around(inner) if arguments.network == "package" else inner
    with tempfile.TemporaryDirectory() as folder:
        if arguments.loop == "ours":
            average = not arguments.no_average
            train_ours(network, arguments.batch_size, arguments.precision, folder, clock, asked, average)
        else:
            train_peer(arguments, inner, network, folder, asked)
    os._exit(0)  # without waiting for processes that make batches


def train_peer(arguments: argparse.Namespace, inner: Any, network: Any, folder: str, asked: Iterator[int]) -> None:
    batch_size, precision = arguments.batch_size, arguments.precision
    images = digits() if arguments.network in CPU_NETWORKS else random_images(inner)
    if arguments.loop == "diffusers":
        advance(peers.diffusers_example(network, images, batch_size, precision, folder), asked)
    elif arguments.loop == "smalldiffusion":
        advance(peers.smalldiffusion_loop(network, images, batch_size, precision), asked)
    else:
        model = inner if arguments.network == "package" else peers.PackageAdapter(inner)
        size = images.shape[-1]
        diffusion = peers.load("denoising_diffusion_pytorch").GaussianDiffusion(model, image_size=size)
        options = {"train_batch_size": batch_size, "amp": precision == "bf16", "mixed_precision_type": "bf16"}
        trainer = peers.package_trainer(diffusion, (images + 1) / 2, folder, **options)
        for steps in asked:
            trainer.train_num_steps = trainer.step + steps
            trainer.train()


def random_images(network: Any) -> torch.Tensor:
    """(10000, channels, size, size) uniform in [-1, 1], of the network's channels and size."""
    config = network.config
    return 2 * torch.rand(10_000, config.in_channels, config.sample_size, config.sample_size) - 1


def digits() -> torch.Tensor:
    """The embedded digits, (10000, 1, 28, 28) in [-1, 1]."""
    from diffusers_ext.data.images import load_image_data

    data = load_image_data("embedded", None, None, "train", resolution=28)
    return data.__getitems__(range(len(data)))["samples"]


# --- the process that lets them take turns ---------------------------------------------------------------------------


class Worker:
    """A loop in a process of its own."""

    def __init__(self, loop: str, network: str, precision: str, arguments: argparse.Namespace, **environment: str):
        self.name = f"{loop}, {'fp32' if precision == 'no' else precision}"
        self.batch_size, threads = arguments.batch_size, str(arguments.threads)
        command = [sys.executable, __file__, "--threads", threads, "--batch_size", str(self.batch_size)]
        command += ["--loop", loop, "--network", network, "--precision", precision]
        command += ["--no_average"] if arguments.no_average else []
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        own = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore", **environment}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=own, text=True
        )
        self.turns: list[Turn] = []

    def turn(self, steps: int) -> Turn:
        self.ask(steps)
        return self.answer()

    def ask(self, steps: int) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why the process ended

    def answer(self) -> Turn:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended: {self.log.read().decode()[-2000:]}")
        return Turn(**json.loads(line))

    def warm_up(self, seconds: float) -> None:
        """Two steps, which allocate and tune, then one that tells how many make a turn of so many seconds."""
        self.turn(2)
        self.steps = max(1, round(seconds / self.turn(1).seconds))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(network: str, group: str, arguments: argparse.Namespace) -> None:
    """Let the loops of a group take turns, and print their table."""
    precisions = ("no", "auto", "bf16") if multiplies_bf16() else ("no", "auto")
    chosen = [(loop, p) for loop, p in GROUPS[group] if loop in ("ours", *arguments.peers) and p in precisions]
    workers = [Worker(loop, network, precision, arguments) for loop, precision in chosen]
    try:
        for worker in workers:
            worker.warm_up(arguments.turn_seconds)
        for number in range(arguments.turns):
            for worker in workers if number % 2 else reversed(workers):
                worker.turns.append(worker.turn(worker.steps))
    finally:
        for worker in workers:
            worker.end()
    report(network, group, workers)


def multiplies_bf16() -> bool:
    """On other CPUs a step of a peer in bf16 takes minutes."""
    from diffusers_ext.training.precision import cpu_multiplies_bf16

    return torch.accelerator.is_available() or cpu_multiplies_bf16()


def report(network: str, group: str, workers: list[Worker]) -> None:
    ours, target = workers[0], TARGETS[group]
    print(f"\n{network} network, target: ours at least {target:g} times their images/s")
    print(f"{'loop':36s} {'images/s':>9s} {'outside':>8s} {'peak MB':>8s}  ours/theirs: wall  processor")
    for worker in workers:
        speed = statistics.median(turn.images / turn.seconds for turn in worker.turns)
        outside = statistics.median(1 - turn.inside / turn.seconds for turn in worker.turns)
        peak = max(turn.peak_bytes for turn in worker.turns) / 1e6
        line = f"{worker.name:36s} {speed:9.1f} {outside:8.1%} {peak:8.0f}"
        if worker is ours:
            verdict = "meets" if outside <= OUTSIDE_TARGET else "misses"
            line += f"   in {ours.turns[0].mode}; outside {verdict} {OUTSIDE_TARGET:.0%}"
        else:
            wall, processor = (ratio(ours, worker, clock) for clock in ("seconds", "processor_seconds"))
            line += f" {wall:18.2f} {processor:10.2f} {'meets' if wall >= target else 'misses'} {target:g}"
        print(line, flush=True)


def ratio(ours: Worker, theirs: Worker, clock: str) -> float:
    """Median over turns of our images a second over theirs."""
    pairs = zip(ours.turns, theirs.turns, strict=True)
    return statistics.median(a.images / getattr(a, clock) * getattr(b, clock) / b.images for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn_seconds", type=float, default=4.0)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(CPU_NETWORKS))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--no_average", action="store_true", help="ours keeps no exponential average")
    for name in ("--loop", "--network", "--precision"):  # of a process that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop is not None:
        return work(arguments)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads")
    print(f"Batches of {arguments.batch_size}, {arguments.turns} turns of about {arguments.turn_seconds:g} s")
    for network in arguments.networks:
        for group in arguments.groups:
            compare(network, group, arguments)
    return None


if __name__ == "__main__":
    main()
