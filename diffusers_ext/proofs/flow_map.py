"""The exact flow map of a mixture on the line: the network that an objective of flow maps would end at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .mixture import GaussianMixture

BISECTIONS = 60


class ExactFlowMap(torch.nn.Module):
    """The average velocity u(z, t, t - r) of x_t = (1 - t) * x0 + t * epsilon, the numbers of x0 drawn independently.

    Called as `network(sample, timestep, duration=None)` with t * T and (t - r) * T, numbers or shape (batch,). u is
    (z - z_r) / (t - r), where z_r has the same share of its marginal below it as z has: on the line, the probability
    flow keeps the order. At duration 0 it is the velocity. For a mixture of one Gaussian it is a closed form that torch
    can differentiate.

    Args:
        mixture: one-dimensional.
        num_train_timesteps: T.
        sample_size: of samples, for a pipeline; any shape is accepted.

    Raises:
        ValueError: for a mixture in more dimensions.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, mixture: GaussianMixture, num_train_timesteps: int = 1000, sample_size: int = 1):
        super().__init__()
        if mixture.means.shape[1] != 1:
            raise ValueError(f"ExactFlowMap takes a mixture on the line, got {mixture.means.shape[1]} dimensions.")
        self._log_weights, self._means = mixture.weights.log(), mixture.means[:, 0]
        self._variances = mixture.covariances[:, 0, 0]
        self.num_train_timesteps, self.calls = num_train_timesteps, 0
        self.config = SimpleNamespace(in_channels=1, sample_size=sample_size, second_time=True)

    def forward(self, sample: torch.Tensor, timestep: Any, duration: Any = None) -> SimpleNamespace:
        """`.sample` in the shape and dtype of `sample`, (batch, ...)."""
        self.calls += 1
        t, d = (self._times(times, sample) for times in (timestep, 0.0 if duration is None else duration))
        z, t, d = (x.reshape(-1) for x in torch.broadcast_tensors(sample.double(), t, d))
        still = d == 0
        # A division by 0 would be NaN in derivatives also where its result is not used.
        moved = (z - self._transported(z, t, t - d)) / torch.where(still, 1.0, d)
        u = torch.where(still, self._velocity(z, t), moved)
        return SimpleNamespace(sample=u.reshape(sample.shape).to(sample.dtype))

    def _times(self, times: Any, sample: torch.Tensor) -> torch.Tensor:
        values = torch.as_tensor(times, dtype=torch.float64) / self.num_train_timesteps
        return values.reshape(-1, *(1,) * (sample.ndim - 1))

    def _marginal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(means, standard deviations) of the components at times (n,), each of shape (n, components)."""
        alpha = 1 - t[:, None]
        return alpha * self._means, (alpha**2 * self._variances + t[:, None] ** 2).sqrt()

    def _velocity(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E[epsilon - x0 | z]."""
        means, stds = self._marginal(t)
        standard = (z[:, None] - means) / stds
        shares = torch.softmax(self._log_weights - stds.log() - standard**2 / 2, 1)
        slope = (t[:, None] - (1 - t[:, None]) * self._variances) / stds
        return (shares * (slope * standard - self._means)).sum(1)

    def _transported(self, z: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        """Where the probability flow takes z from times t to times r."""
        if len(self._means) == 1:
            (mean, std), (mean_r, std_r) = self._marginal(t), self._marginal(r)
            return (mean_r + std_r * (z[:, None] - mean) / std)[:, 0]
        lower, upper = self._log_tails(z, t)
        means, stds = self._marginal(r)
        low, high = (means - 40 * stds).amin(1), (means + 40 * stds).amax(1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            lower_there, upper_there = self._log_tails(middle, r)
            # The smaller tail is the one that floating point resolves.
            too_low = torch.where(lower < upper, lower_there < lower, upper_there > upper)
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return (low + high) / 2

    def _log_tails(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log P(Z_t < z), log P(Z_t > z))."""
        means, stds = self._marginal(t)
        standard = (z[:, None] - means) / stds
        tails = (torch.logsumexp(self._log_weights + torch.special.log_ndtr(s), 1) for s in (standard, -standard))
        lower, upper = tails
        return lower, upper
