"""Times a few real training steps in every mode that a machine offers, and chooses the fastest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..objectives.diffusion import Objective
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import generator_of
from .efficiency import DTYPES, wait_for
from .precision import (
    Mode,
    attentions_of,
    compile_blocks,
    repeated_blocks,
    resolve_mixed_precision,
    set_attention,
)

SHARE = 0.05  # of the run, for the probe,
LEAST_SECONDS, MOST_SECONDS = 1.0, {"cpu": 20.0}  # within these bounds; and
OTHER_SECONDS = 60.0  # where a device has none of its own
MOST_STEPS = 4  # timed in a mode at once, and no more once a mode is
SLOWER = 1.2  # times as slow as the fastest
HOPELESS = 2.0  # times as slow as float32: no other attention makes up for that
# Where the time is too short for a step after the first, which allocates, in each precision and memory format, the
# batch is cut, but not below this share: in a small batch the overhead of its operations hides what a mode gains.
LEAST_SHARE = 0.25
# Another mode has to take less than this part of a simpler one's time; and times of one mode that differ by more than
# that tell of other work on the machine.
NEARLY = 0.97
# Seconds that compiling may take at the most, where it is tried: on a CPU core it took one to two minutes, and steps of
# `small` became no faster, in bf16 or in float32.
COMPILING = {"cuda": 60.0}


class TrainingSteps:
    """Makes steps of training on one batch, for `ModeProbe` to time.

    Args:
        objective: of the run.
        batch: of the run, on the network's device.
        conditions: keyword arguments of the network for this batch.
        make_optimizer: from a network.

    Attributes:
        batch_size: number of samples in the batch.
        device: of the batch.
    """

    def __init__(
        self,
        objective: Objective,
        batch: dict[str, torch.Tensor],
        conditions: dict[str, Any],
        make_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
    ):
        self._objective, self._batch, self._conditions = objective, batch, conditions
        self._make_optimizer = make_optimizer
        self.batch_size, self.device = len(batch["samples"]), batch["samples"].device

    def __call__(self, network: torch.nn.Module, mode: Mode, batch_size: int) -> Callable[[], None]:
        """One step in a mode, with the first `batch_size` samples: forward, backward, optimizer."""
        optimizer = self._make_optimizer(network)
        scaler = torch.amp.GradScaler(self.device.type, enabled=mode.precision == "fp16")
        batch = {name: values[:batch_size] for name, values in self._batch.items()}
        if mode.channels_last:
            batch["samples"] = batch["samples"].contiguous(memory_format=torch.channels_last)
        conditions = {name: values[:batch_size] for name, values in self._conditions.items()}
        generator = generator_of("probe", device=self.device)
        dtype = DTYPES.get(mode.precision or "no")
        network.train()

        def step() -> None:
            with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = self._objective(ConditionedNetwork(network, conditions), batch, generator).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        return step


class ModeProbe:
    """Times training steps on copies, so that the network itself stays as it is; no generator's state is changed.

    What counts is the time that passes. Other work on a machine lengthens it, so plain float32 is timed twice, before
    and after the others: where the two differ on a CPU, modes are compared by processor time instead, of all threads
    together, which other work lengthens little, but which does not tell how well a mode uses several threads. Then,
    too, no mode is chosen whose steps took longer to pass than those of plain float32 did both times.

    Args:
        network: on its device, without wrappers.
        steps: makes a step from a network, a mode and a batch size; see `TrainingSteps`.
        run_seconds: how long the run will be, from the seconds of one step in float32.
        precisions: those to try beside float32; by default the device's own.
        compile_seconds: how long compiling may take at most; by default what is usual on the device.
        clock: with the functions `monotonic`, `perf_counter` and `process_time` of the module `time`.

    Attributes:
        passed, spent: what a step took in each mode, the least of all times; the seconds that passed, and those of
            processor time.
        quiet: whether `passed` is what modes are compared by.
        batch_size: of the steps, that of the run unless so few would not fit into the time.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        steps: TrainingSteps,
        run_seconds: Callable[[float], float],
        precisions: Sequence[str] | None = None,
        compile_seconds: float | None = None,
        clock: Any = time,
    ):
        self.network, self.device = network, steps.device
        self._make_step, self._run_seconds, self._clock = steps, run_seconds, clock
        if precisions is None:
            precisions = [resolve_mixed_precision("auto") or "no", *(["fp16"] if self._on_cuda else [])]
        self._precisions = list(dict.fromkeys(["no", *precisions]))
        usual = COMPILING.get(self.device.type, math.inf)
        self._compile_limit = usual if compile_seconds is None else compile_seconds
        self.batch_size = self._whole_batch = steps.batch_size
        self.passed: dict[Mode, float] = {}
        self.spent: dict[Mode, float] = {}
        self.quiet = True
        self._longest = math.inf

    @property
    def seconds(self) -> dict[Mode, float]:
        """Of a step in each mode, by the clock that decides."""
        return self.passed if self.quiet else self.spent

    def choose(self, channels_last: bool | None = None) -> Mode:
        """The fastest mode, of those with this memory format when one is given; plain float32 when none is faster."""
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return self._choose([False, True] if channels_last is None else [channels_last])

    def _choose(self, formats: Sequence[bool]) -> Mode:
        grid = [Mode(precision, channels_last) for precision in self._precisions for channels_last in formats]
        attentions = sum(len(self._attentions(precision)) for precision in self._precisions)
        self._plan(grid[0], len(grid) + 1, len(grid) + attentions + 3)
        first, *_ = [self._measure(mode) for mode in grid]
        self._choose_clock(first)
        for mode in self._promising():
            for attention in self._attentions(mode.precision):
                self._measure(replace(mode, attention=attention))
        fastest = self._with_compiled_blocks(self.fastest())
        if self.seconds[self._plain] < SLOWER * self.seconds[fastest] and not fastest.compiled:
            # Once more where it is close: a burst of other work on the machine may have hit one of the two.
            self._measure(self._plain)
            self._measure(fastest)
        return self.fastest()

    def _attentions(self, precision: str | None) -> list[str]:
        """What other attention can be tried with."""
        return attentions_of(self.network, autocast=precision != "no") if self.device.type == "cpu" else []

    def _promising(self) -> list[Mode]:
        """What other attention is tried in: the fastest mode, and where that is float32 the fastest of a shorter
        precision, in which the fused kernel may have cost what the rest of the network gained."""
        fastest = self.fastest()
        shorter = [mode for mode in self.seconds if mode.precision != "no"]
        best = min(shorter, key=self.seconds.__getitem__, default=fastest)
        hopeless = self.seconds[best] > HOPELESS * self.seconds[fastest]
        return [fastest] if fastest.precision != "no" or best == fastest or hopeless else [fastest, best]

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _choose_clock(self, first: float) -> None:
        """Time plain float32 once more, and see whether its steps still take the time that passed before, `first`."""
        if self.device.type == "cpu":
            second = self._measure(self._plain)
            self._longest = first if second == math.inf else max(first, second)
            self.quiet = min(first, second) > NEARLY * max(first, second)

    def fastest(self) -> Mode:
        """The mode of the least time so far; the earlier one of two that are nearly alike."""
        best = self._plain
        for mode in self.seconds:
            if self.seconds[mode] < NEARLY * self.seconds[best] and self.passed[mode] < self._longest:
                best = mode
        return best

    def _plan(self, plain: Mode, needed: int, wanted: int) -> None:
        """Decide from two steps in float32 how many steps, of how many images, fit into the time for the probe.

        Args:
            plain: float32.
            needed, wanted: numbers of measurements, the first without other attention.
        """
        self._plain = plain
        began = self._clock.monotonic()
        self._time(plain, 1)
        step = (self._clock.monotonic() - began) / 2
        self.run_seconds = self._run_seconds(step)
        limit = min(max(SHARE * self.run_seconds, LEAST_SECONDS), MOST_SECONDS.get(self.device.type, OTHER_SECONDS))
        self._deadline = began + limit
        left = max(0.0, limit - (self._clock.monotonic() - began))
        if left < 2 * needed * step:
            share = max(LEAST_SHARE, left / (2 * needed * step)) if left else 0.0
            self.batch_size = max(1, math.ceil(self.batch_size * share))
            step *= self.batch_size / self._whole_batch
            self.passed.clear()  # of the whole batch
            self.spent.clear()
        self._steps = max(1, min(MOST_STEPS, int(left / wanted / step) - 1))

    def _measure(self, mode: Mode) -> float:
        """Time a mode unless the time is up, which it never is for the first one; one that fails is left out.

        Gives the least seconds that passed in a step of this turn; infinity without one.
        """
        if self.seconds and self._clock.monotonic() > self._deadline:
            return math.inf
        try:
            return self._time(mode, self._steps)
        except (RuntimeError, NotImplementedError):
            if not self.seconds:
                raise
            return math.inf

    def _time(self, mode: Mode, steps: int) -> float:
        network, least = copy.deepcopy(self.network), math.inf
        try:
            replace(mode, compiled=False).apply(network)
            step = self._make_step(network, mode, self.batch_size)
            if mode.compiled:
                self._compile(network, step)
            step()  # the first one allocates and prepares
            for _ in range(steps):
                passed, spent = self._seconds(step)
                least = min(least, passed)
                self.passed[mode] = min(passed, self.passed.get(mode, math.inf))
                self.spent[mode] = min(spent, self.spent.get(mode, math.inf))
                if mode != self._plain and self.seconds[mode] > SLOWER * min(self.seconds.values()):
                    break
            return least
        finally:
            set_attention(network, "")
            if self._on_cuda:
                torch.cuda.empty_cache()

    def _seconds(self, step: Callable[[], None]) -> tuple[float, float]:
        """Seconds that passed, and seconds of processor time."""
        wait_for(self.device)
        began, spent = self._clock.perf_counter(), self._clock.process_time()
        step()
        wait_for(self.device)
        return self._clock.perf_counter() - began, self._clock.process_time() - spent

    def _with_compiled_blocks(self, fastest: Mode) -> Mode:
        """The mode with compiled blocks, where the run is long enough to try that and to get the time back."""
        blocks, compiled = repeated_blocks(self.network), replace(fastest, compiled=True)
        if not blocks or SHARE * self.run_seconds < self._compile_limit:
            return fastest
        self._deadline, began = math.inf, self._clock.monotonic()
        self._measure(compiled)
        cost = self._clock.monotonic() - began
        saved = self.run_seconds * (1 - self.seconds.get(compiled, math.inf) / self.seconds[fastest])
        if saved < cost:
            self.passed.pop(compiled, None)
            self.spent.pop(compiled, None)
        torch.compiler.reset()
        return self.fastest()

    def _compile(self, network: torch.nn.Module, step: Callable[[], None]) -> None:
        """Compile the blocks, after one alone has shown that all of them will not take too long.

        Raises:
            RuntimeError: when they would.
        """
        blocks = repeated_blocks(network)
        blocks[0].compile(dynamic=False)
        one, _ = self._seconds(step)
        kinds = {(type(block), tuple(p.shape for p in block.parameters())) for block in blocks}
        if one * len(kinds) > self._compile_limit:
            raise RuntimeError(f"Compiling {len(kinds)} kinds of blocks would take {one * len(kinds):.0f} s.")
        compile_blocks(network)

    def __str__(self) -> str:
        """Images per second in each mode that was measured, as one sentence; one alone tells nothing."""
        if len(self.seconds) == 1:
            return "No other mode was tried: there is none, or the run is too short."
        rates = {mode: self.batch_size / seconds for mode, seconds in self.seconds.items()}
        told = "; ".join(f"{mode} {rate:,.{0 if rate >= 100 else 1}f}" for mode, rate in rates.items())
        return f"Images a second{'' if self.quiet else ' of processor time'}: {told}."


@contextmanager
def unchanged(objective: Any) -> Iterator[None]:
    """Context after which an objective with state has the state that it had before."""
    if not hasattr(objective, "state_dict"):
        yield
        return
    state = copy.deepcopy(objective.state_dict())
    try:
        yield
    finally:
        objective.load_state_dict(state)
