"""Schedulers of diffusers on a network's noise path: those that can't sample there are refused in one sentence.

`from_config` of a diffusers scheduler takes any configuration. It keeps the keys that it does not know, so that the
noise path that the network was trained on can still be read from the scheduler.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from .schedules import RECTIFIED_FLOW

# Where sigma / alpha at the first timestep is above this, a solver that multiplies the network's error by it draws
# noise. The linear schedule with 1,000 timesteps starts at 157, the cosine schedule at 20,291.
HIGHEST_START = 500.0

# Their second evaluation multiplies a change of the network's x0 by sigma / alpha, whatever the network predicts.
_SECOND_ORDER = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
# The noise that these add replaces what the network got wrong.
_STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverSDEScheduler")

_INSTEAD = "use the package's build_sampler(name, config), whose dpmsolver++, unipc and heun start at less noise"


def check_path_is_kept(scheduler: Any) -> None:
    """Raise ValueError for a diffusers scheduler with levels of its own, made from another path's configuration."""
    if not _is_of_diffusers(scheduler):
        return
    name, schedule = type(scheduler).__name__, scheduler.config.get("beta_schedule")
    if schedule is None or "beta_schedule" in inspect.signature(type(scheduler)).parameters:
        return
    if schedule == RECTIFIED_FLOW and name.startswith(("FlowMatch", "FlowMap")):
        return
    raise ValueError(
        f"{name} has noise levels of its own and does not follow the noise path '{schedule}' of the configuration it "
        "was made from; choose a scheduler of that path, such as the one that was saved with the network."
    )


def check_start(scheduler: Any) -> None:
    """Raise ValueError for a diffusers scheduler that would draw noise, or NaN, from where its timesteps start.

    Call `set_timesteps` before.
    """
    if not _is_of_diffusers(scheduler) or not hasattr(scheduler, "alphas_cumprod"):
        return
    name, config = type(scheduler).__name__, scheduler.config
    start = _sigma_over_alpha(scheduler)
    if math.isinf(start) and "rescale_betas_zero_snr" not in inspect.signature(type(scheduler)).parameters:
        raise ValueError(f"{name} gives NaN on a path with zero terminal SNR; {_INSTEAD}, or DDIM or DDPM.")
    even = any(config.get(key) for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
    if start <= HIGHEST_START or even or _bounds_x0(scheduler):
        return
    # A prediction of epsilon determines x0 by a division by alpha.
    if name in _SECOND_ORDER or (config.get("prediction_type") == "epsilon" and not _is_stochastic(scheduler)):
        raise ValueError(
            f"{name} would start at noise level {start:,.0f}, by which it multiplies the network's error; {_INSTEAD}, "
            "or ddim or ddpm."
        )


def _is_of_diffusers(scheduler: Any) -> bool:
    return type(scheduler).__module__.startswith("diffusers.")


def _sigma_over_alpha(scheduler: Any) -> float:
    """sigma / alpha at the first timestep."""
    table = scheduler.alphas_cumprod
    first = min(max(round(float(scheduler.timesteps[0])), 0), len(table) - 1)
    bar = float(table[first])
    return math.inf if bar == 0 else math.sqrt((1 - bar) / bar)


def _bounds_x0(scheduler: Any) -> bool:
    known = inspect.signature(type(scheduler)).parameters
    config = scheduler.config
    bounded = any(key in known and config.get(key) for key in ("clip_sample", "thresholding"))
    return bounded or config.get("lambda_min_clipped", -math.inf) > -math.log(HIGHEST_START)


def _is_stochastic(scheduler: Any) -> bool:
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    return type(scheduler).__name__ in _STOCHASTIC or algorithm.startswith("sde-")
