"""Images from data sets, folders and archives: right pixels, right batches, clear errors."""

from __future__ import annotations

import io
import itertools
import logging
import os
import pickle
import tarfile
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.data.examples import decode
from diffusers_ext.data.files import ZipReader
from diffusers_ext.data.images import ExampleData, load_image_data
from diffusers_ext.data.loading import load_batches
from diffusers_ext.data.randomness import permutation, uniforms
from diffusers_ext.data.schedule import BatchSchedule
from diffusers_ext.data.tables import EMBEDDED_FOLDER
from diffusers_ext.data.transforms import random_boxes

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data, which is not here")


def pixels_of(data: ExampleData, keys=None) -> np.ndarray:
    """The batch as uint8 (B, C, H, W); fails when it is not exactly an 8-bit picture in [-1, 1]."""
    images = data.__getitems__(keys or list(range(len(data))))["samples"]
    levels = (images.double() + 1) * 127.5
    assert images.dtype == torch.float32
    assert (levels - levels.round()).abs().max() < 1e-4
    return levels.round().numpy().astype(np.uint8)


def noise_image(seed: int, width: int = 10, height: int = 10, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_images(folder: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return folder


def same_batches(first: ExampleData, second: ExampleData, epochs: int = 2) -> bool:
    keys = [(index, epoch) for epoch in range(epochs) for index in range(len(first))]
    one, other = first.__getitems__(keys), second.__getitems__(keys)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- pixel formats ---------------------------------------------------------------------------------------------------


def grey(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(1, 1, 1, -1)


def color(*values: tuple[int, int, int]) -> np.ndarray:
    return np.array(values, dtype=np.uint8).T.reshape(1, 3, 1, -1)


def palette_image(palette: list[int], indices: list[int]) -> Image.Image:
    image = Image.new("P", (len(indices), 1))
    image.putpalette(palette)
    image.putdata(indices)
    return image


def row(mode: str, *values) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


# 16-bit 257 * k is exactly 8-bit k; half transparent 100 on white is 255 + (100 - 255) * 128 / 255 = 177.2.
PIXEL_FORMATS = {
    "8-bit grey": (row("L", 0, 100, 255), {}, {}, grey(0, 100, 255)),
    "1 bit": (row("1", 0, 255, 0), {}, {}, grey(0, 255, 0)),
    "colour": (row("RGB", (1, 2, 3), (250, 0, 9)), {}, {}, color((1, 2, 3), (250, 0, 9))),
    "16-bit grey": (Image.fromarray(np.array([[0, 257 * 100, 65535, 300]], np.uint16)), {}, {}, grey(0, 100, 255, 1)),
    "32-bit integers": (Image.fromarray(np.array([[0, 257 * 7, 65535]], np.int32)), {}, {}, grey(0, 7, 255)),
    "floats to 1": (Image.fromarray(np.array([[0, 0.4, 1]], np.float32)), {}, {}, grey(0, 102, 255)),
    "floats to 255": (Image.fromarray(np.array([[0, 99.7, 255]], np.float32)), {}, {}, grey(0, 100, 255)),
    "palette": (palette_image([9, 8, 7, 200, 100, 0], [1, 0]), {}, {}, color((200, 100, 0), (9, 8, 7))),
    "grey palette": (palette_image([9, 9, 9, 200, 200, 200], [1, 0]), {}, {}, grey(200, 9)),
    "transparent palette": (
        palette_image([9, 8, 7, 200, 100, 0], [1, 0]),
        {"transparency": 1},
        {"alpha_background": "#0a141e"},
        color((10, 20, 30), (9, 8, 7)),
    ),
    "grey with alpha": (row("LA", (100, 128), (100, 0), (7, 255)), {}, {}, grey(177, 255, 7)),
    "grey on colour": (row("LA", (100, 0), (7, 255)), {}, {"alpha_background": "red"}, color((255, 0, 0), (7, 7, 7))),
    "colour with alpha": (
        row("RGBA", (0, 100, 200, 0), (0, 100, 200, 255)),
        {},
        {"alpha_background": "black"},
        color((0, 0, 0), (0, 100, 200)),
    ),
    "transparent colour": (
        row("RGB", (1, 2, 3), (4, 5, 6)),
        {"transparency": (1, 2, 3)},
        {},
        color((255, 255, 255), (4, 5, 6)),
    ),
    "transparent grey": (row("L", 5, 6), {"transparency": 5}, {}, grey(255, 6)),
    "CMYK": (row("CMYK", (255, 0, 0, 0), (0, 0, 0, 255)), {}, {}, color((0, 255, 255), (0, 0, 0))),
    "colour asked as grey": (row("RGB", (200, 200, 200), (255, 0, 0)), {}, {"channels": 1}, grey(200, 76)),
    "grey asked as colour": (row("L", 3, 4), {}, {"channels": 3}, color((3, 3, 3), (4, 4, 4))),
}


@pytest.mark.parametrize("name", PIXEL_FORMATS)
@pytest.mark.parametrize("max_memory_bytes", [0, 2**30], ids=["disk", "memory"])
def test_every_pixel_format_gives_its_exact_values(tmp_path, name, max_memory_bytes):
    image, save_options, load_options, expected = PIXEL_FORMATS[name]
    suffix = "tiff" if image.mode in ("I", "F", "CMYK") else "png"
    image.save(tmp_path / f"image.{suffix}", **save_options)
    data = load_image_data(train_data_dir=tmp_path, max_memory_bytes=max_memory_bytes, **load_options)
    assert data.channels == expected.shape[1]
    np.testing.assert_array_equal(pixels_of(data), expected)


@pytest.mark.parametrize("values", [[[0, 70000]], [[-1, 5]]])
def test_integers_whose_white_is_unknown_are_not_guessed(tmp_path, values):
    Image.fromarray(np.array(values, np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match=r"wide\.tiff.*must stay within 0 and 65535"):
        load_image_data(train_data_dir=tmp_path)


def test_preserve_input_precision_keeps_16_bits(tmp_path):
    levels = np.array([[0, 1, 12345, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    images = load_image_data(train_data_dir=tmp_path, preserve_input_precision=True).__getitems__([0])["samples"]
    np.testing.assert_allclose(images[0], levels[None] / 65535 * 2 - 1, atol=2e-7)


def test_preserve_input_precision_does_not_round_what_resizing_gives(tmp_path):
    write_images(tmp_path, {"a.png": noise_image(0, 40, 40)})
    options = {"train_data_dir": tmp_path, "resolution": 10}
    rounded, precise = (load_image_data(**options, preserve_input_precision=p)[0]["samples"] for p in (False, True))
    levels = (precise + 1) * 127.5
    assert (levels - levels.round()).abs().max() > 0.3
    assert (rounded - precise).abs().max() < 1.5 / 127.5


def test_exif_orientation_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn 90 degrees clockwise to look right"
    image = noise_image(0, width=4, height=2)
    image.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels_of(load_image_data(train_data_dir=tmp_path))[0], expected)


@pytest.mark.parametrize("max_memory_bytes", [0, 2**30], ids=["disk", "memory"])
def test_a_mixture_of_grey_and_colour_becomes_colour(tmp_path, max_memory_bytes):
    write_images(
        tmp_path, {"a.png": noise_image(0, mode="L"), "b.png": noise_image(1), "c.png": noise_image(2, mode="L")}
    )
    data = load_image_data(train_data_dir=tmp_path, max_memory_bytes=max_memory_bytes)
    pixels = pixels_of(data)
    assert data.channels == 3
    assert (pixels[[0, 2], 0] == np.stack([noise_image(0, mode="L"), noise_image(2, mode="L")])).all()
    assert (pixels[0] == pixels[0, :1]).all()
    assert not (pixels[1] == pixels[1, :1]).all()


# --- the embedded set and `datasets` layouts -------------------------------------------------------------------------


def test_the_embedded_set_is_small_balanced_and_the_default():
    train, test = load_image_data(), load_image_data("embedded", split="test")
    assert torch.bincount(train.labels).tolist() == [1000] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert (train.channels, train.size, train.label_names) == (1, (28, 28), [str(digit) for digit in range(10)])
    assert train.description == "embedded (train): 10,000 images, 28x28, 1 channel, 10 classes, in memory"
    assert sum(file.stat().st_size for file in EMBEDDED_FOLDER.glob("*.parquet")) <= 3.5e6


@needs_shared_data
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_embedded_images_are_mnist_s_own(split):
    from pyarrow import parquet

    def decoded(file: Path) -> list[tuple[bytes, int]]:
        table = parquet.read_table(file)
        files = (io.BytesIO(image["bytes"]) for image in table["image"].to_pylist())
        return [(Image.open(file).tobytes(), label) for file, label in zip(files, table["label"].to_pylist())]

    embedded = decoded(EMBEDDED_FOLDER / f"mnist_{split}.parquet")
    assert len(set(embedded)) == len(embedded)
    assert set(embedded) <= set(decoded(SHARED_DATA / "mnist" / f"{split}-00000-of-00001.parquet"))


def small_table(image_name: str = "image", **columns) -> datasets.Dataset:
    images = [noise_image(seed, mode="L") for seed in range(4)]
    features = datasets.Features({image_name: datasets.Image()})
    table = datasets.Dataset.from_dict({image_name: images}, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    return table


def expected_small_table() -> np.ndarray:
    return np.stack([np.asarray(noise_image(seed, mode="L"))[None] for seed in range(4)])


def test_a_folder_of_parquet_files_with_any_column_names(tmp_path):
    small_table("picture", kind=["b", "a", "b", "c"], text=["w", "x", "y", "z"]).to_parquet(tmp_path / "train.parquet")
    data = load_image_data(str(tmp_path), label_column="kind", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(pixels_of(data), expected_small_table())
    assert data.labels.tolist() == [1, 0, 1, 2]
    assert data.label_names == ["a", "b", "c"]


def test_parquet_bytes_without_the_library_s_metadata(tmp_path):
    import pyarrow
    from pyarrow import parquet

    files = []
    for seed in range(4):
        file = io.BytesIO()
        noise_image(seed, mode="L").save(file, "png")
        files.append(file.getvalue())
    parquet.write_table(pyarrow.table({"img": files, "labels": [3, 1, 0, 2]}), tmp_path / "test.parquet")
    data = load_image_data(str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(pixels_of(data), expected_small_table())
    assert data.labels.tolist() == [3, 1, 0, 2]


def test_folders_of_save_to_disk(tmp_path):
    table = small_table(label=[0, 1, 0, 1])
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table.select([2])).save_to_disk(str(tmp_path / "splits"))
    np.testing.assert_array_equal(pixels_of(load_image_data(str(tmp_path / "one"))), expected_small_table())
    test = load_image_data(str(tmp_path / "splits"), split="test")
    np.testing.assert_array_equal(pixels_of(test), expected_small_table()[[2]])


def test_columns_of_numbers_come_along_by_name(tmp_path):
    rows = small_table(angle=[0.5, 1, 1.5, 2], place=[[1, 2], [3, 4], [5, 6], [7, 8]], other=["a", "b", "c", "d"])
    rows.save_to_disk(str(tmp_path))
    data = load_image_data(str(tmp_path), number_columns=["place", "angle"])
    batch = data.__getitems__([3, 0])
    assert (batch["angle"].tolist(), batch["place"].tolist()) == ([[2.0], [0.5]], [[7, 8], [1, 2]])
    assert data.columns["place"].shape == (4, 2)
    for column, message in (("other", "must hold numbers"), ("tilt", "'tilt' is not a column of")):
        with pytest.raises(ValueError, match=message):
            load_image_data(str(tmp_path), number_columns=[column])


def test_empty_cells_in_a_column_of_numbers_are_named(tmp_path):
    small_table(angle=[0.5, None, 1.5, 2]).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"'angle' in row 1 of .* must hold finite numbers"):
        load_image_data(str(tmp_path), number_columns=["angle"])


def test_a_part_of_a_split_is_taken_in_the_library_s_notation(tmp_path):
    whole = load_image_data(split="test")
    np.testing.assert_array_equal(pixels_of(load_image_data(split="test[:7]")), pixels_of(whole, list(range(7))))
    write_images(tmp_path, {f"{i}.png": noise_image(i) for i in range(4)})
    half = load_image_data(train_data_dir=tmp_path, split="train[50%:]")
    np.testing.assert_array_equal(pixels_of(half), pixels_of(load_image_data(train_data_dir=tmp_path), [2, 3]))


def test_reading_leaves_the_library_as_talkative_as_it_was(tmp_path, capfd):
    small_table().to_parquet(tmp_path / "train.parquet")
    capfd.readouterr()
    before = datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()
    load_image_data(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert capfd.readouterr() == ("", "")
    assert (datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()) == before


# --- folders and archives --------------------------------------------------------------------------------------------


def zip_of(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def tar_of(folder: Path, archive: Path, mode: str) -> Path:
    with tarfile.open(archive, mode) as file:
        file.add(folder, arcname=".")
    return archive


@pytest.fixture
def split_folder(tmp_path) -> Path:
    names = [f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", "dog") for i in range(3)]
    return write_images(tmp_path / "pets", {name: noise_image(seed) for seed, name in enumerate(names)})


def archives_of(folder: Path, target: Path) -> list[Path]:
    return [
        zip_of(folder, target / "plain.zip"),
        zip_of(folder, target / "wrapped.zip", prefix="pets-main/images/"),
        tar_of(folder, target / "plain.tar", "w"),
        tar_of(folder, target / "gzipped.tar.gz", "w:gz"),
        tar_of(folder, target / "xz.tar.xz", "w:xz"),
    ]


def test_an_archive_gives_what_its_folder_gives(split_folder, tmp_path):
    options = {"random_flip": True, "cache_dir": str(tmp_path / "cache")}
    for split in ("train", "test"):
        folder = load_image_data(train_data_dir=split_folder, split=split, **options)
        for archive in archives_of(split_folder, tmp_path):
            for max_memory_bytes in (0, 2**30):
                packed = load_image_data(
                    train_data_dir=archive, split=split, max_memory_bytes=max_memory_bytes, **options
                )
                assert same_batches(folder, packed), archive.name
                assert packed.label_names == ["cat", "dog"]


def test_training_does_not_see_the_test_folder(split_folder):
    train, test = (pixels_of(load_image_data(train_data_dir=split_folder, split=split)) for split in ("train", "test"))
    np.testing.assert_array_equal(train, [np.asarray(noise_image(seed)).transpose(2, 0, 1) for seed in range(6)])
    np.testing.assert_array_equal(test, [np.asarray(noise_image(seed)).transpose(2, 0, 1) for seed in range(6, 12)])


def test_folders_are_classes_and_flat_or_uneven_folders_have_none(split_folder, tmp_path):
    assert load_image_data(train_data_dir=split_folder).labels.tolist() == [0, 0, 0, 1, 1, 1]
    flat = write_images(tmp_path / "flat", {f"{i}.png": noise_image(i) for i in range(2)})
    assert load_image_data(train_data_dir=flat).labels is None
    assert "labels" not in load_image_data(train_data_dir=flat).__getitems__([0, 1])
    uneven = write_images(flat, {"deeper/c.png": noise_image(3), "other/d.png": noise_image(4)})
    data = load_image_data(train_data_dir=uneven)
    assert (len(data), data.labels) == (4, None)


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    write_images(tmp_path, {f"{kind}/0.png": noise_image(0) for kind in ("car", "plane", "train")})
    data = load_image_data(train_data_dir=tmp_path)
    assert (len(data), data.label_names) == (3, ["car", "plane", "train"])


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    write_images(tmp_path, {"a.PNG": noise_image(0), ".b.png": noise_image(1), "__MACOSX/c.png": noise_image(2)})
    (tmp_path / "readme.txt").write_text("not an image")
    assert len(load_image_data(train_data_dir=tmp_path)) == 1


@pytest.mark.parametrize("name", ["evil.zip", "evil.tar.gz"])
def test_an_archive_writes_nothing_outside_the_cache(tmp_path, name):
    inside = write_images(tmp_path / "in", {"inside.png": noise_image(0)}) / "inside.png"
    archive = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as packed:
            packed.write(inside, "inside.png")
            packed.write(inside, "../outside.png")
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(inside, "inside.png")
            packed.add(inside, "../outside.png")
    before = set(tmp_path.parent.rglob("*"))
    assert len(load_image_data(train_data_dir=archive, cache_dir=str(tmp_path / "cache"))) == 1
    new = set(tmp_path.parent.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "cache") and path.suffix in ("", ".tar") for path in new)


def test_a_changed_archive_is_read_anew(tmp_path):
    def read(seed: int) -> np.ndarray:
        folder = write_images(tmp_path / f"{seed}", {"a.png": noise_image(seed)})
        archive = tar_of(folder, tmp_path / "images.tar.gz", "w:gz")
        os.utime(archive, ns=(seed, seed))
        return pixels_of(load_image_data(train_data_dir=archive, cache_dir=str(tmp_path / "cache")))

    assert not (read(1) == read(2)).all()


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(109, 50, (43, 20)), (50, 109, (20, 43)), (10, 15, (20, 30))]
)
def test_resize_is_pillow_s_bilinear_resize_of_the_shorter_side(tmp_path, width, height, expected):
    image = noise_image(0, width, height)
    write_images(tmp_path, {"a.png": image})
    pixels = pixels_of(load_image_data(train_data_dir=tmp_path, resolution=20, center_crop=True))
    resized = np.asarray(image.resize(expected, Image.Resampling.BILINEAR))
    top, left = round((expected[1] - 20) / 2), round((expected[0] - 20) / 2)
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), resized[top : top + 20, left : left + 20])


def test_resize_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    write_images(tmp_path, {"a.png": Image.fromarray(stripes)})
    pixels = pixels_of(load_image_data(train_data_dir=tmp_path, resolution=8))[0, 0, :, 1:-1]
    assert abs(pixels.astype(int) - 127).max() <= 8


def position_image() -> Image.Image:
    """Red is the column, green the row: a crop tells where it was taken."""
    rows, columns = np.mgrid[:12, :20]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


@pytest.mark.parametrize("sizes", [[(20, 12), (20, 12)], [(20, 12), (12, 20)]], ids=["one size", "two sizes"])
def test_random_crops_are_whole_windows_at_every_place(tmp_path, sizes):
    images = {f"{i}.png": position_image().crop((0, 0, *size)) for i, size in enumerate(sizes)}
    write_images(tmp_path, {name: image.resize(size) for (name, image), size in zip(images.items(), sizes)})
    data = load_image_data(train_data_dir=tmp_path, resolution=12)
    crops = pixels_of(data, [(0, epoch) for epoch in range(200)] + [(1, 0)])[:200].astype(int)
    corners = crops[:, 0, 0, 0]
    assert set(corners) == set(range(9))
    np.testing.assert_array_equal(crops[:, 0], corners[:, None, None] + np.broadcast_to(np.arange(12), (12, 12)))
    np.testing.assert_array_equal(crops[:, 1], np.broadcast_to(np.arange(12)[:, None], (200, 12, 12)))


def test_flips_mirror_half_of_the_images_and_change_with_the_epoch():
    plain, flipping = load_image_data(split="test"), load_image_data(split="test", random_flip=True)
    shares = []
    for epoch in range(2):
        keys = [(index, epoch) for index in range(1000)]
        original, images = pixels_of(plain, keys), pixels_of(flipping, keys)
        mirrored = (images == original[..., ::-1]).all(axis=(1, 2, 3))
        assert (mirrored | (images == original).all(axis=(1, 2, 3))).all()
        shares.append(mirrored)
    assert all(0.45 < share.mean() < 0.55 for share in shares)
    assert 0.4 < (shares[0] != shares[1]).mean() < 0.6


def test_batches_depend_on_keys_only():
    options = {"split": "test[:50]", "resolution": 24, "resize_scale": 1.25, "random_flip": True}
    data, again, other = (load_image_data(**options, seed=seed) for seed in (0, 0, 1))
    keys = [(3, 5), (40, 5), (3, 6)]
    batch = data.__getitems__(keys)
    global_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    backwards = again.__getitems__(keys[::-1])
    assert torch.equal(batch["samples"], backwards["samples"].flip(0))
    assert torch.equal(data[keys[1]]["samples"], batch["samples"][1])
    assert not torch.equal(batch["samples"][0], batch["samples"][2])
    assert not torch.equal(other.__getitems__(keys)["samples"], batch["samples"])
    assert torch.equal(global_state[0], torch.get_rng_state())
    assert (global_state[1] == np.random.get_state()[1]).all()
    assert batch["index"].tolist() == [3, 40, 3]
    assert torch.equal(batch["labels"], data.labels[batch["index"]])


def test_reading_a_batch_does_not_change_the_images():
    data = load_image_data(split="test[:64]", random_flip=True)
    keys = [(index, 0) for index in range(64)]
    first = pixels_of(data, keys)
    pixels_of(data, [(index, 1) for index in range(64)])
    np.testing.assert_array_equal(pixels_of(data, keys), first)


def test_random_resized_crops_have_the_stated_areas_and_ratios():
    count = 4000
    heights, widths = np.full(count, 100), np.full(count, 130)
    draws = uniforms(0, 9, np.zeros(count, int), np.arange(count), 40).reshape(count, 10, 4)
    tops, lefts, box_heights, box_widths = random_boxes(heights, widths, (0.3, 0.6), draws).T
    areas, ratios = box_heights * box_widths / 13000, box_widths / box_heights
    assert areas.min() > 0.29
    assert areas.max() < 0.61
    assert abs(areas.mean() - 0.45) < 0.01
    assert ratios.min() > 0.74
    assert ratios.max() < 1.35
    assert abs(np.log(ratios).mean()) < 0.01
    independent = np.corrcoef([areas, np.log(ratios), tops / (101 - box_heights), lefts / (131 - box_widths)])
    assert abs(independent - np.eye(4)).max() < 0.08
    assert ((tops >= 0) & (lefts >= 0) & (tops + box_heights <= 100) & (lefts + box_widths <= 130)).all()
    assert len(np.unique(tops)) > 20


def test_a_random_resized_crop_that_cannot_fit_takes_the_centre():
    boxes = random_boxes(np.array([10]), np.array([200]), (0.9, 1.0), np.full((1, 10, 4), 0.5))
    assert boxes.tolist() == [[0, 93, 10, 13]]


@pytest.mark.parametrize("precise", [False, True])
def test_random_resized_crop_resizes_the_drawn_box(tmp_path, precise):
    write_images(tmp_path, {"a.png": position_image().resize((40, 40), Image.Resampling.BICUBIC)})
    options = {"train_data_dir": tmp_path, "preserve_input_precision": precise}
    data = load_image_data(**options, resolution=32, resize_scale=1.25, random_resized_crop=(0.8, 1.0))
    images = data.__getitems__([(0, epoch) for epoch in range(50)])["samples"]
    whole = load_image_data(**options, resolution=32)[0]["samples"]
    assert images.shape == (50, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in images}) > 30
    assert all(0 < (image - whole).abs().mean() < 0.03 for image in images)


# --- memory, disk, workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 8},
        {"resolution": 8, "center_crop": True, "random_flip": True},
        {"resolution": 8, "resize_scale": 1.25, "random_resized_crop": (0.8, 1.0), "random_flip": True},
        {"resolution": 8, "preserve_input_precision": True},
    ],
)
def test_images_in_memory_and_on_disk_give_the_same_batches(tmp_path, options):
    sizes = [(12, 9), (9, 12), (30, 9), (9, 9)]
    images = {f"{i}.png": noise_image(i, *size, mode="L" if i == 1 else "RGB") for i, size in enumerate(sizes)}
    write_images(tmp_path, images)
    memory, disk = (load_image_data(train_data_dir=tmp_path, max_memory_bytes=m, **options) for m in (2**30, 0))
    assert memory.description.endswith("in memory")
    assert disk.description.endswith("on disk")
    assert same_batches(memory, disk)


@pytest.mark.parametrize("kind", ["zip", "table"])
def test_workers_give_the_batches_of_the_main_process(split_folder, tmp_path, kind):
    if kind == "zip":
        where = {"train_data_dir": zip_of(split_folder, tmp_path / "pets.zip")}
    else:
        small_table(label=[0, 1, 0, 1]).to_parquet(tmp_path / "train.parquet")
        where = {"dataset_name": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    data = load_image_data(**where, max_memory_bytes=0, random_flip=True)

    def first_batches(workers: int) -> list[dict[str, torch.Tensor]]:
        schedule = BatchSchedule(len(data), batch_size=2, seed=3)
        loader = load_batches(data, schedule, workers)
        return [batch for batch, _ in zip(loader, range(8))]

    for one, other in zip(first_batches(0), first_batches(2)):
        assert all(torch.equal(one[name], other[name]) for name in ("samples", "index", "labels"))


def test_every_process_opens_an_archive_for_itself(split_folder, tmp_path, monkeypatch):
    # A forked process that reads through its parent's file moves the parent's position in it.
    reader = ZipReader(zip_of(split_folder, tmp_path / "pets.zip"))
    first = reader("train/cat/0.png")
    parent = reader._open
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert reader("train/cat/0.png") == first
    assert reader._open[1] is not parent[1]
    assert pickle.loads(pickle.dumps(reader))("train/cat/0.png") == first


def test_a_batch_of_64_digits_takes_less_than_a_millisecond():
    data = load_image_data(split="test", random_flip=True)
    schedule = BatchSchedule(len(data), 64)

    def seconds(batch: int) -> float:
        start = time.perf_counter()
        data.__getitems__(schedule.keys(batch))
        return time.perf_counter() - start

    assert min(seconds(batch) for batch in range(100)) < 1e-3


# --- the schedule of batches -----------------------------------------------------------------------------------------


def take(schedule: BatchSchedule, count: int) -> list[list[tuple[int, int]]]:
    return [keys for keys, _ in zip(schedule, range(count))]


def joined(batches) -> list[tuple[int, int]]:
    return list(itertools.chain.from_iterable(batches))


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    batches = take(BatchSchedule(12, 4), 6)
    first, second = joined(batches[:3]), joined(batches[3:])
    assert sorted(first) == [(index, 0) for index in range(12)]
    assert sorted(second) == [(index, 1) for index in range(12)]
    assert [index for index, _ in first] != [index for index, _ in second]


def test_the_rest_of_an_epoch_that_fills_no_batch_is_left_out():
    schedule = BatchSchedule(11, 4)
    batches = take(schedule, 4)
    assert schedule.batches_per_epoch == 2
    assert [{epoch for _, epoch in keys} for keys in batches] == [{0}, {0}, {1}, {1}]
    assert len(set(batches[0] + batches[1])) == 8


def test_a_set_smaller_than_a_batch_is_repeated_within_it():
    schedule = BatchSchedule(3, 8)
    keys = joined(take(schedule, 3))
    assert schedule.batches_per_epoch == 1
    assert sorted(keys) == sorted((index, epoch) for epoch in range(8) for index in range(3))


@pytest.mark.parametrize("num_examples", [5, 37, 64])
def test_processes_together_see_the_batches_of_one(num_examples):
    one = take(BatchSchedule(num_examples, 12, seed=7), 20)
    many = [take(BatchSchedule(num_examples, 4, 3, rank, seed=7), 20) for rank in range(3)]
    assert [joined(parts) for parts in zip(*many)] == one


@pytest.mark.parametrize("start_batch", [1, 9, 10, 1234])
def test_a_schedule_resumes_at_any_batch(start_batch):
    whole, resumed = BatchSchedule(37, 4, seed=1), BatchSchedule(37, 4, seed=1, start_batch=start_batch)
    assert take(resumed, 12) == [whole.keys(batch) for batch in range(start_batch, start_batch + 12)]
    assert take(resumed, 3) == take(resumed, 3)


def test_permutations_are_uniform_and_depend_on_seed_and_epoch():
    orders = np.stack([permutation(seed, epoch, 10) for seed in range(20) for epoch in range(100)])
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    assert len(np.unique(orders, axis=0)) > 1990
    # Each cell counts 2000 draws of probability 1/10: 200 with a standard deviation of 13.4.
    counts = np.stack([(orders == number).sum(axis=0) for number in range(10)])
    assert abs(counts - 200).max() < 5 * 13.4


def test_the_stream_is_the_same_on_every_machine():
    # A resumed run must see the old order after an upgrade of this package or of NumPy, so the order is frozen here.
    assert [index for index, _ in BatchSchedule(8, 8).keys(0)] == [2, 1, 5, 3, 6, 7, 0, 4]


# --- what is wrong is said in one sentence ---------------------------------------------------------------------------


@pytest.fixture
def broken_folder(tmp_path) -> Path:
    """Readable a and e; b is cut short, c is empty, d is text."""
    folder = write_images(tmp_path / "broken", {f"{name}.png": noise_image(ord(name)) for name in "abe"})
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "c.png").write_bytes(b"")
    (folder / "d.png").write_text("this is not an image")
    return folder


def test_unreadable_images_are_named_counted_and_skipped(broken_folder, caplog):
    with caplog.at_level(logging.WARNING):
        data = load_image_data(train_data_dir=broken_folder)
    assert (len(data), data.skipped) == (2, 3)
    expected = [np.asarray(noise_image(ord(name))).transpose(2, 0, 1) for name in "ae"]
    np.testing.assert_array_equal(pixels_of(data), expected)
    for message in ("'b.png' could not be read", "'c.png' could not be read: the file is empty", "'d.png' could not"):
        assert message in caplog.text
    assert "3 of 5 images could not be read" in caplog.text
    assert "0x" not in caplog.text


def test_labels_stay_with_their_images_when_some_are_skipped(tmp_path):
    write_images(tmp_path, {f"{kind}/{i}.png": noise_image(i) for kind in ("a", "b") for i in range(2)})
    (tmp_path / "a" / "0.png").write_bytes(b"")
    assert load_image_data(train_data_dir=tmp_path).labels.tolist() == [0, 1, 1]


def test_on_disk_the_next_readable_image_stands_in_and_is_warned_about_once(broken_folder, caplog):
    data = load_image_data(train_data_dir=broken_folder, max_memory_bytes=0)
    with caplog.at_level(logging.WARNING):
        batches = [data.__getitems__([0, 1, 2, 3, 4]) for _ in range(3)]
    assert all(batch["index"].tolist() == [0, 4, 4, 4, 4] for batch in batches)
    assert torch.equal(batches[0]["samples"][1], batches[0]["samples"][4])
    assert len([record for record in caplog.records if "b.png" in record.message]) == 1
    assert data.skipped == 3


@pytest.mark.parametrize("max_memory_bytes", [0, 2**30], ids=["disk", "memory"])
def test_unreadable_images_can_be_errors(broken_folder, max_memory_bytes):
    with pytest.raises(ValueError, match=r"'b\.png' could not be read"):
        load_image_data(
            train_data_dir=broken_folder, on_unreadable_image="error", max_memory_bytes=max_memory_bytes
        ).__getitems__([0, 1])


def test_an_error_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    from diffusers_ext.data import examples as data

    decoded = []

    def slow_decode(source, decoder, index):
        decoded.append(index)
        time.sleep(0.05 if index else 0)
        return decode(source, decoder, index)

    monkeypatch.setattr(data, "decode", slow_decode)
    monkeypatch.setattr(data, "CHUNK", 1)
    monkeypatch.setattr(data, "available_cpus", lambda: 2)
    write_images(tmp_path, {f"{i:03}.png": noise_image(0) for i in range(1, 200)})
    (tmp_path / "000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000\.png"):
        load_image_data(train_data_dir=tmp_path, on_unreadable_image="error")
    assert len(decoded) < 100


@pytest.mark.parametrize("max_memory_bytes", [0, 2**30], ids=["disk", "memory"])
def test_only_unreadable_images_are_an_error(tmp_path, max_memory_bytes):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of the 3 images could be read"):
        load_image_data(train_data_dir=tmp_path, max_memory_bytes=max_memory_bytes)


def test_at_most_ten_unreadable_images_are_named(tmp_path, caplog):
    write_images(tmp_path, {"good.png": noise_image(0)})
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(b"")
    load_image_data(train_data_dir=tmp_path)
    assert len(caplog.records) == 11


WRONG_OPTIONS = [
    ({"resolution": 0}, "resolution must be at least 1 pixel, got 0"),
    ({"channels": 4}, "channels must be 1 .* got 4"),
    ({"resolution": 8, "resize_scale": 0.5}, "resize_scale must be at least 1, got 0.5"),
    ({"resolution": 8, "random_resized_crop": (0.8, 1.2)}, r"random_resized_crop must be .* got \(0.8, 1.2\)"),
    ({"center_crop": True}, "center_crop.* need a resolution"),
    ({"resolution": 8, "center_crop": True, "random_resized_crop": (0.8, 1)}, "exclude each other"),
    ({"alpha_background": "whight"}, "alpha_background must be a colour .* got 'whight'"),
    ({"on_unreadable_image": "ignore"}, "on_unreadable_image must be 'skip' or 'error', got 'ignore'"),
    ({"split": "valid"}, "split='valid' is not in dataset_name='embedded', which has: train, test"),
    ({"split": "train[a:b]"}, r"split='train\[a:b\]' must be a split, or a part of one such as 'train\[:100\]'"),
    ({"split": "train[:9]+test[:9]"}, r"split='train\[:9\]\+test\[:9\]' must be a split"),
    ({"image_column": "picture"}, "image_column='picture' is not a column .* which has: image, label"),
    ({"image_column": "label"}, "image_column='label' .* holds no images"),
    ({"label_column": "kind"}, "label_column='kind' is not a column .* which has: image, label"),
    ({"label_column": "image"}, "label_column='image' .* must hold integers or strings"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_image_data(**options)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.zip").write_text("not a zip")
    for arguments, message in [
        ({"train_data_dir": tmp_path / "nowhere"}, "nowhere' does not exist"),
        ({"train_data_dir": tmp_path / "empty"}, "empty' holds no image files .* an archive is given by its own path"),
        ({"train_data_dir": tmp_path / "notes.zip"}, "notes.zip' is neither a folder nor a .zip or .tar"),
        ({"dataset_name": str(tmp_path / "nowhere")}, "nowhere' does not exist"),
        ({"dataset_name": str(tmp_path / "empty")}, "empty' holds no parquet, arrow, json, csv or image files"),
        ({"dataset_name": str(tmp_path / "notes.zip")}, "notes.zip' is a file.*train_data_dir"),
        ({"dataset_name": "embedded", "train_data_dir": tmp_path}, "not both"),
        ({"train_data_dir": tmp_path, "image_column": "image"}, "a train_data_dir has no columns"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_image_data(**arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ConnectionError("Couldn't reach\nit"),
            ConnectionError,
            "'owner/set' is no folder here, and the Hub could not",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("no\nsuch"),
            FileNotFoundError,
            "'owner/set' could not be found: no such",
        ),
        (
            ValueError("Config name is missing.\nPick one"),
            ValueError,
            "'owner/set' could not be loaded: Config name is",
        ),
        (datasets.exceptions.DatasetGenerationError("bad"), ValueError, "'owner/set' could not be loaded: bad"),
    ],
)
def test_what_the_hub_has_to_say_is_one_sentence(monkeypatch, error, kind, message):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=message) as caught:
        load_image_data("owner/set")
    assert "\n" not in str(caught.value)


def test_a_table_without_images_or_with_several_lists_its_columns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"has no image column; name one .* text, label"):
        load_image_data(str(tmp_path / "text"))
    images = small_table("left").add_column("right", small_table("right").with_format("arrow")[:]["right"].to_pylist())
    images.cast_column("right", datasets.Image()).save_to_disk(str(tmp_path / "pairs"))
    with pytest.raises(ValueError, match=r"has several image columns \(left, right\)"):
        load_image_data(str(tmp_path / "pairs"))
    assert len(load_image_data(str(tmp_path / "pairs"), image_column="right")) == 4


def test_a_split_that_the_folder_lacks_is_named(split_folder, tmp_path):
    with pytest.raises(ValueError, match=r"split='validation' is not in .* which has: test, train"):
        load_image_data(train_data_dir=split_folder, split="validation")
    write_images(tmp_path / "only", {f"test/{i}.png": noise_image(i) for i in range(2)})
    with pytest.raises(ValueError, match=r"split='train' is not in .* which has: test"):
        load_image_data(train_data_dir=tmp_path / "only")
    write_images(tmp_path / "flat", {"a.png": noise_image(0)})
    with pytest.raises(ValueError, match=r"split='test' is not in .* which has: train"):
        load_image_data(train_data_dir=tmp_path / "flat", split="test")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_damaged_archive_is_named(split_folder, tmp_path, suffix):
    archive = tmp_path / f"pets.{suffix}"
    if suffix == "zip":
        zip_of(split_folder, archive)
    else:
        tar_of(split_folder, archive, "w:gz")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pets\.(zip|tar\.gz)' is (a damaged archive|neither)"):
        load_image_data(train_data_dir=archive, cache_dir=str(tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize("max_memory_bytes", [0, 2**30], ids=["disk", "memory"])
def test_images_of_different_sizes_need_a_resolution(tmp_path, max_memory_bytes):
    write_images(tmp_path, {"a.png": noise_image(0, 8, 8), "b.png": noise_image(1, 9, 8)})
    with pytest.raises(ValueError, match=r"resolution must be given .* \(8x8, 9x8"):
        load_image_data(train_data_dir=tmp_path, max_memory_bytes=max_memory_bytes).__getitems__([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "num_examples must be at least 1, got 0"),
        ((4, 0), "batch_size must be at least 1, got 0"),
        ((4, 4, 2, 2), "process_index must be 0 to .* = 1, got 2"),
        ((4, 4, 1, 0, 0, -1), "start_batch must be at least 0, got -1"),
        ((50, 10_000_000, 2, 0), "train_batch_size 10,000,000 would repeat each of the 50 .*; use at most 25"),
    ],
)
def test_impossible_schedules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchSchedule(*arguments)


# --- the real sets ---------------------------------------------------------------------------------------------------


@needs_shared_data
@pytest.mark.parametrize(("split", "count"), [("train", 3780), ("test", 420)])
def test_the_landscape_archive_keeps_its_splits(split, count):
    data = load_image_data(train_data_dir=SHARED_DATA / "landscape" / "archive.zip", split=split, resolution=64)
    assert (len(data), data.channels, data.size, data.skipped) == (count, 3, (64, 64), 0)


@needs_shared_data
def test_colour_pictures_with_classes_come_from_parquet(tmp_path):
    data = load_image_data(str(SHARED_DATA / "emoji"), split="test", cache_dir=str(tmp_path))
    assert (len(data), data.channels, data.size) == (376, 3, (64, 64))
    assert len(data.label_names) == 10
    assert data.labels.max() < 10
