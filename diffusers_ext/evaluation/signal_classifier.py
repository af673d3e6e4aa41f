"""SignalClassifier: the classifier of one-dimensional signals, and the loader of classifiers of either kind."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .classifier import ImageClassifier

QUIETEST = 1e-4  # of the mean power of a signal: what is quieter counts as silence
WINDOWS = 16  # about so many windows, side by side, make up a signal


class SignalClassifier(ImageClassifier):
    """The network of `ImageClassifier` on the log-spectrograms of signals (batch, channels, length) in any unit.

    The spectrogram has Hann windows of about 1/16 of the training signals' length (`sample_size`), a power of 2 from 16
    to 512, which overlap by half. Power is taken relative to the mean of the signal, so loudness is
    not looked at; what is 40 dB below the mean counts as silence.

    Args: those of `ImageClassifier`, with the length of the signals as `sample_size`.
    """

    dims, noun = 1, "signals"

    def as_images(self, sample: torch.Tensor) -> torch.Tensor:
        """Log-spectrograms (batch, channels, frequencies, times), about 1 at the mean power and -1 in silence."""
        length = self.config.sample_size or sample.shape[-1]
        size = min(512, max(16, 2 ** round(math.log2(length / WINDOWS))))
        if sample.shape[-1] < size:
            raise ValueError(f"sample must have at least {size} frames, got {sample.shape[-1]}.")
        signals = sample.float().flatten(0, 1)
        window = torch.hann_window(size, device=sample.device)
        bins = torch.stft(signals, size, size // 2, window=window, return_complex=True, pad_mode="constant")
        power = bins.abs().square().unflatten(0, sample.shape[:2])
        mean = power.mean(dim=(1, 2, 3), keepdim=True)
        decades = torch.log10(power / mean.clamp(min=1e-20) + QUIETEST)
        return (1 + decades / 2).to(self.conv_in.weight.dtype)


CLASSIFIERS: dict[str, type[ImageClassifier]] = {kind.__name__: kind for kind in (ImageClassifier, SignalClassifier)}


def classifier_of(folder: str) -> ImageClassifier:
    """The classifier in a folder or of a name on the Hub, of the kind that its configuration names."""
    name = ImageClassifier.load_config(folder).get("_class_name", ImageClassifier.__name__)
    return CLASSIFIERS.get(name, ImageClassifier).from_pretrained(folder, use_safetensors=True).eval()


@dataclass(frozen=True)
class RandomShift:
    """Small random shifts in time, and white noise; what comes in from outside is silence.

    Attributes:
        shift: largest shift, as a share of the length.
        noise: loudest white noise, in decibels relative to the signal; each signal gets up to 40 dB less.
    """

    shift: float = 0.08
    noise: float = -20.0

    def __call__(self, signals: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Each signal (batch, channels, length) moved and with noise of its own."""
        number, _, length = signals.shape
        reach = round(self.shift * length)
        starts = torch.randint(0, 2 * reach + 1, (number,), generator=generator)
        padded = torch.nn.functional.pad(signals, (reach, reach))
        moved = torch.stack([row[:, start : start + length] for row, start in zip(padded, starts.tolist())])
        decibels = self.noise - 40 * torch.rand(number, 1, 1, generator=generator)
        white = torch.randn(signals.shape, generator=generator).to(signals)
        return moved + white * (10 ** (decibels / 20)).to(signals) * signals.square().mean((1, 2), keepdim=True).sqrt()
