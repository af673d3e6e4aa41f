"""From settings to the parts of a run: network, noise path, objective, scheduler, pipeline."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..conditions import CONDITIONS
from ..models import PRESETS, ToyUNet2DModel, build_model
from ..objectives.diffusion import DiffusionObjective, ImportanceSampledObjective, MixObjective, Objective
from ..objectives.learned_variance import LearnedVarianceObjective
from ..objectives.registry import DIFFUSION, OBJECTIVES, declared
from ..objectives.timestep_sampling import ImportanceSampler, TimestepSampler
from ..objectives.weighting import Weighting
from ..pipelines import GenerationPipeline
from ..schedulers import (
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)
from ..schedulers.named_objects import is_name_of_object, load_object
from ..schedulers.registry import OPTIONS, build_sampler
from ..schedulers.schedules import PATHS_WITHOUT_BETAS, RECTIFIED_FLOW
from .arguments import LEARNED_RANGE, TrainingArguments, json_option
from .muon import Muon

NEARLY_ALL = 0.9  # of the noise levels, that a walk has to begin with

# What diffusers' own DDPMPipeline can run; other predictions need our schedulers.
DIFFUSERS_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# The network of diffusers' unconditional example.
_UNET2D_CONFIG: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}


def make_model(
    arguments: TrainingArguments,
    channels: int,
    resolution: int,
    condition: Mapping[str, Any] | None = None,
    dims: int = 2,
) -> Any:
    """The freshly initialised network for samples of `channels` at `resolution`, with or without a condition.

    `condition` holds the entries of the network's configuration that its condition and the objective need. `dims` is
    the number of sizes of a sample: 2 for images, whose side is `resolution`, 1 for signals, whose length it is.

    Raises:
        ValueError, FileNotFoundError: one sentence on a name, file or option that does not fit.
    """
    torch.manual_seed(arguments.seed)
    condition = condition or {}
    options = _combined(condition, json_option("model_options", arguments.model_options))
    outputs = output_channels(arguments, channels)
    shape = {"in_channels": channels, "out_channels": outputs, "sample_size": resolution}
    if is_name_of_object(arguments.model) and arguments.model_config_name_or_path is None:
        return _own_model(arguments.model, shape, condition, options)
    if arguments.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(arguments.model_config_name_or_path)
        model = _from_config({"_class_name": "UNet2DModel", **config}, {"sample_size": resolution, **options})
    elif arguments.model == "unet2d":
        model = _from_config({"_class_name": "UNet2DModel", **_UNET2D_CONFIG, **shape}, options)
    elif arguments.model in PRESETS:
        _check_dims(arguments.model, dims)
        _check_takes(PRESETS[arguments.model].model_class, condition)
        entries = {**_fitting(arguments.model, shape), **options}
        model = _checked(lambda: build_model(arguments.model, **entries))
    else:
        model = _from_config(_read_config(arguments.model), {"sample_size": resolution, **options})
    _check_shape(model, channels, outputs, resolution)
    return model


def _check_dims(name: str, dims: int) -> None:
    """Raise ValueError for the preset of a network for other samples."""
    if PRESETS[name].dims == dims:
        return
    kinds = {1: "signals", 2: "images"}
    able = [preset for preset, p in PRESETS.items() if p.dims == dims]
    raise ValueError(
        f"model {name} is for {kinds[PRESETS[name].dims]}, and the data are "
        f"{kinds.get(dims, f'samples of {dims} sizes')}; choose {', '.join(able) or 'a network of your own'}."
    )


def output_channels(arguments: TrainingArguments, channels: int) -> int:
    """Channels of the network's output for samples of `channels`: twice as many for a learned variance."""
    return 2 * channels if arguments.variance_type == LEARNED_RANGE else channels


def _own_model(
    name: str, shape: Mapping[str, Any], condition: Mapping[str, Any], options: Mapping[str, Any]
) -> torch.nn.Module:
    """A network of the user's own class, with the arguments of its constructor that the run knows and the options."""
    model_class = load_object(name, "model")
    if not (isinstance(model_class, type) and issubclass(model_class, torch.nn.Module)):
        raise ValueError(f"model '{name}' must name a class that derives from torch.nn.Module.")
    parameters = inspect.signature(model_class).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(options) - set(condition) - set(parameters)) if not takes_all else []
    if unknown:
        raise ValueError(f"{model_class.__name__} takes no {', '.join(unknown)} in model_options.")
    known = {key: value for key, value in shape.items() if key in parameters}
    model: torch.nn.Module = _checked(
        lambda: model_class(**{**known, **{k: v for k, v in options.items() if takes_all or k in parameters}})
    )
    return model


