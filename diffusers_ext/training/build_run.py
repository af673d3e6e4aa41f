"""From settings, and what the user brings, to the parts of a run: the only other place that reads the settings.

`build_run` puts the parts together in the order in which they need each other. Every part takes a few plain arguments,
so that it can also be built by hand.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.optimization import get_scheduler
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..conditions import Condition
from ..data.base import TrainingData
from ..data.images import load_image_data
from ..data.own import as_training_data
from ..data.signals import SignalData, SignalOptions, is_bounded
from ..data.transforms import size_text
from ..modalities import modality_of_size
from ..objectives.registry import declared
from ..schedulers.named_objects import load_object
from ..settings import settings_of, without_effect
from ..settings.declaration import NAMED, REFUSED
from . import checkpoint
from .agreement import Processes
from .arguments import TrainingArguments
from .autoencoding import AutoencoderTask, ReconstructionCallback, TrainableAutoencoder, set_scale
from .batches import Batches
from .binding import ConditionBinding
from .build import (
    check_sampling,
    make_model,
    make_objective,
    make_optimizer,
    make_scheduler,
    noise_schedule,
    weighting_name,
)
from .callbacks import (
    Callbacks,
    CheckpointCallback,
    ConditionCheckCallback,
    DiagnosticsCallback,
    EfficiencyCallback,
    FiguresCallback,
    LoggingCallback,
    PipelineCallback,
    PreviewCallback,
    PushCallback,
    SampleEvaluationCallback,
    SnapshotCallback,
    ValidationCallback,
)
from .checkpointing import Checkpoints
from .conditioning import make_condition, make_conditioning
from .diagnostics import Diagnostics
from .efficiency import StepClock
from .ema import ExponentialMovingAverage, PowerFunctionAverage, WeightAverage
from .folder import OutputFolder
from .latents import LatentEncoder, pixels, vae_of
from .losses import LossReader
from .plain import PlainNetwork
from .precision import Mode, resolve_mixed_precision
from .probe import ModeProbe, TrainingSteps, unchanged
from .recording import Recorder
from .report import GIF_IMAGES, Figures, examples_like
from .resume import RunDescription
from .sample_evaluation import SampleEvaluation, evaluation_network
from .saving import HubPusher
from .sharding import WholeCopy, own_parameters, uses_fsdp
from .state import Stateful, TrainerControl, TrainerState
from .stepping import losses_of
from .unfinished import PipelineDescription
from .validation import EarlyStopping, validation_loss
from .weights import AverageState, OptimizerState, Weights, uncompiled

logger = logging.getLogger(__name__)

DEFAULT_RESOLUTION = 64  # as in diffusers' example
EMBEDDED_RESOLUTION = 28
MOST_REPEATS = 1000  # of a sample within one batch
SIZES_COMPARED = 32  # images whose sizes decide on the resolution
STREAM_EXAMPLES = 64  # samples of a stream that are at hand before the first step: for its channels, and for previews

# Settings that have no effect on signals.
IMAGE_SETTINGS = (
    "resolution image_column random_flip resize_scale random_resized_crop alpha_background preserve_input_precision "
    "channels_last"
)


@dataclass
class Run:
    """The parts of a run. `Trainer` needs no settings beside them."""

    accelerator: Accelerator
    processes: Processes
    folder: OutputFolder
    train_dataset: TrainingData
    eval_dataset: TrainingData | None
    conditioning: Any
    network: Any
    objective: Any
    mode: Mode
    batches: Batches
    binding: ConditionBinding
    accumulation: int
    seed: int
    state: TrainerState
    learning_rate: Callable[[], float]
    max_grad_norm: float
    max_seconds: float | None
    resume_from: str | None
    pipeline_of: Callable[[Any], Any]
    written_every: list[int]
    control: TrainerControl = field(default_factory=TrainerControl)
    clock: Any = None
    model: Any = None
    optimizer: Any = None
    averages: list[WeightAverage] = field(default_factory=list)
    ema: WeightAverage | None = None
    weights: Any = None
    recorder: Any = None
    reader: Any = None
    diagnostics: Any = None
    callbacks: Any = None
    checkpoints: Any = None
    exporter: Any = None
    evaluation: Any = None
    seconds_probing: float = 0.0


def build_run(
    args: TrainingArguments,
    model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    objective: Any = None,
    callbacks: Sequence[Any] | None = None,
    condition: Condition | None = None,
) -> Run:
    """All parts of a run, from the settings where the user brings none.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: one sentence on a setting that can't be.
    """
    accumulation = accumulation_steps(args)
    accelerator = make_accelerator(args, accumulation)
    _warn_of_ignored(args, accelerator, model, train_dataset, objective)
    if args.push_to_hub:
        _check_repo_id(args.hub_model_id)
    folder = OutputFolder(args.output_dir, args.resume_from_checkpoint is not None, args.overwrite_output_dir)
    accelerator.wait_for_everyone()
    data, held_out = load_data(args, accelerator, train_dataset, eval_dataset, condition)
    task = AutoencoderTask(args) if args.task == "autoencoder" else None
    conditioning = make_conditioning(args, data, condition)
    if held_out is not None:
        conditioning.adopt(held_out)
    unet = _network(args, model, data, conditioning, task)
    own_objective = objective is not None
    model_class = _class_name(unet)  # before FSDP gives it another
    if objective is None:
        objective = make_objective(args, unet) if task is None else task.objective()
    network = conditioning.wrap(unet)
    pipeline_of = partial(make_pipeline_of, args, conditioning, data)
    if task is None:
        check_sampling(pipeline_of(network).scheduler, args)  # fails now rather than after the training
    run = _begin(args, accelerator, accumulation, folder, data, held_out, conditioning, network, objective, pipeline_of)
    _prepare(run, args)
    description = describe_run(args, run, own_objective, model_class)
    _add_callbacks(run, args, description, [*_named_callbacks(args), *(callbacks or [])])
    return run


def _warn_of_ignored(args: TrainingArguments, accelerator: Accelerator, model: Any, data: Any, objective: Any) -> None:
    sentences = without_effect(args)
    given = {"model": model, "train_dataset": data, "objective": objective}
    replaced = {
        "model": "model model_config_name_or_path model_options",
        "train_dataset": "dataset_name dataset_config_name train_data_dir train_split streaming image_column",
        "objective": "objective loss loss_weighting timestep_sampling",
    }
    for name, value in given.items():
        asked = [setting for setting in replaced[name].split() if setting in args.given and value is not None]
        if asked:
            verb = "has" if len(asked) == 1 else "have"
            sentences.append(f"{' and '.join(asked)} {verb} no effect: {name} is given.")
    for sentence in sentences if accelerator.is_main_process else ():
        logger.warning(sentence)


def _check_repo_id(repo_id: str | None) -> None:
    try:
        if repo_id is not None:
            validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"hub_model_id must be 'name' or 'user/name' of letters, digits, '-', '_' and '.', got '{repo_id}'."
        ) from None


# --- the machine ------------------------------------------------------------------------------------------------------


def accumulation_steps(args: TrainingArguments) -> int:
    """Batches per optimizer step, by the settings or by Accelerate's launcher.

    Raises:
        ValueError: when both say it and differ.
    """
    own, name = args.gradient_accumulation_steps, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    try:
        launcher = int(os.environ.get(name, "1"))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got '{os.environ[name]}'.") from None
    if launcher < 1:
        raise ValueError(f"{name} must be at least 1, got {launcher}.")
    if launcher != 1 and own not in (1, launcher):
        raise ValueError(
            f"gradient_accumulation_steps is {own}, but {name} of the launcher says {launcher}; give one of both."
        )
    return max(own, launcher)


def make_accelerator(args: TrainingArguments, accumulation: int, mixed_precision: str | None = None) -> Accelerator:
    """Accelerate's object for this run."""
    # A notebook may train twice with different precisions; Accelerate's process-wide state would refuse the second.
    AcceleratorState._reset_state()
    log_with = None if args.logger == "none" else args.logger
    if log_with is not None:
        _require(log_with, f"logger {log_with}", "diffusers_ext[train]" if log_with == "tensorboard" else log_with)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError("Training under DeepSpeed is not supported; FSDP shards as its ZeRO stage 3 does.")
    places = ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir))
    accelerator = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        mixed_precision=mixed_precision or resolve_mixed_precision(args.mixed_precision),
        log_with=log_with,
        project_config=places,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_leaves_some_unused(args))],
        # torchrun on a machine without accelerators: Accelerate would take every process for a run of its own.
        cpu=True if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available() else None,
    )
    uses_fsdp(accelerator)  # on CPUs it has to be taken up
    return accelerator


