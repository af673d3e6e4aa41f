"""The training loop: one `Trainer`, from settings to a saved pipeline."""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
)
from diffusers.optimization import get_scheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.base import Batch
from ..data.images import ImageData, load_image_data
from ..data.schedule import BatchSchedule, identity
from ..data.streaming import START
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import seed_of, shared_generator_of
from ..objectives.timestep_sampling import LOGIT_NORMAL
from ..settings import without_effect
from ..training import checkpoint
from .allocator import keep_freed_memory
from .arguments import TrainingArguments
from .build import check_sampling, make_model, make_objective, make_optimizer, make_scheduler
from .conditioning import make_condition, make_conditioning
from .diagnostics import Diagnostics
from .efficiency import Efficiency, StepClock, flops_of, peak_flops, peak_memory
from .ema import (
    SNAPSHOT_DIR,
    ExponentialMovingAverage,
    PowerFunctionAverage,
    WeightAverage,
    carrying,
    list_snapshots,
    retire_snapshots_after,
    save_snapshot,
)
from .interruption import Interruption, TrainingInterrupted
from .precision import Mode, as_loaded, resolve_mixed_precision, set_attention
from .probe import ModeProbe, unchanged
from .recording import METRICS_FILE, Recorder
from .report import GIF_IMAGES, preview_grid, write_figures
from .sample_evaluation import BROKEN, EVALUATION, SampleEvaluation
from .saving import HubPusher, describe, save_pipeline
from .sharding import WholeCopy, failed_writes, gathered, own_parameters, scattered, uses_fsdp, whole
from .validation import EarlyStopping, validation_loss

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
BEST_FILE = "best.safetensors"
VALIDATION = "validation_loss"
OBJECTIVE_FILE = "objective.safetensors"
STREAM_EXAMPLES = 64  # images of a stream that are at hand before the first step: for its channels, and for previews
# Off the CPU, reading a loss makes the host wait for the device; so it is read in groups of this many steps.
STEPS_BETWEEN_READS = 10


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the message gives the step and the likely cause."""


@dataclass
class Progress:
    """Counters of a run, as a checkpoint keeps them."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = float("inf")
    validations_without_better: int = 0
    ema_updates: int = 0
    validated_at: int = 0
    evaluated_at: int = 0  # the step whose weights were judged last
    best_at: int = 0
    mode: dict[str, Any] | None = None
    noise_levels: str = ""  # how they were drawn; older checkpoints do not tell


def train(arguments: TrainingArguments) -> DiffusionPipeline:
    """Train, save into `arguments.output_dir`, and give the trained pipeline; errors as `Trainer.train`."""
    try:
        return Trainer(arguments).train()
    except KeyboardInterrupt:  # before the first step, after the last, or for the second time
        kept = checkpoint.own_checkpoints(Path(arguments.output_dir))
        state = f"the newest checkpoint is '{kept[-1]}'" if kept else "no checkpoint had been saved yet"
        raise TrainingInterrupted(f"Stopped at once by Ctrl-C; {state}.", signal.SIGINT) from None


