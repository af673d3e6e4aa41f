"""How signals are scaled for a network: measured on the training data, undone in the pipeline's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

NORMALIZATIONS = ("standardize", "peak", "none")


@dataclass(frozen=True)
class Normalization:
    """signal = normalised * scale + shift, for each channel.

    Attributes:
        name: one of `NORMALIZATIONS`. `standardize` gives mean 0 and standard deviation 1, `peak` values in [-1, 1],
            `none` leaves the values alone.
        shift, scale: one number for each channel.
    """

    name: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def measured(cls, name: str, batches: Iterable[np.ndarray]) -> Normalization:
        """The normalisation of signals, each batch (number, channels, length).

        Raises ValueError for an unknown name, and for a channel that is constant.
        """
        if name not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got '{name}'.")
        count, total, squares, peak = 0, 0.0, 0.0, 0.0
        for batch in batches:
            values = batch.astype(np.float64)
            count += values.shape[0] * values.shape[2]
            total, squares = total + values.sum((0, 2)), squares + (values**2).sum((0, 2))
            peak = np.maximum(peak, np.abs(values).max((0, 2)))
        mean = np.asarray(total) / count
        std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0.0))
        choices = {"standardize": (mean, std), "peak": (0 * mean, np.asarray(peak)), "none": (0 * mean, 0 * mean + 1)}
        shift, scale = choices[name]
        if not (scale > 0).all():
            channel = int(np.argmin(scale > 0))
            raise ValueError(f"Channel {channel} of the signals is constant, so normalization {name} can't scale it.")
        return cls(name, tuple(shift.tolist()), tuple(scale.tolist()))

    @classmethod
    def from_config(cls, config: Any) -> Normalization:
        """The normalisation that `config` gave."""
        return cls(str(config["normalization"]), tuple(config["shift"]), tuple(config["scale"]))

    def config(self) -> dict[str, Any]:
        """Entries of a saved configuration."""
        return {"normalization": self.name, "shift": list(self.shift), "scale": list(self.scale)}

    @property
    def bounded(self) -> bool:
        """Whether all values lie in [-1, 1], so that a sampler may clip to that range."""
        return self.name == "peak"

    def apply(self, signals: np.ndarray) -> np.ndarray:
        """Signals (..., channels, length) as the network sees them, float32."""
        shift, scale = (np.asarray(values, dtype=np.float32)[:, None] for values in (self.shift, self.scale))
        return ((signals - shift) / scale).astype(np.float32)

    def undo(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples (..., channels, length) of the network as signals."""
        shift, scale = (samples.new_tensor(values)[:, None] for values in (self.shift, self.scale))
        return samples * scale + shift
