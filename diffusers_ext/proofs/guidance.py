"""What classifier-free guidance should sample: p(x)^(1-w) p(x | c)^w."""

from __future__ import annotations

import torch

from .mixture import GaussianMixture, Level


def guided_density(mixture: GaussianMixture, level: Level, label: int, scale: float, x: torch.Tensor) -> torch.Tensor:
    """The guided density at the points x of a regular grid, shape (n,), as probabilities of shape (n,).

    Scale 0 gives the marginal and scale 1 the class. This is the target of guided Langevin dynamics; a reverse-time
    equation with a guided score ends elsewhere for other scales (Karras et al. 2024, arXiv:2406.02507, section 2).
    """
    conditional = mixture.conditional(label).log_density(x[:, None], level)
    return torch.softmax((1 - scale) * mixture.log_density(x[:, None], level) + scale * conditional, 0)


def total_variation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Total variation distance between two lists of probabilities of the same points."""
    return (first - second).abs().sum().item() / 2
