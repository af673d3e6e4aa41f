"""Samplers by name: what `--sampler` and `--samplers` take, and the options of each.

A new sampler is one entry of `SAMPLERS`: a scheduler for each kind of noise path that it can follow, with the settings
that make it this sampler, and the options that a user may give.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import diffusers

from .named_objects import load_object
from .noise_path import NoisePath
from .schedules import PATHS_WITHOUT_BETAS, RECTIFIED_FLOW
from .scheduling_ancestral import GAMMAS, VARIANCE_TYPES, AncestralDDPMScheduler
from .scheduling_flow_map import FlowMapScheduler
from .scheduling_flow_match import FlowMatchScheduler
from .scheduling_langevin import GuidedLangevinScheduler
from .scheduling_score_sde import ScoreSDEScheduler
from .scheduling_subsequence import SUBSEQUENCES, SubsequenceDDIMScheduler

# Kinds of noise path.
BETAS, SDE, FLOW = "betas", "sde", "flow"

# diffusers' solvers multiply the network's error by sigma / alpha: they start where it is at most this, e^5.1, the
# limit that DPM-Solver's authors give for the cosine schedule (https://github.com/LuChengTHU/dpm-solver).
HIGHEST_SIGMA = 164.0


@dataclass(frozen=True)
class SamplerOption:
    """An option that some samplers take.

    Attributes:
        kind: type of the value, as a command line reads it.
        help: what it does, for the command line.
        choices: the only values, if there are such.
        at_least, above, at_most: bounds of a number.
    """

    kind: type
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    @property
    def declared(self) -> dict[str, Any]:
        """Choices and bounds that there are, by their names."""
        values = {name: getattr(self, name) for name in ("choices", "at_least", "above", "at_most")}
        return {name: value for name, value in values.items() if value not in (None, ())}


OPTIONS: dict[str, SamplerOption] = {
    "subsequence": SamplerOption(str, "Which timesteps are visited.", SUBSEQUENCES),
    "eta": SamplerOption(
        float,
        "Share of DDPM's noise that DDIM adds: 0 is deterministic.",
        at_least=0,
        at_most=1,
    ),
    "gamma": SamplerOption(
        str,
        "Factor on the standard deviation of the added noise: a number, exponential_decay or sigmoid_decay.",
    ),
    "variance_type": SamplerOption(str, "Variance of the added noise.", VARIANCE_TYPES),
    "clip_sample": SamplerOption(bool, "Clamp the predicted clean image to the range of the data."),
    "inner_steps": SamplerOption(
        int,
        "Network calls at each noise level for Langevin or corrector steps.",
        at_least=1,
    ),
    "snr": SamplerOption(float, "Signal-to-noise ratio of a Langevin or corrector step.", above=0),
}


@dataclass(frozen=True)
class Sampler:
    """A sampler by name.

    Attributes:
        schedulers: kind of path -> (scheduler class, settings).
        options: names in `OPTIONS` -> the scheduler's setting.
        defaults: options -> values that hold where the user gives none.
    """

    schedulers: Mapping[str, tuple[Any, Mapping[str, Any]]]
    options: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _predictor(name: str, flow: bool = False) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """The paths of a predictor of `PredictorCorrectorScheduler`."""
    found: dict[str, tuple[Any, Mapping[str, Any]]] = {
        kind: (ScoreSDEScheduler, {"predictor": name}) for kind in (BETAS, SDE)
    }
    return {**found, FLOW: (FlowMatchScheduler, {"predictor": name})} if flow else found


def _langevin(rule: str, inner_steps: int) -> Sampler:
    # clip_sample is off whatever the configuration says: a bounded x0 no longer gives the gradient of a density.
    settings = {"rule": rule, "clip_sample": False}
    return Sampler(
        {BETAS: (GuidedLangevinScheduler, settings)}, _same("inner_steps", "snr"), {"inner_steps": inner_steps}
    )


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(
        {**_predictor("ode_euler", flow=True), BETAS: (SubsequenceDDIMScheduler, {})},
        _same("subsequence", "eta", "clip_sample"),
        {"subsequence": "uniform"},
    ),
    "ddim-original": Sampler(
        {BETAS: (SubsequenceDDIMScheduler, {"original_targets": True})},
        _same("subsequence", "eta", "clip_sample"),
        {"subsequence": "uniform"},
    ),
    "ddpm": Sampler(
        {**_predictor("ancestral", flow=True), BETAS: (AncestralDDPMScheduler, {})},
        _same("gamma", "variance_type", "clip_sample"),
    ),
    "ode-euler": Sampler(_predictor("ode_euler", flow=True), _same("clip_sample")),
    "ode-heun": Sampler(_predictor("ode_heun", flow=True), _same("clip_sample")),
    "reverse-diffusion": Sampler(_predictor("reverse_diffusion"), _same("clip_sample")),
    "euler-maruyama": Sampler(_predictor("euler_maruyama"), _same("clip_sample")),
    "predictor-corrector": Sampler(
        _predictor("reverse_diffusion"),
        {"inner_steps": "corrector_steps", **_same("snr", "clip_sample")},
        {"inner_steps": 1},
    ),
    "langevin": _langevin("langevin", 4),
    "langevin-original": _langevin("original", 1),
    "reverse-sde": _langevin("reverse_sde", 1),
    "flow-map": Sampler({FLOW: (FlowMapScheduler, {"clip_sample": False})}),
    "dpmsolver++": Sampler(
        {
            BETAS: (diffusers.DPMSolverMultistepScheduler, {}),
            FLOW: (diffusers.DPMSolverMultistepScheduler, {"use_flow_sigmas": True}),
        }
    ),
    "unipc": Sampler(
        {
            BETAS: (diffusers.UniPCMultistepScheduler, {}),
            FLOW: (diffusers.UniPCMultistepScheduler, {"use_flow_sigmas": True}),
        }
    ),
    "heun": Sampler(
        {
            BETAS: (diffusers.HeunDiscreteScheduler, {}),
            SDE: (ScoreSDEScheduler, {"predictor": "ode_heun"}),
            FLOW: (FlowMatchScheduler, {"predictor": "ode_heun"}),
        }
    ),
}

# Options of a scheduler that a kind of path can't have.
_ONLY_ON_BETAS = ("subsequence", "eta", "gamma", "variance_type")


def samplers_with(option: str) -> tuple[str, ...]:
    """The names of the samplers that take an option."""
    return tuple(name for name, sampler in SAMPLERS.items() if option in sampler.options)


def samplers_on(kind: str) -> tuple[str, ...]:
    """The names of the samplers for a kind of path: `BETAS`, `SDE` or `FLOW`."""
    return tuple(name for name, sampler in SAMPLERS.items() if kind in sampler.schedulers)


def path_kind(config: Mapping[str, Any]) -> str:
    """The kind of noise path that a scheduler's configuration means.

    Raises:
        ValueError: for a path that no sampler of this package follows.
    """
    schedule = config.get("beta_schedule")
    # diffusers' flow-matching schedulers know one path, and name none.
    if schedule == RECTIFIED_FLOW or (schedule is None and "shift" in config):
        return FLOW
    if schedule in PATHS_WITHOUT_BETAS or str(schedule).startswith("sub_vp("):
        return SDE
    if schedule is None and "num_train_timesteps" not in config:
        raise ValueError(f"This configuration names no noise path: {sorted(config)}.")
    return BETAS


def build_sampler(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """The scheduler of a sampler, on the noise path of the scheduler whose configuration this is.

    Args:
        name: in `SAMPLERS`, or a scheduler class of the user's as `package.module:Class` or `path/to/file.py:Class`.
        config: of any scheduler on the network's noise path.
        options: names in `OPTIONS`; None means not given.

    Raises:
        ValueError: one sentence on a name, on an option that the sampler does not take or a value out of its range, or
            on a noise path or prediction type that it can't follow.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if "gamma" in given:
        given["gamma"] = _checked_gamma(given["gamma"])
    if ":" in name:
        return _users_sampler(name, config, given)
    check_options(name, given)
    sampler, kind = SAMPLERS[name], path_kind(config)
    if kind not in sampler.schedulers:
        where = "a rectified flow" if kind == FLOW else f"the noise path '{config['beta_schedule']}'"
        raise ValueError(f"On {where} the sampler must be one of {', '.join(samplers_on(kind))}, got '{name}'.")
    _check_options_on(kind, name, given)
    scheduler, settings = sampler.schedulers[kind]
    chosen = {**sampler.defaults, **given}
    settings = {**settings, **{sampler.options[key]: value for key, value in chosen.items()}}
    if kind != BETAS:
        settings = {key: value for key, value in settings.items() if key not in _ONLY_ON_BETAS}
    if scheduler.__module__.startswith("diffusers."):
        return _of_diffusers(scheduler, kind, config, settings)
    return scheduler.from_config(_known_to(scheduler, config), **settings)


