"""One run of an experiment: in this process or in one of its own, from the beginning or from where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_write, one_line
from ..training import Trainer, TrainingInterrupted
from ..training.checkpoint import own_checkpoints
from ..training.interruption import LAUNCHED
from .study import Experiment

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"


@dataclass(frozen=True)
class Job:
    """A run of an experiment with one seed.

    Attributes:
        key: "Experiment_1", ...
        experiment: what is run.
        seed: of the run.
        folder: of the study's runs; the run's own folder lies in it.
        name: of the run's own folder.
    """

    key: str
    experiment: Experiment
    seed: int
    folder: Path
    name: str

    @property
    def output_dir(self) -> Path:
        """The run's own folder."""
        return self.folder / self.name

    @property
    def report(self) -> dict[str, Any]:
        """How the run ended: `status`, `error`, `seconds`; empty while it has not."""
        try:
            found = json.loads(self._report_file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    @property
    def finished(self) -> bool:
        """Whether the run ended well, so that it needs not be repeated."""
        return self.report.get("status") == FINISHED

    @property
    def _report_file(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log_file(self) -> Path:
        """What a run in a process of its own prints."""
        return self.folder / f"{self.name}.log"

    def end(self, status: str, error: str = "", seconds: float = 0.0) -> None:
        """Write down how the run ended."""
        seconds += self.report.get("seconds", 0.0)
        label = f"{self.experiment.label()}, seed {self.seed}"
        report = {"status": status, "error": error, "seconds": round(seconds, 2), "label": label}
        atomic_write(self._report_file, json.dumps(report, indent=2) + "\n")

    def arguments(self) -> Any:
        """The settings, which go on with what a killed run left."""
        arguments = self.experiment.arguments(self.seed, self.output_dir)
        if own_checkpoints(self.output_dir):
            arguments.resume_from_checkpoint = "latest"
        elif self.output_dir.is_dir():
            arguments.overwrite_output_dir = True
        return arguments


def run_here(job: Job) -> None:
    """Run in this process. A failure is written down; Ctrl-C and other signals are passed on."""
    began = time.monotonic()
    try:
        Trainer(job.arguments(), **job.experiment.objects).train()
    except (KeyboardInterrupt, TrainingInterrupted) as error:
        job.end(STOPPED, one_line(error), time.monotonic() - began)
        raise
    except Exception as error:  # one run that fails must not stop the others
        job.end(FAILED, one_line(error), time.monotonic() - began)
    else:
        job.end(FINISHED, "", time.monotonic() - began)


class Process:
    """A run in a process of its own, whose output goes to the run's log file. Starts at once.

    It saves a checkpoint and stops when this process dies.

    Args:
        job: what to run.
        threads: of the processor, for the run's own use; `OMP_NUM_THREADS` takes precedence.
    """

    def __init__(self, job: Job, threads: int = 1):
        self.job, self._began = job, time.monotonic()
        arguments = job.arguments()
        recipe = job.folder / f"{job.name}.yaml"
        atomic_write(recipe, arguments.to_yaml())
        words = ["train", str(recipe)]
        if arguments.resume_from_checkpoint:
            words += ["--resume_from_checkpoint", arguments.resume_from_checkpoint]
        elif arguments.overwrite_output_dir:
            words += ["--overwrite_output_dir"]
        with job.log_file.open("a", encoding="utf-8") as log:
            # A group of its own: Ctrl-C reaches it through `stop`, once.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "diffusers_ext.cli", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=os.name == "posix",
                env={"OMP_NUM_THREADS": str(threads), **os.environ, LAUNCHED: "1"},
            )

    def ended(self) -> bool:
        """Whether it is over; if so, how it ended has been written down."""
        code = self._process.poll()
        if code is None:
            return False
        seconds = time.monotonic() - self._began
        if code == 0:
            self.job.end(FINISHED, "", seconds)
        elif code < 0 or code > 128:
            self.job.end(STOPPED, f"stopped by signal {-code if code < 0 else code - 128}", seconds)
        else:
            self.job.end(FAILED, self._last_line(), seconds)
        return True

    def stop(self) -> None:
        """Ask it to save a checkpoint and stop, and wait until it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        self.ended()

    def _last_line(self) -> str:
        lines = self.job.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
        return errors[-1].removeprefix("error: ") if errors else "it printed nothing"
