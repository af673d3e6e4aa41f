"""Sampling from p(x0 | y) for a measurement y of x0, with an unconditional network: what DPS and PiGDM share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..pipelines.call_arguments import is_number
from .levels import WrappedScheduler
from .operators import LinearOperator
from .space import PixelSpace

Predict = Callable[[torch.Tensor], torch.Tensor]


class PosteriorScheduler(WrappedScheduler):
    """A scheduler whose steps also follow an approximation of grad log p(y | x_t).

    Args:
        scheduler: with its timesteps set.
        space: between samples of the network and data.
        operator: A, of the data.
        measurement: y = A data + noise.
        noise_std: standard deviation of the noise in y, at least 0.

    Raises:
        ValueError: for another noise_std.
    """

    name = ""

    def __init__(
        self, scheduler: Any, space: PixelSpace, operator: LinearOperator, measurement: torch.Tensor, noise_std: float
    ):
        if not is_number(noise_std) or noise_std < 0:
            raise ValueError(f"noise_std must be a number of at least 0, got {noise_std!r}.")
        super().__init__(scheduler)
        self.space, self.operator, self.measurement, self.noise_std = space, operator, measurement, noise_std

    def predicted(self, predict: Predict, network_input: torch.Tensor, timestep: Any) -> tuple[torch.Tensor, ...]:
        """(x with gradients, the network's output, its estimate of x0); call where gradients are enabled."""
        scale = self.levels.input_scale(timestep)
        x = (network_input / scale).detach().requires_grad_()
        output = predict(x * scale)
        return x, output, self.levels.x0(output, x, timestep)

    def residual(self, x0: torch.Tensor) -> torch.Tensor:
        """y - A data for a predicted x0."""
        return self.measurement - self.operator(self.space.decode(x0))

    def residual_pulled_back(self, x0: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The transposed derivative of A data with respect to x0, times y; of x0's shape."""
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            data = self.space.decode(x0)
            return torch.autograd.grad(data, x0, self.operator.pulled_back(data, y).to(data.dtype))[0]

    def guide(self, predict: Predict, network_input: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The output that `step` receives, for the network's input at a timestep."""
        raise NotImplementedError
