"""`build_run`: the parts of a run, put together in the order in which they need each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ...conditions import Condition
from ...data.signals import is_bounded
from ...settings import without_effect
from ..agreement import Processes
from ..arguments import TrainingArguments
from ..binding import ConditionBinding
from ..diagnostics import Diagnostics
from ..efficiency import StepClock
from ..folder import AUTOENCODER, OutputFolder
from ..latents import vae_of
from ..losses import LossReader
from ..precision import Mode
from ..recording import Recorder
from ..run import Ingredients, Run
from ..sharding import WholeCopy, uses_fsdp
from ..state import TrainerState
from ..stepping import SampleLosses, Step
from ..weights import Weights
from .callbacks import add_callbacks
from .data import make_batches
from .ingredients import make_ingredients
from .machine import accumulation_steps, choose_mode, make_accelerator
from .optimizer import count_steps, make_averages, make_learning_rate, make_optimizer

logger = logging.getLogger(__name__)


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
    own = {"model": model, "train_dataset": train_dataset, "objective": objective, "condition": condition}
    for sentence in without_effect(args, [name for name, value in own.items() if value is not None]):
        if accelerator.is_main_process:
            logger.warning(sentence)
    if args.push_to_hub:
        _check_repo_id(args.hub_model_id)
    written = AUTOENCODER if args.task == "autoencoder" else ()
    resumes = args.resume_from_checkpoint is not None
    folder = OutputFolder(args.output_dir, resumes, args.overwrite_output_dir, also_written=written)
    accelerator.wait_for_everyone()
    ingredients = make_ingredients(args, accelerator, model, train_dataset, eval_dataset, objective, condition)
    run = _make_run(args, accelerator, accumulation, folder, ingredients)
    add_callbacks(args, run, callbacks or [])
    return run


def _check_repo_id(repo_id: str | None) -> None:
    try:
        if repo_id is not None:
            validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"hub_model_id must be 'name' or 'user/name' of letters, digits, '-', '_' and '.', got '{repo_id}'."
        ) from None


def _make_run(
    args: TrainingArguments, accelerator: Accelerator, accumulation: int, folder: OutputFolder, ingredients: Ingredients
) -> Run:
    """Choose how steps are computed, bring the network into that form, and add what works on it."""
    data = ingredients.train_dataset
    batches = make_batches(args, accelerator, accumulation, data)
    per_epoch, share = batches.batches_per_epoch, (accelerator.num_processes, accelerator.process_index)
    binding = ConditionBinding(ingredients.conditioning, data, args.seed, per_epoch, *share)
    steps = count_steps(args, per_epoch, accumulation, accelerator.is_main_process)
    state = TrainerState(max_steps=steps, steps_per_epoch=per_epoch / accumulation)
    mode, told, seconds = choose_mode(args, accelerator, ingredients, batches, binding, steps * accumulation)
    if args.mixed_precision == "auto" and mode.precision != accelerator.mixed_precision:
        accelerator = make_accelerator(args, accumulation, mode.precision)
        batches.use(accelerator)
    recorder = _recorder(args, accelerator, folder, state, accumulation)
    recorder.say("\n".join(filter(None, [data.description, told])))
    bounded = vae_of(data) is None and is_bounded(data)
    diagnostics = Diagnostics(ingredients.objective, accelerator, recorder.warn, bounded)
    weights, step = _prepare(args, accelerator, ingredients, mode, binding, state, diagnostics)
    warmup = 0 if args.lr_scheduler == "constant" else args.lr_warmup_steps
    return Run(
        ingredients=ingredients,
        accelerator=accelerator,
        processes=Processes(accelerator),
        folder=folder,
        accumulation=accumulation,
        mode=mode,
        seconds_probing=seconds,
        state=state,
        batches=batches,
        binding=binding,
        weights=weights,
        step=step,
        recorder=recorder,
        reader=LossReader(accelerator, args.learning_rate, warmup),
        diagnostics=diagnostics,
        written_every=_written_every(args),
        max_seconds=args.max_train_seconds,
        resume_from=args.resume_from_checkpoint,
    )


def _prepare(
    args: TrainingArguments,
    accelerator: Accelerator,
    ingredients: Ingredients,
    mode: Mode,
    binding: ConditionBinding,
    state: TrainerState,
    diagnostics: Diagnostics,
) -> tuple[Weights, Step]:
    """The network as it is trained, with its averages, and one step of it."""
    network = ingredients.network
    whole = _copy_before_sharding(args, network) if uses_fsdp(accelerator) else None
    mode.apply(network)
    accelerator.ddp_handler.find_unused_parameters = any(
        getattr(module, "leaves_parameters_unused", False) for module in network.modules()
    )
    model, optimizer = accelerator.prepare(network, make_optimizer(args, accelerator.device, network))
    if whole is not None:
        network = accelerator.unwrap_model(model)
    averages, ema = make_averages(args, network)
    step = Step(
        accelerator=accelerator,
        model=model,
        network=network,
        optimizer=optimizer,
        averages=averages,
        losses=SampleLosses(ingredients.objective, accelerator, args.seed),
        binding=binding,
        learning_rate=make_learning_rate(args, state),
        max_grad_norm=args.max_grad_norm,
        channels_last=mode.channels_last,
        clock=StepClock(accelerator.device),
        watch=diagnostics.watch,
    )
    return Weights(accelerator, model, network, ema, whole), step


def _copy_before_sharding(args: TrainingArguments, network: Any) -> WholeCopy:
    if args.optimizer == "muon":
        raise ValueError("optimizer muon turns whole matrices, and FSDP leaves pieces of them; use adamw, or DDP.")
    if args.ema_snapshots is not None:
        raise ValueError("ema_snapshots can't be taken of pieces of weights, as FSDP leaves them; use DDP.")
    return WholeCopy(network)


def _recorder(
    args: TrainingArguments, accelerator: Accelerator, folder: OutputFolder, state: TrainerState, accumulation: int
) -> Recorder:
    tracked = None  # the settings that the tracker shows
    if args.logger != "none":
        tracked = {k: v for k, v in asdict(args).items() if isinstance(v, (int, float, str, bool)) and k != "hub_token"}
    samples_per_step = args.train_batch_size * accumulation * accelerator.num_processes
    return Recorder(accelerator, folder.path, state, samples_per_step, tracked, args.max_train_seconds)


def _written_every(args: TrainingArguments) -> list[int]:
    """After how many steps something is written, of everything that is."""
    every = args.logging_steps, args.checkpointing_steps, args.validation_steps, args.evaluation_steps
    return [steps for steps in every if steps is not None]
