"""`TrainerCallback`: something to do while training, under the event names of transformers' callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..state import Stateful, TrainerControl, TrainerState

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_step_end",
    "on_epoch_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_train_end",
    "on_export",
)


class TrainerCallback:
    """Something to do at certain moments of a training run; override the events that matter.

    Every event is called on all processes as `event(args, state, control, **kwargs)`:

    - `args`: the settings of the run, `TrainingArguments`.
    - `state`: counters, see `TrainerState`: `state.global_step`, `state.epoch`, ...
    - `control`: set its flags to stop, save or evaluate, see `TrainerControl`.
    - `kwargs`: `model`, the network that is trained, and what the event adds.

    A callback with `state_dict` and `load_state_dict` is kept in the checkpoints. What a callback does must not change
    the weights or the global random numbers, or a resumed run would differ from an unbroken one.
    """

    def on_init_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The trainer is built."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the first step; a checkpoint has been loaded if the run is resumed."""

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the first step of an epoch."""

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before an optimizer step."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After an optimizer step; `step` holds its learning rate, gradient norm and completed epochs."""

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the last step of an epoch."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a line of metrics was written; `logs` is the line."""

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a validation or an evaluation of samples; `metrics` are its results."""

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a checkpoint was saved; `checkpoint` is its path."""

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the last step, before the pipeline is saved."""

    def on_export(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the pipeline was saved into the output folder; `pipeline` is it, and `last` says if the run is over."""


def check_callback(callback: Any) -> None:
    """Raise ValueError, in one sentence, for what is no callback, and for an event of the user's that never comes."""
    if isinstance(callback, type):
        raise ValueError(f"callbacks takes objects; give {callback.__name__}() instead of {callback.__name__}.")
    kind = type(callback)
    members = {name: getattr(kind, name) for name in dir(kind)} | getattr(callback, "__dict__", {})
    named = {name: member for name, member in members.items() if name.startswith("on_") and callable(member)}
    unknown = [
        name
        for name, member in named.items()
        # transformers' own callbacks have events of steps within a step, which this trainer has not
        if name not in EVENTS and not (getattr(member, "__module__", None) or "").startswith("transformers.")
    ]
    if unknown or not named:
        found = f"'{unknown[0]}', which never comes" if unknown else "no event"
        raise ValueError(f"The callback {kind.__name__} has {found}; the events are {', '.join(EVENTS)}.")


class Callbacks:
    """All callbacks of a run, called in order.

    Args:
        callbacks: of the run; those of transformers work, too.
        args: settings to pass on.
        model: the network that is trained.
    """

    def __init__(
        self, callbacks: Sequence[Any], args: Any, state: TrainerState, control: TrainerControl, model: Any = None
    ):
        self.callbacks, self._args, self._state, self._control, self._model = callbacks, args, state, control, model

    def fire(self, event: str, **kwargs: Any) -> None:
        """Call an event of all callbacks."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(self._args, self._state, self._control, model=self._model, **kwargs)

    def parts(self) -> dict[str, Stateful]:
        """The callbacks with a state, by name."""
        parts: dict[str, Stateful] = {}
        for callback in self.callbacks:
            if isinstance(callback, Stateful):
                name = getattr(callback, "name", None) or type(callback).__name__
                parts[name if name not in parts else f"{name}-{len(parts)}"] = callback
        return parts

    def stage(self) -> list[Any]:
        """What the callbacks have measured so far: the values of their states that are no tensors."""
        states = [part.state_dict() for part in self.parts().values()]
        return [{key: value for key, value in state.items() if not hasattr(value, "shape")} for state in states]

    def measured_again(self) -> list[str]:
        """Names of records of the present step that will be written again."""
        asked = [getattr(callback, "measured_again", None) for callback in self.callbacks]
        return [name for method in asked if method is not None for name in method(self._state.global_step)]