def _leaves_some_unused(args: TrainingArguments) -> bool:
    """Whether a step may use a part of the network only.

    A guided network without labels leaves its class blocks aside, and many text encoders have a pooler that only their
    own task needs.
    """
    return "guided" in args.model or args.train_text_encoder


def _require(module: str, flag: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{flag} needs the package {module}: install '{package}', or set logger to none.")


# --- data and network -------------------------------------------------------------------------------------------------


def load_data(
    args: TrainingArguments,
    accelerator: Accelerator,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    condition: Condition | None = None,
) -> tuple[TrainingData, TrainingData | None]:
    """The data to train on, and held-out data where there are any."""
    with accelerator.local_main_process_first():
        condition = make_condition(args) if condition is None else condition
        resolution = _resolution(args) if train_dataset is None else DEFAULT_RESOLUTION
        data = (
            _own(args, train_dataset, True)
            if train_dataset is not None
            else _load_split(args, args.train_split, resolution, condition)
        )
        if isinstance(data, SignalData):
            _warn_of_image_settings(args)
        held_out = None
        if eval_dataset is not None:
            held_out = _own(args, eval_dataset, False)
        elif train_dataset is None and args.held_out_split:
            held_out = _load_split(args, args.held_out_split, resolution, condition, data)
    _check_batch_size(args.train_batch_size, data)
    if held_out is not None and held_out.channels != data.channels:
        raise ValueError(
            f"The validation data have {held_out.channels} channels, the training data {data.channels}; set channels."
        )
    if args.vae is None:
        return data, held_out
    with accelerator.local_main_process_first():
        encode = _latent_encoder(args, accelerator)
        # Read-only where the protocol has plain attributes, which is all that the trainer needs.
        latents: Any = encode(data)
        held_out_latents: Any = None if held_out is None else encode(held_out, training=False)
        return latents, held_out_latents


def _latent_encoder(args: TrainingArguments, accelerator: Accelerator) -> LatentEncoder:
    return LatentEncoder(
        str(args.vae),
        accelerator.device,
        args.latent_cache_dir,
        crops=args.latent_crops,
        mirror=args.random_flip,
        max_memory_bytes=int(args.max_memory_dataset_gb * 1024**3),
        seed=args.seed,
        least_psnr=args.min_psnr,
        token=args.hub_token,
        warn=logger.warning if accelerator.is_main_process else logger.debug,
    )


def _warn_of_image_settings(args: TrainingArguments) -> None:
    given = [name for name in IMAGE_SETTINGS.split() if name in args.given]
    if given:
        verb = "has" if len(given) == 1 else "have"
        logger.warning("%s %s no effect: the data are signals.", " and ".join(given), verb)


def _check_batch_size(batch_size: int, data: TrainingData) -> None:
    """Raise ValueError for a batch that can't be meant: it would fill the memory, or repeat every sample endlessly."""
    needed, memory = 4 * batch_size * data.channels * math.prod(data.size), psutil.virtual_memory().total
    if needed > memory / 8 or batch_size > MOST_REPEATS * len(data):
        raise ValueError(
            f"train_batch_size {batch_size:,} is too large: one batch of samples takes {needed / 2**30:.1f} GiB, this "
            f"machine has {memory / 2**30:.1f} GiB, and there are {len(data):,} samples."
        )


def _own(args: TrainingArguments, dataset: Any, training: bool) -> TrainingData:
    name = "train_dataset" if training else "eval_dataset"
    return as_training_data(dataset, name=name, **_image_options(args, args.resolution, training))


def _resolution(args: TrainingArguments) -> int:
    """The side of the images: as set, or the one that all of them have when it is below the default of 64."""
    if args.modality == "signal" or args.length is not None:  # not used
        return DEFAULT_RESOLUTION
    if args.resolution is not None or args.uses_embedded_data:
        return args.resolution or EMBEDDED_RESOLUTION
    cropped = args.center_crop or args.random_resized_crop is not None or args.resize_scale != 1
    if args.streaming or cropped:
        return DEFAULT_RESOLUTION
    own = _common_side(_load_images(args, args.train_split, None, image_column=args.image_column, max_memory_bytes=0))
    if own is None or own >= DEFAULT_RESOLUTION:
        return DEFAULT_RESOLUTION
    logger.warning("resolution is %d, the size of the images; set it to train at another one.", own)
    return own


def _common_side(data: Any) -> int | None:
    """The side that images spread over the data have in common; None when they are not square or differ."""
    if len(data.size) != 2 or data.size[0] != data.size[1]:
        return None
    count = min(len(data), SIZES_COMPARED)
    try:
        for number in range(count):
            data[number * len(data) // count]
    except ValueError:  # it is of another size
        return None
    return data.size[0]


def _load_split(
    args: TrainingArguments,
    split: str,
    resolution: int,
    condition: Condition | None,
    train: TrainingData | None = None,
) -> TrainingData:
    """A split; held-out signals get the shape and the normalisation of the training data `train`."""
    columns = {} if condition is None else condition.column_arguments()
    signals = _signal_options(args, training=train is None)
    if isinstance(train, SignalData):
        signals = signals.like(train)
    columns |= {"image_column": args.image_column, "modality": args.modality, "signals": signals}
    data = _load_images(args, split, resolution, **columns)
    if condition is not None and args.condition_image_column is not None:
        data.accompany(_load_images(args, split, resolution, image_column=args.condition_image_column))
    return data


def _load_images(args: TrainingArguments, split: str, resolution: int | None, **more: Any) -> Any:
    training = split == args.train_split
    held = STREAM_EXAMPLES if training else max(args.validation_size, 2 * args.evaluation_size)
    options = {
        "cache_dir": args.cache_dir,
        "token": args.hub_token,
        "streamed_examples": held if args.streaming else None,
        "shuffle_buffer_size": args.shuffle_buffer_size,
        **_image_options(args, resolution, training),
        **more,
    }
    folder = args.train_data_dir if args.dataset_name is None else None
    return load_image_data(args.dataset_name, args.dataset_config_name, folder, split, **options)


def _signal_options(args: TrainingArguments, training: bool) -> SignalOptions:
    return SignalOptions(
        length=args.length,
        sample_rate=args.sample_rate,
        channels=args.channels,
        normalization=args.normalization,
        columns=tuple(args.signal_columns) or None,
        center_crop=args.center_crop or not training,
        skip_unreadable=args.on_unreadable_image == "skip",
        max_memory_bytes=int(args.max_memory_dataset_gb * 1024**3),
        seed=args.seed,
    )


def _image_options(args: TrainingArguments, resolution: int | None, training: bool) -> dict[str, Any]:
    return {
        "resolution": resolution,
        "channels": args.channels,
        "center_crop": (args.center_crop or not training) and resolution is not None,
        "random_flip": args.random_flip and training and args.vae is None,  # latents are mirrored as a whole
        "resize_scale": args.resize_scale,
        "random_resized_crop": (args.random_resized_crop, 1.0) if args.random_resized_crop and training else None,
        "preserve_input_precision": args.preserve_input_precision,
        "alpha_background": args.alpha_background,
        "on_unreadable_image": args.on_unreadable_image,
        "max_memory_bytes": int(args.max_memory_dataset_gb * 1024**3),
        "seed": args.seed,
    }


def _network(args: TrainingArguments, model: Any, data: TrainingData, conditioning: Any, task: Any) -> Any:
    """The network: the user's, or one by the settings."""
    if task is not None:
        return task.network(data, model)
    if model is None:
        size = data.size[0] if len(set(data.size)) == 1 else tuple(data.size)
        entries = _model_entries(args, conditioning)
        unet = make_model(args, data.channels, size, entries, len(data.size))  # type: ignore[arg-type]
    elif isinstance(model, torch.nn.Module):
        unet = uncompiled(model)
    else:
        raise ValueError(f"model must be a torch module, got {type(model).__name__}.")
    _check_size(unet, data)
    if not any(parameter.requires_grad for parameter in unet.parameters()):
        raise ValueError(f"The network {type(unet).__name__} has no parameter to train.")
    for wanted, method in (
        (args.gradient_checkpointing, "enable_gradient_checkpointing"),
        (args.enable_xformers_memory_efficient_attention, "enable_xformers_memory_efficient_attention"),
    ):
        if wanted and not hasattr(unet, method):
            raise ValueError(f"{type(unet).__name__} has no {method}; leave the setting out.")
        if wanted:
            getattr(unet, method)()
    return unet


def _check_size(unet: Any, data: TrainingData) -> None:
    """Raise ValueError for samples of a size that the network does not divide."""
    factor = getattr(unet, "downsample_factor", 1)
    if isinstance(factor, int) and any(length % factor for length in data.size):
        remedy = "an autoencoder that scales down less, " if vae_of(data) is not None else ""
        raise ValueError(
            f"{type(unet).__name__} needs sizes that are multiples of {factor}, and the samples are "
            f"{size_text(data.size)}; take another resolution, {remedy}or fewer levels or a smaller patch_size of the "
            "network."
        )


def _model_entries(args: TrainingArguments, conditioning: Any) -> dict[str, Any]:
    """Entries of the network's configuration that its condition and the objective need."""
    return {**conditioning.model_entries, **declared(args.objective, "network_entries")}


def make_pipeline_of(args: TrainingArguments, conditioning: Any, data: TrainingData, network: Any) -> Any:
    """A pipeline around what is trained; an autoencoder itself, with the scale of its latents."""
    if isinstance(network, TrainableAutoencoder):
        set_scale(network.vae, data)
        return network.vae
    unet, vae = conditioning.unet(network), vae_of(data)
    scheduler = make_scheduler(args, unet, is_bounded(data))
    if not isinstance(unet, ModelMixin):
        plain = PlainNetwork(unet, data.channels, data.size, **_model_entries(args, conditioning))
        return conditioning.pipeline(plain, scheduler, vae)
    size = data.size[0] if len(set(data.size)) == 1 else list(data.size)
    missing = {"in_channels": data.channels, "sample_size": size, **_model_entries(args, conditioning)}
    missing = {name: value for name, value in missing.items() if getattr(unet.config, name, None) is None}
    if missing:  # a network of the user's; kept in its configuration, and so in the saved pipeline
        unet.register_to_config(**missing)
    return conditioning.pipeline(network, scheduler, vae)


# --- the run ----------------------------------------------------------------------------------------------------------


def _begin(
    args: TrainingArguments,
    accelerator: Accelerator,
    accumulation: int,
    folder: OutputFolder,
    data: TrainingData,
    held_out: TrainingData | None,
    conditioning: Any,
    network: Any,
    objective: Any,
    pipeline_of: Callable[[Any], Any],
) -> Run:
    """The parts that are known before the network is prepared for the machine."""
    batches = _batches(args, accelerator, accumulation, data)
    share = accelerator.num_processes, accelerator.process_index
    binding = ConditionBinding(conditioning, data, args.seed, batches.batches_per_epoch, *share)
    state = TrainerState(
        max_steps=_max_steps(args, batches.batches_per_epoch, accumulation, accelerator.is_main_process),
        steps_per_epoch=batches.batches_per_epoch / accumulation,
    )
    return Run(
        accelerator=accelerator,
        processes=Processes(accelerator),
        folder=folder,
        train_dataset=data,
        eval_dataset=held_out,
        conditioning=conditioning,
        network=network,
        objective=objective,
        mode=Mode(),
        batches=batches,
        binding=binding,
        accumulation=accumulation,
        seed=args.seed,
        state=state,
        learning_rate=_learning_rate(args, state),
        max_grad_norm=args.max_grad_norm,
        max_seconds=args.max_train_seconds,
        resume_from=args.resume_from_checkpoint,
        pipeline_of=pipeline_of,
        written_every=_written_every(args),
    )


def _batches(args: TrainingArguments, accelerator: Accelerator, accumulation: int, data: TrainingData) -> Batches:
    if data.stream is not None and args.max_train_steps is None:
        raise ValueError("A stream needs max_train_steps, for it does not say how long an epoch is.")
    of_stream = (args.max_train_steps or 1) * accumulation
    return Batches(data, accelerator, args.train_batch_size, args.seed, args.dataloader_num_workers, of_stream)


def _written_every(args: TrainingArguments) -> list[int]:
    """After how many steps something is written, of everything that is."""
    every = args.logging_steps, args.checkpointing_steps, args.validation_steps, args.evaluation_steps
    return [steps for steps in every if steps is not None]


def _max_steps(args: TrainingArguments, batches_per_epoch: int, accumulation: int, speaks: bool) -> int:
    per_run = math.ceil(args.num_epochs * batches_per_epoch / accumulation)
    if args.max_train_steps and args.max_train_steps > per_run and speaks:
        logger.warning(
            "num_epochs %d ends the run after %d steps, before max_train_steps %d; raise num_epochs to train longer.",
            args.num_epochs,
            per_run,
            args.max_train_steps,
        )
    return min(per_run, args.max_train_steps) if args.max_train_steps else per_run


def _learning_rate(args: TrainingArguments, state: TrainerState) -> Callable[[], float]:
    """The learning rate of the next step, by diffusers' schedules.

    Under a time budget it decays with the larger share of steps and seconds.
    """
    warmup = min(args.lr_warmup_steps, state.max_steps)
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler, stand_in, num_warmup_steps=warmup, num_training_steps=state.max_steps)
    factor, limit, max_steps = scheduler.lr_lambdas[0], args.max_train_seconds, state.max_steps

    def rate() -> float:
        step = state.global_step
        if limit and step >= warmup:
            share = min(1.0, state.seconds / limit)
            step = max(step, int(warmup + share * (max_steps - warmup)))
        return args.learning_rate * factor(step)

    return rate


def _prepare(run: Run, args: TrainingArguments) -> None:
    """Choose how steps are computed, and bring the network, its averages and the optimizer into that form."""
    run.mode, chosen = _choose_mode(run, args)
    if args.mixed_precision == "auto" and run.mode.precision != run.accelerator.mixed_precision:
        run.accelerator = make_accelerator(args, run.accumulation, run.mode.precision)
        run.processes = Processes(run.accelerator)
        run.batches.use(run.accelerator)
    whole = _copy_before_sharding(run, args) if uses_fsdp(run.accelerator) else None
    run.mode.apply(run.network)
    optimizer = _optimizer(args, run)(run.network)
    run.recorder = _recorder(run, args)
    run.recorder.say(run.train_dataset.description)
    if chosen:
        run.recorder.say(chosen)
    run.model, run.optimizer = run.accelerator.prepare(run.network, optimizer)
    if whole is not None:
        run.network = run.accelerator.unwrap_model(run.model)
    run.clock = StepClock(run.accelerator.device)
    _add_averages(run, args)
    run.weights = Weights(run.accelerator, run.model, run.network, run.ema, whole)
    warmup = 0 if args.lr_scheduler == "constant" else args.lr_warmup_steps
    run.reader = LossReader(run.accelerator, args.learning_rate, warmup)
    bounded = vae_of(run.train_dataset) is None and is_bounded(run.train_dataset)
    run.diagnostics = Diagnostics(run.objective, run.accelerator, run.recorder.warn, bounded)


def _copy_before_sharding(run: Run, args: TrainingArguments) -> WholeCopy:
    if args.optimizer == "muon":
        raise ValueError("optimizer muon turns whole matrices, and FSDP leaves pieces of them; use adamw, or DDP.")
    if args.ema_snapshots is not None:
        raise ValueError("ema_snapshots can't be taken of pieces of weights, as FSDP leaves them; use DDP.")
    return WholeCopy(run.network)


def _optimizer(args: TrainingArguments, run: Run) -> Callable[[Any], torch.optim.Optimizer]:
    fused = run.accelerator.device.type in ("cpu", "cuda")
    return lambda network: make_optimizer(args, network, fused=fused)


def _recorder(run: Run, args: TrainingArguments) -> Recorder:
    tracker = None
    if args.logger != "none":
        tracker = {k: v for k, v in asdict(args).items() if isinstance(v, (int, float, str, bool)) and k != "hub_token"}
    samples = args.train_batch_size * run.accumulation * run.processes.count
    return Recorder(run.accelerator, run.folder.path, run.state, samples, tracker, args.max_train_seconds)


def _choose_mode(run: Run, args: TrainingArguments) -> tuple[Mode, str]:
    """How steps are computed, the same on every process, and a line on why; measured where settings leave it."""
    accelerator = run.accelerator
    asked = Mode(accelerator.mixed_precision, bool(args.channels_last))
    # Of a sharded network there is no copy to measure with.
    if args.mixed_precision != "auto" or accelerator.distributed_type == DistributedType.FSDP:
        return asked, ""
    began, mode, chosen = time.monotonic(), _stored_mode(run, args), ""
    if mode is None:
        steps, limit = run.state.max_steps * run.accumulation, args.max_train_seconds or math.inf
        run.network.to(accelerator.device)
        batch = run.batches.first(args.train_batch_size)
        trial = TrainingSteps(run.objective, batch, run.binding.of_training(batch, 0), _optimizer(args, run))
        probe = ModeProbe(run.network, trial, lambda seconds: min(steps * seconds, limit))
        with unchanged(run.objective):
            mode = probe.choose(args.channels_last)
        run.seconds_probing = time.monotonic() - began
        chosen = f"{probe} Probed in {run.seconds_probing:.1f} s."
    (mode,) = broadcast_object_list([mode])
    return mode, f"Steps are computed in {mode}. {chosen}".strip()


def _stored_mode(run: Run, args: TrainingArguments) -> Mode | None:
    """The mode of the checkpoint that the run will go on from: in another one it would end with other weights."""
    if args.resume_from_checkpoint is None:
        return None
    named = Path(args.resume_from_checkpoint)
    folders = [named if named.is_dir() else run.folder.path / named.name]
    if args.resume_from_checkpoint == "latest":
        folders = checkpoint.own_checkpoints(run.folder.path)[::-1]
    for state in map(checkpoint.read_state, folders):
        if state is not None and "mode" in state:
            return Mode(**state["mode"])
    return None


def _add_averages(run: Run, args: TrainingArguments) -> None:
    """The averages that follow the weights, and the one of them that is evaluated and saved."""
    power = []
    if args.ema_snapshots is not None or (args.use_ema and args.ema_kind == "power"):
        power = [PowerFunctionAverage(own_parameters(run.network), sigma_rel) for sigma_rel in args.ema_sigma_rel]
    run.averages = [*power]
    if args.use_ema and args.ema_kind == "power":
        run.ema = power[0]
    elif args.use_ema:
        decay = args.ema_inv_gamma, args.ema_power, args.ema_max_decay, args.ema_update_after_step
        run.ema = ExponentialMovingAverage(own_parameters(run.network), *decay)
        run.averages.append(run.ema)


# --- callbacks and checkpoints ----------------------------------------------------------------------------------------


def _named_callbacks(args: TrainingArguments) -> list[Any]:
    return [load_object(name, "callback")() for name in args.callback]


def _add_callbacks(run: Run, args: TrainingArguments, description: RunDescription, own: Sequence[Any]) -> None:
    """The callbacks in the order in which they act, the user's before what is saved."""
    a, state, control = args, run.state, run.control
    run.callbacks = Callbacks([], args, state, control, run.network)
    fire = run.callbacks.fire
    run.recorder.on_log = lambda values: fire("on_log", logs=values)
    validates = partial(_validation_due, a)
    ema, every = run.ema, a.logging_steps
    acting = [
        *_efficiency(run),
        LoggingCallback(run.recorder, every, ema),
        DiagnosticsCallback(run.diagnostics, every, ema, a.max_train_seconds),
        *_measuring(run, args, validates, fire),
        *own,
    ]
    run.exporter = PipelineCallback(
        run.weights,
        run.pipeline_of,
        run.folder.path,
        a.to_yaml(),
        a.hub_model_id,
        a.save_model_epochs,
        run.processes,
        fire,
    )
    run.callbacks.callbacks = [*acting, run.exporter]
    run.checkpoints = _checkpoints(run, args, description)
    run.callbacks.callbacks = [*acting, run.exporter, *_saving(run, args)]
    fire("on_init_end")


def _measuring(run: Run, args: TrainingArguments, is_due: Callable[..., bool], fire: Callable[..., None]) -> list[Any]:
    """Validation, previews, evaluation of samples."""
    a, data = args, run.eval_dataset if run.eval_dataset is not None else run.train_dataset
    measured = run.binding.of_measurement
    callbacks: list[Any] = [
        ConditionCheckCallback(run.diagnostics, run.model, data, lambda batch: measured(batch, 0, data), is_due)
    ]
    validation = None
    if run.eval_dataset is not None:
        conditions = partial(_conditions_of, run.binding, run.eval_dataset)
        options = run.objective, run.eval_dataset, a.validation_size, a.seed, conditions
        stopping = EarlyStopping(a.early_stopping_patience, a.early_stopping_min_delta)
        measure = partial(_loss_of, run.accelerator, options)
        check = run.reader.check
        validation = ValidationCallback(run.weights, measure, check, run.recorder, stopping, is_due, fire)
        callbacks.append(validation)
    elif a.early_stopping_patience is not None:
        raise ValueError("early_stopping_patience needs a validation_split or an eval_dataset to measure the loss on.")
    if args.task == "autoencoder":
        callbacks.append(_reconstruction(run, args, data, is_due))
        return callbacks
    if modality_of_size(data.size) is not None:
        callbacks.append(
            PreviewCallback(
                run.weights,
                run.pipeline_of,
                run.conditioning.request(a.eval_batch_size, data),
                a.ddpm_num_inference_steps,
                run.folder.path / "samples",
                run.recorder,
                run.processes,
                a.seed,
                is_due,
            )
        )
    if a.classifier is not None or a.features is not None:
        run.evaluation = _sample_evaluation(run, args)
        best_at = (lambda: validation.best_at) if validation is not None else (lambda: 0)
        callbacks.append(
            SampleEvaluationCallback(
                run.evaluation, run.weights, run.pipeline_of, run.recorder, a.evaluation_steps, best_at, fire
            )
        )
    return callbacks


def _reconstruction(
    run: Run, args: TrainingArguments, data: TrainingData, is_due: Callable[..., bool]
) -> ReconstructionCallback:
    """What an autoencoder has in the place of previews and measured samples."""
    split = "training data" if run.eval_dataset is None else args.held_out_split or "eval_dataset"
    network = evaluation_network(args.classifier, args.features, data.channels, run.accelerator.device)
    return ReconstructionCallback(
        run.weights,
        data,
        split,
        run.folder.path,
        run.recorder,
        run.processes,
        args.evaluation_size,
        network,
        args.min_psnr,
        args.save_figures,
        is_due,
    )


def _conditions_of(binding: ConditionBinding, data: TrainingData, number: int, batch: Any) -> dict[str, Any]:
    return binding.of_measurement(batch, number, data)


def _loss_of(accelerator: Accelerator, options: tuple[Any, ...], network: Any) -> float:
    return validation_loss(accelerator, network, *options)


def _validation_due(args: TrainingArguments, state: TrainerState, control: TrainerControl, step: Any) -> bool:
    """After every so many steps, or else after epochs 0, N, 2N, ..., as in diffusers' example."""
    if control.should_evaluate:
        return True
    if args.validation_steps is not None:
        return state.global_step % args.validation_steps == 0
    return step.epoch is not None and step.epoch % args.save_images_epochs == 0


def _sample_evaluation(run: Run, args: TrainingArguments) -> SampleEvaluation:
    if run.eval_dataset is None:
        raise ValueError("classifier and features need held-out data: a validation_split or an eval_dataset.")
    name = run.conditioning.name
    if name not in (None, "class"):
        raise ValueError(
            "classifier and features measure samples of classes or of no condition, and this run's condition is "
            f"'{name}'; leave them out."
        )
    return SampleEvaluation(
        run.accelerator,
        pixels(run.eval_dataset),
        args.held_out_split or "eval_dataset",
        name == "class",
        {} if run.conditioning.name is None else {"guidance_scale": args.guidance_scale},
        classifier=args.classifier,
        features=args.features,
        size=args.evaluation_size,
        num_inference_steps=args.ddpm_num_inference_steps,
        seed=args.seed,
    )


def _checkpoints(run: Run, args: TrainingArguments, description: RunDescription) -> Checkpoints:
    """The parts that must survive a kill. What refuses another run comes first."""
    parts: dict[str, Stateful] = {"run": description, "trainer": run.state, "mode": _ModeState(run.mode)}
    parts["model"], parts["optimizer"] = run.weights, OptimizerState(getattr(run.optimizer, "optimizer", run.optimizer))
    if run.accelerator.scaler is not None:
        parts["scaler"] = _Optional(run.accelerator.scaler)
    for average in run.averages:
        name = f"ema-{average.sigma_rel:g}" if isinstance(average, PowerFunctionAverage) else "ema"
        parts[name] = AverageState(average, run.network)
    if isinstance(run.objective, Stateful):
        parts["objective"] = _Optional(run.objective)
    parts["batches"] = run.batches
    saved = next(
        (name for name, part in parts.items() if isinstance(part, AverageState) and part.average is run.ema), None
    )
    parts["pipeline"] = PipelineDescription(run.pipeline_of, run.network, saved)
    parts.update(run.callbacks.parts())
    return Checkpoints(
        run.folder.path,
        parts,
        run.state,
        run.recorder,
        run.processes,
        lambda: (run.state.global_step, run.callbacks.stage()),
        args.checkpoints_total_limit,
        lambda path: run.callbacks.fire("on_save", checkpoint=path),
    )


class _Optional:
    """A part that begins anew where a checkpoint has no state of it."""

    def __init__(self, part: Stateful):
        self.state_dict, self.load_state_dict = part.state_dict, part.load_state_dict

    def start_afresh(self) -> None:
        """It begins anew."""


class _ModeState:
    """How the steps of a run are computed, for the run that goes on; see `_stored_mode`."""

    def __init__(self, mode: Mode):
        self._mode = mode

    def state_dict(self) -> dict[str, Any]:
        """The mode."""
        return asdict(self._mode)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It has been taken up before the network was prepared."""


def _saving(run: Run, args: TrainingArguments) -> list[Any]:
    """Figures, pushes, snapshots, checkpoints."""
    a, folder = args, run.folder.path
    callbacks: list[Any] = [FiguresCallback(folder, _figures(run, args), a.hub_model_id, run.processes)]
    if a.push_to_hub:
        pusher = HubPusher(folder, a.hub_model_id, a.hub_private_repo, a.hub_token, a.logging_dir)
        callbacks.append(PushCallback(pusher, run.processes))
    if a.ema_snapshots is not None:
        power = [average for average in run.averages if isinstance(average, PowerFunctionAverage)]
        callbacks.append(SnapshotCallback(run.checkpoints, power, a.ema_snapshots))
    callbacks.append(CheckpointCallback(run.checkpoints, a.checkpointing_steps))
    return callbacks


def _efficiency(run: Run) -> list[Any]:
    """The figures of the machine: first, so that nothing else that is done at the end counts as training."""
    if run.weights.sharded:  # operations of pieces are not counted
        return []
    return [
        EfficiencyCallback(
            run.recorder,
            run.clock,
            run.accelerator.device,
            run.processes.count,
            run.accelerator.mixed_precision,
            run.mode,
            partial(_loss_of_one, run),
            list(run.network.parameters()),
        )
    ]


def _figures(run: Run, args: TrainingArguments) -> Figures | None:
    data = run.eval_dataset if run.eval_dataset is not None else run.train_dataset
    modality = modality_of_size(data.size)
    if modality is None or not args.save_figures or args.task == "autoencoder":
        return None
    request = run.conditioning.request
    samples = request(run.conditioning.figure_images, data)
    return Figures(
        samples,
        request(GIF_IMAGES, data),
        args.ddpm_num_inference_steps,
        args.seed,
        getattr(run.objective, "path", None),
        noise_schedule(args),
        partial(modality.real, data, examples_like(samples, data)),
    )


def _loss_of_one(run: Run) -> torch.Tensor:
    batch = run.batches.first(1)
    with unchanged(run.objective):
        return losses_of(run, run.binding.bind(run.network, batch, 0), batch, 0).mean()


def describe_run(args: TrainingArguments, run: Run, own_objective: bool, model_class: str) -> RunDescription:
    """What a checkpoint remembers of the settings and the data; `on_resume` of each setting says what it refuses."""
    in_use = {
        "model": model_class,
        "objective": _class_name(run.objective) if own_objective else args.objective,
        "schedule": noise_schedule(args),
        "loss_weighting": weighting_name(args),
        "gradient_accumulation_steps": run.accumulation,
    }
    meaning = {
        "the training data": run.train_dataset.fingerprint(),
        **_settings_in_use(args, REFUSED, in_use),
        "classes": getattr(run.train_dataset, "label_names", None) if args.condition == "class" else None,
    }
    named = {**_settings_in_use(args, NAMED, in_use), "the number of processes": run.processes.count}
    return RunDescription(meaning, named, {"the training data": f"'{run.train_dataset.description}'"})


def _settings_in_use(args: TrainingArguments, on_resume: str, in_use: dict[str, Any]) -> dict[str, Any]:
    """The values of the settings of one kind; `in_use` gives those that settings only lead to."""
    names = [name for name, setting in settings_of(type(args)).items() if setting.on_resume == on_resume]
    return {name: in_use.get(name, getattr(args, name)) for name in names}


def _class_name(thing: Any) -> str:
    """The name of an object's class, or of a function."""
    return getattr(thing, "__qualname__", type(thing).__qualname__)
