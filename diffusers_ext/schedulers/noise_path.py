"""Noise paths: how data are destroyed, and what a network may be asked to predict about it.

A noise path gives two numbers for every time t, `alpha_t` and `sigma_t`, and says

    x_t = alpha_t * x0 + sigma_t * epsilon,        epsilon ~ N(0, I).                                  (1)

Everything a scheduler or an objective needs (signal-to-noise ratio, posterior mean and variance, conversions between
predictions) follows from these two numbers; this file is the only place where a schedule's formula stands.

A prediction is a linear view of the same pair (x0, epsilon):

    output = p_t * x0 + q_t * epsilon.                                                                  (2)

(1) and (2) are two equations in two unknowns, so x0 and epsilon follow from (x_t, output) by the inverse of a 2x2
matrix with determinant alpha_t * q_t - sigma_t * p_t. Each prediction type is thus one line: its (p_t, q_t).

Everything that needs only (1) and (2) stands in `GaussianPath`; its children say what alpha and sigma are:
`DiscretePath` from tables (`NoisePath` from betas), `ContinuousPath` from a stochastic differential equation. All
coefficients are float64; they are rounded once, to the sample's working precision, at the multiplication.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .tensors import combine, working_dtype

# The time of clean data: alpha = 1, sigma = 0. Timesteps of a discrete path are 0 ... T-1.
CLEAN = -1

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "score", "mean", "scaled_epsilon", "flow")

# Above this alphas_cumprod[-1], a start from N(0, I) visibly differs from the path's own end.
TERMINAL_ALPHAS_CUMPROD = 0.01

# The path that is chosen like a schedule but has no betas, for it does not preserve variance (`RectifiedFlowPath`).
RECTIFIED_FLOW = "rectified_flow"


# --- schedules: name -> betas, float64 of shape (T,) ------------------------------------------------------------------


def _linear(steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Ho et al. 2020 (arXiv:2006.11239), section 4; the end points are not rescaled with T."""
    return np.linspace(beta_start, beta_end, steps, dtype=np.float64)