def check_options(name: str | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown sampler, an option it does not take, or a value out of its range.

    Args:
        name: of a sampler; None, where the saved sampler is kept, takes no options.
        options: name -> value; None means not given.
    """
    if name is not None and ":" in name:
        return
    if name is not None and name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)} or module:Class, got '{name}'.")
    for key, value in options.items():
        if value is None:
            continue
        if name is None or key not in SAMPLERS[name].options:
            whose = "the saved sampler" if name is None else f"sampler '{name}'"
            raise ValueError(
                f"{key} has no effect on {whose}; it belongs to the samplers {', '.join(samplers_with(key))}."
            )
        _check_value(key, value)


def _check_value(key: str, value: Any) -> None:
    option = OPTIONS[key]
    if option.choices and value not in option.choices:
        raise ValueError(f"{key} must be one of {', '.join(option.choices)}, got {value!r}.")
    if key == "gamma":
        _checked_gamma(value)
    elif option.kind in (int, float):
        _check_number(key, option, value)


def _check_number(key: str, option: SamplerOption, value: Any) -> None:
    least, above, most = option.at_least, option.above, option.at_most
    every = (("at least", operator.ge, least), ("above", operator.gt, above), ("at most", operator.le, most))
    bounds = [(word, fits, bound) for word, fits, bound in every if bound is not None]
    is_number = isinstance(value, Integral if option.kind is int else Real) and not isinstance(value, bool)
    if not is_number or not all(fits(value, bound) for _, fits, bound in bounds):
        words = " and ".join(f"{word} {bound}" for word, _, bound in bounds)
        raise ValueError(f"{key} must be {words}, got {value!r}.")


def _checked_gamma(value: Any) -> float | str:
    """gamma as the scheduler takes it; a command line gives numbers as text. Raises ValueError for other values."""
    if value in GAMMAS:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not number >= 0:
        raise ValueError(f"gamma must be a number of at least 0, {' or '.join(GAMMAS)}, got {value!r}.")
    return number


def _check_options_on(kind: str, name: str, given: Mapping[str, Any]) -> None:
    lost = [key for key in given if kind != BETAS and key in _ONLY_ON_BETAS]
    if lost == ["subsequence"] and given["subsequence"] == "uniform":
        return
    if lost:
        where = "a rectified flow" if kind == FLOW else "a path in continuous time"
        raise ValueError(f"On {where}, sampler '{name}' takes no {', '.join(lost)}.")


def _known_to(scheduler: Any, config: Mapping[str, Any]) -> Any:
    """Without the keys that only another scheduler has: diffusers would warn of them whenever this one is loaded."""
    known = inspect.signature(scheduler).parameters
    kept = {key: config[key] for key in config if key in known or key.startswith("_")}
    return {**kept, "beta_schedule": config["beta_schedule"]} if "beta_schedule" in config else kept


def _of_diffusers(scheduler: Any, kind: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers: on a rectified flow by its own settings, else on the path up to `HIGHEST_SIGMA`."""
    if kind == FLOW:
        if config.get("prediction_type", "flow") not in ("flow", "flow_prediction"):
            raise ValueError(f"{scheduler.__name__} takes prediction_type 'flow', got '{config['prediction_type']}'.")
        steps, shift = config["num_train_timesteps"], config.get("shift", 1.0)
        return scheduler(num_train_timesteps=steps, prediction_type="flow_prediction", flow_shift=shift, **settings)
    if config.get("prediction_type", "epsilon") not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"{scheduler.__name__} of diffusers takes prediction_type epsilon, sample or v_prediction, got "
            f"'{config['prediction_type']}'; choose one of {', '.join(_own_samplers())}."
        )
    return scheduler.from_config({**_known_to(scheduler, config), **_beginning(config)}, **settings)


