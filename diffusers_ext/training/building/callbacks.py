"""The callbacks of a run: what happens besides its steps, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ...modalities import modality_of_size
from ...schedulers.named_objects import load_object
from ..arguments import TrainingArguments
from ..callbacks import (
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
    ReconstructionCallback,
    SampleEvaluationCallback,
    SnapshotCallback,
    ValidationCallback,
    check_callback,
)
from ..ema import PowerFunctionAverage
from ..latents import pixels
from ..probe import unchanged
from ..report import GIF_IMAGES, Figures, examples_like
from ..run import Run
from ..sample_evaluation import SampleEvaluation, evaluation_network
from ..saving import HubPusher
from ..state import TrainerControl, TrainerState
from ..validation import EarlyStopping, validation_loss
from .checkpoints import make_checkpoints


def add_callbacks(args: TrainingArguments, run: Run, own: Sequence[Any]) -> None:
    """Give the run its callbacks, the user's before what is saved, and its checkpoints.

    Raises:
        ValueError: for a callback by name that can't be loaded, one that is none, or settings that need other data.
    """
    if not isinstance(own, (list, tuple)):
        raise ValueError(f"callbacks must be a list of callbacks, got {type(own).__name__}.")
    own = [*(load_object(name, "callback")() for name in args.callback), *own]
    for callback in own:
        check_callback(callback)
    run.callbacks = Callbacks([], args, run.state, run.control, run.weights.network)
    run.recorder.on_log = lambda values: run.callbacks.fire("on_log", logs=values)
    run.exporter = PipelineCallback(
        run.weights,
        run.ingredients.pipeline_of,
        run.folder.path,
        args.to_yaml(),
        args.hub_model_id,
        args.save_model_epochs,
        run.processes,
        run.callbacks.fire,
    )
    acting = [
        *_watching(args, run),
        *_measuring(args, run),
        *own,
        run.exporter,
    ]
    run.callbacks.callbacks = acting
    run.checkpoints = make_checkpoints(args, run)
    run.callbacks.callbacks = [*acting, *_saving(args, run)]
    run.callbacks.fire("on_init_end")


# --- watching ---------------------------------------------------------------------------------------------------------


def _watching(args: TrainingArguments, run: Run) -> list[Any]:
    """Use of the machine first, so that nothing else that is done at the end counts as training; metrics; faults."""
    every, ema = args.logging_steps, run.weights.ema
    callbacks = [
        LoggingCallback(run.recorder, every, ema),
        DiagnosticsCallback(run.diagnostics, every, ema, args.max_train_seconds),
    ]
    if run.weights.sharded:  # operations of pieces are not counted
        return callbacks
    efficiency = EfficiencyCallback(
        run.recorder,
        run.step.clock,
        run.accelerator.device,
        run.processes.count,
        run.accelerator.mixed_precision,
        run.mode,
        partial(_loss_of_one, run),
        run.weights.network,
    )
    return [efficiency, *callbacks]


def _loss_of_one(run: Run) -> torch.Tensor:
    batch = run.batches.first(1)
    with unchanged(run.ingredients.objective):
        return run.step.losses(run.binding.bind(run.weights.network, batch, 0), batch, 0).mean()


# --- measuring --------------------------------------------------------------------------------------------------------


def _measuring(args: TrainingArguments, run: Run) -> list[Any]:
    """The condition's effect, the loss on held-out data, previews, samples; an autoencoder's reconstructions."""
    is_due, data, binding = partial(_validation_due, args), run.ingredients.shown_data, run.binding
    heard = ConditionCheckCallback(
        run.diagnostics, run.weights.model, data, lambda batch: binding.of_measurement(batch, 0, data), is_due
    )
    validation = _validation(args, run, is_due)
    others: list[Any]
    if args.task == "autoencoder":
        others = [_reconstruction(args, run, is_due)]
    else:
        others = [_previews(args, run, is_due), _sample_evaluation(args, run, validation)]
    return [callback for callback in (heard, validation, *others) if callback is not None]


def _validation_due(args: TrainingArguments, state: TrainerState, control: TrainerControl, step: Any) -> bool:
    """After every so many steps, or else after epochs 0, N, 2N, ..., as in diffusers' example."""
    if control.should_evaluate:
        return True
    if args.validation_steps is not None:
        return state.global_step % args.validation_steps == 0
    return bool(step.completes_one_of(args.save_images_epochs))


