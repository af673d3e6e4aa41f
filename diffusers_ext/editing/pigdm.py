"""PiGDM: pseudo-inverse guidance (Song, Vahdat, Mardani and Kautz 2023, ICLR, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..pipelines.call_arguments import is_number
from .posterior import PosteriorScheduler, Predict

ITERATIONS = 50  # of conjugate gradients, at most
TOLERANCE = 1e-6  # of their residual, relative
LEAST_ALPHA = 1e-3


class PiGDMScheduler(PosteriorScheduler):
    """The network's x0 is moved as if p(x0 | x_t) were N(x0(x_t), r^2 I):

        x0 + (sigma_t^2 / alpha_t) * J^T A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x0),    J = d x0(x_t) / d x_t.

    That is the paper's approximation (eq. 7) of the score of p(y | x_t), without its adaptive weights (section 3.3). It
    is exact for Gaussian data of covariance `data_variance` * I, where r^2 = v sigma^2 / (alpha^2 v + sigma^2). The
    equation is solved by A's pseudo-inverse without noise (eq. 8), and otherwise by conjugate gradients.

    Args:
        data_variance: v, of the network's samples, above 0; 1 in the paper.
        others: of `PosteriorScheduler`.

    Raises:
        ValueError: for another data_variance, or a network of latents or spectral signals, where A is not linear.
    """

    name = "pigdm"

    def __init__(self, *others: Any, data_variance: float = 1.0):
        if not is_number(data_variance) or data_variance <= 0:
            raise ValueError(f"data_variance must be a number above 0, got {data_variance!r}.")
        super().__init__(*others)
        if not self.space.is_affine:
            raise ValueError(
                "pigdm needs data that are linear in what the network generates, and those of latents and of the "
                "normalization spectral are not; use dps."
            )
        self.data_variance = data_variance

    def posterior_variance(self, timestep: Any) -> float:
        """r^2 of the network's samples."""
        (alpha, sigma), v = self.levels(timestep), self.data_variance
        return v * sigma**2 / (alpha**2 * v + sigma**2)

    def guide(self, predict: Predict, network_input: torch.Tensor, timestep: Any) -> torch.Tensor:
        """An output that means the moved x0."""
        alpha, sigma = self.levels(timestep)
        if alpha < LEAST_ALPHA:
            return predict(network_input)
        with torch.enable_grad():
            x, output, x0 = self.predicted(predict, network_input, timestep)
            towards = self.towards(x0.detach(), self.posterior_variance(timestep))
            (gradient,) = torch.autograd.grad(x0, x, towards.to(x0.dtype))
        moved, slope = output.detach().clone(), self.levels.weights(timestep)[1]
        moved[:, : x.shape[1]] += sigma**2 / alpha / slope * gradient
        return moved

    def towards(self, x0: torch.Tensor, variance: float) -> torch.Tensor:
        """A^T (variance * A A^T + noise_std^2 I)^-1 (y - A x0), A as a function of x0."""
        residual, inverse = self.residual(x0), self.operator.pseudo_inverse
        if self.noise_std == 0 and inverse is not None:
            return inverse(residual) / self.space.scale / variance

        def matrix(u: torch.Tensor) -> torch.Tensor:
            back = self.residual_pulled_back(x0, u)
            return variance * self.operator(self.space.scale * back) + self.noise_std**2 * u

        return self.residual_pulled_back(x0, conjugate_gradients(matrix, residual))


def conjugate_gradients(matrix: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """u with matrix(u) = right, for a symmetric positive matrix, each sample (n, ...) for itself.

    Hestenes and Stiefel 1952. Where the matrix is singular, the solution of least norm.
    """

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))

    u, residual = torch.zeros_like(right), right
    direction, squared = right, dot(right, right)
    enough = TOLERANCE**2 * squared
    for _ in range(ITERATIONS):
        if (squared <= enough).all():
            break
        image = matrix(direction)
        curvature = dot(direction, image)
        length = torch.where((squared > enough) & (curvature > 0), squared / curvature, 0.0)
        u, residual = u + length * direction, residual - length * image
        before, squared = squared, dot(residual, residual)
        direction = residual + torch.where(before > 0, squared / before, 0.0) * direction
    return u
