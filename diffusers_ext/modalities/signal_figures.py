"""Pictures of signals: waveforms, spectrograms, power spectra. Takes tensors, gives files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..evaluation.signal_metrics import power_spectrum
from ..figures.files import COLORS, PathLike, drawing

LEAST_FOR_SPECTROGRAM = 512  # frames; shorter signals are drawn as waveforms only
DYNAMIC_RANGE = 60  # decibels that a spectrogram shows below its loudest place


def panel(signals: torch.Tensor, path: PathLike, sample_rate: int | None = None, columns: int = 4) -> None:
    """Draw signals side by side, each as a waveform and, if it is long, as a spectrogram below.

    Args:
        signals: (number, channels, length).
        path: of the file; its suffix says which kind.
        sample_rate: frames per second; None counts frames.
        columns: signals a row.

    Raises ValueError for another shape or no signals.
    """
    signals = checked(signals)
    rows = -(-len(signals) // columns)
    has_spectrogram = signals.shape[-1] >= LEAST_FOR_SPECTROGRAM
    height = 2 if has_spectrogram else 1
    with drawing(path, 2.6 * columns, (1.0 + 1.2 * (height - 1)) * rows + 0.5) as figure:
        table = figure.subplots(rows * height, columns, squeeze=False, sharex=True)
        for axes in table.flat:
            axes.set_axis_off()
        reach = float(signals.abs().max()) or 1.0
        for number, signal in enumerate(signals):
            row, column = divmod(number, columns)
            draw_waveform(table[height * row][column], signal, sample_rate, reach)
            if has_spectrogram:
                draw_spectrogram(table[height * row + 1][column], signal, sample_rate)
        _label_edges(table, sample_rate, has_spectrogram)


def _label_edges(table: Any, sample_rate: int | None, has_spectrogram: bool) -> None:
    for axes in table[-1]:
        axes.set_xlabel(time_label(sample_rate))
    table[0][0].set_ylabel("value")
    if has_spectrogram:
        table[1][0].set_ylabel(frequency_label(sample_rate))


def beside(samples: torch.Tensor, real: torch.Tensor, path: PathLike, sample_rate: int | None = None) -> None:
    """Draw samples in the upper half and real signals in the lower half, a column a pair; shapes as for `panel`."""
    samples, real = checked(samples), checked(real)
    columns, tall = min(len(samples), len(real)), samples.shape[-1] >= LEAST_FOR_SPECTROGRAM
    kinds = [draw_waveform, draw_spectrogram][: 1 + tall]
    with drawing(path, 1.7 * columns + 0.6, 2.6 * len(kinds) + 0.6) as figure:
        table = figure.subplots(2 * len(kinds), columns, squeeze=False, sharex=True)
        for half, (name, signals) in enumerate((("samples", samples), ("real", real))):
            for part, draw in enumerate(kinds):
                row = table[half * len(kinds) + part]
                for column in range(columns):
                    draw(row[column], signals[column], sample_rate)
                    row[column].tick_params(labelleft=column == 0)
                row[0].set_ylabel(name if part == 0 else frequency_label(sample_rate))
        for axes in table[-1]:
            axes.set_xlabel(time_label(sample_rate))


def table(columns: Mapping[str, torch.Tensor], path: PathLike, sample_rate: int | None = None) -> None:
    """Draw sets of signals beside each other: a column a set, a row a signal.

    Args:
        columns: name -> (number, channels, length), all as many.
        path: of the file.
        sample_rate: frames per second; None counts frames.
    """
    sets = {name: checked(signals) for name, signals in columns.items()}
    rows = min(map(len, sets.values()))
    with drawing(path, 2.2 * len(sets) + 0.4, 1.1 * rows + 0.7) as figure:
        axes = figure.subplots(rows, len(sets), squeeze=False, sharex=True, sharey=True)
        for column, (name, signals) in enumerate(sets.items()):
            for row in range(rows):
                draw_waveform(axes[row][column], signals[row], sample_rate)
            axes[0][column].set_title(name, fontsize=9)
            axes[-1][column].set_xlabel(time_label(sample_rate))


def process(frames: Sequence[torch.Tensor], steps: Sequence[int], path: PathLike) -> None:
    """Draw how signals come about: a row a signal, a column a step.

    Args:
        frames: one batch (number, channels, length) for each step.
        steps: their numbers, counted from 1.
        path: of the file.
    """
    rows, columns = len(frames[0]), len(frames)
    with drawing(path, 1.7 * columns + 0.4, 0.9 * rows + 0.6) as figure:
        table = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for column, (batch, step) in enumerate(zip(frames, steps)):
            for row in range(rows):
                draw_waveform(table[row][column], batch[row].float(), None)
            table[0][column].set_title(f"step {step}", fontsize=9)
            table[-1][column].set_xlabel("frame")


def power_spectra(signals: Mapping[str, torch.Tensor], path: PathLike, sample_rate: int | None = None) -> None:
    """Draw the mean power spectrum of several sets of signals, a panel a channel.

    Args:
        signals: name -> (number, channels, length).
        path: of the file.
        sample_rate: frames per second; None counts cycles per frame.
    """
    spectra = {name: power_spectrum(checked(values)) for name, values in signals.items()}
    channels = len(next(iter(spectra.values())))
    with drawing(path, 3.2 + 2.4 * channels, 3.4) as figure:
        for channel, axes in enumerate(figure.subplots(1, channels, squeeze=False)[0]):
            for number, (name, spectrum) in enumerate(spectra.items()):
                decibels = 10 * np.log10(np.maximum(spectrum[channel].numpy(), 1e-20))
                frequencies = np.linspace(0, (sample_rate or 1) / 2, len(decibels))
                label = f"{name} ({len(signals[name]):,})"
                axes.plot(frequencies, decibels, color=COLORS[number], linestyle=("-", "--")[number % 2], label=label)
            axes.set_xlabel(frequency_label(sample_rate))
            axes.set_ylabel("power, dB")
            axes.set_title("power spectrum" if channels == 1 else f"channel {channel}")
            axes.legend()


def spectrogram(signal: torch.Tensor) -> torch.Tensor:
    """Power in decibels of a signal (length,), (frequencies, times): Hann windows of about 1/32 of its length."""
    size = min(512, max(64, 2 ** round(np.log2(len(signal) / 32))))
    window = torch.hann_window(size)
    bins = torch.stft(signal.float(), size, size // 4, window=window, center=True, return_complex=True)
    return 10 * torch.log10(bins.abs().square() + 1e-12)


def draw_waveform(axes: Any, signal: torch.Tensor, sample_rate: int | None, reach: float | None = None) -> None:
    """The channels of a signal (channels, length) against time."""
    axes.set_axis_on()
    times = np.arange(signal.shape[-1]) / (sample_rate or 1)
    for channel, values in enumerate(signal.numpy()):
        axes.plot(times, values, color=COLORS[channel % len(COLORS)], linewidth=0.5)
    if reach is not None:
        axes.set_ylim(-1.05 * reach, 1.05 * reach)
    axes.tick_params(labelsize=7)


def draw_spectrogram(axes: Any, signal: torch.Tensor, sample_rate: int | None) -> None:
    """The spectrogram of the mean of the channels; dark is quiet."""
    axes.set_axis_on()
    power = spectrogram(signal.mean(0)).numpy()
    extent = (0, signal.shape[-1] / (sample_rate or 1), 0, (sample_rate or 1) / 2)
    top = power.max()
    axes.imshow(power, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - DYNAMIC_RANGE, vmax=top)
    axes.grid(False)
    axes.tick_params(labelsize=7)


def time_label(sample_rate: int | None) -> str:
    """What an axis of time is called."""
    return "frame" if sample_rate is None else "time, s"


def frequency_label(sample_rate: int | None) -> str:
    """What an axis of frequency is called."""
    return "cycles per frame" if sample_rate is None else "frequency, Hz"


def checked(signals: torch.Tensor) -> torch.Tensor:
    """The signals on the CPU. Raises ValueError unless they are finite and (number, channels, length)."""
    if signals.ndim != 3 or 0 in signals.shape:
        raise ValueError(f"signals must have the shape (number, channels, length), got {tuple(signals.shape)}.")
    signals = signals.detach().float().cpu()
    if not signals.isfinite().all():
        raise ValueError(f"signals have {int((~signals.isfinite()).sum())} values that are NaN or infinite.")
    return signals
