"""Open image files that can come from anywhere: a fixed list of formats, a limit on pixels, a guarded orientation."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import logging
import os
import stat
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 2**27  # 134 million: larger images are refused before they are decoded
MAX_IMAGE_BYTES = 2**29  # 512 MiB: larger image files are refused before they are read

# Formats by Pillow's names and the suffixes of their files. Formats that start other programs (EPS starts Ghostscript)
# or hold something else than pixels are not among them.
SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "ICO": (".ico",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k"),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# Formats that another package adds to Pillow: (package, module, suffixes). They are read where it is installed.
PLUGINS = {
    "AVIF": ("pillow-avif-plugin", "pillow_avif", (".avif",)),
    "HEIF": ("pillow-heif", "pillow_heif", (".heic", ".heif")),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl", (".jxl",)),
}
# Image formats that are not read, and what their files need.
UNREAD_SUFFIXES = {
    **dict.fromkeys((".psd", ".xcf", ".svg", ".eps", ".ai", ".exr", ".hdr"), "to be saved as .png"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), "develop them to .png, with rawpy"
    ),
    **dict.fromkeys((".dcm", ".nii"), "to be converted to .png"),
}
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC_INTERPRETATION = 262  # the TIFF tag; 0 says that white is the value 0
WHITE_IS_ZERO = "white_is_zero"  # in an opened image's `info`


@functools.cache
def allowed_formats() -> tuple[str, ...]:
    """The formats that are opened, by Pillow's names: those of `SUFFIXES`, and of plugins that are installed."""
    Image.init()
    for name, (_, module, _) in PLUGINS.items():
        if name not in Image.OPEN and importlib.util.find_spec(module) is not None:
            plugin = importlib.import_module(module)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
    return tuple(name for name in (*SUFFIXES, "HEIF", "JXL") if name in Image.OPEN)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that are opened."""
    known = {name: SUFFIXES.get(name, ()) + PLUGINS.get(name, ("", "", ()))[2] for name in allowed_formats()}
    return frozenset(suffix for suffixes in known.values() for suffix in suffixes)


def advice_on_suffix(suffix: str) -> str | None:
    """What image files of this suffix need in order to be read, such as "pillow-heif"; None for other suffixes."""
    for package, _, suffixes in PLUGINS.values():
        if suffix in suffixes and suffix not in image_suffixes():
            return package
    return UNREAD_SUFFIXES.get(suffix)


def open_header(data: bytes) -> Image.Image:
    """An image whose size and mode are known and whose pixels are not read yet.

    Raises ValueError for more pixels than `MAX_IMAGE_PIXELS`, and what Pillow raises for data that are no image.
    """
    image = Image.open(io.BytesIO(data), formats=allowed_formats())
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {image.width:,}x{image.height:,} pixels, more than the limit of {MAX_IMAGE_PIXELS:,}")
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0:
        image.info[WHITE_IS_ZERO] = True
    return image


def open_image(data: bytes) -> Image.Image:
    """A whole image, turned the way its EXIF orientation says; damaged EXIF data are ignored with a warning.

    Raises as `open_header` does.
    """
    image = open_header(data)
    image.load()
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ORIENTATION)
    except Exception as error:  # the parsers of Pillow raise anything for damaged data
        _warn_of_exif(str(error))
        return None


@functools.cache  # once for each kind of damage, since a folder can be full of it
def _warn_of_exif(problem: str) -> None:
    logger.warning("some images have damaged EXIF data (%s); they are used without being turned", problem)


def read_regular_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file. Raises ValueError for a pipe, a device or a folder, and for more than 512 MiB."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"its {status.st_size:,} bytes are more than the limit of {MAX_IMAGE_BYTES:,}")
    return Path(path).read_bytes()


def open_image_file(path: str | os.PathLike, what: str = "image") -> Image.Image:
    """The image in a file that the user names.

    Args:
        path: of the file.
        what: what to call it in a message.

    Raises FileNotFoundError or ValueError, in one sentence.
    """
    try:
        return open_image(read_regular_file(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} '{path}' does not exist.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{what} '{path}' is not an image of a format that is read here.") from None
    except MemoryError:
        raise
    except Exception as error:  # bytes that can be anything make decoders raise anything
        raise ValueError(f"{what} '{path}' could not be read: {error}") from error
