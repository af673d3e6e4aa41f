"""The records of a run: metrics.jsonl, the trackers, the progress bar."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..files import atomic_write
from .state import TrainerState

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SECONDS_A_LINE = 60.0  # of progress, where no bar is shown


class Recorder:
    """Writes on the main process, measures the speed, and changes nothing of the training.

    Args:
        state: the counters of the run.
        samples_per_step: of all processes together.
        tracker: settings to show in the tracker, or None for a run without one.
        max_seconds: after which the run ends, or None.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        state: TrainerState,
        samples_per_step: int,
        tracker: dict[str, Any] | None = None,
        max_seconds: float | None = None,
    ):
        self.accelerator, self.state, self.samples_per_step = accelerator, state, samples_per_step
        self.file = folder / METRICS_FILE
        self._tracker, self._max_seconds = tracker, max_seconds
        self._since_log: list[float] = []
        self._shown: deque[float] = deque(maxlen=50)
        self._mark = (0, 0.0)
        self._announced = time.monotonic()
        self._paused = 0.0
        self.seconds_not_training = 0.0
        self._reported_failure = False
        self._forget_after: tuple[int, Sequence[str]] | None = None
        self.on_log: Callable[[dict[str, Any]], None] = lambda values: None

    def start(self) -> None:
        """Open the trackers and start the clock."""
        if self._tracker is not None:
            with self._surviving_a_full_disk():
                self.accelerator.init_trackers("diffusers_ext", config=self._tracker)
            if self._reported_failure:
                self.accelerator.trackers.clear()  # a half-opened one fails in ways of its own
        self._mark = (self.state.global_step, time.monotonic())
        self._announced = time.monotonic()

    @property
    def has_unlogged(self) -> bool:
        """Whether there are losses that no record speaks of yet."""
        return bool(self._since_log)

    def add_losses(self, losses: Sequence[float]) -> None:
        """Take note of the losses of steps."""
        self._since_log.extend(losses)
        self._shown.extend(losses)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Time spent in the context (validation, previews, saving) does not count against images per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began
            self.seconds_not_training += time.monotonic() - began

    def _speed(self) -> float:
        """Samples per second since the last mark."""
        marked_step, marked_time = self._mark
        seconds = time.monotonic() - marked_time - self._paused
        return (self.state.global_step - marked_step) * self.samples_per_step / max(seconds, 1e-9)

    def log_training(self, **values: float) -> None:
        """Write the mean loss and the speed since the last time, with `values`."""
        losses, self._since_log = self._since_log, []
        speed = self._speed()
        self._mark, self._paused = (self.state.global_step, time.monotonic()), 0.0
        self.log(loss=sum(losses) / len(losses), **values, images_per_second=speed)

    def log(self, **values: float | str) -> None:
        """Write values of the present step to the trackers and as one line of metrics.jsonl."""
        state = self.state
        with self._surviving_a_full_disk():
            self.accelerator.log(values, step=state.global_step)
        record = {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": round(state.seconds, 3)}
        if self.accelerator.is_main_process:
            self.forget()
            with self._surviving_a_full_disk(), self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**record, **values}) + "\n")
        self.on_log({**record, **values})

    def warn(self, sentence: str) -> None:
        """Say what looks wrong on the main process, and write it among the metrics."""
        if self.accelerator.is_main_process:
            logger.warning(sentence)
        self.log(warning=sentence)

    def log_images(self, grid: np.ndarray) -> None:
        """Give an image, uint8 (1, height, width, 3), to the trackers."""
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            with self._surviving_a_full_disk():
                tracker.log_images({"samples": grid}, step=self.state.global_step, **layout)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Let the trackers write what they hold."""
        with self._surviving_a_full_disk():
            self.accelerator.end_training()

    @contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """A record that can't be written must not end the run: the first failure is reported, the others pass."""
        try:
            yield
        except OSError as error:
            if not self._reported_failure:
                logger.warning("Metrics can't be written (%s); training goes on without a record.", error)
            self._reported_failure = True

    def forget_after(self, step: int, measured_again: Sequence[str] = ()) -> None:
        """With the next line, drop what a killed run wrote after its last checkpoint, since it comes again.

        That is all of later steps, and of `step` itself the lines that hold one of `measured_again`.
        """
        self._forget_after = step, measured_again

    def forget(self) -> None:
        """Do now, on the main process, what `forget_after` puts off."""
        forgotten, self._forget_after = self._forget_after, None
        if forgotten is not None and self.file.is_file():
            with self._surviving_a_full_disk():
                lines = [
                    line
                    for line in self.file.read_text(encoding="utf-8").splitlines()
                    if not _comes_again(line, *forgotten)
                ]
                atomic_write(self.file, "".join(line + "\n" for line in lines))

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(message)
            sys.stdout.flush()  # a file or a pipe would get it minutes later

    def announce(self, message: str) -> None:
        """Print a line before something long, unless a progress bar will show it, as on a terminal."""
        if not sys.stderr.isatty():
            self.say(message)

    def progress_bar(self) -> tqdm:
        """The bar, on each machine's first process."""
        return tqdm(
            total=self.state.max_steps,
            initial=self.state.global_step,
            disable=None if self.accelerator.is_local_main_process else True,  # None: unless it is no terminal
            bar_format="{n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
        )

    def show(self, bar: tqdm) -> None:
        """Bring the bar up to date: loss, samples per second, time left. Without a bar, a line each minute says so."""
        state = self.state
        bar.n = state.global_step
        left = state.seconds * (state.max_steps - state.global_step) / max(state.global_step, 1)
        if self._max_seconds is not None:
            left = min(left, max(0.0, self._max_seconds - state.seconds))
        loss = sum(self._shown) / len(self._shown)
        speed = f"{self._speed():.0f} images/s" if state.global_step > self._mark[0] else "…"
        progress = f"loss {loss:.4f}, {speed}, {tqdm.format_interval(left)} left"
        bar.set_postfix_str(progress, refresh=False)
        bar.update(0)
        if time.monotonic() - self._announced > SECONDS_A_LINE:
            self._announced = time.monotonic()
            self.announce(f"Step {state.global_step} of {state.max_steps}: {progress}.")


def _comes_again(line: str, step: int, measured_again: Sequence[str]) -> bool:
    """Whether a line is of a later step, or of this one and measured again, or can't be read."""
    try:
        record = json.loads(line)
        return record["step"] > step or (record["step"] == step and any(name in record for name in measured_again))
    except (json.JSONDecodeError, KeyError, TypeError):
        return True
