"""The checkpoints of one run: saving them, and going on from one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..files import attempt, partial_path
from . import checkpoint
from .agreement import Processes
from .ema import PowerFunctionAverage, retire_snapshots_after, save_snapshot
from .recording import Recorder
from .state import Stateful, TrainerState

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves the parts of a run and takes them up again; knows none of them by name.

    Args:
        parts: what must survive a kill, by name. All processes hold the same names.
        state: the counters of the run.
        recorder: whose records of steps that come again are dropped.
        stage: how far the run is, with what was measured of it; a checkpoint of the same stage is not saved again.
        total_limit: how many checkpoints are kept, the newest; None keeps all.
        on_save: called with the path of a saved checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Stateful],
        state: TrainerState,
        recorder: Recorder,
        processes: Processes,
        stage: Callable[[], object],
        total_limit: int | None = None,
        on_save: Callable[[Path], None] = lambda path: None,
    ):
        self.folder, self._parts, self._state, self._recorder = folder, parts, state, recorder
        self._processes, self._stage, self._total_limit, self._on_save = processes, stage, total_limit, on_save
        self._saved: object = None
        # The step that the run went on from, until something new takes the place of what lies after it.
        self._later_checkpoints: int | None = None
        self._later_snapshots: int | None = None

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything that the rest of the run depends on; a failure is reported and the run goes on."""
        step = self._state.global_step
        path = checkpoint.checkpoint_path(self.folder, step)
        partial = partial_path(path)
        problem = self._save_parts(partial)
        saved = self._processes.nobody_failed(problem)
        if saved:
            if self._processes.is_main:
                problem = attempt(lambda: self._publish(partial, path))
            saved = self._processes.nobody_failed(problem)
        if problem:
            logger.warning("The checkpoint of step %d could not be saved (%s); training goes on.", step, problem)
        if self._processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self._processes.wait()
        if saved:
            self._saved = self._stage()
            self._on_save(path)

    def save_what_is_new(self) -> None:
        """Write a checkpoint unless the last one holds this very step with all that was measured of it."""
        if self._saved != self._stage():
            self.save()

    def _save_parts(self, folder: Path) -> str:
        problem = attempt(lambda: folder.mkdir(parents=True, exist_ok=True)) if self._processes.is_main else ""
        if not self._processes.nobody_failed(problem):
            return problem
        return checkpoint.save_parts(self._parts, folder, self._processes.is_main)

    def _publish(self, partial: Path, path: Path) -> None:
        checkpoint.seal(partial)
        self._retire_later_checkpoints()
        checkpoint.publish(partial, path)
        checkpoint.unmark_branch(self.folder)
        checkpoint.limit_checkpoints(self.folder, self._total_limit)

    def save_snapshot(self, averages: Sequence[PowerFunctionAverage]) -> None:
        """Keep the averages of this step; a failure is reported and the run goes on."""
        if self._processes.is_main:
            self._retire_later_snapshots()
            step = self._state.global_step
            problem = attempt(lambda: save_snapshot(self.folder, step, averages))
            if problem:
                logger.warning("The snapshot of step %d could not be saved (%s).", step, problem)

    def _retire_later_checkpoints(self) -> None:
        """Delete those of the branch that was left, as soon as the first new one is whole."""
        step = self._later_checkpoints
        if step is not None:
            retired = checkpoint.retire_after(self.folder, step)
            if retired:
                self._recorder.say(f"Deleted {', '.join(retired)}: later than step {step}, where the run went on.")
            self._later_checkpoints = None
            self._retire_later_snapshots()
            self._recorder.forget()

    def _retire_later_snapshots(self) -> None:
        if self._later_snapshots is not None:
            retire_snapshots_after(self.folder, self._later_snapshots)
            self._later_snapshots = None

    # --- going on -----------------------------------------------------------------------------------------------------

    def begin(self, resume_from: str | None, measured_again: Callable[[], list[str]]) -> None:
        """Go on from a checkpoint, or begin at step 0.

        Args:
            resume_from: None, "latest", or the path of a checkpoint.
            measured_again: names of records of the present step that will be written again.

        Raises:
            FileNotFoundError, CheckpointError: in one sentence, for a checkpoint that is missing or can't be used.
        """
        path = find_checkpoint(self.folder, resume_from)
        if path is None:
            if resume_from is not None:
                self._recorder.say(f"There is no checkpoint in '{self.folder}' yet; starting from the beginning.")
            self._forget_earlier_run()
            return
        checkpoint.load_parts(self._parts, path)
        step = self._state.global_step
        self._recorder.forget_after(step, measured_again())
        self._later_checkpoints = self._later_snapshots = step
        self._saved = None
        if self._processes.is_main:
            problem = attempt(lambda: checkpoint.mark_branch(self.folder, path, step))
            if problem:
                logger.warning("Where the run goes on from could not be noted (%s).", problem)
        later = ", ".join(p.name for p in checkpoint.later_than(self.folder, step))
        self._processes.wait()
        until = f" {later} will be deleted once the first new checkpoint is whole." if later else ""
        self._recorder.say(f"Going on from '{path}' at step {step}.{until}")

    def _forget_earlier_run(self) -> None:
        """Drop what a run that was killed before its first checkpoint wrote: all its steps come again."""
        self._recorder.forget_after(-1)
        if self._processes.is_main:
            retire_snapshots_after(self.folder, 0)
        self._processes.wait()


def find_checkpoint(folder: Path, resume_from: str | None) -> Path | None:
    """The checkpoint to go on from, verified; None for a fresh start.

    Raises:
        FileNotFoundError: for a path without a checkpoint.
        CheckpointError: for a damaged one, or "latest" when all are damaged.
    """
    if resume_from is None:
        return None
    if resume_from == "latest":
        return checkpoint.newest_usable(folder, logger.warning)
    path = Path(resume_from)
    path = path if path.is_dir() else folder / path.name
    if not path.is_dir():
        raise FileNotFoundError(f"There is no checkpoint '{resume_from}'.")
    checkpoint.verify(path)
    return path
