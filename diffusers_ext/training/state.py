"""What a run is made of between two steps: counters, and parts with a state that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that must survive a kill.

    A part that can begin in the middle of a run also has `start_afresh()`, which is called when a checkpoint does not
    hold its state. Without that method such a checkpoint is refused.
    """

    def state_dict(self) -> dict[str, Any]:
        """Tensors, and values that JSON can hold, by name. All processes call this, and the main one writes it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave. Raises ValueError, in one sentence, for the state of another kind of run."""


@dataclass
class TrainerState:
    """Counters of a run.

    Attributes:
        global_step: optimizer steps that are done.
        max_steps: optimizer steps of the whole run.
        seconds: of training so far, resumed parts included.
        steps_per_epoch: optimizer steps of one pass through the data.
    """

    global_step: int = 0
    seconds: float = 0.0
    max_steps: int = 0
    steps_per_epoch: float = 1.0

    @property
    def epoch(self) -> float:
        """Passes through the data so far."""
        return self.global_step / self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """The counters that a resumed run goes on with."""
        return {"global_step": self.global_step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved counters."""
        self.global_step, self.seconds = int(state["global_step"]), float(state["seconds"])


@dataclass
class TrainerControl:
    """What a callback may ask for; names are those of transformers.

    Attributes:
        should_training_stop: end the run after this step, as if it had been its last.
        should_save: save a checkpoint after this step.
        should_evaluate: validate and draw a preview after this step.
        reason: why the run stops, as a sentence; it is printed.
    """

    should_training_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    reason: str = ""

    def stop(self, reason: str) -> None:
        """Ask for the end of the run, with a reason."""
        self.should_training_stop, self.reason = True, reason


@dataclass
class StepResult:
    """What the latest optimizer step was.

    Attributes:
        learning_rate: of the step.
        gradient_norm: before clipping; a tensor on the device, so that nobody waits for it unasked.
        epochs: the numbers, from 0, of the epochs that the step completed.
    """

    learning_rate: float = 0.0
    gradient_norm: Any = field(default=0.0)
    epochs: range = range(0)

    def completes_one_of(self, every: int) -> bool:
        """Whether it completed one of the epochs 0, N, 2N, ..."""
        return any(epoch % every == 0 for epoch in self.epochs)
