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

    That is the paper's approximation (eq. 7) of the score of p(y | x_t), exact for Gaussian data of covariance
    `data_variance` * I, where r^2 = v sigma^2 / (alpha^2 v + sigma^2). The equation is solved by A's pseudo-inverse
    without noise (eq. 8), and otherwise by conjugate gradients.

    Images vary far more in some directions, such as their brightness, and there the move would go too far. So its
    length is, in place of the paper's adaptive weights (section 3.3), the best along its direction for the covariance
    (sigma_t^2 / alpha_t) * J of p(x0 | x_t) (Rozet et al. 2024, arXiv:2405.13712); it is 1 in the exact case.

    Args:
        data_variance: v, of the network's samples, above 0; 1 in the paper. Without noise it has next to no effect.
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
            residual = self.residual(x0.detach())
            towards, w = self.towards(x0.detach(), residual, self.posterior_variance(timestep))
            (gradient,) = torch.autograd.grad(x0, x, towards.to(x0.dtype))
        move = sigma**2 / alpha * gradient
        move = self.length(self.operator(self.space.scale * move), residual, w) * move
        moved, slope = output.detach().clone(), self.levels.weights(timestep)[1]
        moved[:, : x.shape[1]] += move / slope
        return moved

    def towards(self, x0: torch.Tensor, residual: torch.Tensor, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(A^T w, w) with w = (variance * A A^T + noise_std^2 I)^-1 residual, A as a function of x0.

        Without noise w is left out, 0.
        """
        inverse = self.operator.pseudo_inverse
        if self.noise_std == 0 and inverse is not None:
            return inverse(residual) / self.space.scale / variance, torch.zeros_like(residual)

        def matrix(u: torch.Tensor) -> torch.Tensor:
            back = self.residual_pulled_back(x0, u)
            return variance * self.operator(self.space.scale * back) + self.noise_std**2 * u

        w = conjugate_gradients(matrix, residual)
        return self.residual_pulled_back(x0, w), w

    def length(self, measured: torch.Tensor, residual: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The factor on a move by V A^T w, of which `measured` is A's: the best for noise and a covariance V of x0.

        It minimises |residual - length * measured|^2 / noise_std^2 + length^2 * w . measured.
        """
        best, curvature = _dot(measured, residual), _dot(measured, measured + self.noise_std**2 * w)
        # A network's V need not be positive: then the move would lead away from the measurement.
        found = torch.where((best > 0) & (curvature > 0), best / curvature, 0.0)
        return found.reshape(-1, *(1,) * (self.space.dims + 1))


def conjugate_gradients(matrix: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """u with matrix(u) = right, for a symmetric positive matrix, each sample (n, ...) for itself.

    Hestenes and Stiefel 1952. Where the matrix is singular, the solution of least norm.
    """

    u, residual = torch.zeros_like(right), right
    direction, squared = right, _dot(right, right)
    enough = TOLERANCE**2 * squared
    for _ in range(ITERATIONS):
        if (squared <= enough).all():
            break
        image = matrix(direction)
        curvature = _dot(direction, image)
        length = torch.where((squared > enough) & (curvature > 0), squared / curvature, 0.0)
        u, residual = u + length * direction, residual - length * image
        before, squared = squared, _dot(residual, residual)
        direction = residual + torch.where(before > 0, squared / before, 0.0) * direction
    return u


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The scalar product of each sample, of shape (n, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))
