"""How far samples are from a posterior that is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .mixture import GaussianMixture

# (alpha, sigma) of data with hardly any noise, at which a sample is assigned to its component.
NEARLY_CLEAN = (1.0, 1e-4)


class PosteriorBias(NamedTuple):
    """What samples have more or less than the posterior, 0 for exact samples up to chance.

    Attributes:
        mean: largest error of the mean in any direction, in standard deviations of the posterior there.
        covariance: eigenvalues of the samples' covariance relative to the posterior's, minus 1: the one furthest
            from 0. -0.5 means half the variance in some direction.
        weights: largest error of a component's weight.
        mean_chance, weights_chance: their standard errors for exact samples of this number.
    """

    mean: float
    covariance: float
    weights: float
    mean_chance: float
    weights_chance: float


def posterior_bias(samples: torch.Tensor, posterior: GaussianMixture) -> PosteriorBias:
    """Compare samples with the exact posterior of `GaussianMixture.posterior`.

    Args:
        samples: (n, ...) with d numbers each, n > d.
        posterior: in d dimensions, with a covariance of full rank.

    Raises:
        ValueError: for samples of another size, or too few.
    """
    x = samples.reshape(len(samples), -1).double()
    mean, covariance = posterior.moments()
    if x.shape[1] != len(mean) or len(x) <= len(mean):
        raise ValueError(f"samples must have shape (n, {len(mean)}) with n above {len(mean)}, got {tuple(x.shape)}.")
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    relative = torch.linalg.eigvalsh(root @ torch.cov(x.T).reshape(covariance.shape) @ root.T) - 1
    shares = posterior.responsibilities(x, NEARLY_CLEAN).mean(0)
    weights = posterior.weights
    return PosteriorBias(
        mean=(root @ (x.mean(0) - mean)).norm().item(),
        covariance=relative[relative.abs().argmax()].item(),
        weights=(shares - weights).abs().max().item(),
        mean_chance=(len(mean) / len(x)) ** 0.5,
        weights_chance=(weights * (1 - weights) / len(x)).max().sqrt().item(),
    )
