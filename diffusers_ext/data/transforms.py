"""The part of the preparation of images that is drawn anew in every epoch: crops and flips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .decoding import resize_square
from .randomness import CROP, FLIP, uniforms

# One array (B, C, H, W) when the shapes agree, else a list of (C, H, W). In NumPy, since a batch of small images is too
# little work to wake PyTorch's threads for.
Arrays = np.ndarray | list[np.ndarray]
# Arrays of examples and their keys, epochs (B,) and indices (B,), to float32 (B, C, *size) in [-1, 1].
Preparation = Callable[[Arrays, np.ndarray, np.ndarray], np.ndarray]
CROP_ATTEMPTS = 10  # random areas tried before a random resized crop gives up and takes the centre


def stack_if_alike(images: list[np.ndarray]) -> Arrays:
    """One array when all shapes agree, else the list."""
    return np.stack(images) if all(image.shape == images[0].shape for image in images) else images


@dataclass(frozen=True)
class Transform:
    """What is drawn anew in every epoch: crops and flips. See `ImageOptions` for the arguments."""

    resolution: int | None = None
    center_crop: bool = False
    random_flip: bool = False
    resize_scale: float = 1.0
    random_resized_crop: tuple[float, float] | None = None
    seed: int = field(default=0, repr=False)  # the fingerprint of the data takes the rest

    def __post_init__(self) -> None:
        cropped = self.center_crop or self.random_resized_crop is not None or self.resize_scale != 1
        if self.resolution is None and cropped:
            raise ValueError("center_crop, resize_scale and random_resized_crop need a resolution")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {self.resolution}")
        if not self.resize_scale >= 1:
            raise ValueError(f"resize_scale must be at least 1, got {self.resize_scale}")
        if self.random_resized_crop is None:
            return
        low, high = self.random_resized_crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"random_resized_crop must be two shares of the area, 0 < low <= high <= 1, got ({low}, {high})"
            )
        if self.center_crop:
            raise ValueError("center_crop and random_resized_crop exclude each other")

    @property
    def shorter_side(self) -> int | None:
        """What the shorter side is resized to before the crop, in pixels."""
        return None if self.resolution is None else int(self.resize_scale * self.resolution)

    def __call__(self, images: Arrays, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Crop and flip images (B, C, H, W), or a list of (C, H, W), by their keys (B,); may change them in place.

        Returns float32 (B, C, resolution, resolution) in [-1, 1].

        Raises ValueError when images of different sizes are not cropped to one.
        """
        if self.random_resized_crop is not None:
            images = self._random_resized_crops(images, epochs, indices)
        elif self.resolution is not None:
            images = self._random_crops(images, self.resolution, epochs, indices)
        if not isinstance(images, np.ndarray):
            raise ValueError(different_sizes({image.shape[1:] for image in images}))
        if self.random_flip:
            mirrored = uniforms(self.seed, FLIP, epochs, indices, 1)[:, 0] < 0.5
            images[mirrored] = images[mirrored][..., ::-1]
        return symmetric(images)

    def _random_crops(self, images: Arrays, size: int, epochs: np.ndarray, indices: np.ndarray) -> Arrays:
        heights, widths = heights_and_widths(images)
        if (heights == size).all() and (widths == size).all():
            return images
        rooms = np.stack([heights - size, widths - size], axis=1) + 1
        corners = (uniforms(self.seed, CROP, epochs, indices, 2) * rooms).astype(np.int64)
        if isinstance(images, list):
            return np.stack([im[:, y : y + size, x : x + size] for im, (y, x) in zip(images, corners)])
        windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(2, 3))
        return windows[np.arange(len(images)), :, corners[:, 0], corners[:, 1]]

    def _random_resized_crops(self, images: Arrays, epochs: np.ndarray, indices: np.ndarray) -> Arrays:
        assert self.random_resized_crop is not None
        assert self.resolution is not None
        draws = uniforms(self.seed, CROP, epochs, indices, CROP_ATTEMPTS * 4).reshape(-1, CROP_ATTEMPTS, 4)
        boxes = random_boxes(*heights_and_widths(images), self.random_resized_crop, draws)
        crops = [image[:, y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes)]
        return np.stack([resize_square(crop, self.resolution) for crop in crops])


def heights_and_widths(images: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Heights (B,) and widths (B,) of a batch."""
    shapes = np.array([image.shape[-2:] for image in images])
    return shapes[:, 0], shapes[:, 1]


def random_boxes(heights: np.ndarray, widths: np.ndarray, scale: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    """Boxes (B, 4) of top, left, height, width, drawn as torchvision's RandomResizedCrop draws them.

    The area is uniform in `scale`, the aspect ratio log-uniform in 3/4..4/3, and the first attempt that fits is taken;
    when none fits, the largest central box of an allowed ratio. `draws` (B, attempts, 4) is uniform in [0, 1).
    """
    heights, widths = heights[:, None], widths[:, None]
    areas = heights * widths * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    ratios = np.exp(np.log(3 / 4) + np.log(16 / 9) * draws[..., 1])
    box_widths, box_heights = np.round(np.sqrt(areas * ratios)), np.round(np.sqrt(areas / ratios))
    fits = (box_widths >= 1) & (box_widths <= widths) & (box_heights >= 1) & (box_heights <= heights)
    tops = np.floor(draws[..., 2] * (heights - box_heights + 1))
    lefts = np.floor(draws[..., 3] * (widths - box_widths + 1))
    attempts = np.stack([tops, lefts, box_heights, box_widths], axis=-1)
    chosen = np.take_along_axis(attempts, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1)[:, None], chosen, _central_boxes(heights[:, 0], widths[:, 0])).astype(np.int64)


def _central_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    box_widths = np.minimum(widths, np.round(heights * 4 / 3))
    box_heights = np.minimum(heights, np.round(widths * 4 / 3))
    return np.stack([(heights - box_heights) // 2, (widths - box_widths) // 2, box_heights, box_widths], axis=-1)


def size_text(size: Sequence[int]) -> str:
    """A size as people write it: 640x480 for height 480 and width 640."""
    return "x".join(str(length) for length in reversed(size))


def different_sizes(sizes: Iterable[Sequence[int]]) -> str:
    """The message about images of different sizes."""
    first, second, *_ = sorted(map(size_text, sizes))
    return f"resolution must be given when the images differ in size ({first}, {second}, ...)"


def symmetric(images: np.ndarray) -> np.ndarray:
    """Images uint8 in 0..255 or float32 in [0, 1] as float32 in [-1, 1]."""
    pixels = images.astype(np.float32)
    pixels /= 127.5 if images.dtype == np.uint8 else 0.5
    pixels -= 1
    return np.ascontiguousarray(pixels)
