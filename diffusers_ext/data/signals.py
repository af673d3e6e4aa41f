"""Signals for training: sounds and time series of one shape, (channels, length).

A source gives the bytes of each signal, a sound file or an array. All signals have one rate and one number of channels;
each is cropped or padded with zeros to the same length, then normalised.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .base import ExampleSource
from .examples import Examples, probes, read_examples
from .images import ExampleData
from .normalization import Normalization
from .randomness import CROP, uniforms
from .sounds import SignalDecoder, read_signal
from .transforms import Arrays

MEASURED_AT_ONCE = 256
MEASURED_SIGNALS = 20_000  # of a larger set, evenly spread ones are measured


@dataclass(frozen=True)
class SignalOptions:
    """How signals are read and cropped.

    Args:
        length: frames of every signal; longer ones are cropped, shorter ones padded with zeros at their end. None
            keeps the signals' own length, which must then be the same for all.
        sample_rate: frames per second that sounds are resampled to; None takes that of the first recording.
        channels: number of channels, 1 for the mean of all; None takes the largest number.
        normalization: "standardize", "peak" or "none", measured on these data, or the `Normalization` of other data.
        columns: columns of a table with the signals; None finds one.
        center_crop: crop longer signals in the middle instead of at a place that is drawn anew in every epoch.
        skip_unreadable: skip signals that can't be read with a warning, instead of raising an error.
        equal_peaks: scale each signal to the peak 1 of its own, so that its loudness is not part of what is learned.
        max_memory_bytes: read all signals once into memory when they take less than this.
        seed: of the crops.
    """

    length: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    normalization: str | Normalization = "standardize"
    columns: tuple[str, ...] | None = None
    center_crop: bool = False
    skip_unreadable: bool = True
    equal_peaks: bool = False
    max_memory_bytes: int = 2 * 1024**3
    seed: int = 0

    def like(self, data: SignalData, **changes: Any) -> SignalOptions:
        """These options with the shape, the rate and the normalisation of other data."""
        return replace(
            self,
            length=data.size[0],
            sample_rate=data.sample_rate,
            channels=data.channels,
            normalization=data.normalization,
            **changes,
        )


@dataclass(frozen=True)
class FitToLength:
    """The preparation of signals: crop, pad, normalise.

    Args:
        length: frames, or None for signals of one length.
        center_crop: crop in the middle.
        seed: of the crops.
        normalization: applied last; None applies none.
        equal_peaks: divide each signal by its largest absolute value; silence stays.
    """

    length: int | None
    center_crop: bool = False
    seed: int = field(default=0, repr=False)
    normalization: Normalization | None = None
    equal_peaks: bool = False

    def __call__(self, signals: Arrays, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Signals (B, channels, frames), or a list of (channels, frames), as float32 (B, channels, length).

        Raises ValueError for signals of different lengths without a `length`.
        """
        if self.length is None and isinstance(signals, list):
            lengths = sorted({signal.shape[-1] for signal in signals})
            raise ValueError(
                f"The signals have different lengths, {lengths[0]:,} to {lengths[-1]:,} frames and more; set length to "
                "the number of frames that each is cropped or padded to."
            )
        length = signals[0].shape[-1] if self.length is None else self.length
        draws = uniforms(self.seed, CROP, epochs, indices, 1)[:, 0]
        fitted = np.stack([self._fitted(signal, length, draw) for signal, draw in zip(signals, draws)])
        return fitted if self.normalization is None else self.normalization.apply(fitted)

    def _fitted(self, signal: np.ndarray, length: int, draw: float) -> np.ndarray:
        if self.equal_peaks:
            signal = signal / (np.abs(signal).max() or 1.0)
        spare = signal.shape[-1] - length
        if spare > 0:
            start = spare // 2 if self.center_crop else int(draw * (spare + 1))
            return signal[:, start : start + length].astype(np.float32)
        return np.pad(signal.astype(np.float32), ((0, 0), (0, -spare)))


