"""Solve an ordinary differential equation on tensors: Dormand and Prince's method, adaptive, or Runge-Kutta, fixed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

State = tuple[torch.Tensor, torch.Tensor]
Velocity = Callable[[float, torch.Tensor], State]

# Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", table 2: nodes, rows, and order 5 minus order 4.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_MAX_STEPS = 10_000


def solve_adaptive(
    velocity: Velocity, start: float, end: float, y: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y at `end`, integral of the second velocity), with steps chosen for an error of `tolerance` in both.

    Args:
        velocity: (s, y) -> (dy / ds, dl / ds) of shapes (batch, ...) and (batch,). l does not enter it.
        start, end: of s, in either order.
        y: value at `start`, (batch, ...).
        tolerance: largest root mean square error of a step over the batch, relative to max(1, |y|) for y and to the
            number of dimensions for l.

    Raises:
        ValueError: when the tolerance asks for more than 10,000 steps.
    """
    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    span, s, h = end - start, start, (end - start) / 50
    first = velocity(s, y)
    for _ in range(_MAX_STEPS):
        h = math.copysign(min(abs(h), abs(end - s)), span)
        slopes = [first]
        for node, row in zip(_NODES[1:], _ROWS[1:]):
            slopes.append(velocity(s + node * h, _moved(y, slopes, row, h)))
        error = _error_norm(y, slopes, h) / tolerance
        if error <= 1:
            y, s = _moved(y, slopes, _ROWS[-1], h), s + h
            total = total + h * _combined([slope[1] for slope in slopes], _ROWS[-1])
            first = slopes[-1]
            if abs(end - s) <= 1e-12 * abs(span):
                return y, total
        h *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    raise ValueError(f"A tolerance of {tolerance:g} needs more than {_MAX_STEPS} steps; use a larger one.")


def solve_fixed(
    velocity: Velocity, start: float, end: float, y: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by `steps` equal steps of the classical fourth-order Runge-Kutta method, four evaluations each."""
    total, h = torch.zeros(len(y), dtype=torch.float64, device=y.device), (end - start) / steps
    for step in range(steps):
        s = start + step * h
        slopes = [velocity(s, y)]
        for share in (0.5, 0.5, 1.0):
            slopes.append(velocity(s + share * h, y + share * h * slopes[-1][0]))
        weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        y = _moved(y, slopes, weights, h)
        total = total + h * _combined([slope[1] for slope in slopes], weights)
    return y, total


def _combined(values: list[torch.Tensor], weights: tuple[float, ...]) -> torch.Tensor:
    return sum((weight * value for weight, value in zip(weights, values) if weight), torch.zeros_like(values[0]))


def _moved(y: torch.Tensor, slopes: list[State], weights: tuple[float, ...], h: float) -> torch.Tensor:
    return y + h * _combined([slope[0] for slope in slopes], weights)


def _error_norm(y: torch.Tensor, slopes: list[State], h: float) -> float:
    of_y = h * _combined([slope[0] for slope in slopes], _ERROR) / y.abs().clamp(min=1)
    of_l = h * _combined([slope[1] for slope in slopes], _ERROR) / max(1, y[0].numel())
    return max(of_y.pow(2).mean().sqrt().item(), of_l.pow(2).mean().sqrt().item())
