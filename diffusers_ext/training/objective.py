"""Objectives: what is asked of the network at which noise level, and how an error counts."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..schedulers.noise_path import NoisePath

_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Objective(Protocol):
    """A loss for a network: draws what noising needs, then measures the network on it."""

    data_range: tuple[float, float]

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(noise, times) for a batch of data of `shape` (batch, channels, height, width)."""

    def __call__(
        self, model: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **condition: Any
    ) -> torch.Tensor:
        """The loss of every sample, shape (batch,)."""


class DiffusionObjective:
    """Regress the network's output onto its target on a noise path.

    Args:
        path: the noise path.
        prediction_type: one of `noise_path.PREDICTION_TYPES`.
        loss: `l2` (Ho et al. 2020, eq. 14), `l1`, or `huber` (threshold 1).
        weighting: factor on each sample's loss: `none`; `snr`, the factor that makes every prediction type count errors
            as epsilon does; `min_snr`, with the signal-to-noise ratio bounded by `min_snr_gamma` (Hang et al. 2023,
            arXiv:2303.09556, eq. 8); `snr_over_snr_plus_1`, the literal factor SNR / (SNR + 1), which on v_prediction
            equals `snr`.
        timestep_sampling: `uniform`, or `stratified`: one draw from each of batch-size equal parts of 0 ... T-1.
        min_snr_gamma: bound of `min_snr`.

    Raises:
        ValueError: for a prediction type that does not determine x0 on this path.
    """

    data_range = (-1.0, 1.0)

    def __init__(
        self,
        path: NoisePath,
        prediction_type: str = "epsilon",
        loss: str = "l2",
        weighting: str = "none",
        timestep_sampling: str = "uniform",
        min_snr_gamma: float = 5.0,
    ):
        path.check_prediction_type(prediction_type)
        self.path, self.prediction_type, self.timestep_sampling = path, prediction_type, timestep_sampling
        self._loss = _LOSSES[loss]
        self._weights = torch.from_numpy(self._weight_table(weighting, min_snr_gamma)).float()

    def _weight_table(self, weighting: str, gamma: float) -> np.ndarray:
        """float64 weights of shape (T,).

        An error of the output is an error of x0 divided by b (x0 = a * x_t + b * output), so that a weight w on the
        squared error of x0 is w * b^2 on the output's.
        """
        snr = np.array([self.path.snr(t) for t in range(len(self.path))])
        b = np.array([self.path.x0_coefficients(self.prediction_type, t)[1] for t in range(len(self.path))])
        if weighting == "snr":
            return snr * b**2
        if weighting == "min_snr":
            return np.minimum(snr, gamma) * b**2
        if weighting == "snr_over_snr_plus_1":
            return snr / (snr + 1)
        return np.ones_like(snr)

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(standard normal noise of `shape`, integer times of shape (batch,))."""
        noise = torch.randn(shape, generator=generator, device=device)
        u = torch.rand(shape[0], generator=generator, device=device)
        if self.timestep_sampling == "stratified":
            u = (torch.arange(shape[0], device=device) + u) / shape[0]
        return noise, (u * len(self.path)).long().clamp_(max=len(self.path) - 1)

    def __call__(
        self, model: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **condition: Any
    ) -> torch.Tensor:
        """Weighted loss of every sample, shape (batch,), float32."""
        output = model(self.path.add_noise(x0, noise, times), times, **condition).sample
        target = self.path.target(self.prediction_type, x0, noise, times)
        error = self._loss(output.float(), target, reduction="none").flatten(1).mean(1)
        self._weights = self._weights.to(error.device)
        return error * self._weights[times]


class MixObjective:
    """System C's toy: predict the clean image from (1 - a) * x0 + a * noise, noise uniform, the network without time.

    Args:
        loss: `l2`, `l1` or `huber`.
        amounts: distribution of a: `uniform` on [0, 1), or `normal`, as the source project's code draws it.
    """

    data_range = (0.0, 1.0)

    def __init__(self, loss: str = "l2", amounts: str = "uniform"):
        if amounts not in ("uniform", "normal"):
            raise ValueError(f"amounts must be 'uniform' or 'normal', got '{amounts}'.")
        self._loss, self.amounts = _LOSSES[loss], amounts

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device
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