def _validation(args: TrainingArguments, run: Run, is_due: Callable[..., bool]) -> ValidationCallback | None:
    data, objective, binding = run.ingredients.eval_dataset, run.ingredients.objective, run.binding
    if data is None:
        if args.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience needs a validation_split or an eval_dataset to measure loss on.")
        return None

    def measure(network: Any) -> float:
        conditions = lambda number, batch: binding.of_measurement(batch, number, data)  # noqa: E731
        return validation_loss(run.accelerator, network, objective, data, args.validation_size, args.seed, conditions)

    stopping = EarlyStopping(args.early_stopping_patience, args.early_stopping_min_delta)
    check, fire = run.reader.check, run.callbacks.fire
    return ValidationCallback(run.weights, measure, check, run.recorder, stopping, is_due, fire)


def _previews(args: TrainingArguments, run: Run, is_due: Callable[..., bool]) -> PreviewCallback | None:
    data = run.ingredients.shown_data
    if modality_of_size(data.size) is None:
        return None
    return PreviewCallback(
        run.weights,
        run.ingredients.pipeline_of,
        run.ingredients.conditioning.request(args.eval_batch_size, data),
        args.ddpm_num_inference_steps,
        run.folder.path / "samples",
        run.recorder,
        run.processes,
        args.seed,
        is_due,
    )


def _reconstruction(args: TrainingArguments, run: Run, is_due: Callable[..., bool]) -> ReconstructionCallback:
    """What an autoencoder has in the place of previews and measured samples."""
    data = run.ingredients.shown_data
    return ReconstructionCallback(
        run.weights,
        data,
        "training data" if run.ingredients.eval_dataset is None else args.held_out_split or "eval_dataset",
        run.folder.path,
        run.recorder,
        run.processes,
        args.evaluation_size,
        evaluation_network(args.classifier, args.features, data, run.accelerator.device),
        args.min_psnr,
        args.save_figures,
        is_due,
    )


def _sample_evaluation(
    args: TrainingArguments, run: Run, validation: ValidationCallback | None
) -> SampleEvaluationCallback | None:
    data, condition = run.ingredients.eval_dataset, run.ingredients.conditioning.condition
    if args.classifier is None and args.features is None:
        return None
    if data is None:
        raise ValueError("classifier and features need held-out data: a validation_split or an eval_dataset.")
    run.evaluation = SampleEvaluation(
        run.accelerator,
        pixels(data),
        args.held_out_split or "eval_dataset",
        condition,
        {} if condition is None else {"guidance_scale": args.guidance_scale},
        classifier=args.classifier,
        features=args.features,
        size=args.evaluation_size,
        num_inference_steps=args.ddpm_num_inference_steps,
        seed=args.seed,
    )
    best_at = (lambda: validation.best_at) if validation is not None else (lambda: 0)
    pipeline_of, fire = run.ingredients.pipeline_of, run.callbacks.fire
    return SampleEvaluationCallback(
        run.evaluation, run.weights, pipeline_of, run.recorder, args.evaluation_steps, best_at, fire
    )


# --- saving -----------------------------------------------------------------------------------------------------------


def _saving(args: TrainingArguments, run: Run) -> list[Any]:
    """Figures, pushes, snapshots, checkpoints."""
    folder = run.folder.path
    figures = FiguresCallback(folder, _figures(args, run), args.hub_model_id, run.processes, run.recorder.announce)
    callbacks: list[Any] = [figures]
    if args.push_to_hub:
        pusher = HubPusher(folder, args.hub_model_id, args.hub_private_repo, args.hub_token, args.logging_dir)
        callbacks.append(PushCallback(pusher, run.processes))
    if args.ema_snapshots is not None:
        power = [average for average in run.step.averages if isinstance(average, PowerFunctionAverage)]
        callbacks.append(SnapshotCallback(run.checkpoints, power, args.ema_snapshots))
    callbacks.append(CheckpointCallback(run.checkpoints, args.checkpointing_steps))
    return callbacks


def _figures(args: TrainingArguments, run: Run) -> Figures | None:
    data, conditioning = run.ingredients.shown_data, run.ingredients.conditioning
    modality = modality_of_size(data.size)
    if modality is None or not args.save_figures or args.task == "autoencoder":
        return None
    samples = conditioning.request(conditioning.figure_images, data)
    return Figures(
        samples,
        conditioning.request(GIF_IMAGES, data),
        args.ddpm_num_inference_steps,
        args.seed,
        getattr(run.ingredients.objective, "path", None),
        args.noise_schedule,
        partial(modality.real, data, examples_like(samples, data)),
    )
