"""Real numbers as a condition: an angle, a scale, a measured property."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .base import Batch, Condition, NetworkArguments, config_entry, setting, spread
from .user_images import Size


class VectorCondition(Condition):
    """A few real numbers for each sample; the null condition is a learned embedding.

    The network normalises each number with its mean and standard deviation over the training data, which are part of
    its configuration. A row of NaN stands for the null condition in the network's argument.

    Args:
        vector_columns: names of the data's columns of numbers, with commas between them.

    Raises:
        ValueError: for an empty name, or one that is given twice.
    """

    name = "vector"
    argument = "vector"
    network_argument = "vector"
    network_entries = ("vector_dim",)
    null_value = math.nan
    settings = {
        "vector_columns": setting(
            str | None,
            None,
            "Columns of numbers that the network is conditioned on, `angle,scale` say.",
            on_resume="refused",
        ),
    }
    flags = {
        "vector": setting(
            list[str] | None,
            None,
            "Numbers with commas between them, `30,1.5` say: as many samples of each, a row of the grid each.",
        ),
    }

    @staticmethod
    def check_settings(arguments: Any) -> None:
        VectorCondition(arguments.vector_columns)
        if arguments.vector_columns is None:
            raise ValueError("condition vector needs vector_columns, the names of columns with numbers.")

    def __init__(self, vector_columns: str | None = None):
        self.columns = [name.strip() for name in (vector_columns or "").split(",")] if vector_columns else []
        if not all(self.columns) or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"vector_columns takes different names with commas between them, got '{vector_columns}'.")
        self.mean: list[float] = []
        self.std: list[float] = []

    def column_arguments(self) -> dict[str, Any]:
        return {"number_columns": self.columns}

    def prepare(self, data: Any, seed: int = 0, token: str | None = None) -> None:
        self._check_columns(data)
        numbers = torch.cat([data.columns[name] for name in self.columns], dim=1).double()
        self.mean = numbers.mean(dim=0).tolist()
        # A column that never changes is only centred.
        self.std = [deviation or 1.0 for deviation in numbers.std(dim=0, correction=0).tolist()]

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"vector_dim": len(self.mean), "vector_mean": self.mean, "vector_std": self.std}

    def adopt(self, held_out: Any) -> None:
        self._check_columns(held_out)

    def _check_columns(self, data: Any) -> None:
        if not self.columns:
            raise ValueError("condition vector needs vector_columns, the names of columns with numbers.")
        for name in self.columns:
            if name not in data.columns:
                found = ", ".join(data.columns) or "none"
                raise ValueError(f"vector_columns names '{name}', but the columns of numbers in the data are {found}.")
            if not data.columns[name].isfinite().all():
                raise ValueError(
                    f"Column '{name}' holds numbers that are not finite; the vector condition needs finite ones."
                )

    def inputs(
        self, batch: Batch, data: Any, dropped: torch.Tensor, generator: torch.Generator, before: int
    ) -> dict[str, Any]:
        numbers = torch.cat([batch[name] for name in self.columns], dim=1)
        return {"vector": numbers.masked_fill(dropped.to(numbers.device)[:, None], math.nan)}

    def state(self) -> dict[str, Any]:
        return {"vector_columns": ",".join(self.columns)}

    def examples(self, data: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
        order = data.columns[self.columns[0]][:, 0].argsort(stable=True)  # a picture of them reads from low to high
        return self.of_samples(data, order[spread(len(order), count)].tolist(), generator)

    def of_samples(self, data: Any, indices: list[int], generator: torch.Generator) -> dict[str, Any]:
        return {"vector": torch.cat([data.columns[name] for name in self.columns], dim=1)[indices]}

    def read(self, argument: str, values: Mapping[str, Any], size: Size) -> torch.Tensor:
        width = config_entry(self.unet, "vector_dim")
        value = values[argument]
        if isinstance(value, Mapping):
            value = self._by_name(argument, value)
        return self.number_rows(argument, value, width)

    def _by_name(self, argument: str, value: Mapping[str, Any]) -> list[list[float]]:
        """Rows of numbers from columns that are given by name, each one number or as many as samples."""
        if set(value) != set(self.columns):
            raise ValueError(f"{argument} takes the names {', '.join(self.columns) or 'none'}, got {', '.join(value)}.")
        columns = [self.number_rows(f"{argument} {name}", value[name], 1)[:, 0] for name in self.columns]
        lengths = {len(column) for column in columns} - {1}
        if len(lengths) > 1:
            raise ValueError(f"{argument} takes as many numbers under each name, got {sorted(lengths)}.")
        return torch.stack(torch.broadcast_tensors(*columns), dim=1).tolist()

    def null(self, entries: torch.Tensor, count: int, device: torch.device) -> NetworkArguments:
        return {"vector": torch.full((count, entries.shape[1]), math.nan, device=device)}

    @classmethod
    def call_example(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
        return {"vector": [[round(float(mean), 3) for mean in network.get("vector_mean") or [0.0]]]}

    @classmethod
    def card_facts(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> list[tuple[str, str]]:
        names = str(((index.get("conditions") or {}).get("vector") or {}).get("vector_columns") or "").split(",")
        means, deviations = network.get("vector_mean") or [], network.get("vector_std") or []
        listed = [f"{name} ({float(mean):.3g} ± {float(std):.3g})" for name, mean, std in zip(names, means, deviations)]
        return [("vector", f"{', '.join(listed)}: mean ± standard deviation of the training data")]
