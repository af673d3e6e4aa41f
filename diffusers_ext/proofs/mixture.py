"""Gaussian mixtures, for which everything about diffusion is known exactly.

Noising a mixture x0 ~ sum_k w_k N(mu_k, S_k) by x_t = alpha * x0 + sigma * epsilon leaves a mixture,

    x_t ~ sum_k w_k N(alpha * mu_k, C_k),        C_k = alpha^2 S_k + sigma^2 I,

so the posterior means of x0 and epsilon, the score, the density and the class posterior are closed forms, and the
probability flow is an ordinary differential equation with an exact right-hand side. Everything is float64. Nothing here
uses the package's schedulers: a noise level is given by its two numbers, alpha and sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Level = tuple[float, float]


class GaussianMixture:
    """A mixture of n Gaussians in d dimensions; samples have shape (batch, d), or any shape of d numbers a sample.

    Args:
        weights: n positive numbers; normalised here.
        means: shape (n, d).
        covariances: shape (n, d, d), or (n,) for multiples of the identity.
        labels: class of each component; component k is class k by default.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any, labels: Sequence[int] | None = None):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.means = torch.as_tensor(means, dtype=torch.float64)
        n, d = self.means.shape
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        self.covariances = covariances if covariances.ndim == 3 else covariances[:, None, None] * torch.eye(d).double()
        self.labels = tuple(labels) if labels is not None else tuple(range(n))
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self.covariances)

    # the data

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """n draws, shape (n, d)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        scaled = noise * self.eigenvalues[which].sqrt()
        return self.means[which] + torch.einsum("nij,nj->ni", self.eigenvectors[which], scaled)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean of shape (d,), covariance of shape (d, d))."""
        mean = self.weights @ self.means
        centred = self.means - mean
        spread = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return mean, spread + torch.einsum("k,kij->ij", self.weights, self.covariances)

    def conditional(self, label: int) -> GaussianMixture:
        """The mixture of one class."""
        keep = [k for k, own in enumerate(self.labels) if own == label]
        return GaussianMixture(self.weights[keep], self.means[keep], self.covariances[keep], [label] * len(keep))

    def posterior(self, operator: Any, measurement: Any, noise_std: float) -> GaussianMixture:
        """The mixture of x0 given `measurement = operator @ x0 + noise_std * n` with standard normal n.

        Args:
            operator: matrix of shape (m, d).
            measurement: shape (m,).
            noise_std: standard deviation of the measurement noise, above 0.

        Raises:
            ValueError: for noise_std of 0 or below.
        """
        if not noise_std > 0:
            raise ValueError(f"noise_std must be above 0, got {noise_std}.")
        operator = torch.as_tensor(operator, dtype=torch.float64)
        measurement = torch.as_tensor(measurement, dtype=torch.float64)
        of_measurement = operator @ self.covariances @ operator.mT + noise_std**2 * torch.eye(len(operator)).double()
        gain = torch.linalg.solve(of_measurement, operator @ self.covariances).mT
        residual = measurement - self.means @ operator.T
        evidence = torch.distributions.MultivariateNormal(torch.zeros_like(residual), of_measurement)
        log_weights = self.weights.log() + evidence.log_prob(residual)
        means = self.means + (gain @ residual[:, :, None])[:, :, 0]
        covariances = self.covariances - gain @ operator @ self.covariances
        return GaussianMixture(torch.softmax(log_weights, 0), means, (covariances + covariances.mT) / 2, self.labels)

    def marginal(self, level: Level) -> GaussianMixture:
        """The mixture of x_t at (alpha, sigma) = level."""
        alpha, sigma = level
        noise = sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        return GaussianMixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise, self.labels)

    # closed forms at (alpha, sigma); x of shape (batch, d)

    def _parts(self, x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        """(log of weight times density (n, batch), C_k^-1 (x - alpha mu_k) (n, batch, d)) for x of shape (batch, d)."""
        alpha, sigma = level
        variances = alpha**2 * self.eigenvalues + sigma**2
        inverse = (self.eigenvectors / variances[:, None, :]) @ self.eigenvectors.mT
        centred = x - alpha * self.means[:, None]
        pulled = centred @ inverse
        log_norm = self.weights.log() - 0.5 * torch.log(2 * math.pi * variances).sum(-1)
        return log_norm[:, None] - 0.5 * (centred * pulled).sum(-1), pulled

    def log_density(self, x: torch.Tensor, level: Level = (1.0, 0.0)) -> torch.Tensor:
        """Exact log p_t(x), shape (batch,); of the data themselves at the default level."""
        return torch.logsumexp(self._parts(x, level)[0], dim=0)

    def responsibilities(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """p(component | x_t), shape (batch, n)."""
        return torch.softmax(self._parts(x, level)[0], dim=0).T

    def class_posterior(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """p(class | x_t), shape (batch, number of classes)."""
        shares = self.responsibilities(x, level)
        of_class = torch.tensor([[own == c for c in sorted(set(self.labels))] for own in self.labels])
        return shares @ of_class.double()

    def predict(self, x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        """(E[x0 | x_t], E[epsilon | x_t]), each of x's shape; neither is got by subtraction from the other."""
        alpha, sigma = level
        shape, x = x.shape, x.reshape(len(x), -1).double()
        logs, pulled = self._parts(x, level)
        shares = torch.softmax(logs, dim=0)[:, :, None]
        # The posterior mean of x0 in component k is mu_k + alpha S_k C_k^-1 (x - alpha mu_k).
        x0 = (shares * (self.means[:, None] + alpha * pulled @ self.covariances)).sum(0)
        epsilon = sigma * (shares * pulled).sum(0)
        return x0.reshape(shape), epsilon.reshape(shape)

    def score(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """grad log p_t(x)."""
        return -self.predict(x, level)[1] / level[1]

    def output(
        self, prediction_type: str, x: torch.Tensor, level: Level, previous: Level | None = None
    ) -> torch.Tensor:
        """What the exact network of this prediction type outputs at x_t; `previous` is the level of t-1, for `mean`."""
        return network_output(prediction_type, *self.predict(x, level), x, level, previous)

    # the probability flow

    def flow(self, x: torch.Tensor, start: Level, end: Level, tolerance: float = 1e-11) -> torch.Tensor:
        """Where the probability flow takes x from level `start` to level `end`.

        In one dimension the flow is the increasing map between the two marginals, found from their distribution
        functions to about 1e-14. In more dimensions it is one accurate solution of the differential equation, with
        error `tolerance` (needs scipy, the extra `eval`).
        """
        flat = x.reshape(len(x), -1).double()
        solve = self._flow_on_the_line if flat.shape[1] == 1 else self._flow_by_ode
        return solve(flat, start, end, tolerance).reshape(x.shape)

    def _flow_on_the_line(self, x: torch.Tensor, start: Level, end: Level, _: float) -> torch.Tensor:
        target_lower, target_upper = self.marginal(start).log_tails(x[:, 0])
        arrival = self.marginal(end)
        std = arrival.covariances[:, 0, 0].sqrt()
        low = torch.full_like(target_lower, (arrival.means[:, 0] - 40 * std).min().item())
        high = torch.full_like(target_lower, (arrival.means[:, 0] + 40 * std).max().item())
        for _ in range(64):
            middle = (low + high) / 2
            lower, upper = arrival.log_tails(middle)
            # The smaller tail is the one that floating point resolves.
            too_low = torch.where(target_lower < target_upper, lower < target_lower, upper > target_upper)
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return ((low + high) / 2)[:, None]

    def log_tails(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log P(X < x), log P(X > x)) on the line, each of shape (batch,), for x of shape (batch,)."""
        z = (x[:, None] - self.means[:, 0]) / self.covariances[:, 0, 0].sqrt()
        log_weights = self.weights.log()
        return (
            torch.logsumexp(log_weights + torch.special.log_ndtr(z), 1),
            torch.logsumexp(log_weights + torch.special.log_ndtr(-z), 1),
        )

    def _flow_by_ode(self, x: torch.Tensor, start: Level, end: Level, tolerance: float) -> torch.Tensor:
        """In y = x / sqrt(alpha^2 + sigma^2) against the angle of (alpha, sigma) the velocity is the v of a
        variance-preserving path, which is smooth from pure noise (alpha = 0) to the data (sigma = 0)."""
        from scipy.integrate import solve_ivp

        def velocity(angle: float, y: np.ndarray) -> np.ndarray:
            level = (math.cos(angle), math.sin(angle))
            return self.output("v_prediction", torch.from_numpy(y).reshape(x.shape), level).numpy().reshape(-1)

        angles = math.atan2(start[1], start[0]), math.atan2(end[1], end[0])
        y = (x / math.hypot(*start)).numpy().reshape(-1)
        solution = solve_ivp(velocity, angles, y, method="DOP853", rtol=tolerance, atol=tolerance)
        return torch.from_numpy(solution.y[:, -1]).reshape(x.shape) * math.hypot(*end)


def network_output(
    prediction_type: str,
    x0: torch.Tensor,
    epsilon: torch.Tensor,
    x: torch.Tensor,
    level: Level,
    previous: Level | None = None,
) -> torch.Tensor:
    """What a network of this prediction type outputs at x when its estimates of x0 and epsilon are these.

    Args:
        prediction_type: `epsilon`, `sample`, `v_prediction`, `score`, `scaled_epsilon`, `flow`, `flow_to_data` or
            `mean`.
        level: (alpha, sigma) of x.
        previous: level of t-1, for `mean`.

    Raises:
        ValueError: for an unknown prediction type.
    """
    alpha, sigma = level
    if prediction_type == "mean":
        assert previous is not None
        step = alpha / previous[0]
        beta = sigma**2 - (step * previous[1]) ** 2
        return (previous[0] * beta * x0 + step * previous[1] ** 2 * x) / sigma**2
    outputs = {
        "epsilon": lambda: epsilon,
        "sample": lambda: x0,
        "v_prediction": lambda: (alpha * epsilon - sigma * x0) / math.hypot(alpha, sigma),
        "score": lambda: -epsilon / sigma,
        "scaled_epsilon": lambda: sigma * epsilon,
        "flow": lambda: epsilon - x0,
        "flow_to_data": lambda: x0 - epsilon,
    }
    if prediction_type not in outputs:
        raise ValueError(f"Unknown prediction type '{prediction_type}'; use {', '.join(outputs)} or mean.")
    return outputs[prediction_type]()