# Entries of a configuration that say what a network is conditioned on.
_CONDITIONED_ON = {entry: c.noun for c in CONDITIONS.values() for entry in c.network_entries}
_CONDITIONED_ON |= {entry: "a second time" for name in OBJECTIVES for entry in declared(name, "network_entries")}


def _check_takes(model_class: type, condition: Mapping[str, Any]) -> None:
    known = inspect.signature(model_class).parameters
    for name in condition:
        if name in _CONDITIONED_ON and name not in known:
            able = sorted(
                preset for preset, p in PRESETS.items() if name in inspect.signature(p.model_class).parameters
            )
            raise ValueError(
                f"{model_class.__name__} can't be conditioned on {_CONDITIONED_ON[name]}; choose a model that can: "
                f"{', '.join(able)}."
            )


def _combined(condition: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Both together. Raises ValueError for an option that contradicts what the condition needs."""
    for name, value in condition.items():
        if options.get(name, value) != value:
            raise ValueError(f"model_options sets {name} to {options[name]}, but the data need {value}; leave it out.")
    return {**condition, **options}


def _counting_null(options: dict[str, Any]) -> dict[str, Any]:
    """The options for a network of diffusers, which counts the null class among its classes."""
    if options.get("num_class_embeds") is None:
        return options
    return {**options, "num_class_embeds": options["num_class_embeds"] + 1}


def _fitting(preset: str, shape: dict[str, int]) -> dict[str, int]:
    """The entries of `shape` that the preset's class has in its configuration."""
    known = inspect.signature(PRESETS[preset].model_class).parameters
    return {key: value for key, value in shape.items() if key in known}


def _read_config(name: str) -> dict[str, Any]:
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"model '{name}' is neither a preset ({', '.join(PRESETS)}), 'unet2d', nor a configuration.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"model configuration '{file}' is not valid JSON.") from None


def _from_config(config: Any, options: dict[str, Any]) -> Any:
    name = config.get("_class_name") if isinstance(config, dict) else None
    model_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
        raise ValueError(f"A model configuration needs the _class_name of a U-Net, got {name!r}.")
    _check_takes(model_class, options)
    if model_class.__module__.startswith("diffusers."):
        options = _counting_null(options)
    unknown = sorted(set(options) - set(inspect.signature(model_class).parameters))
    if unknown:
        raise ValueError(f"{name} takes no {', '.join(unknown)} in model_options.")
    from_config: Any = model_class.from_config  # type: ignore[attr-defined]
    return _checked(lambda: from_config({**config, **options}))


def _checked(make: Callable[[], Any]) -> Any:
    """What `make` builds; a configuration that a class can't digest is one sentence."""
    try:
        return make()
    except (TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"The model's configuration can't be built: {' '.join(str(error).split())}") from error


def _check_shape(model: Any, channels: int, outputs: int, resolution: int) -> None:
    config = model.config
    if "in_channels" not in config or "sample_size" not in config:
        raise ValueError(f"{type(model).__name__} is not a U-Net that this script can train.")
    if config.in_channels != channels:
        raise ValueError(f"The model takes {config.in_channels} channels, but the images have {channels}.")
    if config.get("out_channels", channels) != outputs:
        raise ValueError(
            f"The model's output has {config.get('out_channels', channels)} channels, but must have {outputs} for "
            f"images of {channels}; a learned variance (variance_type {LEARNED_RANGE}) takes twice as many."
        )
    if isinstance(model, UNet2DModel):
        factor = 2 ** (len(config.block_out_channels) - 1)
        if resolution % factor:
            raise ValueError(
                f"This UNet2DModel halves the image {len(config.block_out_channels) - 1} times and needs a resolution "
                f"divisible by {factor}, got {resolution}; choose another resolution, or fewer levels."
            )


def makes_toy(arguments: TrainingArguments) -> bool:
    """Whether `make_model` gives the toy network without time.

    Raises:
        ValueError: when there is no such model.
    """
    if arguments.task != "generation" or arguments.model_config_name_or_path is not None:
        return False
    if arguments.model == "unet2d" or is_name_of_object(arguments.model):
        return False
    if arguments.model in PRESETS:
        return PRESETS[arguments.model].model_class is ToyUNet2DModel
    config: Any = _read_config(arguments.model)
    return isinstance(config, dict) and config.get("_class_name") == ToyUNet2DModel.__name__


def noise_schedule(arguments: TrainingArguments) -> str:
    """The name of the noise path's schedule."""
    return arguments.schedule or arguments.ddpm_beta_schedule


def weighting_name(arguments: TrainingArguments) -> str:
    """The weighting of losses.

    Without a `loss_weighting`, `sample`, `score` and `mean` are weighted by `snr`, which is 1 on epsilon: unweighted, a
    score is learned near the data only, and a mean hardly at all. In continuous time, where snr is unbounded near
    the data, `sample` is weighted by `min_snr`. Other predictions are not weighted.
    """
    of_sample = "min_snr" if noise_schedule(arguments) in PATHS_WITHOUT_BETAS else "snr"
    defaults = {"sample": of_sample, "score": "snr", "mean": "snr"}
    return arguments.loss_weighting or defaults.get(arguments.prediction_type, "none")


def make_objective(arguments: TrainingArguments, model: Any) -> Objective:
    """The loss that the settings ask for; the toy network without time has one of its own."""
    if isinstance(model, ToyUNet2DModel):
        if arguments.vae is not None:
            raise ValueError("The toy network mixes images with noise in [0, 1], where latents are not; leave vae out.")
        if arguments.prediction_type != "sample" and "prediction_type" in arguments.given:
            raise ValueError(f"The toy network predicts 'sample', not '{arguments.prediction_type}'.")
        return MixObjective(arguments.loss, arguments.toy_amounts)
    if arguments.objective != DIFFUSION:
        return _own_objective(arguments)
    if arguments.prediction_type == "mean":
        warnings.warn(
            "prediction_type 'mean' is hard to learn: the network must output nearly its input, to a precision of "
            "beta. Use epsilon or v_prediction unless a source's weights need it.",
            stacklevel=2,
        )
    objective = _objective_class(arguments)(
        _path_scheduler(arguments).path,
        arguments.prediction_type,
        arguments.loss,
        Weighting(
            weighting_name(arguments),
            arguments.min_snr_gamma,
            arguments.p2_gamma,
            arguments.p2_k,
            arguments.sigmoid_bias,
            arguments.edm_sigma_data,
        ),
        _make_sampler(arguments, arguments.ddpm_num_steps),
        arguments.dequantize,
    )
    objective.bounded = arguments.vae is None
    return objective


def _own_objective(arguments: TrainingArguments) -> Objective:
    """An objective of the registry, with the settings that it declares."""
    name = arguments.objective
    for asked in _VARIANTS:
        if getattr(arguments, asked[0]) == asked[1]:
            raise ValueError(f"{' '.join(asked)} belongs to the objective {DIFFUSION}, not to {name}.")
    settings = {setting: getattr(arguments, setting) for setting in declared(name, "settings")}
    sampler = _make_sampler(arguments, arguments.ddpm_num_steps)
    objective: Objective = OBJECTIVES[name](_path_scheduler(arguments).path, sampler=sampler, **settings)
    return objective


# Variants of the diffusion objective, by the settings that ask for them.
_VARIANTS: dict[tuple[str, str], type[DiffusionObjective]] = {
    ("timestep_sampling", "importance"): ImportanceSampledObjective,
    ("variance_type", LEARNED_RANGE): LearnedVarianceObjective,
}


def _objective_class(arguments: TrainingArguments) -> type[DiffusionObjective]:
    asked = [key for key in _VARIANTS if getattr(arguments, key[0]) == key[1]]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(' '.join(key) for key in asked)} can't be combined; choose one of them.")
    return _VARIANTS[asked[0]] if asked else DiffusionObjective


