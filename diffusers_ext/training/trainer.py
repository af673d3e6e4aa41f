"""The training loop: one `Trainer`, from settings and what the user brings to a saved pipeline."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..files import one_line
from . import checkpoint
from .agreement import TrainingFailed
from .arguments import TrainingArguments
from .building import build_run
from .interruption import Interruption, TrainingInterrupted
from .losses import TrainingDiverged
from .precision import as_loaded, set_attention
from .state import StepResult, TrainerState


def train(
    args: TrainingArguments,
    model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    objective: Any = None,
    callbacks: Sequence[Any] | None = None,
    condition: Any = None,
) -> DiffusionPipeline:
    """Train, save into `args.output_dir`, and give the trained pipeline; arguments and errors as those of `Trainer`."""
    try:
        return Trainer(args, model, train_dataset, eval_dataset, objective, callbacks, condition).train()
    except KeyboardInterrupt:  # before the first step, after the last, or for the second time
        kept = checkpoint.own_checkpoints(Path(args.output_dir))
        state = f"the newest checkpoint is '{kept[-1]}'" if kept else "no checkpoint had been saved yet"
        raise TrainingInterrupted(f"Stopped at once by Ctrl-C; {state}.", signal.SIGINT) from None


class Trainer:
    """Training of any network with any objective on any data, under a condition or none.

    What is not given is built from the settings. Batches, noise, timesteps and dropout are functions of (seed, step,
    process), so a run that is stopped and resumed ends with the same weights as one that is not, unless its learning
    rate follows the clock (`max_train_seconds`).

    Args:
        args: the settings.
        model: a torch module called as `model(sample, timestep, **conditions)`, which gives a tensor or an object with
            `.sample`, shaped as the sample. One that derives from diffusers' ModelMixin is saved as a pipeline.
        train_dataset: a torch Dataset, a `datasets.Dataset`, a list or an iterable of dictionaries; see
            `diffusers_ext.data.own.as_training_data`.
        eval_dataset: held-out data of the same kind, for the validation loss and for evaluation.
        objective: a callable `(net, batch, generator) -> loss per sample`; see `diffusers_ext.objectives`.
        callbacks: more of them, see `TrainerCallback`; they act before the checkpoint of a step is saved.
        condition: a `diffusers_ext.conditions.Condition` of your own, in place of the setting `condition`.

    Attributes:
        state: counters of the run, see `TrainerState`.
        network: what is trained, without wrappers.
        train_dataset, eval_dataset, objective, conditioning, accelerator, mode: the parts in use.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: one sentence on a setting that can't be.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        objective: Any = None,
        callbacks: Sequence[Any] | None = None,
        condition: Any = None,
    ):
        self.args = args
        self.run = run = build_run(args, model, train_dataset, eval_dataset, objective, callbacks, condition)
        self.state: TrainerState = run.state
        self.network, self.objective = run.weights.network, run.ingredients.objective
        self.conditioning = run.ingredients.conditioning
        self.train_dataset, self.eval_dataset = run.ingredients.train_dataset, run.ingredients.eval_dataset
        self.accelerator, self.mode, self.output_dir = run.accelerator, run.mode, run.folder.path
        self._fire = run.callbacks.fire
        self._consistent = True

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self.run.step.learning_rate()

    # --- the run ------------------------------------------------------------------------------------------------------

    def train(self) -> DiffusionPipeline:
        """Run to the end and save the pipeline.

        Returns:
            The trained pipeline (EMA weights if there are any), as it was saved.

        Raises:
            TrainingInterrupted: after a signal to stop or the death of the launcher, when a checkpoint has been saved.
            TrainingDiverged: when the loss is not finite; nothing is saved after that.
            TrainingFailed: when a preview had no memory, say; a checkpoint has been saved.
            CheckpointError: when the checkpoint to resume from is damaged, or of another kind of run.
            FileExistsError: when another run writes into the output folder.
        """
        run = self.run
        self._open_folder()
        try:
            run.checkpoints.begin(run.resume_from, run.callbacks.measured_again)
            set_attention(self.network, run.mode.attention)  # another Trainer in this process may have had its own
            run.recorder.start()
            self._fire("on_train_begin")
            with Interruption() as interruption, run.recorder.progress_bar() as bar:
                self._guarded(lambda: self._loop(interruption, bar))
                self._guarded(self._end)
                self._stop_if_asked(run.processes.highest(interruption.received))
            return self._finish()
        finally:
            run.recorder.close()
            run.folder.close()

    def _open_folder(self) -> None:
        """Take the output folder on the main process; what goes wrong there, goes wrong on all."""
        run, problem = self.run, None
        if run.processes.is_main:
            try:
                run.folder.open()
            except OSError as error:
                problem = error
        if not run.processes.nobody_failed("" if problem is None else str(problem)):
            raise problem or FileExistsError(f"output_dir '{run.folder.path}' can't be used; see the first process.")

    def _loop(self, interruption: Interruption, bar: Any) -> None:
        run, state = self.run, self.state
        batches = run.batches.since(state.global_step * run.accumulation)
        began = time.monotonic() - state.seconds
        run.weights.model.train()
        while not self._finished():
            loss, norm, rate = self._step(self._begin_step(batches))
            run.reader.add(state.global_step, loss)
            signal_number = 0
            if self._reads_now():
                seconds = time.monotonic() - began
                losses, state.seconds, signal_number = self._read(seconds, interruption.received)
                run.recorder.add_losses(losses)
                run.recorder.show(bar)
                run.folder.refresh()
            with run.recorder.not_training(), self._eager():
                self._after_step(StepResult(rate, norm, self._completed_epochs()))
            self._stop_if_asked(signal_number)

    def _begin_step(self, batches: Iterator[Any]) -> list[Any]:
        """Read the batches of the step before anything is learned from them: a failure to read costs nothing."""
        ready = [next(batches) for _ in range(self.run.accumulation)]
        if self._epoch_starts():
            self._fire("on_epoch_begin")
        self._fire("on_step_begin")
        return ready

    def _step(self, batches: list[Any]) -> Any:
        self._consistent = False
        result = self.run.step(batches)
        self.run.batches.commit()
        self.state.global_step += 1
        self._consistent = True
        return result

    def _after_step(self, step: StepResult) -> None:
        """Everything that is due at this step besides learning; none of it changes what is learned."""
        control = self.run.control
        self._fire("on_step_end", step=step)
        if step.epochs:
            self._fire("on_epoch_end", step=step)
        control.should_save = control.should_evaluate = False
        self.run.weights.model.train()

    def _end(self) -> None:
        """Measure the last state and save it as a checkpoint."""
        run = self.run
        if run.control.reason:
            run.recorder.say(run.control.reason)
        with self._eager():
            self._fire("on_train_end")

    def _finish(self) -> DiffusionPipeline:
        """Put the weights to keep into the network, save the pipeline, let callbacks draw and push."""
        run, state = self.run, self.state
        network = run.weights.keep()
        # As it will be loaded: another memory format gives other roundings.
        as_loaded(network)
        pipeline = run.ingredients.pipeline_of(network)
        run.exporter.save_last(pipeline, state.global_step)
        run.recorder.say(f"Trained {state.global_step} steps in {state.seconds:.0f} s; saved to '{run.folder.path}'.")
        return pipeline

    # --- when ---------------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        run, state = self.run, self.state
        out_of_time = run.max_seconds is not None and state.seconds >= run.max_seconds
        return state.global_step >= state.max_steps or out_of_time or run.control.should_training_stop

    def _reads_now(self) -> bool:
        """Whether to wait for the device: before anything that is written."""
        step = self.state.global_step
        if self.run.reader.is_due(step) or step >= self.state.max_steps or self._completed_epochs():
            return True
        return any(step % every == 0 for every in self.run.written_every)

    def _read(self, seconds: float, received: int) -> Any:
        """Losses, seconds and signal of all processes; a loss that is not finite names the last checkpoint."""
        try:
            return self.run.reader.read(seconds, received)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; {self._last_checkpoint()}.") from None

    def _completed_epochs(self) -> range:
        """The epochs (from 0) that the latest step completed."""
        run, step = self.run, self.state.global_step
        per_epoch = run.batches.batches_per_epoch
        return range((step - 1) * run.accumulation // per_epoch, step * run.accumulation // per_epoch)

    def _epoch_starts(self) -> bool:
        return self.state.global_step == 0 or len(self._completed_epochs()) > 0

    def _eager(self) -> Any:
        """Context without compiled blocks, which would be compiled anew for each other batch size."""
        compiled = self.run.mode.compiled or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO"
        return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _guarded(self, work: Any) -> None:
        """Do it; if it fails between two steps, the steps since the last checkpoint are saved first."""
        try:
            work()
        except (TrainingDiverged, TrainingInterrupted):
            raise
        except TrainingFailed as error:  # the same on all processes
            raise TrainingFailed(f"{error}; {self._rescued()}.") from error
        except (RuntimeError, MemoryError) as error:
            if not self._consistent or self.run.processes.count > 1:
                raise
            raise TrainingFailed(f"Training stopped ({one_line(error)}); {self._rescued()}.") from error
        except Exception as error:
            if self._consistent and self.run.processes.count == 1:
                rescued = self._rescued()
                error.add_note(f"{rescued[:1].upper()}{rescued[1:]}.")
            raise

    def _rescued(self) -> str:
        """Save a checkpoint unless there is one of this step; how to go on, in words."""
        self.run.checkpoints.save_what_is_new()
        path = checkpoint.checkpoint_path(self.output_dir, self.state.global_step)
        if path.is_dir():
            return f"everything is in '{path}', go on with --resume_from_checkpoint latest"
        return f"its checkpoint could not be saved; {self._last_checkpoint()}"

    def _last_checkpoint(self) -> str:
        kept = checkpoint.own_checkpoints(self.output_dir)
        return f"the last checkpoint before is '{kept[-1]}'" if kept else "no checkpoint had been saved yet"

    def _stop_if_asked(self, signal_number: int) -> None:
        """Save and stop after a signal that any process received."""
        if signal_number:
            where = self._rescued()
            cause = "Ctrl-C" if signal_number == signal.SIGINT else f"signal {signal_number}"
            raise TrainingInterrupted(
                f"Stopped by {cause} after step {self.state.global_step}; {where}.", signal_number
            )
