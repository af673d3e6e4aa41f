"""What a scheduler's timesteps mean to the network, and x0 from what the network outputs there."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..pipelines.call_arguments import accepted
from ..proofs.levels import view_of
from ..schedulers.noise_path import GaussianPath
from ..schedulers.registry import HIGHEST_SIGMA
from ..schedulers.tensors import combine
from ..schedulers.timesteps import as_number

# Above this share of the data's variance at a path's first time, its start is not noise.
LARGEST_SIGNAL_VARIANCE = 0.01


class Levels:
    """The noise levels of a network's input, and x0 from its output, by the scheduler's timesteps.

    The input is `input_scale` * x with x = alpha * x0 + sigma * epsilon.

    Args:
        scheduler: of this package or of diffusers; `proofs.levels.view_of` reads it.
    """

    def __init__(self, scheduler: Any):
        self.view = view_of(scheduler)
        self._scales_input = bool(scheduler.config.get("scale_input"))
        self._weights: dict[float, tuple[float, float]] = {}

    def __call__(self, timestep: Any) -> tuple[float, float]:
        """(alpha, sigma) of x."""
        return self.view.level(as_number(timestep))

    def input_scale(self, timestep: Any) -> float:
        """The factor on x; 1 but for `ScoreSDEScheduler(scale_input=True)`."""
        return 1 / math.hypot(1, self(timestep)[1]) if self._scales_input else 1.0

    def weights(self, timestep: Any) -> tuple[float, float]:
        """(a, b) with x0 = a * x + b * output. Raises ValueError where the output does not determine x0."""
        t = as_number(timestep)
        if t not in self._weights:
            self._weights[t] = self._found_weights(t)
        return self._weights[t]

    def _found_weights(self, t: float) -> tuple[float, float]:
        zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        of_x0 = self.view.output_at_point(one, zero, t).item()
        of_input = self.view.output_at_point(zero, one, t).item()
        if of_x0 == 0:
            raise ValueError(
                f"The network's output does not determine x0 at timestep {t:g}, where nothing is left of it."
            )
        return -of_input / of_x0, 1 / of_x0

    def x0(self, output: torch.Tensor, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """x0 of an output at x; a network's learned variance, the second half of its channels, is left out."""
        a, b = self.weights(timestep)
        return combine(a, sample, b, output[:, : sample.shape[1]])


class ListedPath(GaussianPath):
    """The noise path at the timesteps that a scheduler visits: time i is the i-th of them, and -1 the data.

    Args:
        scheduler: with its timesteps set.

    Attributes:
        times: the timesteps, each once, from the noise to the data. Those where an error of the network would be
            multiplied by more than `HIGHEST_SIGMA` are left out.

    Raises:
        ValueError: for a path that does not begin at noise.
    """

    def __init__(self, scheduler: Any):
        self.levels = Levels(scheduler)
        found = list(dict.fromkeys(as_number(t) for t in scheduler.timesteps))
        self.times = [t for t in found if self._is_determined(t)]
        if not self.times:
            raise ValueError("The noise path has no timestep at which the network's output determines x0.")
        # The data's entry stands last, where -1 finds it.
        self._listed = [*map(self.levels, self.times), (1.0, 0.0)]
        alpha, sigma = self._listed[0]
        if alpha**2 > LARGEST_SIGNAL_VARIANCE * (alpha**2 + sigma**2):
            raise ValueError(
                f"The noise path does not end at noise: at timestep {self.times[0]:g}, the first of {len(self.times)}, "
                f"{alpha / (alpha**2 + sigma**2) ** 0.5:.0%} of the signal's amplitude is left; use more steps, "
                "timestep_spacing='trailing', or a model with a longer path."
            )

    def _is_determined(self, t: float) -> bool:
        try:
            return abs(self.levels.weights(t)[1]) <= HIGHEST_SIGMA
        except (ValueError, ZeroDivisionError):
            return False

    def __len__(self) -> int:
        return len(self.times)

    def alpha(self, t: int) -> float:
        return self._listed[t][0]

    def sigma(self, t: int) -> float:
        return self._listed[t][1]


def begins_at(scheduler: Any) -> list[int]:
    """The places in a scheduler's timesteps where sampling can begin, one for each of its steps."""
    starts = getattr(scheduler, "starts", None)
    return list(starts) if starts is not None else list(range(0, len(scheduler.timesteps), scheduler.order))


class WrappedScheduler:
    """A scheduler with its timesteps set, from one of its steps on, whose steps an editing method changes.

    Args:
        scheduler: of this package or of diffusers, with its timesteps set.
        skipped: number of steps at the noise's end that are left out.
    """

    def __init__(self, scheduler: Any, skipped: int = 0):
        self.scheduler = scheduler
        self.levels = Levels(scheduler)
        place = begins_at(scheduler)[skipped]
        self.timesteps = scheduler.timesteps[place:]
        if place and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(place)

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # not there yet, while this is copied
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The sample at the first timestep."""
        add = getattr(self.scheduler, "add_noise", None) or self._scale_noise
        return add(x0, noise, self.timesteps[:1])

    def _scale_noise(self, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`add_noise` of diffusers' flow-matching schedulers."""
        return self.scheduler.scale_noise(x0, timestep, noise)

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any = None, eta: Any = None
    ) -> Any:
        """The scheduler's own step."""
        given = accepted(self.scheduler.step, generator=generator, eta=eta)
        return self.scheduler.step(model_output, timestep, sample, **given)
