"""Every scheduler that diffusers ships, and ours, with their usual options: what `prove all` runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers.schedulers

from .. import schedulers as ours
from ..schedulers.noise_path import NoisePath
from ..schedulers.schedules import DIFFUSERS_SCHEDULES

# The same noise path for all: diffusers' schedulers have different defaults.
PATH = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}

# Why an exact denoiser says nothing about a scheduler, or can't call it.
NOT_MEASURED = {
    "AmusedScheduler": "its data are discrete tokens",
    "BlockRefinementScheduler": "its data are discrete tokens",
    "DiscreteDDIMScheduler": "its data are discrete tokens",
    "EntropyBoundScheduler": "its data are discrete tokens",
    "VQDiffusionScheduler": "its data are discrete tokens",
    "CMStochasticIterativeScheduler": "its network is a distilled consistency function, not a denoiser",
    "ConsistencyDecoderScheduler": "its network is a distilled consistency function, not a denoiser",
    "LCMScheduler": "its network is a distilled consistency function, not a denoiser",
    "FlowMatchLCMScheduler": "its network is a distilled consistency function, not a denoiser",
    "TCDScheduler": "its network is a distilled consistency function, not a denoiser",
    "SCMScheduler": "its network is a distilled consistency function, not a denoiser",
    "FlowMapEulerDiscreteScheduler": "its network is a distilled flow map, not a denoiser",
    "FlowMapScheduler": "its network is a flow map, not a denoiser; see ExactFlowMap",
    "PiflowScheduler": "its network outputs a policy, not a denoised sample",
    "HeliosScheduler": "its step upsamples a video pyramid between stages",
    "HeliosDMDScheduler": "its step upsamples a video pyramid between stages",
    "RFD4ProteinaScheduler": "its step needs a mask of protein atoms",
    "RePaintScheduler": "its step needs an image and a mask",
    "CogVideoXDPMScheduler": "its step needs the last two predictions from the pipeline",
    "DDIMInverseScheduler": "it goes from the data to the noise",
    "DPMSolverMultistepInverseScheduler": "it goes from the data to the noise",
    "ScoreSdeVeScheduler": "it has step_pred and step_correct in place of step",
    "KarrasVeScheduler": "deprecated in diffusers",
    "ScoreSdeVpScheduler": "deprecated in diffusers",
    "MixScheduler": "its noise is uniform, not Gaussian",
}


@dataclass(frozen=True)
class Case:
    """One scheduler with one choice of options.

    Attributes:
        name: class name.
        scheduler_class: the class.
        options: what the table shows.
        settings: all arguments of the constructor.
        step_arguments: arguments of `step`.
        set_timesteps_arguments: arguments of `set_timesteps`.
    """

    name: str
    scheduler_class: Any
    options: dict[str, Any]
    settings: dict[str, Any]
    step_arguments: dict[str, Any] = field(default_factory=dict)
    set_timesteps_arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The scheduler. Raises whatever its constructor raises."""
        return self.scheduler_class(**self.settings)


def path_settings(schedule: str, num_train_timesteps: int = 1000) -> dict[str, Any]:
    """Arguments that put a scheduler on a named noise schedule; betas where diffusers doesn't know the name.

    Raises:
        ValueError: for an unknown name.
    """
    path = NoisePath.from_schedule(schedule, num_train_timesteps)
    settings: dict[str, Any] = {**PATH, "num_train_timesteps": num_train_timesteps}
    if schedule in DIFFUSERS_SCHEDULES:
        return {**settings, "beta_schedule": schedule}
    return {**settings, "trained_betas": path.betas.tolist()}


def scheduler_classes() -> dict[str, Any]:
    """Class name -> class, of every scheduler of diffusers and ours, in alphabetical order; ours come last."""
    theirs = {
        name: getattr(diffusers.schedulers, name)
        for name in dir(diffusers.schedulers)
        if name.endswith("Scheduler") and name != "KarrasDiffusionSchedulers"
    }
    own = {name: getattr(ours, name) for name in ours.__all__ if name.endswith("Scheduler")}
    return {**dict(sorted((name, kind) for name, kind in theirs.items() if name not in own)), **own}