def _linear_rescaled(steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """The linear schedule with end points times 1000/T (Nichol and Dhariwal 2021, reference code)."""
    return _linear(steps, beta_start * 1000 / steps, beta_end * 1000 / steps)


def _scaled_linear(steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """Linear in sqrt(beta): "quadratic" in the annotated-diffusion lineage, "scaled_linear" in latent diffusion."""
    return np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=np.float64) ** 2


def _exponential(steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """exp(linspace(-6, 6)), min-max normalised onto [beta_start, beta_end]."""
    curve = np.exp(np.linspace(-6, 6, steps, dtype=np.float64))
    return beta_start + (beta_end - beta_start) * (curve - curve[0]) / (curve[-1] - curve[0])


def _sigmoid(steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """sigmoid(linspace(-6, 6)) scaled onto (beta_start, beta_end)."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, steps, dtype=np.float64)))


def _betas_from_alphas_cumprod(alphas_cumprod: np.ndarray, clip: Sequence[float]) -> np.ndarray:
    """betas of shape (T,) from alphas_cumprod at the T + 1 edges 0, 1/T, ..., 1, clipped to the range `clip`."""
    return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], clip[0], clip[1])


def _cosine(steps: int, s: float = 0.008, clip: Sequence[float] = (0.0, 0.999)) -> np.ndarray:
    """Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 17."""
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    return _betas_from_alphas_cumprod(np.cos((u + s) / (1 + s) * math.pi / 2) ** 2, clip)


def _sigmoid_alpha_bar(
    steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip: Sequence[float] = (0.0, 0.999)
) -> np.ndarray:
    """A sigmoid in alphas_cumprod itself: Jabri et al. 2022 (arXiv:2212.11972), figure 8."""
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    curve = 1 / (1 + np.exp(-(u * (end - start) + start) / tau))
    return _betas_from_alphas_cumprod((curve[-1] - curve) / (curve[-1] - curve[0]), clip)


def _laplace(steps: int) -> np.ndarray:
    """Laplace-distributed log-SNR, as diffusers writes it (its capped betas_for_alpha_bar)."""
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    log_snr = -0.5 * np.copysign(1.0, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
    return _betas_from_alphas_cumprod(np.sqrt(1 / (1 + np.exp(-log_snr))), (-math.inf, 0.999))


# Schedules between two betas take (beta_start, beta_end); the others take the options in their signature.
_BETA_RANGE_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": _linear,
    "linear_rescaled": _linear_rescaled,
    "scaled_linear": _scaled_linear,
    "quadratic": _scaled_linear,
    "exponential": _exponential,
    "sigmoid": _sigmoid,
}
_ALPHA_BAR_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "cosine": _cosine,
    "squaredcos_cap_v2": _cosine,
    "sigmoid_alpha_bar": _sigmoid_alpha_bar,
    "laplace": _laplace,
}
BETA_RANGE_SCHEDULES = tuple(_BETA_RANGE_SCHEDULES)
SCHEDULES = (*BETA_RANGE_SCHEDULES, *_ALPHA_BAR_SCHEDULES)

# Names that all of diffusers' schedulers understand; any other schedule is handed to them as `trained_betas`.
DIFFUSERS_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def make_betas(
    schedule: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    options: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Betas of a named schedule.

    Args:
        schedule: one of `SCHEDULES`.
        num_train_timesteps: T, at least 2.
        beta_start: beta_0 of the schedules between two betas (linear, linear_rescaled, scaled_linear or quadratic,
            exponential, sigmoid); the others ignore it.
        beta_end: beta_{T-1} of the same schedules.
        options: what the alphas_cumprod schedules take: `s` and `clip` (cosine), `start`, `end`, `tau`, `clip`
            (sigmoid_alpha_bar). `clip` is the range (low, high) to which betas are clipped.

    Returns:
        float64 array of shape (T,), every value in [0, 1] and the first above 0.

    Raises:
        ValueError: for an unknown name or option, T below 2, or settings that give a beta outside that range.
    """
    if num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}.")
    options = dict(options or {})
    if schedule in _BETA_RANGE_SCHEDULES:
        if options:
            raise ValueError(
                f"Schedule '{schedule}' takes beta_start and beta_end only, got options {sorted(options)}."
            )
        return _checked_betas(_BETA_RANGE_SCHEDULES[schedule](num_train_timesteps, beta_start, beta_end))
    if schedule not in _ALPHA_BAR_SCHEDULES:
        raise ValueError(f"Unknown schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}.")
    make = _ALPHA_BAR_SCHEDULES[schedule]
    known = make.__code__.co_varnames[1 : make.__code__.co_argcount]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Schedule '{schedule}' has no option {unknown}; it takes {list(known)}.")
    return _checked_betas(make(num_train_timesteps, **options))


def _checked_betas(betas: Any) -> np.ndarray:
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"Betas must be a list of at least two numbers, got shape {betas.shape}.")
    if not (np.isfinite(betas).all() and (betas >= 0).all() and (betas <= 1).all() and betas[0] > 0):
        raise ValueError(
            f"Betas must lie in [0, 1] and start above 0, got a range of {betas.min():g} to {betas.max():g}; "
            "check beta_start, beta_end and the number of timesteps."
        )
    return betas


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last alphas_cumprod is exactly 0: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.

    Args:
        betas: float64 array of shape (T,).

    Returns:
        float64 array of shape (T,); the last value is 1. Applying it twice changes nothing.
    """
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    return 1 - np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


# --- predictions ------------------------------------------------------------------------------------------------------


def output_coefficients(
    prediction_type: str, alpha: Any, sigma: Any, posterior_mean: tuple[Any, Any] | None = None
) -> tuple[Any, Any]:
    """(p, q) of eq. (2): what the network outputs as a combination of x0 and epsilon.

    - `epsilon`: the noise (Ho et al. 2020, eq. 14);  `sample`: x0;
    - `v_prediction`: alpha * epsilon - sigma * x0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D);
    - `score`: grad log p_t(x_t | x0) = -epsilon / sigma (Song et al. 2021, arXiv:2011.13456, eq. 7);
    - `mean`: the posterior mean of x_{t-1} (Ho et al. 2020, eq. 7), on a discrete path only;
    - `scaled_epsilon`: sigma * epsilon;  `flow`: epsilon - x0 (Lipman et al. 2022, arXiv:2210.02747).

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        alpha, sigma: numbers, arrays or tensors, element by element.
        posterior_mean: for `mean`, the pair (c0, ct) with E[x_{t-1} | x_t, x0] = c0 * x0 + ct * x_t.

    Raises:
        ValueError: for an unknown prediction type, or `mean` without `posterior_mean`.
    """
    zero, one = alpha * 0, alpha * 0 + 1
    if prediction_type == "epsilon":
        return zero, one
    if prediction_type == "sample":
        return one, zero
    if prediction_type == "v_prediction":
        return -sigma, alpha
    if prediction_type == "score":
        return zero, -1 / sigma
    if prediction_type == "scaled_epsilon":
        return zero, sigma
    if prediction_type == "flow":
        return -one, one
    if prediction_type == "mean":
        if posterior_mean is None:
            raise ValueError("prediction_type 'mean' needs a discrete noise path: continuous time has no t-1.")
        c0, ct = posterior_mean
        return c0 + ct * alpha, ct * sigma
    raise ValueError(f"Unknown prediction_type '{prediction_type}'; choose one of {', '.join(PREDICTION_TYPES)}.")


def _view(kind: str, alpha: Any, sigma: Any, posterior_mean: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Two coefficients at one or many times: numbers, arrays or tensors as alpha and sigma are.

    Args:
        kind: `path` for (alpha, sigma); `output:TYPE` for (p, q) of eq. (2); `x0:TYPE` or `epsilon:TYPE` for the (a, b)
            in x0 or epsilon = a * x_t + b * output.
    """
    if kind == "path":
        return alpha, sigma
    wanted, prediction_type = kind.split(":")
    p, q = output_coefficients(prediction_type, alpha, sigma, posterior_mean)
    if wanted == "output":
        return p, q
    determinant = alpha * q - sigma * p
    if wanted == "x0":
        return q / determinant, -sigma / determinant
    return -p / determinant, alpha / determinant


