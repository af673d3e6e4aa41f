"""Mixtures that make good tests: each shows a different kind of mistake."""

from __future__ import annotations

import math

import torch

from .mixture import GaussianMixture


def rotated_covariance(angle: float, first: float, second: float) -> torch.Tensor:
    """2 x 2 covariance with these two standard deviations along axes turned by `angle` (radians)."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([first, second], dtype=torch.float64) ** 2) @ turn.T


# Uneven modes on a line; tilted ellipses in a plane, two of them in one class; a wide and a narrow ball in space.
MIXTURES = {
    "two modes": GaussianMixture([0.3, 0.7], [[-0.8], [0.6]], [0.04, 0.01]),
    "ellipses": GaussianMixture(
        [0.5, 0.2, 0.3],
        [[0.7, 0.0], [-0.5, 0.6], [-0.4, -0.6]],
        torch.stack(
            [
                rotated_covariance(0.5, 0.3, 0.1),
                rotated_covariance(-0.4, 0.2, 0.1),
                rotated_covariance(1.0, 0.15, 0.25),
            ]
        ),
        labels=[0, 1, 1],
    ),
    "balls": GaussianMixture([0.6, 0.4], [[0.4, -0.2, 0.5], [-0.5, 0.3, -0.4]], [0.09, 0.0225]),
}

# On the line, for laws that are computed by quadrature.
LINE_MIXTURES = {
    "two modes": MIXTURES["two modes"],
    "three modes": GaussianMixture([0.2, 0.5, 0.3], [[-1.0], [0.3], [0.9]], [0.02, 0.05, 0.01]),
    "overlapping": GaussianMixture([0.5, 0.5], [[-0.3], [0.4]], [0.16, 0.04]),
}

# What `prove` uses. The mixture is wide enough that a solver shows its order within 160 network calls. With one
# Gaussian the law of every linear sampler is exact.
PROVING_MIXTURE = GaussianMixture([0.4, 0.6], [[-0.5], [0.45]], [0.09, 0.04])
PROVING_GAUSSIAN = GaussianMixture([1.0], [[0.4]], [0.09])
