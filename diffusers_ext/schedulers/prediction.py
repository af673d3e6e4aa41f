"""What a network predicts: a linear view of the clean data and the noise.

    x_t    = alpha_t * x0 + sigma_t * epsilon,                                                          (1)
    output = p_t * x0 + q_t * epsilon.                                                                  (2)

These are two equations in two unknowns: x0 and epsilon follow from (x_t, output) by the inverse of a 2x2 matrix with
determinant alpha_t * q_t - sigma_t * p_t. A prediction type is therefore one line, its (p_t, q_t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Pair = tuple[Any, Any]
# Gives (c0, ct) with E[x_{t-1} | x_t, x0] = c0 * x0 + ct * x_t; None on a path without a t-1.
PosteriorMean = Callable[[], Pair] | None


def _mean(alpha: Any, sigma: Any, posterior_mean: PosteriorMean) -> Pair:
    if posterior_mean is None:
        raise ValueError("prediction_type 'mean' needs a discrete noise path: continuous time has no t-1.")
    c0, ct = posterior_mean()
    return c0 + ct * alpha, ct * sigma


def _v(alpha: Any, sigma: Any, _: PosteriorMean) -> Pair:
    norm = (alpha**2 + sigma**2) ** 0.5
    return -sigma / norm, alpha / norm


# (alpha, sigma, posterior_mean) -> (p, q). `alpha * 0` is a zero of alpha's own kind: number, array or tensor.
_OUTPUTS: dict[str, Callable[[Any, Any, PosteriorMean], Pair]] = {
    "epsilon": lambda alpha, sigma, _: (alpha * 0, alpha * 0 + 1),
    "sample": lambda alpha, sigma, _: (alpha * 0 + 1, alpha * 0),
    "v_prediction": _v,
    "score": lambda alpha, sigma, _: (alpha * 0, -1 / sigma),
    "mean": _mean,
    "scaled_epsilon": lambda alpha, sigma, _: (alpha * 0, sigma),
    "flow": lambda alpha, sigma, _: (alpha * 0 - 1, alpha * 0 + 1),
}
PREDICTION_TYPES = tuple(_OUTPUTS)


@dataclass(frozen=True)
class Prediction:
    """A prediction type, and its view of x0 and epsilon at given levels (alpha, sigma).

    - `epsilon`: the noise (Ho et al. 2020, arXiv:2006.11239, eq. 14);  `sample`: x0;
    - `v_prediction`: (alpha * epsilon - sigma * x0) / sqrt(alpha^2 + sigma^2), which is that of Salimans and Ho 2022
      (arXiv:2202.00512, appendix D) where the path preserves variance, and of no larger size where it does not;
    - `score`: grad log p_t(x_t | x0) = -epsilon / sigma (Song et al. 2021, arXiv:2011.13456, eq. 7);
    - `mean`: the posterior mean of x_{t-1} (Ho et al. 2020, eq. 7), on a discrete path only;
    - `scaled_epsilon`: sigma * epsilon;  `flow`: epsilon - x0 (Lipman et al. 2023, arXiv:2210.02747).

    The methods take numbers, arrays or tensors, element by element. Where the output does not determine x0 (epsilon at
    alpha = 0), numbers raise ZeroDivisionError and arrays hold entries that are not finite.

    Args:
        name: one of `PREDICTION_TYPES`.

    Raises:
        ValueError: for an unknown name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _OUTPUTS:
            raise ValueError(f"Unknown prediction_type '{self.name}'; choose one of {', '.join(PREDICTION_TYPES)}.")

    def output(self, alpha: Any, sigma: Any, posterior_mean: PosteriorMean = None) -> Pair:
        """(p, q) with output = p * x0 + q * epsilon.

        Raises:
            ValueError: for `mean` without `posterior_mean`.
        """
        return _OUTPUTS[self.name](alpha, sigma, posterior_mean)

    def x0(self, alpha: Any, sigma: Any, posterior_mean: PosteriorMean = None) -> Pair:
        """(a, b) with x0 = a * x_t + b * output; errors as `output`."""
        p, q = self.output(alpha, sigma, posterior_mean)
        determinant = alpha * q - sigma * p
        return q / determinant, -sigma / determinant

    def epsilon(self, alpha: Any, sigma: Any, posterior_mean: PosteriorMean = None) -> Pair:
        """(a, b) with epsilon = a * x_t + b * output; errors as `output`."""
        p, q = self.output(alpha, sigma, posterior_mean)
        determinant = alpha * q - sigma * p
        return -p / determinant, alpha / determinant


def path_levels(alpha: Any, sigma: Any, posterior_mean: PosteriorMean = None) -> Pair:
    """(alpha, sigma) themselves, in the form of a prediction's view."""
    return alpha, sigma