class SignalData(ExampleData):
    """Numbered signals with their labels, read in batches by keys (index, epoch). Follows `TrainingData`.

    Attributes:
        normalization: what was done to the signals; `normalization.undo` gives them back.
        sample_rate: frames per second, or None for data without a rate.
        equal_peaks: whether each signal was scaled to the peak 1.
    """

    normalization: Normalization
    sample_rate: int | None

    def __init__(
        self, examples: Examples, options: SignalOptions, source: ExampleSource, sample_rate: int | None, title: str
    ):
        fit = FitToLength(options.length, options.center_crop, options.seed, equal_peaks=options.equal_peaks)
        self.sample_rate, self.equal_peaks = sample_rate, options.equal_peaks
        self.normalization = _normalization(options.normalization, examples, fit)
        prepare = replace(fit, normalization=self.normalization)
        super().__init__(
            examples, prepare, source.labels, source.class_names, title, source.captions, source.columns, "signals"
        )
        rate = "" if sample_rate is None else f" at {sample_rate:,} Hz"
        self.description = self.description.replace(f", {self.size[0]},", f", {self.size[0]:,} frames{rate},", 1)

    def fingerprint(self) -> str:
        """As for images, with the normalisation, which changes what the weights mean."""
        digest = hashlib.sha256(super().fingerprint().encode())
        digest.update(repr((self.normalization.name, self.sample_rate, self.equal_peaks)).encode())
        return digest.hexdigest()[:16]


def _normalization(wanted: str | Normalization, examples: Examples, fit: FitToLength) -> Normalization:
    if isinstance(wanted, Normalization):
        return wanted
    return Normalization.measured(wanted, _measured_batches(examples, fit))


def _measured_batches(examples: Examples, fit: FitToLength) -> Iterator[np.ndarray]:
    chosen = np.unique(np.linspace(0, len(examples) - 1, MEASURED_SIGNALS).astype(np.int64))
    for indices in np.array_split(chosen, -(-len(chosen) // MEASURED_AT_ONCE)):
        epochs = np.zeros(len(indices), dtype=np.int64)
        yield fit(examples.read(indices, epochs)[0], epochs, indices)


def signal_data(source: ExampleSource, options: SignalOptions, title: str) -> SignalData:
    """The signals of a source, read now or when they are needed.

    Raises ValueError or ImportError, in one sentence, for signals that can't be used.
    """
    decoder, rate = settled(source, options)
    examples = read_examples(source, decoder, options.max_memory_bytes, options.skip_unreadable)
    return SignalData(examples, options, source, rate, title)


def settled(source: ExampleSource, options: SignalOptions) -> tuple[SignalDecoder, int | None]:
    """(decoder with the rate and channels of all signals, frames per second or None), from up to 64 of the signals."""
    channels, rates = [1], []
    for index in probes(len(source)):
        with contextlib.suppress(Exception):  # an unreadable signal is dealt with when it is read
            values, rate = read_signal(source.read(index))
            channels.append(len(values))
            rates += [] if rate is None else [rate]
    rate = options.sample_rate or (rates[0] if rates else None)
    return SignalDecoder(options.channels or max(channels), rate if rates else None), rate


class ArraySource:
    """Signals in an array or a list of arrays, as an `ExampleSource`.

    Args:
        signals: each (channels, frames), (frames, channels) or (frames,).
        labels: class numbers int64, or None.
        class_names: a name for each class number, or None.
    """

    captions: list[str] | None = None

    def __init__(
        self, signals: Sequence[np.ndarray], labels: np.ndarray | None = None, class_names: list[str] | None = None
    ):
        self.signals, self.labels, self.class_names = signals, labels, class_names
        self.columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.signals)

    def name(self, index: int) -> str:
        """What to call signal `index` in a message."""
        return f"row {index}"

    def read(self, index: int) -> bytes:
        """Signal `index` as the bytes of a .npy file."""
        return npy_bytes(self.signals[index])


def npy_bytes(values: Any) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, np.asarray(values), allow_pickle=False)
    return file.getvalue()


def is_bounded(data: Any) -> bool:
    """Whether all samples of the data lie in [-1, 1]: true unless signals are standardised."""
    normalization = getattr(data, "normalization", None)
    return normalization is None or normalization.bounded


def as_signals(data: Any, samples: torch.Tensor) -> torch.Tensor:
    """Samples as the network sees them in the units of the data."""
    normalization = getattr(data, "normalization", None)
    return samples if normalization is None else normalization.undo(samples)
