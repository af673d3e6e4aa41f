"""SIGTERM, SIGHUP, Ctrl-C and a dead launcher ask a run to save and stop, instead of killing it or leaving it alone."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

# In the environment of a run that another process of the package started and waits for.
LAUNCHED = "DIFFUSERS_EXT_LAUNCHED"
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class TrainingInterrupted(Exception):
    """Training was asked to stop and has saved; `signal_number` says by which signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """Context in which the first signal to stop is noted in `received`; a second one acts as it always does.

    A SIGHUP that is ignored stays ignored, as under nohup. Outside the main thread, where Python allows no
    handlers, no signal is noted. A process that a launcher started, one of several, also counts the launcher's death as
    a SIGTERM: nobody else would stop it. So does a run of a study.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._previous: dict[int, Any] = {}
        self._launcher = os.getppid() if "LOCAL_RANK" in os.environ or LAUNCHED in os.environ else None

    @property
    def received(self) -> int:
        """Number of the signal to stop, or 0."""
        if self._signal == 0 and self._launcher is not None and os.getppid() != self._launcher:
            return int(signal.SIGTERM)
        return self._signal

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS if not _by_nohup(number)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        self._previous = {}


def _by_nohup(number: int) -> bool:
    """Whether somebody has asked that a lost terminal does not stop the run."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN
