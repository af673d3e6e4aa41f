"""What a checkpoint remembers of its run, and what may differ in a run that goes on from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class RunDescription:
    """The settings and the data of a run, as a part of its checkpoints.

    Args:
        meaning: what the weights depend on such that another value makes them meaningless: data, noise path,
            prediction, network. A resumed run with other values is refused.
        named: what changes how the run goes on. A warning names other values.
        shown: texts for values of `meaning` that say nothing to a person, by name.
    """

    def __init__(self, meaning: Mapping[str, Any], named: Mapping[str, Any], shown: Mapping[str, str] | None = None):
        self._meaning, self._named, self._shown = dict(meaning), dict(named), dict(shown or {})

    def state_dict(self) -> dict[str, Any]:
        """The values, as JSON holds them."""
        return {"meaning": self._meaning, "named": self._named, "shown": self._shown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the run that the checkpoint is of.

        Raises:
            ValueError: naming the first setting that changes the meaning of the weights, with both values.
        """
        shown: dict[str, str] = state.get("shown", {})
        for name, before in state["meaning"].items():
            now = self._meaning.get(name, before)
            if now != before:
                first, second = shown.get(name, _text(before)), self._shown.get(name, _text(now))
                if first == second:
                    first, second = f"{first} ({before})", f"{second} ({now})"
                raise ValueError(
                    f"it was trained with {name} {first}, and this run has {second}; keep the former, or start afresh "
                    "in another output_dir"
                )
        changed = [
            f"{name} was {_text(before)} and is {_text(self._named[name])}"
            for name, before in state["named"].items()
            if name in self._named and self._named[name] != before
        ]
        if changed:
            logger.warning("The run goes on with other settings: %s.", "; ".join(changed))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
