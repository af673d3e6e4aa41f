"""What a run tells while it goes on: metrics.jsonl, the trackers, the progress bar."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from tqdm.auto import tqdm

from .arguments import TrainingArguments
from .checkpoint import partial_path

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Writes on the main process, reckons the speed, and changes nothing of the training.

    Args:
        accelerator: whose trackers are used.
        arguments: of the run.
        max_steps: optimizer steps of the whole run.
        batches_per_epoch: of the training data.
    """

    def __init__(self, accelerator: Accelerator, arguments: TrainingArguments, max_steps: int, batches_per_epoch: int):
        self.accelerator, self.arguments, self.max_steps = accelerator, arguments, max_steps
        self.file = Path(arguments.output_dir) / METRICS_FILE
        accumulation = arguments.gradient_accumulation_steps
        self.steps_per_epoch = batches_per_epoch / accumulation
        self.images_per_step = arguments.train_batch_size * accumulation * accelerator.num_processes
        self._since_log: list[float] = []
        self._shown: deque[float] = deque(maxlen=50)
        self._mark = (0, 0.0)
        self._paused = 0.0
        self.seconds_not_training = 0.0
        self._told_of_failure = False
        self._forget_after: tuple[int, Sequence[str]] | None = None

    def start(self, step: int) -> None:
        """Open the trackers and start the clock; `step` steps lie behind."""
        if self.arguments.logger != "none":
            settings = {k: v for k, v in asdict(self.arguments).items() if isinstance(v, (int, float, str, bool))}
            settings.pop("hub_token", None)
            with self._surviving_a_full_disk():
                self.accelerator.init_trackers("train_unconditional", config=settings)
            if self._told_of_failure:
                self.accelerator.trackers.clear()  # a half-opened one fails in ways of its own
        self._mark = (step, time.monotonic())

    @property
    def has_unlogged(self) -> bool:
        """Whether there are losses that no record speaks of yet."""
        return bool(self._since_log)

    def add_loss(self, loss: float) -> None:
        """Take note of one step's loss."""
        self._since_log.append(loss)
        self._shown.append(loss)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Time spent in the context (validation, previews, saving) does not count against images per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began
            self.seconds_not_training += time.monotonic() - began

    def _speed(self, step: int) -> float:
        """Images per second since the last mark."""
        marked_step, marked_time = self._mark
        seconds = time.monotonic() - marked_time - self._paused
        return (step - marked_step) * self.images_per_step / max(seconds, 1e-9)

    def log_training(self, step: int, seconds: float, **values: float) -> None:
        """Write the mean loss and the speed since the last time, with `values`."""
        losses, self._since_log = self._since_log, []
        speed = self._speed(step)
        self._mark, self._paused = (step, time.monotonic()), 0.0
        self.log(step, seconds, loss=sum(losses) / len(losses), **values, images_per_second=speed)

    def log(self, step: int, seconds: float, **values: float | str) -> None:
        """Write values to the trackers and as one line of metrics.jsonl."""
        with self._surviving_a_full_disk():
            self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "seconds": round(seconds, 3)}
            self.forget()
            with self._surviving_a_full_disk(), self.file.open("a") as file:
                file.write(json.dumps({**record, **values}) + "\n")

    def log_images(self, step: int, grid: np.ndarray) -> None:
        """Give a picture, uint8 (1, height, width, 3), to the trackers."""
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            with self._surviving_a_full_disk():
                tracker.log_images({"samples": grid}, step=step, **layout)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Let the trackers write what they hold."""
        with self._surviving_a_full_disk():
            self.accelerator.end_training()

    @contextmanager
    def _surviving_a_full_disk(self) -> Iterator[None]:
        """What is told about a run must not end it: the first failure to write is reported, the others pass."""
        try:
            yield
        except OSError as error:
            if not self._told_of_failure:
                logger.warning("Metrics can't be written (%s); training goes on without a record.", error)
            self._told_of_failure = True

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
                lines = [line for line in self.file.read_text().splitlines() if not _comes_again(line, *forgotten)]
                partial = partial_path(self.file)
                partial.write_text("".join(line + "\n" for line in lines))
                os.replace(partial, self.file)

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(message)

    def progress_bar(self, step: int) -> tqdm:
        """The bar, on each machine's first process."""
        return tqdm(
            total=self.max_steps,
            initial=step,
            disable=not self.accelerator.is_local_main_process,
            bar_format="{n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
        )

    def show(self, bar: tqdm, step: int, seconds: float) -> None:
        """Bring the bar up to date: loss, images per second, time left."""
        bar.n = step
        left = seconds * (self.max_steps - step) / max(step, 1)
        if self.arguments.max_train_seconds is not None:
            left = min(left, max(0.0, self.arguments.max_train_seconds - seconds))
        loss = sum(self._shown) / len(self._shown)
        speed = f"{self._speed(step):.0f} images/s" if step > self._mark[0] else "…"
        bar.set_postfix_str(f"loss {loss:.4f}, {speed}, {tqdm.format_interval(left)} left", refresh=False)
        bar.update(0)


def _comes_again(line: str, step: int, measured_again: Sequence[str]) -> bool:
    """Whether a line is of a later step, or of this one and measured again, or can't be read."""
    try:
        record = json.loads(line)
        return record["step"] > step or (record["step"] == step and any(name in record for name in measured_again))
    except (json.JSONDecodeError, KeyError, TypeError):
        return True