def usual_cases(name: str, scheduler_class: Any, path: dict[str, Any] | None = None) -> Iterator[Case]:
    """The defaults of a scheduler on one noise path, then one usual option at a time."""
    known = inspect.signature(scheduler_class.__init__).parameters
    base = {key: value for key, value in {**PATH, **(path or {})}.items() if key in known}
    # A bound on x0 makes a sampler differ from the exact one by design.
    base |= {key: False for key in ("clip_sample",) if key in known}
    if name == "UnCLIPScheduler":  # refuses any schedule but its own
        base.pop("beta_schedule")
    for options in [{}, *_usual_options(name, known)]:
        step_arguments = {key: options[key] for key in ("eta",) if key in options and key not in known}
        settings = {key: value for key, value in options.items() if key not in step_arguments}
        yield Case(name, scheduler_class, options, {**base, **settings}, step_arguments)


def _usual_options(name: str, known: Any) -> Iterator[dict[str, Any]]:
    """The choices that users make, where the constructor has them."""
    default = {key: parameter.default for key, parameter in known.items()}
    for spacing in ("leading", "trailing", "linspace"):
        if default.get("timestep_spacing", spacing) != spacing:
            yield {"timestep_spacing": spacing}
    for sigmas in ("karras", "exponential", "beta", "lu_lambdas"):
        key = f"use_{sigmas}" if sigmas == "lu_lambdas" else f"use_{sigmas}_sigmas"
        if key in known:
            yield {key: True}
    if "use_flow_sigmas" in known:
        yield {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for key in ("solver_order", "predictor_order"):
        for order in (1, 2, 3):
            if default.get(key, order) != order:
                yield {key: order}
    yield from _more_options(name, known, default)
    if "prediction_type" in known and name not in ("SCMScheduler", "UnCLIPScheduler"):
        yield {"prediction_type": "v_prediction"}
    if "rescale_betas_zero_snr" in known and "timestep_spacing" in known:
        yield {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


def _more_options(name: str, known: Any, default: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choices: dict[str, tuple[Any, ...]] = {
        "final_sigmas_type": ("sigma_min",),
        "set_alpha_to_one": (not default.get("set_alpha_to_one", True),),
        "skip_prk_steps": (True,),
        "euler_at_final": (True,),
        "lower_order_final": (not default.get("lower_order_final", True),),
        "solver_type": ("heun",) if "DPMSolver" in name else (),
        "algorithm_type": ("sde-dpmsolver++", "dpmsolver") if "DPMSolver" in name and "EDM" not in name else (),
        "variance_type": ("fixed_large",) if "DDPM" in name else (),
        "timestep_type": ("continuous",) if name == "EulerDiscreteScheduler" else (),
        "interpolation_type": ("log_linear",) if name == "EulerDiscreteScheduler" else (),
        "sigma_schedule": ("exponential",),
        "stochastic_sampling": (True,),
        "shift": (3.0,) if "FlowMatch" in name else (),
        "predictor": ("ode_euler", "ode_heun", "ancestral", *(("euler_maruyama",) if "sde" in known else ())),
        "continuous": (True,),
        "inner_steps": (4,),
        "subsequence": ("exp", "quadratic"),
    }
    for key, values in choices.items():
        for value in values if key in known else ():
            # The first DPM-Solver divides by the last sigma.
            yield {key: value, **({"final_sigmas_type": "sigma_min"} if value == "dpmsolver" else {})}
    if "sde" in known:
        yield {"predictor": "ode_heun", "continuous": True}
        yield {"predictor": "ode_heun", "continuous": True, "sde": "ve", "sigma_max": 50.0}
    if "DDIM" in name:
        yield {"eta": 1.0}
