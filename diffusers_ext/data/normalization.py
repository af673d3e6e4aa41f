"""How signals are scaled for a network: measured on the training data, undone in the pipeline's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..models.lapped import compress, expand, to_bands

NORMALIZATIONS = ("standardize", "spectral", "peak", "none")
BANDS = 64
EXPONENT = 0.6


@dataclass(frozen=True)
class Normalization:
    """signal = normalised * scale + shift, for each channel; `spectral` expands each band of `normalised` before.

    Attributes:
        name: one of `NORMALIZATIONS`. `standardize` gives mean 0 and standard deviation 1, `peak` values in [-1, 1],
            `none` leaves the values alone. `spectral` is for sounds: it standardises, then gives all bands of frequency
            the same power and brings loud and quiet places nearer to one another (see `models.lapped.compress`).
        shift, scale: one number for each channel.
        band_scale: of `spectral`, (channels, bands).
        exponent: of `spectral`.
    """

    name: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    band_scale: tuple[tuple[float, ...], ...] | None = None
    exponent: float = 1.0

    @classmethod
    def measured(cls, name: str, batches: Iterable[np.ndarray]) -> Normalization:
        """The normalisation of signals, each batch (number, channels, length).

        Raises ValueError for an unknown name, for a channel that is constant, and where `spectral` does not fit.
        """
        if name not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got '{name}'.")
        if name == "spectral":
            batches = list(batches)
            plain = replace(cls.measured("standardize", batches), name=name)
            return replace(plain, band_scale=_band_scale(map(plain.apply, batches), EXPONENT), exponent=EXPONENT)
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
        bands = config.get("band_scale")
        return cls(
            str(config["normalization"]),
            tuple(config["shift"]),
            tuple(config["scale"]),
            None if bands is None else tuple(map(tuple, bands)),
            config.get("exponent", 1.0),
        )

    def config(self) -> dict[str, Any]:
        """Entries of a saved configuration."""
        entries = {"normalization": self.name, "shift": list(self.shift), "scale": list(self.scale)}
        if self.band_scale is None:
            return entries
        return {**entries, "band_scale": [list(row) for row in self.band_scale], "exponent": self.exponent}

    @property
    def bounded(self) -> bool:
        """Whether all values lie in [-1, 1], so that a sampler may clip to that range."""
        return self.name == "peak"

    def apply(self, signals: np.ndarray) -> np.ndarray:
        """Signals (..., channels, length) as the network sees them, float32."""
        shift, scale = (np.asarray(values, dtype=np.float32)[:, None] for values in (self.shift, self.scale))
        scaled = ((signals - shift) / scale).astype(np.float32)
        if self.band_scale is None:
            return scaled
        return compress(torch.from_numpy(scaled), torch.tensor(self.band_scale), self.exponent).numpy()

    def undo(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples (..., channels, length) of the network as signals."""
        shift, scale = (samples.new_tensor(values)[:, None] for values in (self.shift, self.scale))
        if self.band_scale is not None:
            samples = expand(samples, samples.new_tensor(self.band_scale), self.exponent)
        return samples * scale + shift


def _band_scale(batches: Iterable[np.ndarray], exponent: float) -> tuple[tuple[float, ...], ...]:
    """Root mean square of |c|^exponent for each channel and band, which `compress` divides by."""
    count, squares = 0, torch.zeros(())
    for batch in batches:
        if batch.shape[-1] % BANDS:
            raise ValueError(
                f"normalization spectral needs a length that is a multiple of {BANDS}, got {batch.shape[-1]:,}."
            )
        powers = to_bands(torch.from_numpy(batch), BANDS).abs() ** (2 * exponent)
        count, squares = count + powers.shape[0] * powers.shape[-1], squares + powers.double().sum((0, 3))
    return tuple(map(tuple, (squares / count).sqrt().clamp(min=1e-4).tolist()))
