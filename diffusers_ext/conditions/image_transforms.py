"""Images as conditions: named transforms that make one from a training image, and the same from what a user has.

A condition is concatenated to a network's input; its values are those of images, [-1, 1], and 0 where nothing is known.
Signals (batch, channels, length) take the transforms too: super-resolution is then an extension of their bandwidth, and
inpainting fills a gap. What a user has are then tensors in the network's units, which are not bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .user_images import Size, image_tensor, mask_tensor, size_text

SUPER_RESOLUTIONS = {f"super_resolution_{factor}": factor for factor in (2, 4, 8)}
IMAGE_TRANSFORMS = ("image", *SUPER_RESOLUTIONS, "colorization", "inpainting")

# Luma of Rec. 601, as in a conversion by PIL.
LUMA_WEIGHTS = (0.299, 0.587, 0.114)
_STROKE_POINTS = 5


class ImageTransform:
    """An image as it is, such as an entry of a data set's column of images: the condition named `image`.

    Args:
        name: one of `IMAGE_TRANSFORMS`.
        image_channels: channels of the images that are generated; of the condition itself where it is taken as it is.
    """

    def __init__(self, name: str, image_channels: int):
        self.name, self.image_channels = name, image_channels

    @property
    def channels(self) -> int:
        """Channels of the condition."""
        return self.image_channels

    def from_target(self, images: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        """The condition of training images.

        Args:
            images: (batch, image_channels, height, width) in [-1, 1].
            draws: source of what is random in the condition, of any device.

        Returns:
            (batch, channels, height, width), in the images' dtype and on their device.

        Raises:
            ValueError: for images that the condition can't be made of.
        """
        raise ValueError(f"The condition '{self.name}' comes from images of its own, not from the target.")

    def from_user(self, image: Any, mask_image: Any, size: Size) -> torch.Tensor:
        """The condition of what a user has.

        Args:
            image: one image or a list of them, as `image_tensor` takes them; super-resolution takes the small ones.
            mask_image: likewise, for inpainting: white where to repaint.
            size: (height, width) of the images to generate.

        Returns:
            (n, channels, height, width), float32 on the CPU or on the tensors' device.

        Raises:
            ValueError: for another size, number of channels or range, and for a mask too many or too few.
        """
        self._refuse_mask(mask_image)
        return given_tensor(image, self.channels, size)

    def user_input(self, images: torch.Tensor, draws: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """What a user who wants `images` would give the pipeline: its arguments `image` and, for inpainting, a mask.

        Args:
            images: (batch, image_channels, height, width) in [-1, 1]; for `image` the condition itself.
            draws: source of what is random in the condition.
        """
        return {"image": as_given(images)}

    def _refuse_mask(self, mask_image: Any) -> None:
        if mask_image is not None:
            raise ValueError(f"mask_image was given, but this network's condition is '{self.name}', which takes none.")


class SuperResolution(ImageTransform):
    """The image averaged over squares of `factor` x `factor` pixels and interpolated (bicubic) to its size again.

    A signal is averaged over `factor` frames and interpolated linearly.
    """

    @property
    def factor(self) -> int:
        return SUPER_RESOLUTIONS[self.name]

    def from_target(self, images: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        self._check_size(images.shape[2:])
        return self._enlarged(self._reduced(images))

    def from_user(self, image: Any, mask_image: Any, size: Size) -> torch.Tensor:
        self._refuse_mask(mask_image)
        self._check_size(size)
        small = tuple(side // self.factor for side in size)
        return self._enlarged(given_tensor(image, self.image_channels, small))

    def user_input(self, images: torch.Tensor, draws: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        return {"image": as_given(self._reduced(images))}

    def _reduced(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(images, self.factor) if images.ndim == 3 else F.avg_pool2d(images, self.factor)

    def _enlarged(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim == 3:
            return F.interpolate(images, scale_factor=self.factor, mode="linear", align_corners=False)
        # Bicubic weights overshoot at edges, where images have nothing to show.
        return F.interpolate(images, scale_factor=self.factor, mode="bicubic", align_corners=False).clamp(-1, 1)

    def _check_size(self, size: Sequence[int]) -> None:
        if any(side % self.factor for side in size):
            sides = "length" if len(size) == 1 else "height and width"
            raise ValueError(f"{self.name} needs a {sides} divisible by {self.factor}, got {size_text(size)}.")


class Colorization(ImageTransform):
    """The luma of an RGB image: one channel."""

    def __init__(self, name: str, image_channels: int):
        if image_channels != 3:
            raise ValueError(f"colorization needs images of 3 channels, got {image_channels}.")
        super().__init__(name, image_channels)

    @property
    def channels(self) -> int:
        return 1

    def from_target(self, images: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        weights = torch.tensor(LUMA_WEIGHTS, dtype=images.dtype, device=images.device)
        return (images * weights[:, None, None]).sum(dim=1, keepdim=True)

    def from_user(self, image: Any, mask_image: Any, size: Size) -> torch.Tensor:
        self._refuse_mask(mask_image)
        given = image_tensor("image", image, (1, 3), size) * 2 - 1
        return given if given.shape[1] == 1 else self.from_target(given)


class Inpainting(ImageTransform):
    """The image with zeros where it is not known, and a channel that is 1 where it is known and 0 where it is not.

    Training hides, in each image, a rectangle or what a thick stroke covers, one as often as the other; in a signal, a
    gap.
    """

    @property
    def channels(self) -> int:
        return self.image_channels + 1

    def from_target(self, images: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        return self._masked(images, random_masks(images, draws))

    def from_user(self, image: Any, mask_image: Any, size: Size) -> torch.Tensor:
        if mask_image is None:
            raise ValueError("mask_image is missing; inpainting needs one, white where to repaint.")
        images = given_tensor(image, self.image_channels, size)
        known = 1 - given_mask(mask_image, size).to(images)
        counts = {len(images), len(known)} - {1}
        if len(counts) > 1:
            raise ValueError(f"image holds {len(images)} images and mask_image {len(known)}; give as many of both.")
        count = max(len(images), len(known))
        return self._masked(*(part.expand(count, *part.shape[1:]) for part in (images, known)))

    def user_input(self, images: torch.Tensor, draws: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        return {"image": as_given(images), "mask_image": 1 - random_masks(images, draws)}

    @staticmethod
    def _masked(images: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return torch.cat([images * known, known], dim=1)


def image_transform(name: str | None, image_channels: int) -> ImageTransform:
    """The condition of this name; None means `image`.

    Raises:
        ValueError: for a name that is not in `IMAGE_TRANSFORMS`, and for images that the condition can't be made of.
    """
    check_transform_name(name)
    kinds = {
        "colorization": Colorization,
        "inpainting": Inpainting,
        **dict.fromkeys(SUPER_RESOLUTIONS, SuperResolution),
    }
    return kinds.get(name or "image", ImageTransform)(name or "image", image_channels)


def as_given(samples: torch.Tensor) -> torch.Tensor:
    """What a user would give: images in [0, 1] of those in [-1, 1], signals as they are."""
    return samples if samples.ndim == 3 else samples / 2 + 0.5


def given_tensor(image: Any, channels: int, size: Size) -> torch.Tensor:
    """What a user gives, as the network sees it, (n, channels, *size).

    Raises ValueError, in one sentence, for anything else than images as `image_tensor` takes them, or a signal as a
    tensor ([n,] channels, length).
    """
    if len(size) == 2:
        return image_tensor("image", image, (channels,), size) * 2 - 1
    signal = _as_batch("image", image)
    if signal.shape[1:] != (channels, *size):
        raise ValueError(
            f"image has the shape {tuple(signal.shape)}; a signal takes ([n,] channels, length) with {channels} "
            f"channels and {size[0]:,} frames."
        )
    return signal


def given_mask(mask: Any, size: Size) -> torch.Tensor:
    """The mask that a user gives, (n, 1, *size), 1 where to generate anew.

    Raises ValueError as `given_tensor` does; the mask of a signal is ([n,] 1, length) or (length,).
    """
    if len(size) == 2:
        return mask_tensor("mask_image", mask, size)
    values = torch.as_tensor(mask)
    values = _as_batch("mask_image", values[None] if values.ndim == 1 else values)
    if values.shape[1:] != (1, *size):
        raise ValueError(
            f"mask_image has the shape {tuple(values.shape)}; it takes (length,) or ([n,] 1, length) with {size[0]:,} "
            "frames."
        )
    return (values >= 0.5).float()


def _as_batch(argument: str, signal: Any) -> torch.Tensor:
    try:
        values = torch.as_tensor(signal).float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{argument} must be a tensor or an array, got {signal!r:.60}.") from None
    if values.ndim not in (2, 3):
        raise ValueError(f"{argument} has the shape {tuple(values.shape)}; a signal takes ([n,] channels, length).")
    if not values.isfinite().all():
        raise ValueError(f"{argument} has values that are NaN or infinite.")
    return values if values.ndim == 3 else values[None]


def check_transform_name(name: str | None) -> None:
    """Raise ValueError, in one sentence, for an unknown name."""
    if name is not None and name not in IMAGE_TRANSFORMS:
        raise ValueError(f"condition must be one of {', '.join(IMAGE_TRANSFORMS)}, got {name!r}.")


# masks for training


def random_masks(images: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
    """1 where images (batch, channels, height, width) stay known, 0 where not: (batch, 1, height, width), their dtype.

    A rectangle has sides of a quarter to three quarters of the image's; a stroke joins five points, as thick as an
    eighth to a quarter of the shorter side. All of it is a function of a fixed count of uniform draws an image. In
    signals (batch, channels, length) a gap is a quarter to three quarters of the length.
    """
    if images.ndim == 3:
        return _without_gaps(images, draws)
    batch, height, width = images.shape[0], images.shape[2], images.shape[3]
    device = "cpu" if draws is None else draws.device
    uniform = torch.rand(batch, 6 + 2 * _STROKE_POINTS, generator=draws, device=device).to(images.device)
    size = torch.tensor([height, width], device=images.device)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([y, x], dim=-1).to(images.device)  # (height, width, 2)
    rectangle = _in_rectangle(pixels, uniform[:, 1:3], uniform[:, 3:5], size)
    points = uniform[:, 6:].unflatten(1, (_STROKE_POINTS, 2)) * size
    radius = (1 + uniform[:, 5]) / 16 * min(height, width)
    stroke = _distance_to_line(pixels, points) < radius[:, None, None]
    hidden = torch.where(uniform[:, :1, None] < 0.5, rectangle, stroke)
    return (~hidden).unsqueeze(1).to(images.dtype)


def _without_gaps(signals: torch.Tensor, draws: torch.Generator | None) -> torch.Tensor:
    batch, length = signals.shape[0], signals.shape[2]
    device = "cpu" if draws is None else draws.device
    extent, place = torch.rand(batch, 2, generator=draws, device=device).to(signals.device).split(1, dim=1)
    wide = (0.25 + 0.5 * extent) * length
    offset = torch.arange(length, device=signals.device) + 0.5 - place * (length - wide)
    return ((offset < 0) | (offset >= wide)).unsqueeze(1).to(signals.dtype)


def _in_rectangle(pixels: torch.Tensor, extent: torch.Tensor, place: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Whether pixels lie inside rectangles, (batch, height, width), of uniform numbers (batch, 2) for each."""
    sides = (0.25 + 0.5 * extent) * size
    start = place * (size - sides)
    offset = pixels - start[:, None, None]
    return ((offset >= 0) & (offset < sides[:, None, None])).all(dim=-1)


def _distance_to_line(pixels: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Distance of every pixel from the line through points (batch, n, 2): (batch, height, width)."""
    start, along = points[:, :-1, None, None], points.diff(dim=1)[:, :, None, None]
    offset = pixels - start  # (batch, n - 1, height, width, 2)
    share = (offset * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp(min=1e-9)
    return (offset - share.clamp(0, 1) * along).norm(dim=-1).amin(dim=1)
