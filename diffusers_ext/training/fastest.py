"""`--dtype auto`: a short probe finds the precision and memory format in which a network computes fastest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .efficiency import wait_for
from .precision import Mode, attentions_of, cast_weights, resolve_mixed_precision

MOST, LEAST = 64, 8  # samples of the first batch that the modes are timed on: fewer where a call takes long
SECONDS = 10.0  # after which no other mode is tried, but for the first one in each precision
TIMED = 3  # calls, of which the fastest counts
LONG = 1.0  # seconds of a call that is worth saving
HOPELESS = 2.0  # times the best one: a first call that is longer is not repeated, where it is long


def compute_fastest(network: torch.nn.Module, report: Callable[[str], Any] = print) -> None:
    """Have a network choose, at its first call, how it computes fastest on such inputs, and compute so from then on.

    It tries float32, and bfloat16 or float16 where the device multiplies it natively; images in both memory formats;
    then, in the best of these, attention as plain products and as the fused kernel. Numbers differ from those of
    float32 by the rounding of the chosen precision, and from run to run where two modes are about as fast.

    Args:
        network: called as `network(sample, timestep, **conditions)`, in evaluation mode, with weights in float32.
        report: takes a sentence on the choice.
    """
    network.register_forward_pre_hook(_Chooser(report), with_kwargs=True)


class _Chooser:
    """A forward pre-hook that chooses at the first call, and gives the network samples of its dtype at each.

    Attributes:
        seconds_of_choosing: that it took; see `pipelines.batched_generation.seconds_of_choosing`.
    """

    def __init__(self, report: Callable[[str], Any]):
        self.report, self.seconds_of_choosing, self.chose = report, 0.0, False

    def __call__(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.chose:
            began = time.perf_counter()
            trials = _Trials(network, args, kwargs)
            mode = trials.fastest()
            self.chose = True
            _apply(network, mode)
            self.seconds_of_choosing = time.perf_counter() - began
            each = 1000 * trials.seconds[mode] / trials.number
            self.report(f"Computes in {mode}, the fastest here: a call takes {each:.2g} ms a sample.")
        return _cast(args, next(network.parameters()).dtype), kwargs


class _Trials:
    """Times copies of a network on the first samples of a batch.

    Attributes:
        number: of samples in a call.
        seconds: of a call in each mode.
    """

    def __init__(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._network, self._args, self._kwargs = network, args, kwargs
        self.number, self.seconds = min(LEAST, len(args[0])), dict[Mode, float]()
        self._ends = time.perf_counter() + SECONDS

    def fastest(self) -> Mode:
        """The mode of the least time."""
        modes = _modes(self._args[0])
        self._try(modes[0])
        calls = (1 + TIMED) * len(modes)
        in_time = int(self.number * SECONDS / self.seconds[modes[0]] / calls)
        if in_time > self.number < len(self._args[0]):
            self.number = min(in_time, MOST, len(self._args[0]))
            self.seconds.clear()  # of fewer samples
        for mode in modes:
            if mode not in self.seconds and (time.perf_counter() < self._ends or mode in modes[:2]):
                self._try(mode)
        best = self._best()
        for attention in attentions_of(self._network):
            if time.perf_counter() < self._ends:
                self._try(replace(best, attention=attention))
        return self._best()

    def _best(self) -> Mode:
        return min(self.seconds, key=self.seconds.__getitem__)

    def _try(self, mode: Mode) -> None:
        """Time a mode; one that this device can't compute is left out, unless it is the first."""
        trial = copy.deepcopy(self._network)
        for hooks in (trial._forward_pre_hooks, trial._forward_hooks):
            hooks.clear()  # this one, and those that count the network's own calls
        args, kwargs = (_first(part, len(self._args[0]), self.number) for part in (self._args, self._kwargs))
        least = min(self.seconds.values(), default=math.inf)
        try:
            _apply(trial, mode)
            self.seconds[mode] = _seconds(trial, _cast(args, _dtype_of(mode)), kwargs, HOPELESS * least)
        except (RuntimeError, NotImplementedError):
            if not self.seconds:
                raise


def _modes(sample: torch.Tensor) -> list[Mode]:
    """Precisions and memory formats; first plain float32, then what is the fastest where the device is made for it."""
    half = resolve_mixed_precision("auto") or "no"
    last = sample.ndim == 4
    return list(dict.fromkeys([Mode("no"), Mode(half, last), Mode(half), Mode("no", last)]))


def _apply(network: Any, mode: Mode) -> None:
    mode.apply(network)
    cast_weights(network, _dtype_of(mode))


def _dtype_of(mode: Mode) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode.precision or "no", torch.float32)


@torch.no_grad()
def _seconds(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], hopeless: float) -> float:
    """Least seconds of a call, after one that allocates and compiles kernels; long calls are made once more at most."""
    least = math.inf
    for number in range(1 + TIMED):
        start = time.perf_counter()
        network(*args, **kwargs)
        wait_for(args[0].device)
        seconds = time.perf_counter() - start
        if seconds > LONG and (number or seconds > hopeless):
            return min(least, seconds)
        if number:
            least = min(least, seconds)
    return least


def _cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return (args[0].to(dtype), *args[1:])


def _first(part: Any, count: int, number: int) -> Any:
    """Positional or keyword arguments of the first `number` samples of a batch of `count`."""
    if isinstance(part, dict):
        return {name: _first(value, count, number) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_first(value, count, number) for value in part)
    is_batch = isinstance(part, torch.Tensor) and part.ndim > 0 and len(part) == count
    return part[:number] if is_batch else part
