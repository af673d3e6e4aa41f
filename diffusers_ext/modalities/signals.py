"""One-dimensional signals: drawn as waveforms and spectrograms, written as sounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.signals import SignalOptions, as_signals
from ..data.sounds import wav_bytes
from ..evaluation.signal_metrics import autocorrelation_distance, log_spectral_distance
from ..pipelines import SignalPipeline
from . import signal_figures

DRAWN = 20  # signals of a picture
COLUMNS = 4
SHOWN_TIMES = 6


class SignalModality:
    """Signals (number, channels, length); see `Modality`."""

    name, noun, dims = "signal", "signals", 1
    pipeline_class = SignalPipeline

    def pipeline_parts(self, data: Any) -> dict[str, Any]:
        """The rate of the data, and how they were scaled."""
        normalization = getattr(data, "normalization", None)
        signal = {"sample_rate": getattr(data, "sample_rate", None)}
        if getattr(data, "equal_peaks", False):
            signal["equal_peaks"] = True
        return {"signal": signal if normalization is None else {**signal, **normalization.config()}}

    def data_options(self, pipeline: Any) -> dict[str, Any]:
        """The length, the rate and the channels; longer recordings are cropped in the middle."""
        config, signal = pipeline.unet.config, pipeline.config.get("signal") or {}
        options = SignalOptions(
            length=config.sample_size,
            sample_rate=rate_of(pipeline),
            channels=config.in_channels,
            normalization="none",
            center_crop=True,
            equal_peaks=signal.get("equal_peaks", False),
        )
        return {"modality": "signal", "signals": options}

    def measures(self, samples: Iterable[torch.Tensor], real: Iterable[torch.Tensor]) -> dict[str, float]:
        """The log-spectral distance in decibels and the distance of the autocorrelations."""
        first, second = torch.cat(list(samples)), torch.cat(list(real))
        return {
            "log_spectral_distance": log_spectral_distance(first, second),
            "autocorrelation_distance": autocorrelation_distance(first, second),
        }

    def real(self, data: Any, indices: Sequence[int]) -> torch.Tensor:
        """Signals of the data, in their units."""
        return as_signals(data, data.__getitems__(list(indices))["samples"])

    def draw(self, samples: torch.Tensor, path: Path, pipeline: Any, columns: int | None = None) -> np.ndarray:
        """Waveforms, with spectrograms of long ones below; the sounds are written into a folder beside the picture."""
        chosen = _spread(samples, DRAWN)
        signal_figures.panel(chosen, path, rate_of(pipeline), columns=min(columns or COLUMNS, len(chosen), COLUMNS))
        if rate_of(pipeline) is not None:
            self.write_each(chosen, path.with_suffix(""), pipeline)
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))[None]

    def write_each(self, samples: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """WAV files; arrays (channels, length) as .npy files for data without a rate."""
        folder.mkdir(parents=True, exist_ok=True)
        rate = rate_of(pipeline)
        for number, signal in enumerate(samples.float().numpy()):
            if rate is None:
                np.save(folder / f"{number:05}.npy", signal)
            else:
                (folder / f"{number:05}.wav").write_bytes(wav_bytes(signal, rate))

    def frame(self, pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
        """Noisy signals in the units of the data."""
        return pipeline.in_units_of_data(latents).nan_to_num(0.0).cpu()

    def draw_process(self, frames: Sequence[torch.Tensor], folder: Path) -> None:
        """Waveforms at some of the times."""
        chosen = [frames[place] for place in np.unique(np.linspace(0, len(frames) - 1, SHOWN_TIMES).astype(int))]
        steps = np.unique(np.linspace(1, len(frames), SHOWN_TIMES).astype(int))
        signal_figures.process([frame[:4] for frame in chosen], steps.tolist(), folder / "reverse.png")

    def draw_beside_real(self, samples: torch.Tensor, real: torch.Tensor, folder: Path, pipeline: Any) -> None:
        """Samples beside real signals, and the power spectra of both."""
        rate = rate_of(pipeline)
        count = min(8, len(samples), len(real))
        signal_figures.beside(_spread(samples, count), _spread(real, count), folder / "samples_and_data.png", rate)
        signal_figures.power_spectra({"samples": samples, "data": real}, folder / "spectra.png", rate)


def rate_of(pipeline: Any) -> int | None:
    """Frames per second of a pipeline's signals, or None."""
    return getattr(pipeline, "sample_rate", None)


def _spread(samples: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` samples, evenly spread."""
    return samples[np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))]