def _make_sampler(arguments: TrainingArguments, num_levels: int) -> TimestepSampler:
    if arguments.timestep_sampling == "importance":
        return ImportanceSampler(num_levels)
    location, scale = arguments.logit_normal_mean, arguments.logit_normal_std
    return TimestepSampler(arguments.timestep_sampling, num_levels, location, scale)


def make_scheduler(arguments: TrainingArguments, model: Any, bounded: bool = True) -> Any:
    """The scheduler of previews, of measured samples and of the saved pipeline.

    Args:
        arguments: of the run.
        model: the network.
        bounded: whether all data lie in [-1, 1], so that the predicted x0 may be clipped to it.

    Raises:
        ValueError: for a sampler or a subsequence that there is not on a rectified flow.
    """
    if isinstance(model, ToyUNet2DModel):
        return MixScheduler()
    scheduler = _path_scheduler(arguments, bounded)
    # The path's scheduler has the variance already.
    options = {name: getattr(arguments, name) for name in OPTIONS if name != "variance_type"}
    options["subsequence"] = None if arguments.subsequence == "uniform" else arguments.subsequence
    if arguments.sampler in ("ddpm", "ddim") and set(options.values()) == {None}:
        return scheduler
    return build_sampler(arguments.sampler, scheduler.config, **options)