def _beginning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the path's times with sigma / alpha up to `HIGHEST_SIGMA`, if there are others."""
    path = NoisePath.from_config(config)
    kept = int((path.sigmas <= HIGHEST_SIGMA * path.alphas).sum())
    if kept == len(path):
        return {}
    return {
        "num_train_timesteps": kept,
        "trained_betas": path.betas[:kept].tolist(),
        "rescale_betas_zero_snr": False,
    }


def _own_samplers() -> list[str]:
    classes = {name: SAMPLERS[name].schedulers[BETAS][0] for name in samplers_on(BETAS)}
    return [name for name, scheduler in classes.items() if not scheduler.__module__.startswith("diffusers.")]


def _users_sampler(name: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A scheduler class of the user's, made from the configuration and the options."""
    scheduler = load_object(name, "sampler")
    if not all(callable(getattr(scheduler, method, None)) for method in ("from_config", "set_timesteps", "step")):
        raise ValueError(
            f"'{name}' is not a scheduler: it needs from_config, set_timesteps and step. Derive it from SchedulerMixin "
            "and ConfigMixin of diffusers, with @register_to_config on __init__."
        )
    known = inspect.signature(scheduler).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"'{name}' takes no {', '.join(unknown)}.")
    return scheduler.from_config(_known_to(scheduler, config), **options)


