"""Moments of draws against exact ones, in standard errors."""

from __future__ import annotations

import torch

from .mixture import GaussianMixture


def standard_errors(x: torch.Tensor, mixture: GaussianMixture) -> torch.Tensor:
    """Distances of mean, covariance entries and mode weights from the exact ones, in standard errors of the draws.

    A sampler without bias gives values below about 4.

    Args:
        x: draws of shape (n, d).
        mixture: the exact law.
    """
    mean, covariance = mixture.moments()
    centred = x - mean
    shares = mixture.responsibilities(x, (1.0, 0.0))
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    values = torch.cat([centred, products - covariance.flatten(), shares - mixture.weights], dim=1)
    return values.mean(0).abs() / (values.std(0) / len(x) ** 0.5)
