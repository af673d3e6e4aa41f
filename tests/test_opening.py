"""Image files from anywhere: no other program runs, memory is bounded, and damaged tags cost no pixels."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.opening import MAX_IMAGE_PIXELS, open_image, open_image_file

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(count=8):
    return Image.fromarray(np.arange(count * count, dtype=np.uint8).reshape(count, count))


def test_no_other_program_starts_for_a_png_that_is_eps_inside(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "eps.png").write_bytes(EPS)
    ramp().save(folder / "fine.png")
    data = load_image_data(train_data_dir=folder)
    assert (len(data), data.skipped) == (1, 1)
    with pytest.raises(ValueError, match=r"mask_image '.*eps.png' is not an image of a format that is read here"):
        open_image_file(folder / "eps.png", "mask_image")
    assert not (tmp_path / "started").exists()


def png_header(width, height):
    """A PNG that claims a size, with hardly any data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [MAX_IMAGE_PIXELS // 1000, 1_000_000])
def test_images_of_too_many_pixels_are_refused_unread(width):
    began = time.perf_counter()
    with pytest.raises((ValueError, Image.DecompressionBombError), match=r"more than the limit|exceeds limit"):
        open_image(png_header(width + 1, 1000))
    assert time.perf_counter() - began < 0.5


def test_a_thin_image_that_would_become_huge_is_unreadable(tmp_path):
    Image.new("L", (100_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match=r"thin.png.*100,000x1 pixels would become 6,400,000x64"):
        load_image_data(train_data_dir=tmp_path, resolution=64, center_crop=True)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_every_orientation_is_heeded(kind):
    image = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        lossless = {"quality": 100} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
        turned = np.asarray(open_image(encoded(image, kind, exif=exif, **lossless)).convert("L")).astype(int)
        pixels = np.asarray(image).astype(int)
        pixels = pixels[:, ::-1] if orientation in (2, 7, 4, 5) else pixels
        pixels = np.rot90(pixels, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])
        assert turned.shape == pixels.shape
        assert abs(turned - pixels).max() <= 2, orientation


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "damage", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_damaged_exif_costs_no_pixels(kind, damage):
    whole, damaged = encoded(ramp(), kind), encoded(ramp(), kind, exif=damage)
    assert whole != damaged
    np.testing.assert_array_equal(np.asarray(open_image(damaged)), np.asarray(open_image(whole)))


@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
@pytest.mark.parametrize(("depth", "kind"), [(8, np.uint8), (16, np.uint16), (32, np.float32)])
def test_a_tiff_whose_white_is_zero_is_no_negative(tmp_path, depth, kind, compression):
    white = {8: 255, 16: 65535, 32: 1}[depth]
    pixels = np.linspace(0, white, 16).reshape(4, 4).astype(kind)
    for photometric, name in ((1, "black"), (0, "white")):
        stored = pixels if photometric == 1 else white - pixels
        if depth == 8 and photometric == 0:
            stored = pixels  # Pillow inverts 8-bit pixels itself when it writes and reads this tag
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(stored.astype(kind)).save(
            tmp_path / name / "a.tif",
            tiffinfo={262: photometric},
            **({"compression": compression} if compression else {}),
        )
        with Image.open(tmp_path / name / "a.tif") as written:
            assert written.tag_v2[262] == photometric
    black, white_is_zero = (
        load_image_data(train_data_dir=tmp_path / name, preserve_input_precision=True)[0]["samples"]
        for name in ("black", "white")
    )
    np.testing.assert_allclose(white_is_zero, black, atol=2e-5)
    assert white_is_zero[0, 0, 0] < -0.99


def test_special_files_are_refused_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, message in ((tmp_path / "pipe.png", "not a regular file"), ("/dev/zero", "not a regular file")):
        with pytest.raises(ValueError, match=message):
            open_image_file(path)
    with pytest.raises(FileNotFoundError, match=r"image '.*none.png' does not exist"):
        open_image_file(tmp_path / "none.png")
