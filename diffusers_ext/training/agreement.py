"""What several processes have to agree on, so that none waits for one that went astray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..files import one_line


class TrainingFailed(Exception):
    """Something other than the training itself failed on one process; the same on all of them."""


class Processes:
    """The processes of a run."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return bool(self._accelerator.is_main_process)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def nobody_failed(self, problem: str) -> bool:
        """Whether all processes came through; all call this and get the same answer."""
        failed = torch.tensor([float(bool(problem))], device=self._accelerator.device)
        return self._accelerator.reduce(failed, "sum").item() == 0

    def highest(self, number: int) -> int:
        """The highest number that any process gives; all call this."""
        return int(self._accelerator.gather(torch.tensor([number], device=self._accelerator.device)).max())

    def of_main(self, value: Any) -> Any:
        """What the main process gives, on all of them; all call this."""
        values = [value]
        if self.count > 1:
            broadcast_object_list(values)
        return values[0]

    @contextmanager
    def main_only(self, what: str) -> Iterator[None]:
        """Context whose body does its work on the main process, and fails on all or on none.

        The body runs on every process; where it would do nothing useful elsewhere it should ask `is_main`.

        Raises:
            TrainingFailed: on all processes, in one sentence that begins with `what`, for want of memory, say.
        """
        problem = ""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            problem = f"{what} ({one_line(error)})"
        problem = self.of_main(problem)
        if problem:
            raise TrainingFailed(problem)