def check_sampling(scheduler: Any, arguments: TrainingArguments) -> None:
    """Choose the times of a preview and take a first step, to fail now rather than in the middle of a run.

    Args:
        scheduler: of the pipeline.
        arguments: of the run.

    Raises:
        ValueError: for a number of steps, a schedule or a prediction type that the scheduler can't take.
    """
    if isinstance(scheduler, MixScheduler):
        return
    sample, levels = torch.zeros(1, 1, 2, 2), arguments.ddpm_num_steps
    count = min(arguments.ddpm_num_inference_steps, levels)
    try:
        scheduler.set_timesteps(count)
        with torch.random.fork_rng(devices=[]):
            output = sample.repeat(1, output_channels(arguments, 1), 1, 1)
            walked = scheduler.step(output, scheduler.timesteps[0], sample).prev_sample
        start = torch.as_tensor(getattr(scheduler, "init_noise_sigma", 1.0))
        if not (start.isfinite() and walked.isfinite().all()):
            raise ValueError("its first step is not finite")
        if isinstance(scheduler, DDPMScheduler | DDIMScheduler) and count * (levels // count) < NEARLY_ALL * levels:
            # Their "leading" times are multiples of the stride.
            raise ValueError(f"it would begin far below the noise; take a number that divides {levels}")
    except (ValueError, NotImplementedError, IndexError) as error:
        raise ValueError(
            f"sampler '{arguments.sampler}' can't preview in ddpm_num_inference_steps "
            f"{arguments.ddpm_num_inference_steps} with prediction_type '{arguments.prediction_type}': "
            f"{' '.join(str(error).split()).rstrip('.')}."
        ) from error


def _path_scheduler(arguments: TrainingArguments, bounded: bool = True) -> Any:
    """A scheduler of this package on the noise path that the settings describe."""
    schedule = noise_schedule(arguments)
    options = json_option("schedule_options", arguments.schedule_options) or None
    if schedule in PATHS_WITHOUT_BETAS:
        if options is not None or arguments.rescale_betas_zero_snr:
            raise ValueError(f"schedule '{schedule}' takes no schedule_options and no rescale_betas_zero_snr.")
        return _make_continuous_scheduler(arguments, schedule, bounded)
    scheduler_class: Any = partial(AncestralDDPMScheduler, variance_type=arguments.variance_type)
    if arguments.sampler != "ddpm":
        # Of the other samplers, only DDIM itself visits a subsequence.
        subsequence = arguments.subsequence if arguments.sampler == "ddim" else "uniform"
        scheduler_class = partial(SubsequenceDDIMScheduler, subsequence=subsequence)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This noise path")  # the diagnostics says it
        return scheduler_class(
            num_train_timesteps=arguments.ddpm_num_steps,
            beta_start=arguments.beta_start,
            beta_end=arguments.beta_end,
            beta_schedule=schedule,
            schedule_options=options,
            rescale_betas_zero_snr=arguments.rescale_betas_zero_snr,
            prediction_type=arguments.prediction_type,
            # A clamped x0 beside an unclamped epsilon leaves the probability flow, so that more steps change the image.
            # Latents and standardised signals have no bounds.
            clip_sample=bounded and arguments.sampler == "ddpm" and arguments.vae is None,
            # The walk has to begin where the path ends, at T-1: fewer steps than T would otherwise start too low.
            timestep_spacing="trailing",
        )


def _make_continuous_scheduler(
    arguments: TrainingArguments, schedule: str, bounded: bool
) -> FlowMatchScheduler | ScoreSDEScheduler:
    """In continuous time, `ddim` is Euler's method on the probability flow, and `ddpm` draws from the posterior.

    The network's time is t * ddpm_num_steps.
    """
    if arguments.subsequence != "uniform":
        raise ValueError(f"On schedule '{schedule}' the subsequence must be uniform, got '{arguments.subsequence}'.")
    deterministic, steps = arguments.sampler != "ddpm", arguments.ddpm_num_steps
    shared: dict[str, Any] = {
        "num_train_timesteps": steps,
        "prediction_type": arguments.prediction_type,
        "clip_sample": bounded and not deterministic and arguments.vae is None,
        "predictor": "ode_euler" if deterministic else "ancestral",
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


def make_optimizer(arguments: TrainingArguments, network: torch.nn.Module, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of the network's parameters."""
    options: dict[str, Any] = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "weight_decay": arguments.adam_weight_decay,
        "eps": arguments.adam_epsilon,
        "fused": fused,
    }
    if arguments.optimizer == "muon":
        return Muon(network, **options)
    return torch.optim.AdamW(network.parameters(), **options)


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
