"""Samplers by name: what `--sampler` and `--samplers` take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers

from ..schedulers import (
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    GuidedLangevinScheduler,
    SubsequenceDDIMScheduler,
)
from .schedules import RECTIFIED_FLOW

Build = Callable[..., Any]


def _known_to(scheduler: Any, config: Any) -> dict[str, Any]:
    """Without keys of another scheduler's own, of which diffusers would warn whenever this one is made or loaded."""
    known = inspect.signature(scheduler).parameters
    return {key: config[key] for key in config if key in known or key.startswith("_")}


def _ddim(**options: Any) -> Build:
    def build(config: Any, subsequence: str = "uniform", inner_steps: int | None = None) -> Any:
        return SubsequenceDDIMScheduler.from_config(
            _known_to(SubsequenceDDIMScheduler, config), subsequence=subsequence, **options
        )

    return build


def _langevin(rule: str, default_inner_steps: int) -> Build:
    def build(config: Any, subsequence: str = "uniform", inner_steps: int | None = None) -> Any:
        # Its own default and not the configuration's: a bounded x0 is no longer the gradient of a density.
        return GuidedLangevinScheduler.from_config(
            _known_to(GuidedLangevinScheduler, config),
            rule=rule,
            inner_steps=inner_steps or default_inner_steps,
            clip_sample=False,
        )

    return build


def _plain(scheduler: Any) -> Build:
    return lambda config, subsequence="uniform", inner_steps=None: scheduler.from_config(_known_to(scheduler, config))


def _flow(predictor: str) -> Callable[[Any], Any]:
    def build(config: Any) -> Any:
        return FlowMatchScheduler.from_config(config, predictor=predictor)

    return build


def _flow_of_diffusers(scheduler: Any) -> Callable[[Any], Any]:
    def build(config: Any) -> Any:
        if config.get("prediction_type", "flow") != "flow":
            raise ValueError(f"{scheduler.__name__} takes prediction_type 'flow', got '{config['prediction_type']}'.")
        steps = config["num_train_timesteps"]
        return scheduler(num_train_timesteps=steps, use_flow_sigmas=True, prediction_type="flow_prediction")

    return build


# name -> scheduler for (configuration, subsequence, inner steps); the latter two matter to those that have them.
SAMPLERS: dict[str, Build] = {
    "ddim": _ddim(),
    "ddim-original": _ddim(original_targets=True),
    "ddpm": _plain(AncestralDDPMScheduler),
    "dpmsolver++": _plain(diffusers.DPMSolverMultistepScheduler),
    "unipc": _plain(diffusers.UniPCMultistepScheduler),
    "heun": _plain(diffusers.HeunDiscreteScheduler),
    "langevin": _langevin("langevin", 4),
    "langevin-original": _langevin("original", 1),
    "reverse-sde": _langevin("reverse_sde", 1),
}
# What of these there is on a rectified flow.
FLOW_SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "ddim": _flow("ode_euler"),
    "ddpm": _flow("ancestral"),
    "heun": _flow("ode_heun"),
    "dpmsolver++": _flow_of_diffusers(diffusers.DPMSolverMultistepScheduler),
    "unipc": _flow_of_diffusers(diffusers.UniPCMultistepScheduler),
}
TAKES_SUBSEQUENCE = ("ddim", "ddim-original")
TAKES_INNER_STEPS = ("langevin", "langevin-original", "reverse-sde")


def check_subsequence(sampler: str | None, subsequence: str) -> None:
    """Raise ValueError where a subsequence is asked for and the sampler asked for, or none, visits one."""
    if subsequence != "uniform" and (sampler or "").split(":")[0] not in TAKES_SUBSEQUENCE:
        raise ValueError(f"subsequence '{subsequence}' needs --sampler {' or '.join(TAKES_SUBSEQUENCE)}.")


def build_sampler(name: str, config: Any, subsequence: str = "uniform", inner_steps: int | None = None) -> Any:
    """The scheduler of a name in `SAMPLERS`, on the noise path of the scheduler whose configuration this is.

    Raises:
        ValueError: for a name, a subsequence or a prediction type that there is not on a rectified flow.
    """
    # diffusers' flow-matching schedulers know one path, and name none.
    if config.get("beta_schedule") != RECTIFIED_FLOW and not ("shift" in config and "beta_schedule" not in config):
        return SAMPLERS[name](config, subsequence, inner_steps)
    if name not in FLOW_SAMPLERS:
        raise ValueError(f"On a rectified flow the sampler must be one of {', '.join(FLOW_SAMPLERS)}, got '{name}'.")
    if subsequence != "uniform":
        raise ValueError(f"On a rectified flow the subsequence must be uniform, got '{subsequence}'.")
    return FLOW_SAMPLERS[name](config)


@dataclass(frozen=True)
class SamplerChoice:
    """One entry of `--samplers`: NAME, NAME:LENGTH or NAME:LENGTHxK.

    Attributes:
        name: in `SAMPLERS`.
        length: number of steps, or None where the command's own lengths hold.
        inner_steps: network calls a step, or None for the sampler's own.
    """

    name: str
    length: int | None = None
    inner_steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> SamplerChoice:
        """Raises ValueError, in one sentence, for what is no such entry."""
        found = re.fullmatch(r"([^:]+)(?::(\d+)(?:x(\d+))?)?", text)
        name = found.group(1) if found else text
        if name not in SAMPLERS:
            raise ValueError(f"samplers takes names among {', '.join(SAMPLERS)}, got '{name}'.")
        assert found is not None
        length, inner_steps = (int(number) if number is not None else None for number in found.groups()[1:])
        for number, what in ((length, "LENGTH"), (inner_steps, "K")):
            if number is not None and number < 1:
                raise ValueError(f"samplers takes NAME:LENGTHxK with {what} at least 1, got '{text}'.")
        if inner_steps is not None and name not in TAKES_INNER_STEPS:
            raise ValueError(
                f"samplers takes a number of inner steps for {', '.join(TAKES_INNER_STEPS)}, got '{text}'."
            )
        return cls(name, length, inner_steps)

    @property
    def label(self) -> str:
        """The name, with the number of inner steps where one was given."""
        return self.name if self.inner_steps is None else f"{self.name} x{self.inner_steps}"

    def build(self, config: Any, subsequence: str = "uniform") -> Any:
        """The scheduler, on the noise path of the scheduler whose configuration this is."""
        return build_sampler(self.name, config, subsequence, self.inner_steps)
