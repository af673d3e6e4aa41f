"""Folders and archives from anywhere: names mean the same everywhere, and a hostile archive costs nothing."""

import io
import logging
import os
import stat
import tarfile
import threading
import time
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusers_ext.data import files
from diffusers_ext.data.images import load_image_data


def png(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def written(folder, *names, data=None):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number) if data is None else data)
    return folder


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), png(number))
    return path


def tarred(path, *members, mode="w"):
    """A tar of (name, type, target of a link); regular members hold an image."""
    with tarfile.open(path, mode) as archive:
        for number, (name, kind, target) in enumerate(members):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            data = png(number) if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def load(path, tmp_path, split="train"):
    return load_image_data(train_data_dir=path, split=split, cache_dir=str(tmp_path / "cache"))


# --- names -----------------------------------------------------------------------------------------------------------

PETS = [f"{split}/{kind}/{i}.png" for split in ("Training", "Testing") for kind in ("cat", "dog") for i in range(2)]


@pytest.mark.parametrize("kind", ["folder", "zip", "backslashes"])
def test_splits_in_capitals_and_backslashes_are_splits(tmp_path, kind):
    if kind == "folder":
        path = written(tmp_path / "pets", *PETS)
    else:
        path = zipped(
            tmp_path / "pets.zip", *[name.replace("/", "\\") if kind == "backslashes" else name for name in PETS]
        )
    for split in ("train", "test"):
        data = load(path, tmp_path, split)
        assert (len(data), data.label_names) == (4, ["cat", "dog"])
        assert data.labels.tolist() == [0, 0, 1, 1]


def test_suffixes_count_in_any_case(tmp_path):
    assert len(load(written(tmp_path / "in", "a.PnG", "b.png", "c.JPG"), tmp_path)) == 3


@pytest.mark.parametrize("where", ["train_data_dir", "dataset_name"])
def test_words_of_splits_inside_names_change_nothing(tmp_path, where):
    names = ["train_tracks/test.png", "train_tracks/b.png", "validation-cases/train_1.png", "boats/a_test.png"]
    folder = written(tmp_path / "in", *names)
    data = load_image_data(**{where: str(folder)}, cache_dir=str(tmp_path / "cache"))
    assert (len(data), data.label_names) == (4, ["boats", "train_tracks", "validation-cases"])


@pytest.mark.parametrize(
    ("where", "kind"),
    [("train_data_dir", "images"), *[("dataset_name", kind) for kind in ("images", "tables", "saved")]],
)
def test_brackets_in_a_path_are_no_pattern(tmp_path, where, kind):
    for name, seeds in (("run[12]", range(3)), ("run1", range(3, 8)), ("run2", range(3, 8))):
        folder = tmp_path / name
        folder.mkdir()
        if kind == "images":
            for seed in seeds:
                (folder / f"{seed}.png").write_bytes(png(seed))
            continue
        rows = datasets.Dataset.from_list([{"image": {"bytes": png(seed), "path": None}} for seed in seeds])
        table = rows.cast_column("image", datasets.Image())
        table.to_parquet(folder / "train.parquet") if kind == "tables" else table.save_to_disk(str(folder / "x"))
    path = tmp_path / "run[12]" / ("x" if kind == "saved" else "")
    data = load_image_data(**{where: str(path)}, cache_dir=str(tmp_path / "cache"))
    expected = [np.asarray(Image.open(io.BytesIO(png(seed)))) for seed in range(3)]
    np.testing.assert_allclose(data.__getitems__(range(3))["samples"][:, 0], np.stack(expected) / 127.5 - 1, atol=1e-6)
    assert len(data) == 3


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["train.parquet", "test.parquet"], 1),
        (
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            2,
        ),
        (["mnist_train.parquet", "mnist_test.parquet"], 1),
        (["Training/0.parquet", "Testing/0.parquet"], 1),
        (["trained.parquet", "latest.parquet"], 2),
        (["a.parquet", "b_test.parquet"], 2),
    ],
)
def test_table_files_belong_to_the_splits_that_their_names_say(tmp_path, names, train):
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list([{"image": {"bytes": png(number), "path": None}}])
        rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "in" / name)
    assert len(load_image_data(str(tmp_path / "in"), cache_dir=str(tmp_path / "cache"))) == train


