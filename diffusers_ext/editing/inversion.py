"""The probability flow between data and noise, in both directions, by methods of first and second order."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from .levels import ListedPath

SOLVERS = ("ddim", "heun")
# Iterations for the first step from the data; each divides the error by 1 + (the data's variance / sigma^2).
ITERATIONS = 5


class FlowCall(NamedTuple):
    """One call of the network: at place `at` of the path, for a move of this kind from place `t` to place `s`."""

    kind: str
    at: int
    t: int
    s: int


class FlowScheduler:
    """The probability flow along the timesteps of another scheduler, down to the data or up to the noise.

    In y = x / sqrt(alpha^2 + sigma^2) against the angle phi with (cos, sin) = (alpha, sigma) / sqrt(alpha^2 + sigma^2),
    the flow is dy / dphi = v = cos * epsilon - sin * x0, which is smooth from the data to the noise on every path.

    - `ddim`: x0 and epsilon stay what they are at the start of a step (Song et al. 2021, arXiv:2010.02502, eq. 13);
    - `heun`: the mean of the velocities at both ends (the trapezoidal rule after a step of `ddim`), of second order.

    The data have no noise level that a network knows. The last step to them is one of `ddim`, which gives x0, and the
    first step from them finds, by iteration, where that step leads back from.

    Args:
        path: the places to visit.
        solver: in `SOLVERS`.
        upwards: from the data to the noise.
        like: on whose device the timesteps are.

    Raises:
        ValueError: for an unknown solver.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, path: ListedPath, solver: str, upwards: bool, like: torch.Tensor):
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
        self.path = path
        self.calls = _calls(len(path), solver, upwards)
        self.timesteps = torch.tensor([path.times[call.at] for call in self.calls], device=like.device)
        self._next = 0
        self._start = self._velocity = torch.empty(0)

    def _angle(self, place: int) -> tuple[float, float]:
        norm = self._norm(place)
        return self.path.alpha(place) / norm, self.path.sigma(place) / norm

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input for y."""
        at = self.calls[self._next].at
        return sample * (self._norm(at) * self.path.levels.input_scale(self.path.times[at]))

    def _norm(self, place: int) -> float:
        return math.hypot(self.path.alpha(place), self.path.sigma(place))

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> Any:
        """The next call's move; `timestep` is known from the count."""
        call = self.calls[self._next]
        x = sample * self._norm(call.at)
        self._next += 1
        x0 = self.path.levels.x0(model_output, x, self.path.times[call.at])
        epsilon = (x - self.path.alpha(call.at) * x0) / self.path.sigma(call.at)
        return SimpleNamespace(prev_sample=self._moved(call, sample, x0, epsilon), pred_original_sample=x0)

    def _moved(self, call: FlowCall, y: torch.Tensor, x0: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        (cosine, sine), (cosine_s, sine_s) = self._angle(call.at), self._angle(call.s)
        if call.kind == "settle":
            return self._settled(call, y, epsilon)
        if call.kind == "correct":
            angle = math.atan2(sine_s, cosine_s) - math.atan2(*reversed(self._angle(call.t)))
            return self._start + angle / 2 * (self._velocity + cosine * epsilon - sine * x0)
        self._start, self._velocity = y, cosine * epsilon - sine * x0
        return cosine_s * x0 + sine_s * epsilon

    def _settled(self, call: FlowCall, y: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """One iteration of: where does the step come from that ends at the data?"""
        if self._next == 1:
            self._start = y
        cosine, sine = self._angle(call.s)
        return cosine * self._start + sine * epsilon


def _calls(places: int, solver: str, upwards: bool) -> list[FlowCall]:
    """The calls of the network: place 0 is at the noise, and -1 are the data."""
    visited = [*range(places), -1]
    pairs = list(pairwise(visited))
    if upwards:
        pairs = [(s, t) for t, s in reversed(pairs)]
    return [call for t, s in pairs for call in _calls_between(t, s, solver)]


def _calls_between(t: int, s: int, solver: str) -> list[FlowCall]:
    if t == -1:
        return [FlowCall("settle", s, t, s)] * ITERATIONS
    if solver == "heun" and s != -1:
        return [FlowCall("step", t, t, s), FlowCall("correct", s, t, s)]
    return [FlowCall("step", t, t, s)]
