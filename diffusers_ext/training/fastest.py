"""`--dtype auto`: a short probe finds the precision and memory format in which a network computes fastest."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from .efficiency import wait_for
from .precision import Mode, attentions_of, cast_weights, resolve_mixed_precision

PROBED = 64  # samples at most of the first batch, which the modes are timed on
TIMED = 3  # calls, of which the fastest counts
HOPELESS = 3.0  # a first call that takes so many times the best one is not repeated


def compute_fastest(network: torch.nn.Module, report: Callable[[str], Any] = print) -> None:
    """Have a network choose, at its first call, how it computes fastest on such inputs, and compute so from then on.

    It tries float32, and bfloat16 or float16 where the device multiplies it natively; images in both memory formats;
    attention as plain products and as the fused kernel. Numbers differ from those of float32 by
    the rounding of the chosen precision, and from run to run where two modes are about as fast.

    Args:
        network: called as `network(sample, timestep, **conditions)`, in evaluation mode, with weights in float32.
        report: takes a sentence on the choice.
    """
    network.register_forward_pre_hook(_Chooser(report), with_kwargs=True)


class _Chooser:
    """A forward pre-hook that chooses at the first call, and gives the network samples of its dtype at each."""

    def __init__(self, report: Callable[[str], Any]):
        self.report, self.chose = report, False

    def __call__(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.chose:
            self.chose = True  # the trials call copies of the network, with copies of this hook
            mode, seconds = _fastest(network, args, kwargs)
            _apply(network, mode)
            self.report(f"Computes in {mode}, the fastest here: a call takes {1000 * seconds:.2g} ms a sample.")
        return _cast(args, next(network.parameters()).dtype), kwargs


def _fastest(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Mode, float]:
    """The fastest mode, and its seconds a sample."""
    count = len(args[0])
    args, kwargs = (_first(part, count) for part in (args, kwargs))
    best, least = Mode(), math.inf
    for mode in _modes(network, args[0]):
        trial = copy.deepcopy(network)
        _apply(trial, mode)
        seconds = _seconds(trial, _cast(args, _dtype_of(mode)), kwargs, HOPELESS * least)
        if seconds < least:
            best, least = mode, seconds
    return best, least / len(args[0])


def _modes(network: Any, sample: torch.Tensor) -> list[Mode]:
    precision = resolve_mixed_precision("auto") or "no"
    return [
        Mode(name, channels_last, attention)
        for name in dict.fromkeys(("no", precision))
        for channels_last in ((False, True) if sample.ndim == 4 else (False,))
        for attention in ("", *attentions_of(network))
    ]


def _apply(network: Any, mode: Mode) -> None:
    mode.apply(network)
    cast_weights(network, _dtype_of(mode))


def _dtype_of(mode: Mode) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode.precision or "no", torch.float32)


@torch.no_grad()
def _seconds(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], hopeless: float) -> float:
    """Least seconds of a call, after one that allocates."""
    least = math.inf
    for number in range(1 + TIMED):
        start = time.perf_counter()
        network(*args, **kwargs)
        wait_for(args[0].device)
        seconds = time.perf_counter() - start
        if seconds > hopeless:
            return min(least, seconds)
        if number:
            least = min(least, seconds)
    return least


def _cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return (args[0].to(dtype), *args[1:])


def _first(part: Any, count: int) -> Any:
    """Positional or keyword arguments of the first samples of a batch."""
    if isinstance(part, dict):
        return {name: _first(value, count) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_first(value, count) for value in part)
    is_batch = isinstance(part, torch.Tensor) and part.ndim > 0 and len(part) == count
    return part[:PROBED] if is_batch else part