class Trainer:
    """Training of any network on any noise path, under a condition or none.

    Batches, noise, times and dropout are functions of (seed, step, process), so a run that is stopped and resumed gives
    the same weights as one that is not, unless its learning rate follows the clock (`max_train_seconds`).

    Args:
        arguments: the settings.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: one sentence on a setting that can't be.
    """

    def __init__(self, arguments: TrainingArguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.resolution = arguments.resolution or (28 if arguments.uses_embedded_data else 64)
        self.accelerator = _make_accelerator(arguments)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        for sentence in without_effect(arguments):
            if self.accelerator.is_main_process:
                logger.warning(sentence)
        self._check_output_dir()
        self._load_data()
        self.conditioning = make_conditioning(arguments, self.data)
        if self.validation_data is not None:
            self.conditioning.adopt(self.validation_data)
        unet = make_model(arguments, self.data.channels, self.resolution, self.conditioning.model_entries)
        self.objective = make_objective(arguments, unet)
        network = self.conditioning.wrap(unet)
        pipeline = self.conditioning.pipeline(network, make_scheduler(arguments, unet))
        check_sampling(pipeline.scheduler, arguments)  # fails now rather than after the training
        self._prepare_model(unet, network)
        measured = arguments.classifier is not None or arguments.features is not None
        self.sample_evaluation = self._make_sample_evaluation() if measured else None
        self._clear_output_dir()
        self.power_averages = self._make_power_averages()
        self.ema = self._make_ema() if arguments.use_ema else None
        self.stopping = EarlyStopping(arguments.early_stopping_patience, arguments.early_stopping_min_delta)
        self.best: dict[str, torch.Tensor] | None = None
        self.progress = Progress()
        self.pusher = HubPusher(self.output_dir, arguments)
        self.diagnostics = Diagnostics(self.objective, self.accelerator, self._warn)
        self.clock = StepClock(self.accelerator.device)
        self._unread: list[tuple[int, torch.Tensor]] = []
        self._saved: tuple[int, ...] = ()
        # The step that the run went on from, until something new takes the place of what lies after it.
        self._later_checkpoints: int | None = None
        self._later_snapshots: int | None = None
        self._position = START
        self._kept: Any = None

    # --- preparation --------------------------------------------------------------------------------------------------

    def _check_output_dir(self) -> None:
        """Refuse a folder that holds an earlier run, unless told to go on with it or to overwrite it."""
        arguments = self.arguments
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise FileExistsError(f"output_dir '{self.output_dir}' is a file.")
        earlier = [*checkpoint.list_checkpoints(self.output_dir), *self.output_dir.glob("model_index.json")]
        if earlier and arguments.resume_from_checkpoint is None and not arguments.overwrite_output_dir:
            raise FileExistsError(
                f"output_dir '{self.output_dir}' holds an earlier run; go on with --resume_from_checkpoint latest, "
                "start afresh with --overwrite_output_dir, or choose another folder."
            )
        self.accelerator.wait_for_everyone()

    def _clear_output_dir(self) -> None:
        """Make room for a fresh run: remove the files that an earlier one wrote, and nothing else."""
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.remove_partial(self.output_dir)
            checkpoint.remove_partial(self.output_dir / SNAPSHOT_DIR)
            if self.arguments.resume_from_checkpoint is None and self.arguments.overwrite_output_dir:
                for old in checkpoint.list_checkpoints(self.output_dir):
                    shutil.rmtree(old)
                checkpoint.unmark_branch(self.output_dir)
                for old in (self.output_dir / "samples").glob("step-*.png"):
                    old.unlink()
                for old in list_snapshots(self.output_dir):
                    old.unlink()
                (self.output_dir / METRICS_FILE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def _load_data(self) -> None:
        arguments = self.arguments
        with self.accelerator.local_main_process_first():
            self.data = self._load_split(arguments.train_split)
            split = arguments.held_out_split
            self.validation_data = self._load_split(split) if split else None
        if self.validation_data is not None and self.validation_data.channels != self.data.channels:
            raise ValueError(
                f"validation_split has images of {self.validation_data.channels} channels, the training split "
                f"{self.data.channels}; set --channels."
            )

    def _load_split(self, split: str) -> ImageData:
        a = self.arguments
        condition = make_condition(a)
        columns = {} if condition is None else condition.column_arguments()
        data = self._load_images(split, image_column=a.image_column, **columns)
        if condition is not None and a.condition_image_column is not None:
            data.accompany(self._load_images(split, image_column=a.condition_image_column))
        return data

    def _load_images(self, split: str, **columns: Any) -> ImageData:
        a = self.arguments
        training = split == a.train_split
        held = STREAM_EXAMPLES if training else max(a.validation_size, 2 * a.evaluation_size)
        return load_image_data(
            a.dataset_name,
            a.dataset_config_name,
            a.train_data_dir if a.dataset_name is None else None,
            split,
            **columns,
            cache_dir=a.cache_dir,
            token=a.hub_token,
            resolution=self.resolution,
            channels=a.channels,
            center_crop=a.center_crop or not training,
            random_flip=a.random_flip and training,
            resize_scale=a.resize_scale,
            random_resized_crop=(a.random_resized_crop, 1.0) if a.random_resized_crop and training else None,
            preserve_input_precision=a.preserve_input_precision,
            alpha_background=a.alpha_background,
            on_unreadable_image=a.on_unreadable_image,
            max_memory_bytes=int(a.max_memory_dataset_gb * 1024**3),
            seed=a.seed,
            streamed_examples=held if a.streaming else None,
            shuffle_buffer_size=a.shuffle_buffer_size,
        )

    def _prepare_model(self, unet: Any, network: Any) -> None:
        a = self.arguments
        if a.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if a.enable_xformers_memory_efficient_attention:
            unet.enable_xformers_memory_efficient_attention()
        if a.streaming:
            self.batches_per_epoch = (a.max_train_steps or 1) * a.gradient_accumulation_steps
        else:
            self.batches_per_epoch = self._schedule(0).batches_per_epoch
        per_run = math.ceil(a.num_epochs * self.batches_per_epoch / a.gradient_accumulation_steps)
        self.max_steps = min(per_run, a.max_train_steps) if a.max_train_steps else per_run
        self._lr_factor = _lr_factor(a, self.max_steps)
        self.mode, chosen = self._choose_mode(network)
        if a.mixed_precision == "auto" and self.mode.precision != self.accelerator.mixed_precision:
            self.accelerator = _make_accelerator(a, self.mode.precision)
        self._whole = self._copy_before_sharding(network) if uses_fsdp(self.accelerator) else None
        self.mode.apply(network)
        optimizer = self._make_optimizer(network)
        self.recorder = Recorder(self.accelerator, a, self.max_steps, self.batches_per_epoch)
        self.recorder.say(self.data.description)
        if chosen:
            self.recorder.say(chosen)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)

    def _copy_before_sharding(self, network: torch.nn.Module) -> WholeCopy:
        if self.arguments.optimizer == "muon":
            raise ValueError("optimizer muon turns whole matrices, and FSDP leaves pieces of them; use adamw, or DDP.")
        if self.arguments.ema_snapshots is not None:
            raise ValueError("ema_snapshots can't be taken of pieces of weights, as FSDP leaves them; use DDP.")
        return WholeCopy(network)

    def _make_optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(self.arguments, network, fused=self.accelerator.device.type in ("cpu", "cuda"))

    def _choose_mode(self, network: torch.nn.Module) -> tuple[Mode, str]:
        """How steps are computed, the same on every process, and a line on why; measured where settings leave it."""
        a, accelerator = self.arguments, self.accelerator
        batches, limit = self.max_steps * a.gradient_accumulation_steps, a.max_train_seconds or math.inf
        if a.mixed_precision != "auto":
            return Mode(accelerator.mixed_precision, bool(a.channels_last)), ""
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return Mode(accelerator.mixed_precision, bool(a.channels_last)), ""  # a copy would not be sharded
        began, mode, chosen = time.monotonic(), self._stored_mode(), ""
        if mode is None:
            data = self.data
            keys = [(index % len(data), 0) for index in range(a.train_batch_size)]
            batch = self._on_device(data.__getitems__(keys))
            probe = ModeProbe(
                network.to(accelerator.device),
                self.objective,
                batch,
                self._conditions(0, batch),
                self._make_optimizer,
                lambda seconds: min(batches * seconds, limit),
            )
            mode = probe.choose(a.channels_last)
            chosen = f"{probe} Probed in {time.monotonic() - began:.1f} s."
        (mode,) = broadcast_object_list([mode])
        return mode, f"Steps are computed in {mode}. {chosen}".strip()

    def _stored_mode(self) -> Mode | None:
        """The mode of the checkpoint that the run will go on from: in another one it would end with other weights."""
        a = self.arguments
        if a.resume_from_checkpoint is None:
            return None
        named = Path(a.resume_from_checkpoint)
        folders = [named if named.is_dir() else self.output_dir / named.name]
        if a.resume_from_checkpoint == "latest":
            folders = checkpoint.own_checkpoints(self.output_dir)[::-1]
        for state in map(checkpoint.read_state, folders):
            if state is not None:
                stored = state.get("mode")  # none in checkpoints from before there was a choice
                return Mode(**stored) if stored else Mode(resolve_mixed_precision("auto"), bool(a.channels_last))
        return None

    def _make_power_averages(self) -> list[PowerFunctionAverage]:
        a = self.arguments
        if a.ema_snapshots is None and not (a.use_ema and a.ema_kind == "power"):
            return []
        return [PowerFunctionAverage(own_parameters(self.network), sigma_rel) for sigma_rel in a.ema_sigma_rel]

    def _make_ema(self) -> WeightAverage:
        """The average that is sampled and saved."""
        a = self.arguments
        if a.ema_kind == "power":
            return self.power_averages[0]
        return ExponentialMovingAverage(
            own_parameters(self.network), a.ema_inv_gamma, a.ema_power, a.ema_max_decay, a.ema_update_after_step
        )

    def _make_sample_evaluation(self) -> SampleEvaluation:
        assert self.validation_data is not None  # the arguments have seen to that
        options: dict[str, Any] = {}
        if self.conditioning.name not in (None, "class"):
            raise ValueError(
                "classifier and features measure samples of classes or of no condition, and this run's condition is "
                f"'{self.conditioning.name}'; leave them out."
            )
        if self.arguments.condition is not None:
            options = {"guidance_scale": self.arguments.guidance_scale}
        return SampleEvaluation(
            self.arguments, self.accelerator, self.validation_data, self.conditioning.name == "class", options
        )

    @property
    def network(self) -> Any:
        """All that is trained, without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _schedule(self, start_batch: int) -> BatchSchedule:
        return BatchSchedule(
            len(self.data),
            self.arguments.train_batch_size,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.arguments.seed,
            start_batch,
        )

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(number, batch) of every batch from the current step on, without end."""
        a, accelerator = self.arguments, self.accelerator
        first = self.progress.step * a.gradient_accumulation_steps
        source: dict[str, Any] = {"dataset": self.data, "batch_sampler": self._schedule(first), "collate_fn": identity}
        if self.data.stream is not None:
            share = a.train_batch_size, accelerator.num_processes, accelerator.process_index
            source = {"dataset": self.data.stream.batches(*share, self._position), "batch_size": None}
        loader = torch.utils.data.DataLoader(
            **source, num_workers=a.dataloader_num_workers, pin_memory=accelerator.device.type == "cuda"
        )
        for number, batch in enumerate(loader, start=first):
            if "position" in batch:
                self._position = tuple(batch.pop("position").tolist())
            yield number, self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {name: values.to(device, non_blocking=True) for name, values in batch.items()}

    def _step(self, batches: Iterator[tuple[int, Batch]]) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step; (mean loss, gradient norm) of this process, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        losses, norm = [], torch.zeros(())
        for _ in range(self.arguments.gradient_accumulation_steps):
            number, batch = next(batches)
            with self.accelerator.accumulate(self.model):
                loss = self._loss(number, batch)
                with self.clock.working():
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            losses.append(loss.detach())
        for average in self._averages().values():
            average.update(own_parameters(self.network))
        return torch.stack(losses).mean(), whole(norm)

    def _averages(self) -> dict[str, WeightAverage]:
        """All averages that follow the weights, by the name of their file in a checkpoint."""
        averages: dict[str, WeightAverage] = {f"ema-{a.sigma_rel:g}.safetensors": a for a in self.power_averages}
        if self.ema is not None and self.arguments.ema_kind == "warmup":
            averages[EMA_FILE] = self.ema
        return averages

    def _loss(self, number: int, batch: Batch) -> torch.Tensor:
        """Mean loss of batch `number` of this process."""
        if self.mode.channels_last:
            batch = {**batch, "samples": batch["samples"].contiguous(memory_format=torch.channels_last)}
        watch = functools.partial(self.diagnostics.watch, batch["samples"])
        net = ConditionedNetwork(self.model, self._conditions(number, batch), report=watch)
        with self.clock.working():
            return self._losses(net, batch, number).mean()

    def _losses(self, net: ConditionedNetwork, batch: Batch, number: int) -> torch.Tensor:
        """Losses of batch `number` of this process, drawn as a part of the global batch."""
        accelerator, seed = self.accelerator, self.arguments.seed
        torch.manual_seed(seed_of(seed, "dropout", number, accelerator.process_index))
        share = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
        return self.objective(
            net, batch, shared_generator_of(seed, "noise", number, device=accelerator.device, **share)
        )

    def _conditions(self, number: int, batch: Batch) -> dict[str, Any]:
        """Conditions of batch `number` of this process, some of them dropped."""
        count, processes = len(batch["samples"]), self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        dropped = self.conditioning.dropped(number, number // self.batches_per_epoch, count * processes)[mine]
        seed = seed_of(self.arguments.seed, "condition", number)
        return self.conditioning.inputs(batch, self.data, dropped, seed, mine)

    def learning_rate(self) -> float:
        """Learning rate of the next step. Under a time budget it decays with the larger share of steps and seconds."""
        a, step = self.arguments, self.progress.step
        warmup = min(a.lr_warmup_steps, self.max_steps)
        if a.max_train_seconds and step >= warmup:
            share = min(1.0, self.progress.seconds / a.max_train_seconds)
            step = max(step, int(warmup + share * (self.max_steps - warmup)))
        return a.learning_rate * self._lr_factor(step)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def train(self) -> DiffusionPipeline:
        """Run to the end and save the pipeline.

        Returns:
            The trained pipeline (EMA weights if there are any), as it was saved.

        Raises:
            TrainingInterrupted: after SIGTERM or Ctrl-C, when a checkpoint has been saved.
            TrainingDiverged: when the loss is not finite; nothing is saved after that.
            CheckpointError: when `resume_from_checkpoint` names a damaged checkpoint.
        """
        self._resume()
        set_attention(self.network, self.mode.attention)  # another Trainer in this process may have had its own
        self.recorder.start(self.progress.step)
        self.diagnostics.check_path()
        batches = self._batches()
        began = time.monotonic() - self.progress.seconds
        first_step, first_second = self.progress.step, time.monotonic()
        self.model.train()
        with Interruption() as interruption, self.recorder.progress_bar(self.progress.step) as bar:
            while not self._finished():
                loss, norm = self._step(batches)
                self.progress.step += 1
                self._unread.append((self.progress.step, loss))
                signal_number = 0
                if self._reads_now():
                    self.progress.seconds = time.monotonic() - began
                    signal_number = self._read(interruption.received)
                    self.recorder.show(bar, self.progress.step, self.progress.seconds)
                with self.recorder.not_training(), self._eager():
                    self._after_step(norm)
                if signal_number:
                    self._save_and_raise(signal_number)
            seconds = time.monotonic() - first_second - self.recorder.seconds_not_training
            with self._eager():
                self._judge_and_keep(interruption)
        self._report_efficiency(self.progress.step - first_step, seconds)
        return self._finish()

    def _finished(self) -> bool:
        limit = self.arguments.max_train_seconds
        out_of_time = limit is not None and self.progress.seconds >= limit
        return self.progress.step >= self.max_steps or out_of_time or self.stopping.exhausted

    def _reads_now(self) -> bool:
        """Whether to wait for the device: always on a CPU, and before anything that is written."""
        a, step = self.arguments, self.progress.step
        if self.accelerator.device.type == "cpu" or step % STEPS_BETWEEN_READS == 0 or step >= self.max_steps:
            return True
        return step % a.checkpointing_steps == 0 or step % a.logging_steps == 0 or self._epoch_ends() is not None

    def _read(self, received: int) -> int:
        """Read the losses since the last time; processes agree on the time and on a signal to stop; the signal or 0."""
        losses = torch.stack([loss.float() for _, loss in self._unread])
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, "mean")
            agreed = torch.tensor(
                [self.progress.seconds, received], device=self.accelerator.device, dtype=torch.float32
            )
            gathered = self.accelerator.gather(agreed[None])
            self.progress.seconds, received = gathered[0, 0].item(), int(gathered[:, 1].max())
        for (step, _), value in zip(self._unread, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingDiverged(self._divergence(step, value))
            self.recorder.add_loss(value)
        self._unread.clear()
        return received

    def _divergence(self, step: int, value: float) -> str:
        a = self.arguments
        warmup = 0 if a.lr_scheduler == "constant" else a.lr_warmup_steps
        if self.accelerator.mixed_precision == "fp16":
            cause = "fp16 overflowed; try --mixed_precision bf16 or no"
        elif step <= max(warmup, 1):
            cause = (
                f"learning_rate {a.learning_rate:g} is too large for the start; try a tenth, or more lr_warmup_steps"
            )
        else:
            cause = f"learning_rate {a.learning_rate:g} is too large, or the data hold values that are not numbers"
        kept = checkpoint.own_checkpoints(self.output_dir)
        last = f"the last checkpoint before is '{kept[-1]}'" if kept else "no checkpoint had been saved yet"
        return f"The loss became {value} at step {step}; likely cause: {cause}; {last}."

    def _epoch_ends(self) -> int | None:
        """The epoch (from 0) that the latest step completed, if it completed one."""
        accumulation = self.arguments.gradient_accumulation_steps
        after = self.progress.step * accumulation // self.batches_per_epoch
        before = (self.progress.step - 1) * accumulation // self.batches_per_epoch
        return after - 1 if after > before else None

    def _after_step(self, norm: torch.Tensor) -> None:
        """Everything that is due at this step besides learning; none of it changes what is learned."""
        a, step, epoch = self.arguments, self.progress.step, self._epoch_ends()
        if step % a.logging_steps == 0:
            values = {"learning_rate": self.optimizer.param_groups[0]["lr"], "gradient_norm": float(norm)}
            if self.ema is not None:
                values["ema_decay"] = self.ema.decay()
            self.recorder.log_training(step, self.progress.seconds, **values)
            self.diagnostics.check(step)
            self.diagnostics.check_ema_early(self.ema, step, self.max_steps, self.progress.seconds, a.max_train_seconds)
        # Epochs count from 0, as in diffusers' example: previews and saves come after epochs 0, N, 2N, ...
        by_epoch = epoch is not None and epoch % a.save_images_epochs == 0
        if by_epoch if a.validation_steps is None else step % a.validation_steps == 0:
            self._validate()
            self._preview()
        if a.evaluation_steps is not None and step % a.evaluation_steps == 0:
            self._evaluate_samples()
        if epoch is not None and epoch % a.save_model_epochs == 0 and not self._finished():
            with self._judged() as network:
                self._save_pipeline(self._pipeline_of(network), last=False)
        if a.ema_snapshots is not None and step % a.ema_snapshots == 0:
            self._save_snapshot()
        if step % a.checkpointing_steps == 0:
            self._save_checkpoint()
        self.model.train()

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        a = self.arguments
        self.progress.validated_at = self.progress.step
        self.model.eval()
        data = self.validation_data or self.data
        self.diagnostics.check_condition(
            self.model, data, lambda b: self._fixed_condition(0, b, data), self.progress.step
        )
        if self.validation_data is None:
            return
        with self._judged() as network:
            loss = validation_loss(
                self.accelerator,
                network,
                self.objective,
                self.validation_data,
                a.validation_size,
                a.seed,
                lambda number, batch: self._fixed_condition(number, batch, data),
            )
        if not math.isfinite(loss):
            raise TrainingDiverged(self._divergence(self.progress.step, loss))
        self.recorder.log(self.progress.step, self.progress.seconds, **{VALIDATION: loss})
        if self.stopping.update(loss) and a.early_stopping_patience is not None:
            with self._judged() as network:
                self.best = {name: p.detach().cpu().clone() for name, p in network.named_parameters()}
            self.progress.best_at = self.progress.step

    def _evaluate_samples(self, last: bool = False) -> None:
        """Evaluate generated samples, on all processes; the last time, with the weights that will be saved."""
        best = self.best if last else None
        step = self.progress.step if best is None else self.progress.best_at
        if self.sample_evaluation is None or self.progress.evaluated_at == step:
            return
        self.progress.evaluated_at = step
        self.model.eval()
        with self._judged() as network, carrying(network, best or {}):
            measures = self.sample_evaluation(self._pipeline_of(network))
        if BROKEN in measures:
            self._warn(f"{measures[BROKEN]} samples to be measured hold pixels that are no numbers; none is measured.")
        kind = "raw" if self.ema is None else "EMA"
        weights: dict[str, Any] = {"evaluation_weights": kind, "evaluation_weights_step": step}
        self.recorder.log(self.progress.step, self.progress.seconds, **weights, **measures)

    def _fixed_condition(self, number: int, batch: Batch, data: ImageData) -> dict[str, Any]:
        count = len(batch["samples"])
        seed = seed_of(self.arguments.seed, "validation condition", number)
        kept = torch.zeros(count, dtype=torch.bool)
        return self.conditioning.inputs(batch, data, kept, seed, slice(0, count))

    def _warn(self, sentence: str) -> None:
        """Say on the main process what looks wrong, and write it among the metrics."""
        if self.accelerator.is_main_process:
            logger.warning(sentence)
        self.recorder.log(self.progress.step, self.progress.seconds, warning=sentence)

    def _request(self, count: int) -> dict[str, Any]:
        """What the pipeline is asked for in previews and figures."""
        return self.conditioning.request(count, self.validation_data or self.data)

    def _preview(self) -> None:
        """A grid of images from noise that is the same at every preview; on the main process."""
        with self._judged() as network:
            if self.accelerator.is_main_process:
                generator = torch.Generator().manual_seed(seed_of(self.arguments.seed, "preview"))
                images = preview_grid(
                    self._pipeline_of(network),
                    self.arguments.ddpm_num_inference_steps,
                    generator,
                    self.output_dir / "samples" / f"step-{self.progress.step:06d}.png",
                    **self._request(self.arguments.eval_batch_size),
                )
                self.recorder.log_images(self.progress.step, images)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _judged(self) -> Iterator[Any]:
        """Context of the network, in one piece, with the weights that are judged and saved; all processes take part."""
        if self._kept is not None:
            yield self._kept
        elif self._whole is not None:
            self.model.reshard()  # an evaluation leaves it gathered
            pieces = dict(own_parameters(self.network)) if self.ema is None else self.ema.averages
            with self._whole.filled(self.network, pieces, self.accelerator.device) as network:
                yield network
        else:
            with self.ema.applied_to(self.network) if self.ema is not None else nullcontext():
                yield self.network

    def _eager(self) -> Any:
        """Context without compiled blocks, which would be compiled anew for each other batch size."""
        return torch.compiler.set_stance("force_eager") if self.mode.compiled else nullcontext()

    def _pipeline_of(self, network: Any) -> DiffusionPipeline:
        scheduler = make_scheduler(self.arguments, self.conditioning.unet(network))
        return self.conditioning.pipeline(network, scheduler)

    def _report_efficiency(self, steps: int, seconds: float) -> None:
        """Say how well the steps of this launch used the machine, and write it among the metrics."""
        if steps == 0 or self._whole is not None:
            return
        device, mode = self.accelerator.device, self.accelerator.mixed_precision
        images_per_second = steps * self.recorder.images_per_step / seconds
        try:
            with self._eager():  # compiled operations are not seen
                flops = flops_of(self._loss_of_one, list(self.network.parameters()))
        except (RuntimeError, NotImplementedError) as error:  # sharded weights, say; the run itself is well
            logger.warning("The operations of a step could not be counted (%s).", " ".join(str(error).split())[:200])
            return
        figures = Efficiency(
            images_per_second,
            flops,
            flops * images_per_second / self.accelerator.num_processes,
            peak_flops(device, mode, seconds),
            1 - self.clock.seconds() / seconds,
            peak_memory(device),
        )
        self.recorder.log(self.progress.step, self.progress.seconds, mode=str(self.mode), **figures.metrics())
        self.recorder.say(f"In {self.mode}: {figures}.")

    def _loss_of_one(self) -> torch.Tensor:
        batch = self._on_device(self.data.__getitems__([(0, 0)]))
        net = ConditionedNetwork(self.network, self._conditions(0, batch))
        with unchanged(self.objective):
            return self._losses(net, batch, 0).mean()

    # --- saving and resuming ------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """Write everything that the rest of the run depends on; a failure is reported and the run goes on."""
        accelerator, step = self.accelerator, self.progress.step
        path = checkpoint.checkpoint_path(self.output_dir, step)
        partial = checkpoint.partial_path(path)
        problem = self._save_own_part(partial)
        if self._nobody_failed(problem):
            if accelerator.is_main_process:
                problem = _attempt(lambda: self._complete_checkpoint(partial, path))
            if self._nobody_failed(problem):
                self._saved = self._stage()
        if problem:
            logger.warning("The checkpoint of step %d could not be saved (%s); training goes on.", step, problem)
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()

    def _stage(self) -> tuple[int, ...]:
        """How far the run is, with what was measured of it."""
        return self.progress.step, self.progress.validated_at, self.progress.evaluated_at

    def _save_what_is_new(self) -> None:
        """Write a checkpoint unless the last one holds this very step with all its measures."""
        if self._saved != self._stage():
            self._save_checkpoint()

    def _save_own_part(self, folder: Path) -> str:
        """What every process saves, or gives its piece of; returns what went wrong here, or "".

        A process that could not write takes part in all gathering that the others wait in.
        """
        problem = _attempt(lambda: folder.mkdir(parents=True, exist_ok=True))
        if not self._nobody_failed(problem):
            return problem
        with failed_writes() as failed:
            problem = _attempt(lambda: self.accelerator.save_state(str(folder)))
        problem = problem or "; ".join(failed)
        if not self._nobody_failed(problem):
            return problem
        for name, average in self._averages().items():
            averages = gathered(self.network, average.averages)
            if self.accelerator.is_main_process and not problem:
                problem = _attempt(functools.partial(_write, averages, folder / name))
        if self.data.stream is not None and not problem:
            share = self.accelerator.num_processes, self.accelerator.process_index
            problem = _attempt(lambda: checkpoint.write_position(folder, *share, self._position))
        return problem

    def _nobody_failed(self, problem: str) -> bool:
        """Whether all processes came through; all give the same answer, so that none waits for one that went astray."""
        failed = torch.tensor([float(bool(problem))], device=self.accelerator.device)
        return self.accelerator.reduce(failed, "sum").item() == 0

    def _save_snapshot(self) -> None:
        """Keep the power-function averages of this step; a failure is reported and the run goes on."""
        if self.accelerator.is_main_process:
            self._retire_later_snapshots()
            problem = _attempt(lambda: save_snapshot(self.output_dir, self.progress.step, self.power_averages))
            if problem:
                logger.warning("The snapshot of step %d could not be saved (%s).", self.progress.step, problem)

    def _complete_checkpoint(self, folder: Path, path: Path) -> None:
        progress = self.progress
        progress.best_loss, progress.validations_without_better = self.stopping.best, self.stopping.waited
        if self.ema is not None:
            progress.ema_updates = self.ema.updates
        if self.best is not None:
            save_file(_packed(self.best), folder / BEST_FILE)
        if hasattr(self.objective, "state_dict"):
            save_file(self.objective.state_dict(), folder / OBJECTIVE_FILE)
        progress.mode, progress.noise_levels = asdict(self.mode), _noise_levels(self.arguments)
        checkpoint.seal(folder, asdict(progress))
        self._retire_later_checkpoints()
        checkpoint.publish(folder, path)
        checkpoint.unmark_branch(self.output_dir)
        checkpoint.limit_checkpoints(self.output_dir, self.arguments.checkpoints_total_limit)

    def _retire_later_checkpoints(self) -> None:
        """Delete those of the branch that was left, as soon as the first new one is whole."""
        if self._later_checkpoints is not None:
            retired = checkpoint.retire_after(self.output_dir, self._later_checkpoints)
            if retired:
                names = ", ".join(retired)
                self.recorder.say(f"Deleted {names}: later than step {self._later_checkpoints}, where the run went on.")
            self._later_checkpoints = None
            self._retire_later_snapshots()
            self.recorder.forget()

    def _retire_later_snapshots(self) -> None:
        if self._later_snapshots is not None:
            retire_snapshots_after(self.output_dir, self._later_snapshots)
            self._later_snapshots = None

    def _resume(self) -> None:
        wanted = self.arguments.resume_from_checkpoint
        if wanted is None:
            self._forget_earlier_run()
            return
        if wanted == "latest":
            found = checkpoint.newest_usable(self.output_dir, logger.warning)
            if found is None:
                self.recorder.say(f"There is no checkpoint in '{self.output_dir}' yet; starting from the beginning.")
                self._forget_earlier_run()
                return
        else:
            path = Path(wanted)
            path = path if path.is_dir() else self.output_dir / path.name
            if not path.is_dir():
                raise FileNotFoundError(f"There is no checkpoint '{wanted}'.")
            found = path, checkpoint.verify(path)
        self._load_checkpoint(*found)

    def _forget_earlier_run(self) -> None:
        """Drop what a run that was killed before its first checkpoint wrote: all its steps come again."""
        self.recorder.forget_after(-1)
        self._later_checkpoints = 0  # there may be damaged ones
        if self.accelerator.is_main_process:
            retire_snapshots_after(self.output_dir, 0)
        self.accelerator.wait_for_everyone()

    def _load_checkpoint(self, path: Path, state: dict[str, Any]) -> None:
        try:
            self.accelerator.load_state(str(path))
        except (RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:300]
            raise checkpoint.CheckpointError(
                f"Checkpoint '{path}' is of another model or optimizer: {reason}"
            ) from None
        self.accelerator.step = 0  # of batches: a checkpoint lies between steps, however many make one from now on
        if self.data.stream is not None:
            share = self.accelerator.num_processes, self.accelerator.process_index
            self._position = checkpoint.read_position(path, *share)
        measured = {"validated_at": state["step"], "evaluated_at": state["step"]}  # older checkpoints do not tell
        self.progress = Progress(**{**measured, **state})
        before, now = self.progress.noise_levels, _noise_levels(self.arguments)
        if before not in ("", now) and self.accelerator.is_main_process:
            logger.warning("Noise levels were drawn as %s before and are as %s now: losses will differ.", before, now)
        self.stopping.best, self.stopping.waited = self.progress.best_loss, self.progress.validations_without_better
        for name, average in self._averages().items():
            if (path / name).is_file():
                # A power-function average has followed every step.
                updates = self.progress.ema_updates if name == EMA_FILE else self.progress.step
                average.load(scattered(self.network, load_file(path / name)), updates)
            elif name == EMA_FILE:
                average.load(dict(own_parameters(self.network)), 0)  # it begins here
            else:
                raise checkpoint.CheckpointError(
                    f"Checkpoint '{path}' has no {name}: a power-function average can't begin in the middle of a run; "
                    "resume with the ema_kind, ema_sigma_rel and ema_snapshots that it was begun with."
                )
        if self.arguments.early_stopping_patience is not None:
            if (path / BEST_FILE).is_file():
                self.best = load_file(path / BEST_FILE)
            else:  # nobody kept the weights of the best loss so far
                self.stopping.best, self.stopping.waited = math.inf, 0
        if hasattr(self.objective, "load_state_dict") and (path / OBJECTIVE_FILE).is_file():
            self.objective.load_state_dict(load_file(path / OBJECTIVE_FILE))
        step = self.progress.step
        judged = step if self.best is None else self.progress.best_at  # where the run ends here
        measured = {VALIDATION: {step}, EVALUATION: {step, judged}}
        done = {VALIDATION: self.progress.validated_at, EVALUATION: self.progress.evaluated_at}
        self.recorder.forget_after(step, [name for name, at in done.items() if at not in measured[name]])
        self._later_checkpoints = self._later_snapshots = step
        if self.accelerator.is_main_process:
            problem = _attempt(lambda: checkpoint.mark_branch(self.output_dir, path, step))
            if problem:
                logger.warning("Where the run goes on from could not be noted (%s).", problem)
        later = ", ".join(p.name for p in checkpoint.later_than(self.output_dir, step))
        self.accelerator.wait_for_everyone()
        until = f" {later} will be deleted once the first new checkpoint is whole." if later else ""
        self.recorder.say(f"Going on from '{path}' at step {step}.{until}")

    def _save_and_raise(self, signal_number: int) -> None:
        self._save_what_is_new()
        self.recorder.close()
        path = checkpoint.checkpoint_path(self.output_dir, self.progress.step)
        where = f"everything is in '{path}'" if path.is_dir() else "its checkpoint could not be saved"
        raise TrainingInterrupted(
            f"Stopped by signal {signal_number} after step {self.progress.step}; {where}, go on with "
            "--resume_from_checkpoint latest.",
            signal_number,
        )

    def _save_pipeline(self, pipeline: DiffusionPipeline, last: bool) -> None:
        """Save, and push if asked to; a failure stops the run only when this was its last pipeline."""
        if self.accelerator.is_main_process:
            problem = _attempt(lambda: save_pipeline(pipeline, self.output_dir, self.arguments))
            if problem:
                kept = checkpoint.own_checkpoints(self.output_dir)
                goes_on = f"go on from '{kept[-1]}' with --resume_from_checkpoint latest" if kept else "start again"
                message = f"The pipeline of step {self.progress.step} could not be saved ({problem})"
                if last:
                    raise OSError(f"{message}; make room, then {goes_on}.")
                logger.warning("%s; training goes on.", message)
            elif not last:
                self.pusher.push(f"Step {self.progress.step}")
        self.accelerator.wait_for_everyone()

    def _judge_and_keep(self, interruption: Interruption) -> None:
        """Measure the last state and save it as a checkpoint; a signal that comes meanwhile is heeded after that."""
        if self.progress.validated_at != self.progress.step:
            self._validate()
        self._evaluate_samples(last=True)
        if self.recorder.has_unlogged:
            self.recorder.log_training(self.progress.step, self.progress.seconds)
        self.diagnostics.check(self.progress.step)
        self.diagnostics.check_ema(self.ema, self.progress.step)
        received = torch.tensor([interruption.received], device=self.accelerator.device)
        signal_number = int(self.accelerator.gather(received).max())
        if signal_number:
            self._save_and_raise(signal_number)
        if self.arguments.ema_snapshots is not None and self.progress.step % self.arguments.ema_snapshots != 0:
            self._save_snapshot()
        self._save_what_is_new()

    def _finish(self) -> DiffusionPipeline:
        """Put the weights to keep into the network, save the pipeline and pictures."""
        network = self._kept = self._network_to_keep()
        # As it will be loaded: another memory format gives other roundings.
        as_loaded(network.eval())
        pipeline = self._pipeline_of(network)
        self._save_pipeline(pipeline, last=True)
        self._preview()
        if self.accelerator.is_main_process:
            samples, reverse = self._request(self.conditioning.figure_images), self._request(GIF_IMAGES)
            path = getattr(self.objective, "path", None)
            write_figures(pipeline, self.output_dir, self.arguments, path, samples, reverse)
            describe(self.output_dir, self.arguments)
            self.pusher.push_last(f"Trained {self.progress.step} steps")
        self.accelerator.wait_for_everyone()
        self.recorder.close()
        self.recorder.say(
            f"Trained {self.progress.step} steps in {self.progress.seconds:.0f} s; saved to '{self.output_dir}'."
        )
        return pipeline

    def _network_to_keep(self) -> Any:
        """The network in one piece, without wrappers, with the best weights, or the average, or as it is."""
        if self._whole is not None:
            with self._judged() as filled:
                network = filled
            network.to(self.accelerator.device)
        else:
            network = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            if self.ema is not None:
                self.ema.copy_to(network)
        if self.best is not None:
            network.load_state_dict(self.best, strict=False)
        return network


def _make_accelerator(arguments: TrainingArguments, mixed_precision: str | None = None) -> Accelerator:
    # A notebook may train twice with different precisions; Accelerate's process-wide state would refuse the second.
    AcceleratorState._reset_state()
    log_with = None if arguments.logger == "none" else arguments.logger
    if log_with == "tensorboard":
        _require("tensorboard", "--logger tensorboard", "diffusers_ext[train]")
    elif log_with == "wandb":
        _require("wandb", "--logger wandb", "wandb")
    logging_dir = str(Path(arguments.output_dir) / arguments.logging_dir)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError("Training under DeepSpeed is not supported; FSDP shards as its ZeRO stage 3 does.")
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=mixed_precision or resolve_mixed_precision(arguments.mixed_precision),
        log_with=log_with,
        project_config=ProjectConfiguration(project_dir=arguments.output_dir, logging_dir=logging_dir),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_leaves_some_unused(arguments))],
        # torchrun on a machine without accelerators: Accelerate would take every process for a run of its own.
        cpu=True if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available() else None,
    )
    uses_fsdp(accelerator)  # on CPUs it has to be taken up
    return accelerator


