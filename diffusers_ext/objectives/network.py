"""The network as an objective sees it: conditioned already, and giving a plain tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch


class ConditionedNetwork:
    """A network with the conditions of one batch bound to it: `net(sample, timestep, **extra) -> tensor`.

    Args:
        module: called as `module(sample, timestep, **conditions)`; gives a tensor, or an object with `.sample`.
        conditions: keyword arguments of the module for this batch.
        null_conditions: gives the arguments that stand for no condition, under the same names; called when an
            objective asks for them.
        report: takes (timesteps, losses) of shape (batch,) from an objective that has losses to show before it
            reweights them; see `report`.
    """

    def __init__(
        self,
        module: Any,
        conditions: Mapping[str, Any] | None = None,
        null_conditions: Callable[[], Mapping[str, Any]] = dict,
        report: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ):
        self.module = module
        self.conditions = dict(conditions or {})
        self._make_null = null_conditions
        self.timestep: torch.Tensor | None = None
        self._report = report

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **extra: Any) -> torch.Tensor:
        """The prediction, shaped as the module gives it; `extra` adds to the conditions or replaces them."""
        if self.timestep is None:
            self.timestep = timestep
        output = self.module(sample, timestep, **{**self.conditions, **extra})
        prediction = output if isinstance(output, torch.Tensor) else getattr(output, "sample", None)
        if not isinstance(prediction, torch.Tensor):
            kind = type(output).__name__
            raise ValueError(f"The network must give a tensor or an object with a tensor `.sample`, and gave {kind}.")
        return prediction

    def part(self, rows: torch.Tensor) -> ConditionedNetwork:
        """The network under the conditions of some samples of the batch; `rows` holds their places."""
        return ConditionedNetwork(
            self.module, _rows_of(self.conditions, rows), lambda: _rows_of(self.null_conditions, rows), self._report
        )

    @cached_property
    def null_conditions(self) -> dict[str, Any]:
        """The arguments of the module that stand for no condition."""
        return dict(self._make_null())

    @property
    def training(self) -> bool:
        """Whether the network is in training mode: a measurement in evaluation mode must not change an objective."""
        return bool(getattr(self.module, "training", False))

    @property
    def self_condition(self) -> bool:
        """Whether the network takes an earlier prediction as `self_condition`."""
        module = getattr(self.module, "module", self.module)  # under DistributedDataParallel
        module = getattr(module, "_orig_mod", module)
        module = getattr(module, "unet", module)  # trained with its text encoder
        return bool(getattr(getattr(module, "config", None), "self_condition", False))

    def report(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Show losses of shape (batch,) and their timesteps to the diagnostics; optional for an objective."""
        if self._report is not None:
            self._report(timesteps, losses)


def _rows_of(conditions: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    return {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in conditions.items()}
