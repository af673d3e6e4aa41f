"""The noise path and the prediction of a checkpoint, and its scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...models import PRESETS
from ...schedulers import AncestralDDPMScheduler, MixScheduler, NoisePath, SubsequenceDDIMScheduler
from .layouts import State
from .sources import SOURCES

SAMPLERS = {"ddpm": AncestralDDPMScheduler, "ddim": SubsequenceDDIMScheduler}
PATH_KEYS = ("beta_schedule", "beta_start", "beta_end", "schedule_options", "trained_betas")

# Schedules without first and last beta, with the options that projects use.
_FREE_SCHEDULES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("cosine", None),
    ("cosine", {"clip": [1e-4, 0.9999]}),
    ("sigmoid_alpha_bar", None),
)


def detect_noise(tables: State) -> dict[str, Any]:
    """Scheduler settings that follow from the tables of a diffusion process; none without betas and alphas_cumprod.

    The schedule is a name of `NoisePath` where one gives the same betas, else the betas themselves.
    """
    betas = _betas(tables)
    if betas is None:
        return {}
    settings = _named_schedule(betas) or {"trained_betas": betas.tolist()}
    prediction_type = _detect_prediction(tables, betas)
    prediction = {} if prediction_type is None else {"prediction_type": prediction_type}
    return {**settings, **prediction, "num_train_timesteps": len(betas)}


def _betas(tables: State) -> np.ndarray | None:
    if "betas" in tables:
        return tables["betas"].double().numpy()
    if "alphas_cumprod" not in tables:
        return None
    alphas_cumprod = tables["alphas_cumprod"].double().numpy()
    return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])


def _named_schedule(betas: np.ndarray) -> dict[str, Any] | None:
    """Tables are float32, so the ends are rounded to six digits and curves compared within that precision."""
    rescale = 1000 / len(betas)
    ends = [(1e-4, 0.02), (1e-4 * rescale, 0.02 * rescale), tuple(float(f"{beta:.6g}") for beta in betas[[0, -1]])]
    candidates: list[dict[str, Any]] = [
        {"beta_schedule": name, "beta_start": start, "beta_end": end}
        for name in ("linear", "scaled_linear", "exponential", "sigmoid")
        for start, end in ends
    ]
    candidates += [{"beta_schedule": name, "schedule_options": options} for name, options in _FREE_SCHEDULES]
    return next((candidate for candidate in candidates if _same_path(candidate, betas)), None)


def _same_path(candidate: dict[str, Any], betas: np.ndarray) -> bool:
    arguments = {key: value for key, value in candidate.items() if key not in ("beta_schedule", "schedule_options")}
    try:
        path = NoisePath.from_schedule(
            candidate["beta_schedule"], len(betas), options=candidate.get("schedule_options"), **arguments
        )
    except ValueError:
        return False
    near = np.allclose(path.alphas_cumprod, np.cumprod(1 - betas), rtol=0, atol=2e-6)
    return near and np.allclose(path.betas, betas, rtol=1e-3, atol=1e-6)


def _detect_prediction(tables: State, betas: np.ndarray) -> str | None:
    """From the weights of the loss: min(SNR, g) in the unit of the prediction, with or without the bound g.

    Hang et al. 2023 (arXiv:2303.09556), section 3.4; denoising-diffusion-pytorch keeps it as `loss_weight`.
    """
    if "loss_weight" not in tables or len(tables["loss_weight"]) != len(betas):
        return None
    alphas_cumprod = np.cumprod(1 - betas)
    seen = (alphas_cumprod > 0) & (alphas_cumprod < 1)
    weight, snr = tables["loss_weight"].double().numpy()[seen], (alphas_cumprod / (1 - alphas_cumprod))[seen]
    for prediction_type, unit in (("epsilon", snr**0), ("sample", snr), ("v_prediction", snr / (snr + 1))):
        bounded = weight / unit < 0.99
        bounds = (weight / unit * snr)[bounded]
        if (weight / unit < 1.01).all() and (not len(bounds) or np.ptp(bounds) < 0.01 * bounds.max()):
            return prediction_type
    return None


def scheduler_settings(architecture: str, tables: State, given: dict[str, Any]) -> dict[str, Any]:
    """The given settings, else those of the file's tables, else those that the project trains with."""
    preset, source = PRESETS[architecture], SOURCES[architecture]
    if preset.beta_schedule is None:
        if given:
            raise ValueError(f"'{architecture}' is sampled without betas and has no {', '.join(given)}.")
        return {}
    usual = {
        "beta_schedule": preset.beta_schedule,
        "num_train_timesteps": preset.num_train_timesteps,
        "prediction_type": preset.prediction_type,
        **source.scheduler,
    }
    if preset.betas is not None:
        usual.update(beta_start=preset.betas[0], beta_end=preset.betas[1])
    return over(over(usual, detect_noise(tables)), given)


def over(settings: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` updated with `newer`; a new schedule removes all options of the old one."""
    kept = dict(settings)
    if "beta_schedule" in newer or "trained_betas" in newer:
        kept = {key: value for key, value in settings.items() if key not in PATH_KEYS}
    betas = kept.get("trained_betas")
    moved = sorted({"beta_start", "beta_end", "schedule_options", "num_train_timesteps"} & newer.keys())
    if betas is not None and moved and newer.get("num_train_timesteps", len(betas)) != len(betas):
        raise ValueError(
            f"The file's noise is a list of {len(betas)} betas; to change {', '.join(moved)}, give a schedule."
        )
    return {**kept, **newer}


def scheduler_of(architecture: str, model: Any, settings: dict[str, Any], sampler: str) -> Any:
    """The scheduler of a converted pipeline, on the file's noise path: `ddim`, or ancestral sampling otherwise."""
    if PRESETS[architecture].beta_schedule is None:
        return MixScheduler()
    if sampler == "ddim":
        settings = {key: value for key, value in settings.items() if key != "variance_type"}
        # The package's DDIM bounds x0 and derives the noise from it again.
        settings["use_clipped_model_output"] = SOURCES[architecture].family == "package"
    elif model.config.out_channels == 2 * model.config.in_channels:
        settings = {**settings, "variance_type": "learned_range"}
    # From T-1 down, whatever the number of steps: the networks were trained on noise at the end of the path.
    return SAMPLERS[sampler](**settings, timestep_spacing="trailing")
