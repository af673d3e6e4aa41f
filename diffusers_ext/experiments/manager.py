"""`ExperimentManager`: runs experiments one after another or several at a time, and writes one table of them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .results import RunResult, read_result, summary_of, write_results
from .running import FAILED, FINISHED, Job, Process, run_here
from .study import Experiment, read_study

logger = logging.getLogger(__name__)

_POLL = 0.2  # seconds between two looks at the processes


class StudyFailed(ValueError):
    """Some runs failed; the message gives the first reason, the table all of them."""


class ExperimentManager:
    """Many training runs and one table.

    ::

        manager = ExperimentManager("studies/rates", settings={"max_train_steps": 200})
        for rate in (1e-3, 5e-3):
            manager.add_experiment("mnist", learning_rate=rate, seeds=[0, 1])
        results = manager.run_all()
        results["Experiment_1"]["val_losses"]

    A run that has finished is never repeated: its folder is named after its settings. One that was killed goes on from
    its last checkpoint, one that failed is tried again; neither stops the others.

    Args:
        output_dir: of the study; below `runs/` every run has a folder of its own.
        parallel: how many runs at a time. With 1 they run in this process, with more each in a process of its own.
        report: takes a line on every run; prints it by default, above a progress bar where there is one.
        settings: of all experiments that are added; only their own changes stand in names and in the table.

    Raises:
        ValueError: for a `parallel` below 1.
    """

    def __init__(
        self,
        output_dir: str | Path,
        parallel: int = 1,
        report: Callable[[str], None] = tqdm.write,
        settings: Mapping[str, Any] | None = None,
    ):
        if parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {parallel}.")
        self.output_dir, self.parallel, self._report = Path(output_dir), parallel, report
        self.settings, self.experiments = dict(settings or {}), list[Experiment]()

    @classmethod
    def from_study(cls, path: str | Path, output_dir: str | Path | None = None, parallel: int = 1) -> ExperimentManager:
        """The experiments of a YAML file, see `read_study`; `output_dir` takes the place of the file's."""
        experiments, folder = read_study(path)
        manager = cls(folder if output_dir is None else output_dir, parallel)
        for experiment in experiments:
            manager._add(experiment)
        return manager

    def add_experiment(
        self,
        recipe: str | None = None,
        *,
        seeds: Sequence[int] = (0,),
        note: str = "",
        model: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        objective: Any = None,
        callbacks: Any = None,
        condition_object: Any = None,
        **changes: Any,
    ) -> str:
        """Add an experiment; its key in the results of `run_all`.

        Args:
            recipe: a YAML file or the name of a recipe; None begins with the defaults of `TrainingArguments`.
            seeds: of its runs, one each.
            note: a remark for the table.
            model, train_dataset, eval_dataset, objective, callbacks: as `Trainer` takes them.
            condition_object: a `Condition` of your own, which `Trainer` calls `condition`.
            changes: settings by name.

        Raises:
            ValueError, FileNotFoundError: one sentence on a setting that can't be.
        """
        objects = {
            "model": model,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "objective": objective,
            "callbacks": callbacks,
            "condition": condition_object,
        }
        given = {name: value for name, value in objects.items() if value is not None}
        return self._add(Experiment(recipe, self.settings, changes, list(seeds), note, given))

    def _add(self, experiment: Experiment) -> str:
        if not experiment.seeds:
            raise ValueError("seeds must hold at least one seed, got none.")
        if self.parallel > 1 and experiment.objects:
            raise ValueError(f"parallel must be 1 with {', '.join(experiment.objects)} given as Python objects.")
        for seed in experiment.seeds:
            experiment.arguments(seed)  # a wrong setting shows now, and not after the runs before it
        self.experiments.append(experiment)
        return f"Experiment_{len(self.experiments)}"

    def jobs(self) -> list[Job]:
        """All runs, in order."""
        return [
            Job(f"Experiment_{number}", experiment, seed, self.output_dir / "runs", experiment.run_name(seed))
            for number, experiment in enumerate(self.experiments, 1)
            for seed in experiment.seeds
        ]

    def run_all(self) -> dict[str, dict[str, Any]]:
        """Run what has not finished yet, and write `results.csv`, `results.md` and `results.png`.

        Returns:
            By "Experiment_1", ...: `train_losses` and `val_losses` of the first seed, `note`, `changes`, `summary` (of
            every measure the mean and the standard error over the seeds) and `runs`, a `RunResult` for each seed.

        Raises:
            ValueError: when there are no experiments.
        """
        if not self.experiments:
            raise ValueError("There are no experiments; add some with add_experiment.")
        jobs = self.jobs()
        jobs[0].folder.mkdir(parents=True, exist_ok=True)
        waiting = [job for job in jobs if not job.finished]
        if len(waiting) < len(jobs):
            self._report(f"{len(jobs) - len(waiting)} of {len(jobs)} runs have finished before.")
        try:
            if self.parallel == 1:
                self._one_by_one(waiting, len(jobs))
            else:
                self._side_by_side(waiting, len(jobs))
        finally:
            results = [read_result(job) for job in jobs]
            write_results(results, self.output_dir)
        return _by_experiment(self.experiments, results)

    def raise_for_failures(self) -> None:
        """Raise StudyFailed, naming every run that failed or was stopped."""
        jobs = self.jobs()
        failed = [job for job in jobs if not job.finished]
        if failed:
            reason = failed[0].report.get("error") or "it was killed"
            raise StudyFailed(
                f"{len(failed)} of {len(jobs)} runs did not finish, the first of them because: {reason}. The table in "
                f"'{self.output_dir}' names all; run the study again to go on."
            )

    def _one_by_one(self, waiting: Sequence[Job], total: int) -> None:
        for number, job in enumerate(waiting, total - len(waiting) + 1):
            self._report(f"Run {number} of {total}: {_name(job)}")
            run_here(job)
            self._report_end(job)

    def _side_by_side(self, waiting: Sequence[Job], total: int) -> None:
        queue, running = list(waiting), list[Process]()
        threads = max(1, torch.get_num_threads() // self.parallel)  # more than there are cores slow one another down
        bar = tqdm(total=total, initial=total - len(waiting), desc="Runs", unit="run", disable=None)
        try:
            while queue or running:
                while queue and len(running) < self.parallel:
                    job = queue.pop(0)
                    number = total - len(queue)
                    self._report(f"Run {number} of {total}: {_name(job)}")
                    running.append(Process(job, threads))
                time.sleep(_POLL)
                for process in [process for process in running if process.ended()]:
                    running.remove(process)
                    self._report_end(process.job)
                    bar.update()
        finally:
            bar.close()
            for process in running:
                process.stop()

    def _report_end(self, job: Job) -> None:
        report = job.report
        if report.get("status") == FINISHED:
            result = read_result(job)
            measures = {"validation loss": result.last_val_loss, "training loss": result.last_train_loss}
            shown = [f"{name} {value:.4f}" for name, value in measures.items() if value is not None]
            self._report(f"  {_name(job)}, finished in {report['seconds']:.0f} s: {', '.join(shown)}")
        else:
            self._report(f"  {_name(job)}, {report.get('status', FAILED)}: {report.get('error', '')}")


def _name(job: Job) -> str:
    return f"{job.experiment.label()}, seed {job.seed}"


def _by_experiment(experiments: Sequence[Experiment], results: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    found = {}
    for number, experiment in enumerate(experiments, 1):
        key = f"Experiment_{number}"
        runs = [result for result in results if result.key == key]
        found[key] = {
            "train_losses": runs[0].train_losses,
            "val_losses": runs[0].val_losses,
            "note": experiment.note,
            "changes": dict(experiment.changes),
            "summary": summary_of(runs),
            "runs": runs,
        }
    return found