def _leaves_some_unused(arguments: TrainingArguments) -> bool:
    """Whether a step may use a part of the network only.

    A guided network without labels leaves its class blocks aside, and many text encoders have a pooler that only their
    own task needs.
    """
    return "guided" in arguments.model or getattr(arguments, "train_text_encoder", False)


def _require(module: str, flag: str, package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{flag} needs the package {module}: install '{package}', or pass --logger none.")


def _lr_factor(arguments: TrainingArguments, max_steps: int) -> Any:
    """The learning-rate schedule as a function of the optimizer step, from diffusers' own."""
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    warmup = min(arguments.lr_warmup_steps, max_steps)
    scheduler = get_scheduler(arguments.lr_scheduler, stand_in, num_warmup_steps=warmup, num_training_steps=max_steps)
    return scheduler.lr_lambdas[0]


def _noise_levels(arguments: TrainingArguments) -> str:
    """How a run draws them, in words."""
    kind, location, scale = arguments.timestep_sampling, arguments.logit_normal_mean, arguments.logit_normal_std
    return f"{kind} ({location:g}, {scale:g})" if kind in LOGIT_NORMAL else kind


def _attempt(save: Callable[[], Any]) -> str:
    """Do it; what went wrong, in one line, or an empty string."""
    try:
        save()
    except (OSError, RuntimeError, SafetensorError) as error:
        return " ".join(str(error).split())
    return ""


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(_packed(tensors), path)


def _packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: channels-last weights are not contiguous in its sense."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
