"""The scheduler of a run: the noise path that it is trained on, and the sampler of previews and of the pipeline."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ...files import one_line
from ...models import ToyUNet2DModel
from ...schedulers import (
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)
from ...schedulers.registry import OPTIONS, build_sampler
from ...schedulers.schedules import PATHS_WITHOUT_BETAS, RECTIFIED_FLOW
from ...schedulers.tensors import previous_sample
from ..arguments import TrainingArguments, json_option

NEARLY_ALL = 0.9  # of the noise levels, that sampling has to begin with


def make_scheduler(args: TrainingArguments, model: Any, bounded: bool = True) -> Any:
    """The scheduler of previews, of measured samples and of the saved pipeline.

    Args:
        model: the network.
        bounded: whether all data lie in [-1, 1], so that the predicted x0 may be clipped to it.

    Raises:
        ValueError: for a sampler or a subsequence that there is not on a rectified flow.
    """
    if isinstance(model, ToyUNet2DModel):
        return MixScheduler()
    scheduler = path_scheduler(args, bounded)
    # The path's scheduler has the variance already.
    options = {name: getattr(args, name) for name in OPTIONS if name != "variance_type"}
    options["subsequence"] = None if args.subsequence == "uniform" else args.subsequence
    if args.sampler in ("ddpm", "ddim") and set(options.values()) == {None}:
        return scheduler
    return build_sampler(args.sampler, scheduler.config, **options)


def path_scheduler(args: TrainingArguments, bounded: bool = True) -> Any:
    """A scheduler of this package on the noise path that the settings describe."""
    options = json_option("schedule_options", args.schedule_options) or None
    if args.noise_schedule in PATHS_WITHOUT_BETAS:
        if options is not None or args.rescale_betas_zero_snr:
            raise ValueError(
                f"schedule '{args.noise_schedule}' takes no schedule_options and no rescale_betas_zero_snr."
            )
        return _continuous_scheduler(args, bounded)
    scheduler_class: Any = partial(AncestralDDPMScheduler, variance_type=args.variance_type)
    if args.sampler != "ddpm":
        # Of the other samplers, only DDIM itself visits a subsequence.
        subsequence = args.subsequence if args.sampler == "ddim" else "uniform"
        scheduler_class = partial(SubsequenceDDIMScheduler, subsequence=subsequence)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This noise path")  # the diagnostics say it
        return scheduler_class(
            num_train_timesteps=args.ddpm_num_steps,
            beta_start=args.beta_start,
            beta_end=args.beta_end,
            beta_schedule=args.noise_schedule,
            schedule_options=options,
            rescale_betas_zero_snr=args.rescale_betas_zero_snr,
            prediction_type=args.prediction_type,
            # A clamped x0 beside an unclamped epsilon leaves the probability flow, so that more steps change the image.
            # Latents and standardised signals have no bounds.
            clip_sample=bounded and args.sampler == "ddpm" and args.vae is None,
            # Sampling has to begin where the path ends, at T-1: fewer steps than T would otherwise start too low.
            timestep_spacing="trailing",
        )


def _continuous_scheduler(args: TrainingArguments, bounded: bool) -> FlowMatchScheduler | ScoreSDEScheduler:
    """In continuous time, `ddim` is Euler's method on the probability flow, and `ddpm` draws from the posterior.

    The network's time is t * ddpm_num_steps.
    """
    schedule, steps, ancestral = args.noise_schedule, args.ddpm_num_steps, args.sampler == "ddpm"
    if args.subsequence != "uniform":
        raise ValueError(f"On schedule '{schedule}' the subsequence must be uniform, got '{args.subsequence}'.")
    shared: dict[str, Any] = {
        "num_train_timesteps": steps,
        "prediction_type": args.prediction_type,
        "clip_sample": bounded and ancestral and args.vae is None,
        "predictor": "ancestral" if ancestral else "ode_euler",
    }
    if schedule == RECTIFIED_FLOW:
        return FlowMatchScheduler(**shared)
    return ScoreSDEScheduler(
        sde=schedule,
        continuous=True,
        timestep_scale=steps,
        sampling_eps=1 / steps,
        # Noise of standard deviation up to 50 would drown the time embedding of an ordinary U-Net.
        scale_input=schedule == "ve",
        **shared,
    )


def check_sampling(args: TrainingArguments, scheduler: Any, output_channels: int) -> None:
    """Choose the times of a preview and take a first step, to fail now rather than in the middle of a run.

    Args:
        scheduler: of the pipeline.
        output_channels: of the network, for each channel of a sample.

    Raises:
        ValueError: for a number of steps, a schedule or a prediction type that the scheduler can't take.
    """
    if isinstance(scheduler, MixScheduler):
        return
    sample, levels = torch.zeros(1, 1, 2, 2), args.ddpm_num_steps
    count = min(args.ddpm_num_inference_steps, levels)
    try:
        scheduler.set_timesteps(count)
        with torch.random.fork_rng(devices=[]):
            output = sample.repeat(1, output_channels, 1, 1)
            stepped = previous_sample(scheduler.step(output, scheduler.timesteps[0], sample))
        start = torch.as_tensor(getattr(scheduler, "init_noise_sigma", 1.0))
        if not (start.isfinite() and stepped.isfinite().all()):
            raise ValueError("its first step is not finite")
        if isinstance(scheduler, DDPMScheduler | DDIMScheduler) and count * (levels // count) < NEARLY_ALL * levels:
            # Their "leading" times are multiples of the stride.
            raise ValueError(f"it would begin far below the noise; take a number that divides {levels}")
    except (ValueError, NotImplementedError, IndexError) as error:
        raise ValueError(
            f"sampler '{args.sampler}' can't preview in ddpm_num_inference_steps {args.ddpm_num_inference_steps} with "
            f"prediction_type '{args.prediction_type}': {one_line(error).rstrip('.')}."
        ) from error
