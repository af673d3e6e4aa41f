"""How far a set of signals is from a set of real signals in their second moments. Takes tensors; knows no model.

Signals are (number, channels, length); everything is computed in float64.
"""

from __future__ import annotations

import torch

FLOOR = 1e-12  # of the power, as a share of its largest value


def power_spectrum(signals: torch.Tensor) -> torch.Tensor:
    """Mean over the signals of |FFT|^2 / length, (channels, length // 2 + 1)."""
    return torch.fft.rfft(signals.double(), dim=-1).abs().square().mean(0) / signals.shape[-1]


def autocorrelation(signals: torch.Tensor, lags: int | None = None) -> torch.Tensor:
    """Mean of x(n) x(n + lag) over signals and n, for the lags 0 ... `lags` - 1, (channels, lags).

    The estimate is unbiased: each lag is divided by its number of pairs. Half of the length when `lags` is None.
    """
    length = signals.shape[-1]
    lags = length // 2 if lags is None else lags
    bins = torch.fft.rfft(signals.double(), n=2 * length, dim=-1).abs().square().mean(0)
    sums = torch.fft.irfft(bins, n=2 * length, dim=-1)[..., :lags]
    return sums / (length - torch.arange(lags, dtype=torch.float64))


def log_spectral_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Root mean square difference of the mean power spectra in decibels, over frequencies and channels.

    The distance of Gray and Markel 1976 (IEEE Trans. ASSP 24, 380-391), eq. 2 with p = 2, between mean spectra.

    Raises ValueError for signals of different channels or lengths.
    """
    if first.shape[1:] != second.shape[1:] or first.ndim != 3:
        raise ValueError(
            f"signals must be (number, channels, length) with one shape of a signal, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    decibels = []
    for signals in (first, second):
        power = power_spectrum(signals)
        decibels.append(10 * torch.log10(power.clamp(min=FLOOR * float(power.max()) + 1e-300)))
    return float((decibels[0] - decibels[1]).square().mean().sqrt())


def autocorrelation_distance(first: torch.Tensor, second: torch.Tensor, lags: int | None = None) -> float:
    """Largest difference of the autocorrelations, each divided by that of the second set at lag 0."""
    one, two = autocorrelation(first, lags), autocorrelation(second, lags)
    return float(((one - two) / two[:, :1]).abs().max())
