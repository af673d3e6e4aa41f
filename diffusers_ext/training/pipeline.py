"""A pipeline around a trained network: diffusers' own where that samples what was trained, else this package's."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..pipelines import GenerationPipeline
from ..schedulers import AncestralDDPMScheduler, FlowMatchScheduler, SubsequenceDDIMScheduler
from ..schedulers.schedules import RECTIFIED_FLOW

# What diffusers' own DDPMPipeline can run; other predictions need our schedulers.
DIFFUSERS_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def _diffusers_can_sample(scheduler: Any) -> bool:
    """Whether DDPMPipeline or DDIMPipeline, or Euler's method on a flow, does what the scheduler does."""
    config = scheduler.config
    if isinstance(scheduler, FlowMatchScheduler):
        return config.predictor in ("ode_euler", "ancestral")
    if isinstance(scheduler, SubsequenceDDIMScheduler):
        return config.subsequence == "uniform" and not config.original_targets
    return isinstance(scheduler, AncestralDDPMScheduler)


def make_pipeline(model: Any, scheduler: Any, vae: Any = None) -> DiffusionPipeline:
    """A pipeline around the network: diffusers' own, without a trace of this package, when the network is diffusers'.

    With a vae it is a `GenerationPipeline`: of diffusers' own latent pipelines, none applies an autoencoder's shift.

    Raises:
        ValueError: when diffusers has no pipeline for the sampler, or no scheduler for the prediction type, of a
            diffusers network.
    """
    if not isinstance(model, UNet2DModel) or vae is not None:
        return GenerationPipeline(model, scheduler, vae=vae)
    if not _diffusers_can_sample(scheduler):
        raise ValueError(
            "diffusers' own pipelines sample by ddpm or ddim at uniform times; with a UNet2DModel choose one of these."
        )
    is_flow = scheduler.config.beta_schedule == RECTIFIED_FLOW
    able = ("flow",) if is_flow else DIFFUSERS_PREDICTION_TYPES
    if scheduler.config.prediction_type not in able:
        raise ValueError(
            f"diffusers' own pipeline can't sample prediction_type '{scheduler.config.prediction_type}' on schedule "
            f"'{scheduler.config.beta_schedule}'; with a UNet2DModel choose {' or '.join(able)}."
        )
    pipeline_class: Any = DDIMPipeline if isinstance(scheduler, SubsequenceDDIMScheduler) else DDPMPipeline
    config: Any = model.config  # type: ignore[attr-defined]
    if config.out_channels != config.in_channels and pipeline_class is DDIMPipeline:
        raise ValueError("diffusers' DDIMPipeline can't sample a network with a learned variance; choose sampler ddpm.")
    if is_flow:
        return pipeline_class(model, FlowMatchEulerDiscreteScheduler(scheduler.config.num_train_timesteps))
    # Its schedulers compute the time a step goes to from a stride, which is right with "leading" spacing only.
    theirs = DDIMScheduler if pipeline_class is DDIMPipeline else DDPMScheduler
    known = inspect.signature(theirs).parameters
    config = {key: value for key, value in scheduler.config.items() if key in known}
    return pipeline_class(model, theirs(**{**config, "timestep_spacing": "leading"}))
