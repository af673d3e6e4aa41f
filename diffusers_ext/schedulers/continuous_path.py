"""Noise paths in continuous time, each the solution of a stochastic differential equation."""

from __future__ import annotations

import math
from typing import Any

import torch

from .noise_path import GaussianPath, View, check_sigma_range
from .tensors import working_dtype


class ContinuousPath(GaussianPath):
    """A path in continuous time 0 < t <= 1 that solves dx = drift(t) x dt + g(t) dw; 0 is the time of the data.

    A child writes `_formula` once, for floats (module `math`) and for tensors (module `torch`), and the two
    coefficients of its equation.
    """

    clean = 0.0

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        """(alpha_t, sigma_t) with the functions of `module`."""
        raise NotImplementedError

    def drift(self, t: float) -> float:
        """Coefficient of x dt: the derivative of log alpha_t."""
        raise NotImplementedError

    def diffusion_squared(self, t: float) -> float:
        """g(t)^2."""
        raise NotImplementedError

    def alpha(self, t: float) -> float:
        """alpha_t for 0 <= t <= 1."""
        return 1.0 if t == self.clean else float(self._formula(t, math)[0])

    def sigma(self, t: float) -> float:
        """sigma_t for 0 <= t <= 1."""
        return 0.0 if t == self.clean else float(self._formula(t, math)[1])

    def _pair(self, view: View, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = self._formula(t.to(device=like.device, dtype=torch.float64), torch)
        first, second = view(alpha, sigma)
        shape, dtype = (-1, *(1,) * (like.ndim - 1)), working_dtype(like.dtype)
        return first.reshape(shape).to(dtype), second.reshape(shape).to(dtype)

    def check_prediction_type(self, prediction_type: str) -> None:
        """Raise ValueError unless outputs of this type determine x0 up to the path's end."""
        self.x0_coefficients(prediction_type, 1.0)

    def sde_increment(self, t: float, s: float) -> tuple[float, float]:
        """(drift(t) * (t - s), g(t)^2 * (t - s)): one Euler-Maruyama increment."""
        return self.drift(t) * (t - s), self.diffusion_squared(t) * (t - s)


class VariancePreservingPath(ContinuousPath):
    """The VP SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t: Song et al. 2021, eq. 11 and 33.

    Args:
        beta_min, beta_max: beta(0) and beta(1), 0 < beta_min <= beta_max.

    Raises:
        ValueError: unless they are in that order.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min, beta_max must satisfy 0 < beta_min <= beta_max, got {beta_min}, {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _beta(self, t: float) -> float:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _beta_integral(self, t: Any) -> Any:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        integral = self._beta_integral(t)
        return module.exp(-integral / 2), module.sqrt(-module.expm1(-integral))

    def drift(self, t: float) -> float:
        """-beta(t) / 2."""
        return -self._beta(t) / 2

    def diffusion_squared(self, t: float) -> float:
        """beta(t)."""
        return self._beta(t)


class SubVariancePreservingPath(VariancePreservingPath):
    """The sub-VP SDE: the drift of VP with less noise, sigma = 1 - alpha^2 (Song et al. 2021, eq. 12 and 29)."""

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        integral = self._beta_integral(t)
        return module.exp(-integral / 2), -module.expm1(-integral)

    def diffusion_squared(self, t: float) -> float:
        """beta(t) * (1 - exp(-2 * integral of beta))."""
        return -self._beta(t) * math.expm1(-2 * self._beta_integral(t))


class VarianceExplodingPath(ContinuousPath):
    """The VE SDE: alpha = 1 and sigma = sigma_min * (sigma_max / sigma_min)^t (Song et al. 2021, eq. 9 and 30).

    Args:
        sigma_min, sigma_max: sigma just above t = 0 and at t = 1, 0 < sigma_min < sigma_max.
        scale_input: divide the network's input by sqrt(1 + sigma^2), so that its size does not grow with the noise.

    Raises:
        ValueError: unless the sigmas are in that order.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, scale_input: bool = False):
        check_sigma_range(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max, self.scale_input = sigma_min, sigma_max, scale_input

    def network_input(self, sample: torch.Tensor, t: Any) -> torch.Tensor:
        """The sample, or with `scale_input` the sample / sqrt(1 + sigma_t^2); t as in `GaussianPath.network_input`."""
        if not self.scale_input:
            return sample
        if isinstance(t, torch.Tensor):
            _, sigma = self.coefficients(t, sample)
            return (sample / torch.sqrt(1 + sigma**2)).to(sample.dtype)
        return sample / math.sqrt(1 + self.sigma(t) ** 2)

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        # A tensor times 0, or 0.0 for a float: exp of it is a one of the right kind.
        return module.exp(t * 0.0), self.sigma_min * module.exp(t * math.log(self.sigma_max / self.sigma_min))

    def drift(self, t: float) -> float:
        """0."""
        return 0.0

    def diffusion_squared(self, t: float) -> float:
        """The derivative of sigma_t^2."""
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2


class RectifiedFlowPath(ContinuousPath):
    """Straight lines from the data to the noise, alpha = 1 - t and sigma = t: x_t = (1 - t) * x0 + t * epsilon.

    Liu et al. 2023 (arXiv:2209.03003), eq. 1, and Lipman et al. 2023 (arXiv:2210.02747), eq. 20-22 without a smallest
    sigma, both with time running the other way. The prediction type `flow` is the velocity dx_t / dt.
    """

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def drift(self, t: float) -> float:
        """-1 / (1 - t), infinite at the noise."""
        return -1 / (1 - t)

    def diffusion_squared(self, t: float) -> float:
        """2 t / (1 - t), infinite at the noise."""
        return 2 * t / (1 - t)
