"""What `diffusers-ext edit` edits: images or signals, as files and held-out data give them, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from ..data.opening import image_suffixes, open_image_file, read_regular_file
from ..data.signals import FitToLength
from ..data.sounds import SignalDecoder, signal_suffixes
from ..evaluation.metrics import peak_signal_to_noise_ratio
from ..modalities import modality_of_pipeline
from ..pipelines.batched_generation import image_shape

MASKS = ("box", "left", "top", "frame")


class EditedData(Protocol):
    """The data of one modality, (n, channels, *size) in the units in which `EditingPipeline` takes them.

    Attributes:
        noun: of one of them.
        closeness: what `decibels` measures.
        suffixes: of the files that a folder is searched for.
        hidden: the value shown where nothing is known.
    """

    noun: str
    closeness: str
    hidden: float
    suffixes: frozenset[str]

    def of_samples(self, samples: torch.Tensor) -> torch.Tensor:
        """The data of what `Modality.real` gives."""

    def of_files(self, files: Sequence[str]) -> torch.Tensor:
        """What is in files, brought to the network's size."""

    def mask(self, name: str, files: Sequence[str]) -> torch.Tensor:
        """1 where to repaint, (1, 1, *size): one of `MASKS`, or in a file, for data that came from `files`."""

    def resized(self, measured: torch.Tensor) -> torch.Tensor:
        """A smaller measurement, interpolated to the size of data."""

    def noise(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise of variance 1 as data that can be drawn."""

    def decibels(self, found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """How near each is, (n,)."""

    def draw(self, columns: Mapping[str, torch.Tensor], path: str) -> None:
        """Write a picture: a column each, and a row for each of the data."""

    def written(self, data: torch.Tensor) -> torch.Tensor:
        """The data as `Modality.write_each` takes them."""


class EditedImages:
    """Images in [0, 1]; see `EditedData`."""

    noun, closeness, suffixes = "image", "PSNR", frozenset(image_suffixes())
    hidden = 0.5

    def __init__(self, pipeline: Any):
        self.channels, self.height, self.width = image_shape(pipeline)

    def of_samples(self, samples: torch.Tensor) -> torch.Tensor:
        return samples / 2 + 0.5

    def of_files(self, files: Sequence[str]) -> torch.Tensor:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(self.channels)
        if mode is None:
            raise ValueError(f"the network's images have {self.channels} channels, which no image file has.")
        opened = [self._fitted(open_image_file(file).convert(mode), Image.Resampling.LANCZOS) for file in files]
        arrays = np.stack([np.asarray(image).reshape(self.height, self.width, self.channels) for image in opened])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255

    def _fitted(self, image: Image.Image, filter_: Image.Resampling) -> Image.Image:
        return ImageOps.fit(image, (self.width, self.height), filter_)

    def mask(self, name: str, files: Sequence[str]) -> torch.Tensor:
        if name not in MASKS:
            return self._mask_of_file(name, files)
        mask = torch.zeros(1, 1, self.height, self.width)
        y, x = self.height // 4, self.width // 4
        if name == "left":
            mask[..., : self.width // 2] = 1
        elif name == "top":
            mask[..., : self.height // 2, :] = 1
        else:
            mask[..., y : self.height - y, x : self.width - x] = 1
        return 1 - mask if name == "frame" else mask

    def _mask_of_file(self, name: str, files: Sequence[str]) -> torch.Tensor:
        mask = open_image_file(name, "mask").convert("L")
        if mask.size != (self.width, self.height) and {mask.size} != {open_image_file(file).size for file in files}:
            others = " or, as the image files, cropped and resized with them" if files else ""
            raise ValueError(
                f"mask '{name}' is {mask.height}x{mask.width} pixels (height x width); it must be "
                f"{self.height}x{self.width}, as the network's images are{others}."
            )
        values = torch.from_numpy(np.array(self._fitted(mask, Image.Resampling.NEAREST)))
        return (values >= 128).float()[None, None]

    def resized(self, measured: torch.Tensor) -> torch.Tensor:
        size = (self.height, self.width)
        return F.interpolate(measured, size, mode="bicubic", align_corners=False).clamp(0, 1)

    def noise(self, noise: torch.Tensor) -> torch.Tensor:
        image = (noise.float() / 6 + 0.5).clamp(0, 1)
        if image.shape[1:] == (self.channels, self.height, self.width):
            return image
        return F.interpolate(image[:, :1], (self.height, self.width)).expand(-1, self.channels, -1, -1)

    def decibels(self, found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        return peak_signal_to_noise_ratio(self.written(found), self.written(exact))

    def draw(self, columns: Mapping[str, torch.Tensor], path: str) -> None:
        from .. import figures

        shown = [self.written(images) for images in columns.values()]
        cells = [list(row) for row in zip(*shown)]
        figures.comparison_grid([""] * len(cells), list(columns), cells, path)

    def written(self, data: torch.Tensor) -> torch.Tensor:
        return data.float().cpu().clamp(0, 1) * 2 - 1


class EditedSignals:
    """Signals in their own units; see `EditedData`."""

    noun, closeness, suffixes = "signal", "SNR", signal_suffixes()
    hidden = 0.0

    def __init__(self, pipeline: Any):
        self.options = modality_of_pipeline(pipeline).data_options(pipeline)["signals"]

    def of_samples(self, samples: torch.Tensor) -> torch.Tensor:
        return samples

    def of_files(self, files: Sequence[str]) -> torch.Tensor:
        fit = FitToLength(self.options.length, center_crop=True, equal_peaks=self.options.equal_peaks)
        return torch.from_numpy(np.concatenate([fit([self._opened(file)], *np.zeros((2, 1), int)) for file in files]))

    def _opened(self, file: str) -> np.ndarray:
        decode = SignalDecoder(self.options.channels, self.options.sample_rate)
        return _decoded(file, "signal", decode)

    def mask(self, name: str, files: Sequence[str]) -> torch.Tensor:
        length = self.options.length
        if name not in MASKS:
            return self._mask_of_file(name, length)
        if name == "top":
            raise ValueError("mask 'top' is one of images; signals take box (a gap), left, frame or a file.")
        mask = torch.zeros(1, 1, length)
        if name == "left":
            mask[..., : length // 2] = 1
        else:
            mask[..., length // 4 : length - length // 4] = 1
        return 1 - mask if name == "frame" else mask

    def _mask_of_file(self, name: str, length: int) -> torch.Tensor:
        values = torch.from_numpy(_decoded(name, "mask", SignalDecoder(1)))
        if values.shape[-1] != length:
            raise ValueError(f"mask '{name}' has {values.shape[-1]:,} frames; it must have {length:,}.")
        return (values >= 0.5).float()[None]

    def resized(self, measured: torch.Tensor) -> torch.Tensor:
        return F.interpolate(measured, self.options.length, mode="linear", align_corners=False)

    def noise(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.float()

    def decibels(self, found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        found, exact = (each.double().cpu().flatten(1) for each in (found, exact))
        return 10 * torch.log10(exact.square().sum(1) / (found - exact).square().sum(1))

    def draw(self, columns: Mapping[str, torch.Tensor], path: str) -> None:
        from ..modalities.signal_figures import table

        table({name: self.written(signals) for name, signals in columns.items()}, path, self.options.sample_rate)

    def written(self, data: torch.Tensor) -> torch.Tensor:
        return data.float().cpu()


_KINDS: dict[str, Any] = {"image": EditedImages, "signal": EditedSignals}


def edited_data(pipeline: Any) -> EditedData:
    """How the data of a pipeline are edited."""
    return _KINDS[modality_of_pipeline(pipeline).name](pipeline)


def listed_files(paths: Sequence[str], kind: EditedData) -> list[str]:
    """Files as they are, and of folders the files in them. Raises ValueError for a folder without any."""
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in kind.suffixes)
        if not inside:
            raise ValueError(f"folder '{path}' holds no {kind.noun} files.")
        found += inside
    return found


def _decoded(file: str, what: str, decode: SignalDecoder) -> np.ndarray:
    """A signal in a file that the user names. Raises FileNotFoundError or ValueError, in one sentence."""
    try:
        return decode(read_regular_file(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} '{file}' does not exist.") from None
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # bytes that can be anything make decoders raise anything
        raise ValueError(f"{what} '{file}' could not be read: {error}") from error
