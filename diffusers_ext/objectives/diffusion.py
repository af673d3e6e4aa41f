"""Objectives: what is asked of the network at which noise level, and how an error counts."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..schedulers.noise_path import ContinuousPath, DiscretePath
from .timestep_sampling import ImportanceSampler, TimestepSampler
from .weighting import Weighting

# Earliest time of a continuous path, in T-ths: at the data themselves there is no signal-to-noise ratio.
_EARLIEST = 1e-3

_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Objective(Protocol):
    """A loss for a network: draws what noising needs, then measures the network on it."""

    data_range: tuple[float, float]
    importance: ImportanceSampler | None

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device, learned: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(noise, times) for a batch of data of `shape` (batch, channels, height, width).

        `learned` False leaves out what was learned from losses (importance sampling), whose draws need its factors.
        """

    def __call__(
        self, model: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **condition: Any
    ) -> torch.Tensor:
        """The loss of every sample, shape (batch,)."""


class DiffusionObjective:
    """Regress the network's output onto its target on a noise path.

    Args:
        path: the noise path. In continuous time the network is told t * T, a number between 0 and T, with the sampler's
            T; that, too, is what `times` of a call are.
        prediction_type: one of `noise_path.PREDICTION_TYPES`.
        loss: `l2` (Ho et al. 2020, eq. 14), `l1`, or `huber` (threshold 1).
        weighting: factor on each sample's loss, defined on squared errors: what it says of x0 holds for `l2`.
        sampler: the noise levels to train on; uniform when not given.

    Raises:
        ValueError: for a prediction type that does not determine x0 on this path.
    """

    data_range = (-1.0, 1.0)

    def __init__(
        self,
        path: DiscretePath | ContinuousPath,
        prediction_type: str = "epsilon",
        loss: str = "l2",
        weighting: Weighting | None = None,
        sampler: TimestepSampler | None = None,
    ):
        path.check_prediction_type(prediction_type)
        self.path, self.prediction_type, self._loss = path, prediction_type, _LOSSES[loss]
        self.weighting = weighting or Weighting()
        self.discrete = isinstance(path, DiscretePath)
        self.sampler = sampler or TimestepSampler("uniform", len(path) if isinstance(path, DiscretePath) else 1000)
        self.importance = self.sampler if isinstance(self.sampler, ImportanceSampler) else None

    def weights(self, times: torch.Tensor) -> torch.Tensor:
        """Factors on the losses at times of shape (batch,), float32."""
        t, like = self._path_times(times), torch.zeros(len(times), device=times.device)
        alpha, sigma = self.path.coefficients(t, like)
        _, b = self.path.x0_factors(self.prediction_type, t, like)
        return self.weighting.on_output((alpha / sigma) ** 2, b)

    def _path_times(self, times: torch.Tensor) -> torch.Tensor:
        """The path's own times, from those that the network is told."""
        return times if self.discrete else times / self.sampler.num_levels

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device, learned: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(standard normal noise of `shape`, times of shape (batch,): integers 0 ... T-1, or numbers up to T)."""
        noise = torch.randn(shape, generator=generator, device=device)
        sampler, num_levels = self.sampler, self.sampler.num_levels
        if self.importance is not None and not learned:
            sampler = TimestepSampler("uniform", num_levels)
        positions = sampler.draw(shape[0], generator, device)
        if self.discrete:
            return noise, positions.long().clamp_(max=num_levels - 1)
        return noise, positions.clamp_(min=_EARLIEST)

    def __call__(
        self, model: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **condition: Any
    ) -> torch.Tensor:
        """Weighted loss of every sample, shape (batch,), float32."""
        t = self._path_times(times)
        output = model(self.path.add_noise(x0, noise, t), times, **condition).sample
        target = self.path.target(self.prediction_type, x0, noise, t)
        error = self._loss(output.float(), target, reduction="none").flatten(1).mean(1)
        return error * self.weights(times)


class MixObjective:
    """System C's toy: predict the clean image from (1 - a) * x0 + a * noise, noise uniform, the network without time.

    Args:
        loss: `l2`, `l1` or `huber`.
        amounts: distribution of a: `uniform` on [0, 1), or `normal`, as the source project's code draws it.
    """

    data_range = (0.0, 1.0)
    importance: ImportanceSampler | None = None

    def __init__(self, loss: str = "l2", amounts: str = "uniform"):
        if amounts not in ("uniform", "normal"):
            raise ValueError(f"amounts must be 'uniform' or 'normal', got '{amounts}'.")
        self._loss, self.amounts = _LOSSES[loss], amounts

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device, learned: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(uniform noise of `shape`, amounts of corruption of shape (batch,))."""
        noise = torch.rand(shape, generator=generator, device=device)
        sample = torch.rand if self.amounts == "uniform" else torch.randn
        return noise, sample(shape[0], generator=generator, device=device)

    def __call__(
        self, model: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **condition: Any
    ) -> torch.Tensor:
        """Loss of every sample against the clean image, shape (batch,)."""
        corrupted = torch.lerp(x0, noise, times.reshape(-1, 1, 1, 1))
        output = model(corrupted, times, **condition).sample
        return self._loss(output.float(), x0.float(), reduction="none").flatten(1).mean(1)
