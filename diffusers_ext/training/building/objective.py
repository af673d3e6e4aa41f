"""The objective of a run by its settings."""

from __future__ import annotations

import warnings
from typing import Any

from ...models import ToyUNet2DModel
from ...objectives.adversarial import AdversarialAutoencoderObjective
from ...objectives.autoencoder import AutoencoderObjective
from ...objectives.diffusion import DiffusionObjective, ImportanceSampledObjective, MixObjective, Objective
from ...objectives.learned_variance import LearnedVarianceObjective
from ...objectives.registry import DIFFUSION, OBJECTIVES, declared
from ...objectives.timestep_sampling import ImportanceSampler, TimestepSampler
from ...objectives.weighting import Weighting
from ..arguments import LEARNED_RANGE, TrainingArguments
from .scheduler import path_scheduler

# Variants of the diffusion objective, by the settings that ask for them.
_VARIANTS: dict[tuple[str, str], type[DiffusionObjective]] = {
    ("timestep_sampling", "importance"): ImportanceSampledObjective,
    ("variance_type", LEARNED_RANGE): LearnedVarianceObjective,
}


def make_objective(args: TrainingArguments, model: Any) -> Objective:
    """The loss that the settings ask for; the toy network without time has one of its own.

    Raises:
        ValueError: one sentence on settings that contradict one another.
    """
    if args.task == "autoencoder":
        return _autoencoder_objective(args, model)
    if isinstance(model, ToyUNet2DModel):
        if args.vae is not None:
            raise ValueError("The toy network mixes images with noise in [0, 1], where latents are not; leave vae out.")
        if args.prediction_type != "sample" and "prediction_type" in args.given:
            raise ValueError(f"The toy network predicts 'sample', not '{args.prediction_type}'.")
        return MixObjective(args.loss, args.toy_amounts)
    asked = [key for key in _VARIANTS if getattr(args, key[0]) == key[1]]
    if args.objective != DIFFUSION:
        if asked:
            raise ValueError(f"{' '.join(asked[0])} belongs to the objective {DIFFUSION}, not to {args.objective}.")
        settings = {setting: getattr(args, setting) for setting in declared(args.objective, "settings")}
        objective: Objective = OBJECTIVES[args.objective](
            path_scheduler(args).path, sampler=_timestep_sampler(args), **settings
        )
        return objective
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(' '.join(key) for key in asked)} can't be combined; choose one of them.")
    return _diffusion_objective(args, _VARIANTS[asked[0]] if asked else DiffusionObjective)


def _diffusion_objective(args: TrainingArguments, variant: type[DiffusionObjective]) -> DiffusionObjective:
    if args.prediction_type == "mean":
        warnings.warn(
            "prediction_type 'mean' is hard to learn: the network must output nearly its input, to a precision of "
            "beta. Use epsilon or v_prediction unless a source's weights need it.",
            stacklevel=3,
        )
    weighting = Weighting(
        args.weighting, args.min_snr_gamma, args.p2_gamma, args.p2_k, args.sigmoid_bias, args.edm_sigma_data
    )
    sampler, path = _timestep_sampler(args), path_scheduler(args).path
    objective = variant(path, args.prediction_type, args.loss, weighting, sampler, args.dequantize)
    objective.bounded = args.vae is None
    return objective


def _autoencoder_objective(args: TrainingArguments, model: Any) -> AutoencoderObjective:
    if not args.adversarial_weight:
        return AutoencoderObjective(args.loss, args.kl_weight)
    weight, start, channels = args.adversarial_weight, args.adversarial_start, model.vae.config.in_channels
    return AdversarialAutoencoderObjective(args.loss, args.kl_weight, weight, start, channels, args.seed)


def _timestep_sampler(args: TrainingArguments) -> TimestepSampler:
    if args.timestep_sampling == "importance":
        return ImportanceSampler(args.ddpm_num_steps)
    return TimestepSampler(args.timestep_sampling, args.ddpm_num_steps, args.logit_normal_mean, args.logit_normal_std)
