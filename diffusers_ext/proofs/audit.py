"""The noise levels that a sampler really goes through, against those that it tells the network.

When the data are one point mu, the optimal prediction is exact: x_t = alpha * mu + sigma * epsilon along the whole
trajectory, and every consistent step, of any order, is exact too. A batch with different mu and epsilon then shows by
linear regression which alpha and which noise the sampler's x really has at each call. A mistake in the bookkeeping of
noise levels (a wrong previous timestep, rounded timesteps, noise of the wrong variance) shows at the call where it
happens, without any discretisation error around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .laws import recorded_step
from .levels import NetworkView
from .mixture import Level
from .sampling import arguments_of_call, network_input, visited_timesteps


@dataclass(frozen=True)
class Audit:
    """One call for each entry.

    Attributes:
        timesteps: as the scheduler gives them to the network.
        told: level of the network's input that these timesteps mean.
        found: level that the input really has.
        end: level of the sample after the last call; (1, 0) at the data.
        added: variance of noise that was drawn from the generator, in all.
    """

    timesteps: list[float]
    told: list[Level]
    found: list[Level]
    end: Level
    added: float

    def first_mismatch(self, tolerance: float = 0.02) -> int | None:
        """The first call whose noise level or scale is off by more than `tolerance`; None if there is none."""
        return next((call for call, off in enumerate(self.differences()) if not off <= tolerance), None)

    def differences(self) -> list[float]:
        """How far the input's noise level, log(sigma / alpha), or its scale is from what the network is told."""
        return [
            max(abs(log_ratio(found) - log_ratio(told)), abs(math.hypot(*found) / math.hypot(*told) - 1))
            for found, told in zip(self.found, self.told)
        ]


def log_ratio(level: Level) -> float:
    """log(sigma / alpha), where alpha below a thousandth counts as a thousandth: zero terminal SNR has alpha = 0."""
    return math.log(max(level[1], 1e-9) / max(abs(level[0]), 1e-3))


def audit(scheduler: Any, view: NetworkView, seed: int = 0, **step_arguments: Any) -> Audit:
    """Follow one trajectory for data that are one point. Call `scheduler.set_timesteps` before.

    Raises:
        ValueError: when the sampler is not affine in its start and its noise, or draws noise that can't be replayed.
    """
    times = visited_timesteps(scheduler)
    generator = torch.Generator().manual_seed(seed)
    shape = (4 * len(times) + 16, 1, 1, 1)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    # Inside the range of data, so that a scheduler that bounds x0 by that range leaves it as it is.
    mu = 2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1
    start = network_input(scheduler, torch.ones(1, 1, 1, 1, dtype=torch.float64), times[0]).item()
    alpha, sigma = view.level(times[0].item())
    # On the exact path from the first call on: x = (alpha * mu + sigma * epsilon) in the scheduler's own scale.
    components = [mu, x]
    x = (alpha * mu + sigma * x) / start
    told, found = [], []

    def network(value: torch.Tensor, t: Any) -> torch.Tensor:
        told.append(view.level(t.item()))
        found.append(_level_of(value, components))
        return view.output_at_point(mu, value, t.item())

    for call, t in enumerate(times):
        x, drawn = recorded_step(
            scheduler, network, t, x, generator, **arguments_of_call(scheduler, call), **step_arguments
        )
        components += drawn
    added = sum(value * value for value in _response(x, components)[2:])
    return Audit([float(t) for t in times], told, found, _level_of(x, components), added)


def _response(x: torch.Tensor, components: list[torch.Tensor]) -> list[float]:
    design = torch.stack([component.flatten() for component in components], 1)
    solution = torch.linalg.lstsq(design, x.double().reshape(-1, 1)).solution
    residual = (design @ solution - x.reshape(-1, 1)).abs().max().item()
    if not residual <= 1e-3 * max(1.0, x.abs().max().item()):
        raise ValueError("The sampler is not affine in its start and its noise.")
    return solution.flatten().tolist()


def _level_of(x: torch.Tensor, components: list[torch.Tensor]) -> Level:
    alpha, *noises = _response(x, components)
    return alpha, math.hypot(*noises)
