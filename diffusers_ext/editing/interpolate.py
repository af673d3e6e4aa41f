"""Spherical interpolation between latents (Shoemake 1985; Song et al. 2021, arXiv:2010.02502, appendix D.5)."""

from __future__ import annotations

import torch

# Below this angle, in radians, the formula divides 0 by 0 and straight lines are the same to rounding.
SMALLEST_ANGLE = 1e-4


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """sin((1 - share) * angle) / sin(angle) * first + sin(share * angle) / sin(angle) * second.

    Args:
        first, second: (n, channels, *size), each sample at its own angle.
        share: 0 gives `first`, 1 gives `second`.
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)
    angle = torch.arccos(cosine.clamp(-1, 1))
    straight = (angle < SMALLEST_ANGLE) | (torch.pi - angle < SMALLEST_ANGLE)
    sine = torch.where(straight, 1.0, torch.sin(angle))
    of_first = torch.where(straight, 1 - share, torch.sin((1 - share) * angle) / sine)
    of_second = torch.where(straight, share, torch.sin(share * angle) / sine)
    return (of_first[:, None] * a + of_second[:, None] * b).reshape(first.shape).to(first.dtype)