# --- paths ------------------------------------------------------------------------------------------------------------


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

    def _pair(self, kind: str, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`_view(kind)` at times t of shape (batch,), shaped (batch, 1, ...) to broadcast against `like`."""
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
        return self._number(f"x0:{prediction_type}", t)

    def epsilon_coefficients(self, prediction_type: str, t: Any) -> tuple[float, float]:
        """(a, b) with epsilon = a * x_t + b * output; errors as `x0_coefficients`."""
        return self._number(f"epsilon:{prediction_type}", t)

    def _number(self, kind: str, t: Any) -> tuple[float, float]:
        posterior_mean = self._posterior_mean(t) if kind.endswith(":mean") else None
        try:
            return _view(kind, self.alpha(t), self.sigma(t), posterior_mean)
        except ZeroDivisionError:
            raise ValueError(
                f"A prediction of type '{kind.split(':')[1]}' does not determine x0 at timestep {t}, where alpha is "
                f"{self.alpha(t):g}; with zero terminal SNR use 'v_prediction', 'sample' or 'flow'."
            ) from None

    def _posterior_mean(self, t: Any) -> tuple[float, float] | None:
        """(c0, ct) of E[x_{t-1} | x_t, x0], where there is a t-1."""
        return None

    # tensors, t of shape (batch,) or one time for all

    def coefficients(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha_t, sigma_t) of shape (batch, 1, ...), on the device and in the working precision of `like`."""
        return self._pair("path", t, like)

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
        p, q = self._pair(f"output:{prediction_type}", t, x0)
        return combine(p, x0, q, noise)

    def x0_factors(
        self, prediction_type: str, t: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of `x0_coefficients`, as `coefficients` gives its pair."""
        return self._pair(f"x0:{prediction_type}", t, like)

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
        a, b = self._pair(f"x0:{prediction_type}", t, sample)
        c, d = self._pair(f"epsilon:{prediction_type}", t, sample)
        return combine(a, sample, b, output), combine(c, sample, d, output)

    def convert(
        self, output: torch.Tensor, sample: torch.Tensor, t: torch.Tensor, source: str, target: str
    ) -> torch.Tensor:
        """A network output of type `source` as what a network of type `target` would have said; shapes as above."""
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
        self._tables: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    @classmethod
    def variance_exploding(cls, sigma_min: float, sigma_max: float, num_train_timesteps: int) -> DiscretePath:
        """alpha = 1, sigma a geometric sequence: Song et al. 2021 (arXiv:2011.13456), appendix C."""
        _check_sigma_range(sigma_min, sigma_max)
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

    def _posterior_mean(self, t: int) -> tuple[float, float]:
        return self.posterior(t, t - 1)[:2]

    def _pair(self, kind: str, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = (kind, like.device, working_dtype(like.dtype))
        if key not in self._tables:
            self._tables[key] = torch.from_numpy(self._table(kind)).to(device=like.device, dtype=key[2])
        values = self._tables[key][:, t.to(device=like.device, dtype=torch.long)]
        first, second = values.reshape(2, -1, *(1,) * (like.ndim - 1))
        return first, second

    def _table(self, kind: str) -> np.ndarray:
        """float64 array (2, T) of `_view(kind)`; entries that are not determined are not finite."""
        posterior_mean = None
        if kind.endswith(":mean"):
            c0, ct = np.array([self._posterior_mean(t) for t in range(len(self))]).T
            posterior_mean = (c0, ct)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack(_view(kind, self.alphas, self.sigmas, posterior_mean))


class NoisePath(DiscretePath):
    """A discrete variance-preserving path: alpha_t = sqrt(alphas_cumprod_t), sigma_t = sqrt(1 - alphas_cumprod_t).

    Args:
        betas: T numbers in [0, 1], the first above 0.

    Raises:
        ValueError: for betas outside that range.
    """

    def __init__(self, betas: Any):
        self.betas = _checked_betas(betas)
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
            betas = _checked_betas(trained_betas)
        return cls(rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas)

    def warn_if_not_noise(self) -> None:
        """Warn (UserWarning) when the path ends far from N(0, I): samplers start there, so samples will be biased."""
        last = self.alphas_cumprod[-1]
        if last > TERMINAL_ALPHAS_CUMPROD:
            warnings.warn(
                f"This noise path ends at alphas_cumprod = {last:.3g} after {len(self)} steps, so its last sample "
                f"still carries {math.sqrt(last):.0%} of the signal's amplitude, while sampling starts from pure "
                "noise. Use more timesteps, larger betas, 'linear_rescaled' or 'cosine', or "
                "rescale_betas_zero_snr=True.",
                stacklevel=3,
            )


class ContinuousPath(GaussianPath):
    """A path in continuous time 0 < t <= 1 that solves dx = drift(t) x dt + g(t) dw; 0 is the time of the data.

    A child writes `_formula` once, for floats (module `math`) and for tensors (module `torch`), and the two
    coefficients of its equation.
    """

    clean = 0.0

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        """(alpha_t, sigma_t) with the functions of `module`."""
        raise NotImplementedError

    def drift(self, t: float) -> float:
        """Coefficient of x dt: the derivative of log alpha_t."""
        raise NotImplementedError

    def diffusion_squared(self, t: float) -> float:
        """g(t)^2."""
        raise NotImplementedError

    def alpha(self, t: float) -> float:
        """alpha_t for 0 <= t <= 1."""
        return 1.0 if t == self.clean else float(self._formula(t, math)[0])

    def sigma(self, t: float) -> float:
        """sigma_t for 0 <= t <= 1."""
        return 0.0 if t == self.clean else float(self._formula(t, math)[1])

    def _pair(self, kind: str, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = self._formula(t.to(device=like.device, dtype=torch.float64), torch)
        first, second = _view(kind, alpha, sigma)
        shape, dtype = (-1, *(1,) * (like.ndim - 1)), working_dtype(like.dtype)
        return first.reshape(shape).to(dtype), second.reshape(shape).to(dtype)

    def check_prediction_type(self, prediction_type: str) -> None:
        """Raise ValueError unless outputs of this type determine x0 up to the path's end."""
        self.x0_coefficients(prediction_type, 1.0)

    def sde_increment(self, t: float, s: float) -> tuple[float, float]:
        """(drift(t) * (t - s), g(t)^2 * (t - s)): one Euler-Maruyama increment."""
        return self.drift(t) * (t - s), self.diffusion_squared(t) * (t - s)


class VariancePreservingPath(ContinuousPath):
    """The VP SDE, dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t: Song et al. 2021, eq. 11 and 33.

    Args:
        beta_min, beta_max: beta(0) and beta(1), 0 < beta_min <= beta_max.

    Raises:
        ValueError: unless they are in that order.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min, beta_max must satisfy 0 < beta_min <= beta_max, got {beta_min}, {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _beta(self, t: float) -> float:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _beta_integral(self, t: Any) -> Any:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        integral = self._beta_integral(t)
        return module.exp(-integral / 2), module.sqrt(-module.expm1(-integral))

    def drift(self, t: float) -> float:
        """-beta(t) / 2."""
        return -self._beta(t) / 2

    def diffusion_squared(self, t: float) -> float:
        """beta(t)."""
        return self._beta(t)


class SubVariancePreservingPath(VariancePreservingPath):
    """The sub-VP SDE: the drift of VP with less noise, sigma = 1 - alpha^2 (Song et al. 2021, eq. 12 and 29)."""

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        integral = self._beta_integral(t)
        return module.exp(-integral / 2), -module.expm1(-integral)

    def diffusion_squared(self, t: float) -> float:
        """beta(t) * (1 - exp(-2 * integral of beta))."""
        return -self._beta(t) * math.expm1(-2 * self._beta_integral(t))


class VarianceExplodingPath(ContinuousPath):
    """The VE SDE: alpha = 1 and sigma = sigma_min * (sigma_max / sigma_min)^t (Song et al. 2021, eq. 9 and 30).

    Args:
        sigma_min, sigma_max: sigma just above t = 0 and at t = 1, 0 < sigma_min < sigma_max.

    Raises:
        ValueError: unless they are in that order.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        _check_sigma_range(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        # A tensor times 0, or 0.0 for a float: exp of it is a one of the right kind.
        return module.exp(t * 0.0), self.sigma_min * module.exp(t * math.log(self.sigma_max / self.sigma_min))

    def drift(self, t: float) -> float:
        """0."""
        return 0.0

    def diffusion_squared(self, t: float) -> float:
        """The derivative of sigma_t^2."""
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2


class RectifiedFlowPath(ContinuousPath):
    """Straight lines from the data to the noise, alpha = 1 - t and sigma = t: x_t = (1 - t) * x0 + t * epsilon.

    Liu et al. 2023 (arXiv:2209.03003), eq. 1, and Lipman et al. 2023 (arXiv:2210.02747), eq. 20-22 without a smallest
    sigma, both with time running the other way. The velocity dx_t / dt is what the prediction type `flow` says.
    """

    def _formula(self, t: Any, module: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def drift(self, t: float) -> float:
        """-1 / (1 - t), infinite at the noise."""
        return -1 / (1 - t)

    def diffusion_squared(self, t: float) -> float:
        """2 t / (1 - t), infinite at the noise."""
        return 2 * t / (1 - t)


def _check_sigma_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min, sigma_max must satisfy 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}.")
