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
    """The network's x0 is moved towards the measurement, as if p(x0 | x_t) were a Gaussian:

        x0 + V A^T (A V A^T + noise_std^2 I)^-1 (y - A x0),    V = (sigma_t^2 / alpha_t) * d x0(x_t) / d x_t.

    V is the covariance of p(x0 | x_t), and the move is exact for Gaussian data. The paper (eq. 7) takes
    r^2 = v sigma^2 / (alpha^2 v + sigma^2) for V in the inverse, the covariance for data of covariance v I. Images vary
    far more in some directions, such as their brightness, and there it overshoots, unless adaptive weights (section
    3.3) hold it back. So here the paper's equation, solved by A's pseudo-inverse without noise (eq. 8) and else by
    conjugate gradients, is the preconditioner of `iterations` conjugate gradients for the equation above (Rozet et al.
    2024, arXiv:2405.13712). The first of them only gives the paper's move its best length, and takes no more time.

    Args:
        data_variance: v, of the network's samples, above 0; 1 in the paper. Without noise it has next to no effect.
        iterations: at least 1; each takes another derivative of the network.
        others: of `PosteriorScheduler`.

    Raises:
        ValueError: for another data_variance or iterations, or a network of latents or spectral signals, where A is not
            linear.
    """

    name = "pigdm"

    def __init__(self, *others: Any, data_variance: float = 1.0, iterations: int = 1):
        if not is_number(data_variance) or data_variance <= 0:
            raise ValueError(f"data_variance must be a number above 0, got {data_variance!r}.")
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an integer of at least 1, got {iterations!r}.")
        super().__init__(*others)
        if not self.space.is_affine:
            raise ValueError(
                "pigdm needs data that are linear in what the network generates, and those of latents and of the "
                "normalization spectral are not; use dps."
            )
        self.data_variance, self.iterations = data_variance, iterations

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

        def covariance(q: torch.Tensor, again: bool) -> torch.Tensor:
            return sigma**2 / alpha * torch.autograd.grad(x0, x, q.to(x0.dtype), retain_graph=again)[0]

        move = self.moved(x0.detach(), covariance, self.posterior_variance(timestep))
        changed, slope = output.detach().clone(), self.levels.weights(timestep)[1]
        changed[:, : x.shape[1]] += move / slope
        return changed

    def moved(
        self, x0: torch.Tensor, covariance: Callable[[torch.Tensor, bool], torch.Tensor], variance: float
    ) -> torch.Tensor:
        """V A^T u with (A V A^T + noise_std^2 I) u = y - A x0, by preconditioned conjugate gradients (Hestenes 1956).

        Of every direction p in the space of y, A^T p is enough where there is no noise.
        """
        residual = self.residual(x0)
        p, back, product = self.preconditioned(x0, residual, variance)
        move = torch.zeros_like(x0)
        for iteration in range(self.iterations):
            if iteration:
                z, towards, following = self.preconditioned(x0, residual, variance)
                share = torch.where(product > 0, following / product, 0.0)
                p, back, product = z + _fit(share, z) * p, towards + _fit(share, back) * back, following
            along = covariance(back, iteration + 1 < self.iterations)
            # A network's V need not be positive: then nothing is gained.
            curvature = _dot(back, along) + self.noise_std**2 * _dot(p, p)
            length = torch.where(curvature > 0, product / curvature, 0.0)
            move = move + _fit(length, along) * along
            change = self.operator(self.space.scale * along) + self.noise_std**2 * p
            residual = residual - _fit(length, change) * change
        return move

    def preconditioned(
        self, x0: torch.Tensor, residual: torch.Tensor, variance: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(w, A^T w, residual . w) with w = (variance * A A^T + noise_std^2 I)^-1 residual, A as a function of x0.

        Without noise w is left out, 0.
        """
        inverse = self.operator.pseudo_inverse
        if self.noise_std == 0 and inverse is not None:
            least = inverse(residual) / self.space.scale
            return torch.zeros_like(residual), least / variance, _dot(least, least) / variance

        def matrix(u: torch.Tensor) -> torch.Tensor:
            back = self.residual_pulled_back(x0, u)
            return variance * self.operator(self.space.scale * back) + self.noise_std**2 * u

        w = conjugate_gradients(matrix, residual)
        return w, self.residual_pulled_back(x0, w), _dot(residual, w)


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
        length = _fit(torch.where((squared > enough) & (curvature > 0), squared / curvature, 0.0), right)
        u, residual = u + length * direction, residual - length * image
        before, squared = squared, _dot(residual, residual)
        direction = residual + _fit(torch.where(before > 0, squared / before, 0.0), right) * direction
    return u


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The scalar product of each sample, (n,)."""
    return (a * b).flatten(1).sum(1)


def _fit(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number for each sample, (n,), that broadcasts over samples."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1)).to(like)
