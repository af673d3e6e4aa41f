"""Noise paths: how data turn to noise.

A noise path gives two numbers for every time t, `alpha_t` and `sigma_t`, and says

    x_t = alpha_t * x0 + sigma_t * epsilon,        epsilon ~ N(0, I).

Everything a scheduler or an objective needs (signal-to-noise ratio, posterior mean and variance, conversions between
predictions) follows from these two numbers. `GaussianPath` holds what needs only them; its children say what they are:
`DiscretePath` from tables (`NoisePath` from betas), `continuous_path.ContinuousPath` from a stochastic differential
equation. All coefficients are float64; they are rounded once, to the sample's working precision, at the multiplication.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .prediction import PosteriorMean, Prediction, path_levels
from .schedules import checked_betas, make_betas, rescale_zero_terminal_snr
from .tensors import combine, working_dtype

# The time of clean data: alpha = 1, sigma = 0. Timesteps of a discrete path are 0 ... T-1.
CLEAN = -1

# Above this alphas_cumprod[-1], a start from N(0, I) visibly differs from the path's own end.
TERMINAL_ALPHAS_CUMPROD = 0.01
# Above this first sigma, the last sampling step visibly loses details.
FIRST_SIGMA = 0.15

# A method of `Prediction`, or `path_levels`: (alpha, sigma, posterior_mean) -> two coefficients.
View = Callable[..., tuple[Any, Any]]


class GaussianPath:
    """x_t = alpha_t * x0 + sigma_t * epsilon: everything that follows from the two numbers alone.

    A child gives `alpha`, `sigma` and `_pair`, and the time of the data, `clean`. Methods that take a number t work in
    Python floats; those that take a tensor of times of shape (batch,) give coefficients that broadcast.
    """

    clean: float = CLEAN

    def alpha(self, t: Any) -> float:
        """alpha_t of one time; 1 at `clean`."""
        raise NotImplementedError

    def sigma(self, t: Any) -> float:
        """sigma_t of one time; 0 at `clean`."""
        raise NotImplementedError

    def _pair(self, view: View, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A view's coefficients at times t of shape (batch,), shaped (batch, 1, ...) to broadcast against `like`."""
        raise NotImplementedError

    # numbers at one time

    def snr(self, t: Any) -> float:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2; infinite at the data."""
        return math.inf if t == self.clean else (self.alpha(t) / self.sigma(t)) ** 2

    def transition(self, t: Any, s: Any) -> tuple[float, float]:
        """(alpha_{t|s}, sigma^2_{t|s}) of q(x_t | x_s) for s < t (Kingma et al. 2021, arXiv:2107.00630, eq. 24-25).

        On neighbouring times of a variance-preserving path sigma^2_{t|s} is beta_t.
        """
        ratio = self.alpha(t) / self.alpha(s)
        return ratio, self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2

    def posterior(self, t: Any, s: Any) -> tuple[float, float, float]:
        """(c0, ct, variance) of q(x_s | x_t, x0) = N(c0 * x0 + ct * x_t, variance); Ho et al. 2020, eq. 6-7."""
        ratio, variance = self.transition(t, s)
        sigma2_t, sigma2_s = self.sigma(t) ** 2, self.sigma(s) ** 2
        return self.alpha(s) * variance / sigma2_t, ratio * sigma2_s / sigma2_t, variance * sigma2_s / sigma2_t

    def x0_coefficients(self, prediction_type: str, t: Any) -> tuple[float, float]:
        """(a, b) with x0 = a * x_t + b * output.

        Raises:
            ValueError: for an unknown type, or where the output does not determine x0 (epsilon at alpha_t = 0).
        """
        return self._number(Prediction(prediction_type).x0, t)

    def epsilon_coefficients(self, prediction_type: str, t: Any) -> tuple[float, float]:
        """(a, b) with epsilon = a * x_t + b * output; errors as `x0_coefficients`."""
        return self._number(Prediction(prediction_type).epsilon, t)

    def _number(self, view: Any, t: Any) -> tuple[float, float]:
        try:
            return view(self.alpha(t), self.sigma(t), self._posterior_mean(t))
        except ZeroDivisionError:
            raise ValueError(
                f"A prediction of type '{view.__self__.name}' does not determine x0 at timestep {t}, where alpha is "
                f"{self.alpha(t):g}; with zero terminal SNR use 'v_prediction', 'sample' or 'flow'."
            ) from None

    def _posterior_mean(self, t: Any) -> PosteriorMean:
        """Gives (c0, ct) of E[x_{t-1} | x_t, x0], where there is a t-1."""
        return None

    def network_input(self, sample: torch.Tensor, t: Any) -> torch.Tensor:
        """The network's input for x_t = sample at a time, or at times of shape (batch,): the sample itself here."""
        return sample

    # tensors, t of shape (batch,) or one time for all

    def coefficients(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha_t, sigma_t) of shape (batch, 1, ...), on the device and in the working precision of `like`."""
        return self._pair(path_levels, t, like)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t of eq. (1), in the dtype of x0.

        Args:
            x0: data of shape (batch, ...).
            noise: same shape as x0.
            t: times of shape (batch,) or a scalar tensor.
        """
        alpha, sigma = self.coefficients(t, x0)
        return combine(alpha, x0, sigma, noise).to(x0.dtype)

    def target(self, prediction_type: str, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The output a perfect network would be trained towards, eq. (2); shapes as `add_noise`."""
        p, q = self._pair(Prediction(prediction_type).output, t, x0)
        return combine(p, x0, q, noise)

    def x0_factors(
        self, prediction_type: str, t: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of `x0_coefficients`, as `coefficients` gives its pair."""
        return self._pair(Prediction(prediction_type).x0, t, like)

    def to_x0_epsilon(
        self, prediction_type: str, output: torch.Tensor, sample: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, epsilon) from a network output at x_t, by the inverse of (1) and (2), in working precision.

        Where the output does not determine them (epsilon at alpha_t = 0) the entries are not finite.

        Args:
            prediction_type: one of `PREDICTION_TYPES`.
            output: network output of shape (batch, ...).
            sample: x_t, same shape.
            t: times of shape (batch,) or a scalar tensor.
        """
        prediction = Prediction(prediction_type)
        a, b = self._pair(prediction.x0, t, sample)
        c, d = self._pair(prediction.epsilon, t, sample)
        return combine(a, sample, b, output), combine(c, sample, d, output)

    def convert(
        self, output: torch.Tensor, sample: torch.Tensor, t: torch.Tensor, source: str, target: str
    ) -> torch.Tensor:
        """The output of a `source` network as the output of a `target` network; shapes as in `to_x0_epsilon`."""
        if source == target:
            return output
        return self.target(target, *self.to_x0_epsilon(source, output, sample, t), t)

    # the diffusion as a stochastic differential equation

    def sde_increment(self, t: Any, s: Any) -> tuple[float, float]:
        """(f, g2): what dx = drift * x dt + g dw adds from s to t: drift f * x, and noise of variance g2.

        Between two levels of a table, to first order: (-beta / 2, beta) where the path preserves variance.
        """
        ratio, variance = self.transition(t, s)
        return (ratio**2 - 1) / 2, variance


class DiscretePath(GaussianPath):
    """A path given level by level: times are t = 0 ... T-1, and `CLEAN` (-1) for the data.

    Args:
        alphas, sigmas: float64 arrays of shape (T,).
    """

    def __init__(self, alphas: np.ndarray, sigmas: np.ndarray):
        self.alphas, self.sigmas = alphas, sigmas
        # Python floats: indexing them costs a tenth of indexing an array, and they multiply tensors without a copy.
        # CLEAN, being -1, finds the entry appended here.
        self._alpha_list = [*alphas.tolist(), 1.0]
        self._sigma_list = [*sigmas.tolist(), 0.0]
        self._tables: dict[tuple[Any, ...], torch.Tensor] = {}

    @classmethod
    def variance_exploding(cls, sigma_min: float, sigma_max: float, num_train_timesteps: int) -> DiscretePath:
        """alpha = 1, sigma a geometric sequence: Song et al. 2021 (arXiv:2011.13456), appendix C."""
        check_sigma_range(sigma_min, sigma_max)
        return cls(np.ones(num_train_timesteps), np.geomspace(sigma_min, sigma_max, num_train_timesteps))

    @classmethod
    def sub_variance_preserving(cls, alphas: np.ndarray) -> DiscretePath:
        """alpha given, sigma = 1 - alpha^2: Song et al. 2021, eq. 29, level by level."""
        return cls(alphas, 1 - alphas**2)

    def __len__(self) -> int:
        return len(self.alphas)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tables": {}}

    def alpha(self, t: int) -> float:
        """alpha_t for t in {CLEAN, 0, ..., T-1}."""
        return self._alpha_list[t]

    def sigma(self, t: int) -> float:
        """sigma_t for t in {CLEAN, 0, ..., T-1}."""
        return self._sigma_list[t]

    def check_prediction_type(self, prediction_type: str) -> None:
        """Raise ValueError unless outputs of this type determine x0 at every time of the path."""
        for t in (0, len(self) - 1):
            self.x0_coefficients(prediction_type, t)

    def _posterior_mean(self, t: int) -> PosteriorMean:
        return lambda: self.posterior(t, t - 1)[:2]

    def _pair(self, view: View, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = working_dtype(like.dtype)
        # Two equal predictions are two objects, and their bound methods differ.
        key = (getattr(view, "__self__", None), view.__name__, like.device, dtype)
        if key not in self._tables:
            self._tables[key] = torch.from_numpy(self._table(view)).to(device=like.device, dtype=dtype)
        values = self._tables[key][:, t.to(device=like.device, dtype=torch.long)]
        first, second = values.reshape(2, -1, *(1,) * (like.ndim - 1))
        return first, second

    def _table(self, view: View) -> np.ndarray:
        """float64 array (2, T) of a view's coefficients; entries that are not determined are not finite."""

        def posterior_mean() -> tuple[np.ndarray, np.ndarray]:
            c0, ct = np.array([self.posterior(t, t - 1)[:2] for t in range(len(self))]).T
            return c0, ct

        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack(view(self.alphas, self.sigmas, posterior_mean))


class NoisePath(DiscretePath):
    """A discrete variance-preserving path: alpha_t = sqrt(alphas_cumprod_t), sigma_t = sqrt(1 - alphas_cumprod_t).

    Args:
        betas: T numbers in [0, 1], the first above 0.

    Raises:
        ValueError: for betas outside that range.
    """

    def __init__(self, betas: Any):
        self.betas = checked_betas(betas)
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        super().__init__(np.sqrt(self.alphas_cumprod), np.sqrt(1 - self.alphas_cumprod))

    @classmethod
    def from_schedule(
        cls,
        schedule: str = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        options: Mapping[str, Any] | None = None,
        trained_betas: Sequence[float] | np.ndarray | None = None,
        rescale_betas_zero_snr: bool = False,
    ) -> NoisePath:
        """The path of a named schedule, or of given betas; arguments and errors as `make_betas`.

        Args:
            trained_betas: T betas that take the place of the named schedule, as in diffusers' schedulers.
            rescale_betas_zero_snr: end at alphas_cumprod = 0 exactly (`rescale_zero_terminal_snr`).
        """
        if trained_betas is None:
            betas = make_betas(schedule, num_train_timesteps, beta_start, beta_end, options)
        else:
            betas = checked_betas(trained_betas)
        return cls(rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoisePath:
        """The path that a scheduler's configuration means, of this package or of diffusers; errors as `make_betas`."""
        return cls.from_schedule(
            config.get("beta_schedule") or "linear",
            config["num_train_timesteps"],
            config.get("beta_start", 1e-4),
            config.get("beta_end", 0.02),
            config.get("schedule_options"),
            config.get("trained_betas"),
            bool(config.get("rescale_betas_zero_snr")),
        )

    def warn_about_ends(self) -> None:
        """Warn (UserWarning) when the path ends far from N(0, I), where samplers start, or begins far from the data."""
        last, first = self.alphas_cumprod[-1], self.sigmas[0]
        if last > TERMINAL_ALPHAS_CUMPROD:
            warnings.warn(
                f"This noise path ends at alphas_cumprod = {last:.3g} after {len(self)} steps, so its last sample "
                f"still carries {math.sqrt(last):.0%} of the signal's amplitude, while sampling starts from pure "
                "noise. Use more timesteps, larger betas, 'linear_rescaled' or 'cosine', or "
                "rescale_betas_zero_snr=True.",
                stacklevel=3,
            )
        if first > FIRST_SIGMA:
            warnings.warn(
                f"This noise path begins at noise level {first:.2g}, so the last sampling step removes all of that "
                "noise at once and fine details are lost. Use more timesteps, or a schedule that begins nearer to the "
                "data, such as 'cosine'.",
                stacklevel=3,
            )


def check_sigma_range(sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless 0 < sigma_min < sigma_max."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min, sigma_max must satisfy 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}.")
