"""Turn the bytes of an image file into an array of its pixels, whatever the file's pixel format."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from .opening import MAX_IMAGE_PIXELS, WHITE_IS_ZERO, open_header, open_image

if TYPE_CHECKING:
    from .base import ExampleSource

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as Pillow turns colour into grey
GREY_MODES = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class ImageDecoder:
    """Decode an image file, and apply what is the same in every epoch: orientation, channels, resize, centre crop.

    Args:
        channels: 1 or 3; None keeps greyscale at 1 and colour at 3.
        shorter_side: length in pixels that the shorter side is resized to; None keeps the size.
        center_crop: side in pixels of a central square to keep; None keeps all.
        precise: return float32 in [0, 1], resized without rounding, instead of uint8 in 0..255.
        background: the colour that stands behind transparent pixels, as red, green, blue in 0..255.
    """

    channels: int | None = None
    shorter_side: int | None = None
    center_crop: int | None = None
    precise: bool = False
    background: tuple[int, int, int] = (255, 255, 255)

    noun = "image"

    def __call__(self, data: bytes) -> np.ndarray:
        """The pixels, (channels, height, width). Raises what Pillow raises when `data` is not a whole image."""
        return self.pixels(open_image(data))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The prepared pixels of an image that is open, (channels, height, width)."""
        channels = self.channels or natural_channels(image, self.background)
        if self.precise:
            return self._resized(self._float_planes(image, channels))
        return self._resized([to_eight_bit(image, channels, self.background)])

    def float_pixels(self, planes: np.ndarray) -> np.ndarray:
        """The prepared pixels of an array float32 (1 or 3, height, width) in [0, 1], without rounding."""
        if self.channels == 1 and len(planes) == 3:
            planes = np.tensordot(LUMA, planes, 1)[None]
        planes = np.broadcast_to(planes, (self.channels or len(planes), *planes.shape[1:]))
        return self._resized([Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)) for plane in planes])

    def _resized(self, planes: list[Image.Image]) -> np.ndarray:
        if self.shorter_side is not None:
            planes = [resize_shorter_side(plane, self.shorter_side) for plane in planes]
        if self.center_crop is not None:
            planes = [center_crop(plane, self.center_crop) for plane in planes]
        return np.concatenate([_channels_first(plane) for plane in planes])

    def _float_planes(self, image: Image.Image, channels: int) -> list[Image.Image]:
        """One mode "F" image a channel: Pillow resizes floats only one channel at a time."""
        if is_high_depth(image):
            return [Image.fromarray(unit_range(image))] * channels
        bands = to_eight_bit(image, channels, self.background).split()
        return [Image.fromarray(np.asarray(band, dtype=np.float32) / 255) for band in bands]

    def decoded_bytes(self, data: bytes) -> int:
        """How many bytes the decoded image will take, from the file's header alone."""
        image = open_header(data)
        height, width = image.height, image.width
        if self.shorter_side is not None:
            height, width = resized_shape(height, width, self.shorter_side)
        if self.center_crop is not None:
            height = width = self.center_crop
        channels = self.channels or natural_channels(image, self.background)
        return height * width * channels * (4 if self.precise else 1)

    def for_source(self, source: ExampleSource) -> ImageDecoder:
        """With 1 channel when every image of the source is greyscale, else 3; see `common_channels`."""
        return replace(self, channels=common_channels(source, self.background))

    def without_channels(self) -> ImageDecoder:
        """How images are decoded apart from the number of channels."""
        return replace(self, channels=None)


def common_channels(source: ExampleSource, background: tuple[int, int, int]) -> int:
    """1 when every image is greyscale, else 3; reads headers up to the first image with colour."""
    for index in range(len(source)):
        with contextlib.suppress(Exception):
            if natural_channels(open_header(source.read(index)), background) == 3:
                return 3
    return 1


def parse_background(color: str) -> tuple[int, int, int]:
    """The red, green and blue of a colour as Pillow writes them ("white", "#102030"). Raises ValueError."""
    try:
        red, green, blue = ImageColor.getrgb(color)[:3]
    except (ValueError, AttributeError):
        raise ValueError(f"alpha_background must be a colour such as 'white' or '#102030', got {color!r}") from None
    return red, green, blue


def is_high_depth(image: Image.Image) -> bool:
    """Whether a pixel is one number of more than 8 bits: modes I;16 (and its byte orders), I and F."""
    return image.mode.startswith(("I", "F"))


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixels can be transparent: an alpha channel, or one colour declared transparent."""
    return image.mode in ALPHA_MODES or ("transparency" in image.info and not is_high_depth(image))


def natural_channels(image: Image.Image, background: tuple[int, int, int]) -> int:
    """1 for an image without colour, 3 for one with. A coloured background shows through a transparent grey image."""
    if has_alpha(image) and len(set(background)) > 1:
        return 3
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return 1 if (palette == palette[:, :1]).all() else 3
    return 1 if is_high_depth(image) or image.mode in GREY_MODES else 3


def unit_range(image: Image.Image) -> np.ndarray:
    """The pixels of a 16-bit, 32-bit or float image as float32 in [0, 1], (height, width).

    Integers count to 65535 (Pillow gives 16-bit files as mode I too). Floats count to 1, or to 255 when a pixel is
    above 1, the two customs for float images. A TIFF that says that its white is 0 is inverted. Raises ValueError for
    values outside these ranges, whose white is unknown.
    """
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    white = 65535 if image.mode.startswith("I") else (1 if high <= 1 else 255)
    if not (low >= 0 and high <= white):  # written so that NaN fails too
        raise ValueError(
            f"its pixels run from {low} to {high}, and mode {image.mode} images must stay within 0 and {white}"
        )
    unit = pixels.astype(np.float32) / np.float32(white)
    return 1 - unit if image.info.get(WHITE_IS_ZERO) else unit


def flatten_alpha(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay a transparent image on a plain background; others are returned as they are."""
    if not has_alpha(image):
        return image
    if image.mode == "La":  # Pillow converts premultiplied grey only to LA
        image = image.convert("LA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))


def to_eight_bit(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """The image in mode L (`channels` 1) or RGB (`channels` 3)."""
    if is_high_depth(image):
        # Image.convert clips 16-bit and float pixels at 255 instead of scaling them.
        image = Image.fromarray(np.round(unit_range(image) * 255).astype(np.uint8))
    return flatten_alpha(image, background).convert("L" if channels == 1 else "RGB")


def resized_shape(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width after a resize of the shorter side; the longer one is cut to an integer, as by torchvision."""
    if height <= width:
        return shorter_side, int(shorter_side * width / height)
    return int(shorter_side * height / width), shorter_side


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` pixels on the shorter side, bilinear and antialiased: what torchvision's Resize(size) does.

    Raises ValueError when the longer side would become so long that the image has more than `MAX_IMAGE_PIXELS`.
    """
    height, width = resized_shape(image.height, image.width, size)
    if height * width > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"its {image.width:,}x{image.height:,} pixels would become {width:,}x{height:,}, more than the limit of "
            f"{MAX_IMAGE_PIXELS:,}"
        )
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central `size` x `size` pixels, rounded as torchvision's CenterCrop rounds."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def resize_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize an array (channels, height, width) to `size` x `size`, bilinear and antialiased."""
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in pixels]
    return np.stack([np.asarray(plane) for plane in planes])


def _channels_first(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
