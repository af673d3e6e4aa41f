"""What the runs of a study gave: one table, one figure, and TensorBoard's hparams."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import figures
from ..figures.curves import read_records
from ..files import atomic_write
from ..training.recording import METRICS_FILE
from .running import FINISHED, Job

logger = logging.getLogger(__name__)

# Measures of the machine and of single steps: in results.csv, not in the short table.
_ONLY_IN_CSV = (
    "gradient_norm",
    "ema_decay",
    "mean_images_per_second",
    "flops_per_image",
    "flops_over_peak",
    "peak_flops",
    "time_outside_steps",
    "peak_memory_bytes",
)

_NO_MEASURE = ("step", "epoch", "seconds", "loss", "validation_loss", "images_per_second", "learning_rate", "lr")


@dataclass
class RunResult:
    """One run.

    Attributes:
        key, label, seed, note, status, error: which run it was, and how it ended.
        parameters: the settings in which the study's experiments differ.
        curve: records of metrics.jsonl, one a line.
        seconds: wall time of the run, with loading and saving.
        folder: where the run is.
    """

    key: str
    label: str
    seed: int
    note: str
    status: str
    error: str
    parameters: dict[str, Any]
    curve: list[dict[str, Any]] = field(repr=False)
    seconds: float
    folder: Path

    @property
    def train_losses(self) -> list[float]:
        """Training losses, one for each record."""
        return self._series("loss")

    @property
    def val_losses(self) -> list[float]:
        """Validation losses, one for each validation."""
        return self._series("validation_loss")

    @property
    def last_train_loss(self) -> float | None:
        """The training loss of the last record."""
        return self.train_losses[-1] if self.train_losses else None

    @property
    def last_val_loss(self) -> float | None:
        """The last validation loss."""
        return self.val_losses[-1] if self.val_losses else None

    def measures(self) -> dict[str, float]:
        """Numbers of the run: losses, speed, time, and whatever else was measured, by name."""
        train, val, speed = self.train_losses, self.val_losses, self._series("images_per_second")
        found = {
            "last_train_loss": train[-1] if train else None,
            "best_train_loss": min(train, default=None),
            "last_val_loss": val[-1] if val else None,
            "best_val_loss": min(val, default=None),
            **{name: self._series(name)[-1] for name in self._other_measures()},
            "images_per_second": statistics.median(speed) if speed else None,
            "steps": max((record.get("step", 0) for record in self.curve), default=0),
            "seconds": self.seconds,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _other_measures(self) -> list[str]:
        names = dict.fromkeys(name for record in self.curve for name in record)
        return [name for name in names if name not in _NO_MEASURE and self._series(name)]

    def _series(self, name: str) -> list[float]:
        values = [record.get(name) for record in self.curve]
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def read_result(job: Job) -> RunResult:
    """What a run has given so far."""
    report = job.report
    return RunResult(
        job.key,
        job.experiment.label(),
        job.seed,
        job.experiment.note,
        report.get("status", "waiting"),
        report.get("error", ""),
        dict(job.experiment.changes),
        records_of(job.output_dir / METRICS_FILE),
        float(report.get("seconds", 0.0)),
        job.output_dir,
    )


def summary_of(runs: Sequence[RunResult]) -> dict[str, tuple[float, float]]:
    """(mean, standard error) over the finished runs of every measure; the error of one run is NaN."""
    finished = [run.measures() for run in runs if run.status == FINISHED]
    names = dict.fromkeys(name for measures in finished for name in measures)
    values = {name: [measures[name] for measures in finished if name in measures] for name in names}
    return {name: (statistics.fmean(found), standard_error(found)) for name, found in values.items()}


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def write_results(results: Sequence[RunResult], folder: Path) -> None:
    """Write `results.csv` (a row a run), `results.md` (a row an experiment), `results.png`, TensorBoard's hparams."""
    _write_csv(results, folder / "results.csv")
    atomic_write(folder / "results.md", markdown(results))
    records = [record for result in results for record in result.curve if "step" in record]
    if any(record.get(name) is not None for record in records for name in ("loss", "validation_loss")):
        if importlib.util.find_spec("matplotlib") is not None:
            figures.plot_experiments(_curves(results), folder / "results.png")
        else:
            logger.warning("No figure was drawn: matplotlib is missing; install 'diffusers_ext[train]'.")
    _write_hparams(results, folder / "tensorboard")


def markdown(results: Sequence[RunResult]) -> str:
    """The table of a study: a row for each experiment, with mean and standard error over its seeds."""
    groups = grouped(results)
    summaries = {key: summary_of(runs) for key, runs in groups.items()}
    parameters = list(dict.fromkeys(name for runs in groups.values() for name in runs[0].parameters))
    names = dict.fromkeys(name for summary in summaries.values() for name in summary)
    measures = [name for name in names if name not in _ONLY_IN_CSV]
    header = ["experiment", *parameters, "runs", *(name.replace("_", " ") for name in measures), "note"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for key, runs in groups.items():
        finished = sum(run.status == FINISHED for run in runs)
        cells = [key, *(_cell(runs[0].parameters.get(name, "")) for name in parameters), f"{finished} of {len(runs)}"]
        cells += [_mean_and_error(summaries[key].get(name)) for name in measures]
        lines.append("| " + " | ".join([*cells, _cell(runs[0].note)]) + " |")
    failed = [run for run in results if run.error]
    lines += [f"\n{run.key}, seed {run.seed}, {run.status}: {_cell(run.error)}" for run in failed]
    more = "Values are mean ± standard error over the finished runs of an experiment, one for each seed."
    return "\n".join([*lines, "", more, ""])


def grouped(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The runs of each experiment."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.key, []).append(result)
    return groups


def _curves(results: Sequence[RunResult]) -> dict[str, list[list[dict[str, Any]]]]:
    groups = grouped(results).values()
    labels = [runs[0].label for runs in groups]
    return {
        label if labels.count(label) == 1 else f"{runs[0].key}: {label}": [run.curve for run in runs]
        for label, runs in zip(labels, groups)
    }


def _write_csv(results: Sequence[RunResult], path: Path) -> None:
    measures = [result.measures() for result in results]
    parameters = dict.fromkeys(name for result in results for name in result.parameters)
    names = dict.fromkeys(name for found in measures for name in found)
    header = ["experiment", "seed", "status", *parameters, *(n for n in names if n not in parameters), "note", "error"]

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*header, "folder"])
            writer.writeheader()
            for result, found in zip(results, measures):
                first = {"experiment": result.key, "seed": result.seed, "status": result.status}
                last = {"note": result.note, "error": result.error, "folder": str(result.folder)}
                writer.writerow({**found, **result.parameters, **first, **last})

    atomic_write(path, write)


def _write_hparams(results: Sequence[RunResult], folder: Path) -> None:
    """The runs for TensorBoard's page of hyperparameters, written anew."""
    if importlib.util.find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for result in results:
        if result.status != FINISHED:
            continue
        values = {name: v if isinstance(v, int | float | bool) else str(v) for name, v in result.parameters.items()}
        metrics = {f"result/{name}": value for name, value in result.measures().items()}
        with SummaryWriter(str(folder)) as writer:
            writer.add_hparams(
                {"experiment": result.key, "seed": result.seed, **values}, metrics, run_name=result.folder.name
            )
    for empty in folder.glob("events.*"):  # the writer's own, beside those of the runs
        empty.unlink()


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; none when there is no such file."""
    return read_records(path) if path.is_file() else []


def _mean_and_error(value: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    mean, error = value
    return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± {error:.2g}"


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