@dataclass(frozen=True)
class SamplerChoice:
    """One entry of `--samplers`: NAME, NAME:LENGTH or NAME:LENGTHxK.

    Attributes:
        name: in `SAMPLERS`, or `module:Class`.
        length: number of steps, or None where the command's own lengths hold.
        inner_steps: network calls per step, or None for the sampler's own.
        options: pairs of a name in `OPTIONS` and its value.
    """

    name: str
    length: int | None = None
    inner_steps: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> SamplerChoice:
        """Raises ValueError, in one sentence, for any other text."""
        found = re.fullmatch(r"(.+?)(?::(\d+)(?:x(\d+))?)?", text)
        name = found.group(1) if found else text
        if found is None or (name not in SAMPLERS and not re.fullmatch(r"[\w./\\-]+:[A-Za-z_]\w*", name)):
            raise ValueError(f"samplers takes names among {', '.join(SAMPLERS)}, got '{name.split(':')[0]}'.")
        length, inner_steps = (int(number) if number is not None else None for number in found.groups()[1:])
        for number, what in ((length, "LENGTH"), (inner_steps, "K")):
            if number is not None and number < 1:
                raise ValueError(f"samplers takes NAME:LENGTHxK with {what} at least 1, got '{text}'.")
        if inner_steps is not None and name not in samplers_with("inner_steps"):
            raise ValueError(
                f"samplers takes a number of inner steps for {', '.join(samplers_with('inner_steps'))}, got '{text}'."
            )
        return cls(name, length, inner_steps)

    def with_options(self, options: Mapping[str, Any]) -> SamplerChoice:
        """This choice with those of the options that its sampler takes; its own K takes the place of `inner_steps`."""
        known = SAMPLERS[self.name].options if self.name in SAMPLERS else options
        taken = {key: value for key, value in options.items() if key in known}
        inner_steps = self.inner_steps or taken.get("inner_steps")
        return replace(self, inner_steps=inner_steps, options=tuple(taken.items()))

    @property
    def label(self) -> str:
        """The name, with the number of inner steps where one was given."""
        return self.name if self.inner_steps is None else f"{self.name} x{self.inner_steps}"

    def build(self, config: Any, **options: Any) -> Any:
        """The scheduler, on the noise path of the scheduler whose configuration this is; options as `build_sampler`."""
        options = {**dict(self.options), **options}
        if self.inner_steps is not None:
            options["inner_steps"] = self.inner_steps
        return build_sampler(self.name, config, **options)