@pytest.mark.parametrize(
    "name", ["train.parquet", "train.arrow", "train.csv", "train.jsonl", "dataset_dict.json", "state.json"]
)
def test_damaged_tables_are_one_sentence(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"\x00\xff not a table")
    with pytest.raises((ValueError, FileNotFoundError), match=r"dataset_name='.*in' ") as caught:
        load_image_data(str(tmp_path / "in"), cache_dir=str(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_ids_of_classes_may_have_gaps(tmp_path):
    labels = [20240101, 5, 20240101, 5]
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    data = load_image_data(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert (data.labels.tolist(), data.label_names) == ([1, 0, 1, 0], ["5", "20240101"])


# --- what is left out is said ----------------------------------------------------------------------------------------


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path, caplog):
    folder = written(tmp_path / "in", "a.png", *[f"{i}.HEIC" for i in range(8)], "b.jxl", "c.psd", "notes.txt")
    with caplog.at_level(logging.INFO):
        load(folder, tmp_path)
    assert "8 .heic files need pillow-heif" in caplog.text
    assert "1 .jxl file needs pillow-jxl-plugin" in caplog.text
    assert "1 .psd file needs to be saved as .png" in caplog.text
    assert "1 .txt file" in caplog.text
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no image files .* but 8 .heic files need pillow-heif"):
        load(folder, tmp_path)


def test_texts_beside_images_are_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(written(tmp_path / "in", "a.png", "notes.txt", "LICENSE"), tmp_path)
    assert not caplog.records


def test_images_outside_of_the_splits_are_said(tmp_path, caplog):
    load(written(tmp_path / "in", "train/a.png", "test/b.png", "extra/c.png", "d.png"), tmp_path)
    assert "2 images outside of the folders of the splits" in caplog.text


def test_images_that_the_metadata_do_not_name_are_said(tmp_path, caplog):
    folder = written(tmp_path / "in", "a.png", "b.png", "c.png")
    (folder / "metadata.csv").write_text("file_name,text\na.png,first\nb.png,second\n")
    data = load_image_data(str(folder), cache_dir=str(tmp_path / "cache"))
    assert data.captions == ["first", "second"]
    assert "2 rows for 3 image files" in caplog.text


# --- hostile folders and archives ------------------------------------------------------------------------------------


def in_time(action, seconds=20):
    """Run an action that could block for ever."""
    results = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, "it hangs"
    return results[0]


def test_pipes_devices_and_links_out_of_a_folder_are_left_out(tmp_path, caplog):
    outside = written(tmp_path / "outside", "secret.png", "deep/secret.png")
    folder = written(tmp_path / "in", "a.png", "b/c.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "file.png").symlink_to(outside / "secret.png")
    (folder / "folder").symlink_to(outside / "deep")
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "inside.png").symlink_to(folder / "b" / "c.png")
    (folder / "b" / "up").symlink_to(folder)
    data = in_time(lambda: load(folder, tmp_path))
    assert len(data) == 3
    for message in ("1 special file", "3 links out of it or to nothing", "2 linked folders outside of it"):
        assert message in caplog.text
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert len(load(linked, tmp_path)) == 3


def test_special_members_of_a_tar_are_left_out_and_links_stay_inside(tmp_path, caplog):
    path = tarred(
        tmp_path / "in.tar",
        ("in/a.png", tarfile.REGTYPE, ""),
        ("in/hard.png", tarfile.LNKTYPE, "in/a.png"),
        ("in/soft.png", tarfile.SYMTYPE, "a.png"),
        ("in/out.png", tarfile.SYMTYPE, "../../etc/passwd"),
        ("in/absolute.png", tarfile.SYMTYPE, "/etc/passwd"),
        ("in/loop.png", tarfile.SYMTYPE, "loop.png"),
        ("in/pipe.png", tarfile.FIFOTYPE, ""),
        ("in/device.png", tarfile.CHRTYPE, ""),
    )
    data = load(path, tmp_path)
    assert len(data) == 3
    assert len(np.unique(data.__getitems__(range(3))["samples"], axis=0)) == 1
    assert "2 special files" in caplog.text
    assert "3 links out of it or to nothing" in caplog.text


def test_links_in_a_zip_stay_inside(tmp_path, caplog):
    path = zipped(tmp_path / "in.zip", "a/real.png")
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in (("a/link.png", "real.png"), ("a/out.png", "../../etc/passwd")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    assert len(load(path, tmp_path)) == 2
    assert "1 link out of it or to nothing" in caplog.text


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "UNSUSPICIOUS_BYTES", 2**20)
    zeros = bytes(8 * 2**20)
    path = tmp_path / ("bomb.zip" if kind == "zip" else f"bomb.tar.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"{number}.png", zeros)
    else:
        with tarfile.open(path, f"w:{kind}") as archive:
            member = tarfile.TarInfo("0.png")
            member.size = len(zeros)
            archive.addfile(member, io.BytesIO(zeros))
    with pytest.raises(ValueError, match=r"is refused: it unpacks to more than 200 times its .* bytes"):
        load(path, tmp_path)
    assert not list(tmp_path.glob("cache/*"))


def test_a_member_that_is_too_large_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 1000)
    folder = written(tmp_path / "in", "a.png")
    (folder / "big.png").write_bytes(bytes(2000))
    assert len(load(folder, tmp_path)) == 1
    assert "1 file of more than" in caplog.text


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 3)
    with pytest.raises(ValueError, match="is refused: it has more than 3 files"):
        load(zipped(tmp_path / "in.zip", *[f"{i}.png" for i in range(4)]), tmp_path)


@pytest.mark.parametrize("damage", ["at a member", "no end", "header"])
def test_a_tar_that_is_cut_short_is_named(tmp_path, damage):
    path = tarred(tmp_path / "in.tar", *[(f"{i}.png", tarfile.REGTYPE, "") for i in range(4)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third, fourth = archive.getmembers()[2:]
    end = fourth.offset_data + -(-fourth.size // 512) * 512
    if damage == "header":
        data[third.offset : third.offset + 200] = b"x" * 200
    path.write_bytes(data[: {"at a member": third.offset, "no end": end, "header": len(data)}[damage]])
    with pytest.raises(ValueError, match="is a damaged archive: there is no end marker at byte"):
        load(path, tmp_path)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    path = tmp_path / "in.tar"
    inner = zipped(tmp_path / "inner.zip", "other.png").read_bytes()
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.png", png()), ("b.png", png(1)), ("inner.zip", inner)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert len(load(path, tmp_path)) == 2


def test_names_that_come_twice_are_said(tmp_path, caplog):
    load(zipped(tmp_path / "in.zip", "a/b.png", "a\\b.png", "a/c.png"), tmp_path)
    assert "1 file whose name comes twice" in caplog.text


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_a_special_file_is_no_archive(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name  # an absolute name stays as it is

    def refused(**where):
        with pytest.raises(ValueError, match=r"is a special file|is a file") as caught:
            load_image_data(**where)
        return caught

    assert in_time(lambda: refused(train_data_dir=path))
    assert in_time(lambda: refused(dataset_name=str(path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": ""}, "dataset_name is empty; it takes a Hub name, a folder"),
        ({"dataset_name": " "}, "dataset_name is empty"),
        ({"train_data_dir": ""}, "train_data_dir is empty; it takes a folder"),
        ({"split": "train[999999:]"}, r"split='train\[999999:\]' of .* holds no rows; 'train' has 10,000"),
        ({"split": "train[5:5]"}, r"split='train\[5:5\]' of .* holds no rows; 'train' has 10,000"),
    ],
)
def test_settings_that_name_no_data_are_one_sentence(settings, message):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        load_image_data(**settings)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - began < 10


def test_an_empty_split_folder_is_one_sentence(tmp_path):
    folder = written(tmp_path / "in", "train/a.png", "test/b.png")
    with pytest.raises(ValueError, match=r"split='test\[1:\]'"):
        load(folder, tmp_path, "test[1:]")
