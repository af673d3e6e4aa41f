"""Schedules by name: how fast data turn to noise, as betas of a variance-preserving path.

This file is the only place where a schedule's formula stands. The paths themselves are in `noise_path` and
`continuous_path`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import numpy as np

from ..value_types import check_types

# The rectified flow's name: it is chosen like a schedule.
RECTIFIED_FLOW = "rectified_flow"

# Paths that are chosen like a schedule but have no betas -> the scheduler that follows them. A configuration carries
# the name as its `beta_schedule`, so that schedulers of other paths, diffusers' included, refuse it.
PATHS_WITHOUT_BETAS = {
    "vp": "ScoreSDEScheduler",
    "sub_vp": "ScoreSDEScheduler",
    "ve": "ScoreSDEScheduler",
    RECTIFIED_FLOW: "FlowMatchScheduler",
}


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


def _betas_from_alphas_cumprod(alphas_cumprod: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
    """betas of shape (T,) from alphas_cumprod at the T + 1 edges 0, 1/T, ..., 1, clipped to the range `clip`."""
    return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], clip[0], clip[1])


def _cosine(steps: int, s: float = 0.008, clip: tuple[float, float] = (0.0, 0.999)) -> np.ndarray:
    """Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 17."""
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    return _betas_from_alphas_cumprod(np.cos((u + s) / (1 + s) * math.pi / 2) ** 2, clip)


def _sigmoid_alpha_bar(
    steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, clip: tuple[float, float] = (0.0, 0.999)
) -> np.ndarray:
    """A sigmoid in alphas_cumprod itself: Jabri et al. 2022 (arXiv:2212.11972), figure 8."""
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    curve = 1 / (1 + np.exp(-(u * (end - start) + start) / tau))
    return _betas_from_alphas_cumprod((curve[-1] - curve) / (curve[-1] - curve[0]), clip)


def _laplace(steps: int, mean: float = 0.0, scale: float = 0.5, clip: tuple[float, float] = (0.0, 0.999)) -> np.ndarray:
    """Laplace-distributed log-SNR: Hang et al. 2024 (arXiv:2407.03297), table 1, with mu = `mean` and b = `scale`.

    diffusers' schedule of that name takes the square root of alphas_cumprod, and its log-SNR has another distribution.
    """
    u = np.linspace(0, 1, steps + 1, dtype=np.float64)
    # At u = 1 log-SNR is minus infinity; a last step of that length would be nothing like the others.
    u[-1] = 1 - 0.5 / steps
    with np.errstate(divide="ignore"):
        log_snr = mean - scale * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u))
    return _betas_from_alphas_cumprod(1 / (1 + np.exp(-log_snr)), clip)


def _linear_log_snr(
    steps: int, start: float = 13.3, end: float = -5.0, clip: tuple[float, float] = (0.0, 0.999)
) -> np.ndarray:
    """log(alpha^2 / sigma^2) linear in t: Kingma et al. 2021 (arXiv:2107.00630), the start of its learned schedule.

    With epsilon prediction, uniform timesteps and no weighting, the loss is then the variational bound.
    """
    log_snr = np.linspace(start, end, steps, dtype=np.float64)
    return _betas_from_alphas_cumprod(np.concatenate([[1.0], 1 / (1 + np.exp(-log_snr))]), clip)


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
    "linear_log_snr": _linear_log_snr,
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
        options: options of the alphas_cumprod schedules: `s`, `clip` (cosine); `start`, `end`, `tau`, `clip`
            (sigmoid_alpha_bar); `mean`, `scale`, `clip` (laplace); `start`, `end`, `clip`
            (linear_log_snr). `clip` is the range (low, high) of the betas.

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
        return checked_betas(_BETA_RANGE_SCHEDULES[schedule](num_train_timesteps, beta_start, beta_end))
    if schedule in PATHS_WITHOUT_BETAS:
        raise ValueError(
            f"The noise path '{schedule}' has no betas; use {PATHS_WITHOUT_BETAS[schedule]} on it, "
            f"or choose a schedule among {', '.join(SCHEDULES)}."
        )
    if schedule not in _ALPHA_BAR_SCHEDULES:
        raise ValueError(f"Unknown schedule '{schedule}'; choose one of {', '.join(SCHEDULES)}.")
    make = _ALPHA_BAR_SCHEDULES[schedule]
    known = make.__code__.co_varnames[1 : make.__code__.co_argcount]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Schedule '{schedule}' has no option {unknown}; it takes {list(known)}.")
    check_types(get_type_hints(make), options)
    return checked_betas(make(num_train_timesteps, **options))


def checked_betas(betas: Any) -> np.ndarray:
    """Betas as a float64 array (T,). Raises ValueError unless they lie in [0, 1], the first above 0."""
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
