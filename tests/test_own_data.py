"""Data sets of the user: the same batches, exact resume and clear errors as for the package's own sources."""

import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.conditions.image import ImageCondition
from diffusers_ext.data.base import TrainingData
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.loading import load_batches
from diffusers_ext.data.own import as_training_data
from diffusers_ext.data.schedule import BatchSchedule
from diffusers_ext.training import Trainer


class Listed(torch.utils.data.Dataset):
    """A torch data set around rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Streamed(torch.utils.data.IterableDataset):
    """An iterable kind around rows, read from the start again and again."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Noisy(Listed):
    """Random augmentation from the global random numbers of three libraries."""

    def __getitem__(self, index):
        import random

        return {
            "samples": torch.stack([torch.rand(()), torch.tensor(np.random.rand()).float()]).reshape(1, 2)
            * random.random()
        }


def pixels(index, size=(6, 6), channels=3):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def picture_rows(count=6, **more):
    return [{"images": Image.fromarray(pixels(i)), "labels": i % 2, **more} for i in range(count)]


def waves(count=6, **more):
    return [{"samples": torch.linspace(-1, 1, 10).reshape(1, 10) * (i + 1) / count, **more} for i in range(count)]


FEATURES = datasets.Features({"images": datasets.Image(), "labels": datasets.Value("int64")})
KINDS = {
    "list": lambda rows: rows,
    "torch": Listed,
    "stream": Streamed,
    "datasets": lambda rows: datasets.Dataset.from_list(rows, features=FEATURES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same_batches(kind):
    data = as_training_data(KINDS[kind](picture_rows()))
    batch = data.__getitems__([0, 3, 5])
    expected = np.stack([pixels(i) for i in (0, 3, 5)]).transpose(0, 3, 1, 2) / 127.5 - 1
    assert isinstance(data, TrainingData)
    assert (len(data), data.channels, data.size, data.label_names) == (6, 3, (6, 6), ["0", "1"])
    np.testing.assert_allclose(batch["samples"], expected, atol=1e-6)
    assert batch["samples"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1, 1]
    assert batch["index"].tolist() == [0, 3, 5]


ARRAYS = {
    "grey array": pixels(0, channels=1),
    "height, width, channels": pixels(0),
    "channels, height, width": pixels(0).transpose(2, 0, 1),
    "tensor": torch.from_numpy(pixels(0)).permute(2, 0, 1),
    "floats": pixels(0).astype(np.float64) / 255,
    "half precision": torch.from_numpy(pixels(0) // 128).permute(2, 0, 1).half(),
    "one row high": pixels(0, (1, 6)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_read_as_images(kind):
    array = ARRAYS[kind]
    sample = as_training_data([{"images": array}])[0]["samples"]
    plain = np.asarray(array, dtype=np.float64)
    plain = plain[None] if plain.ndim == 2 else plain
    plain = (
        plain
        if kind in ("grey array", "channels, height, width", "tensor", "half precision")
        else plain.transpose(2, 0, 1)
    )
    white = 255 if np.asarray(array).dtype == np.uint8 else 1
    np.testing.assert_allclose(sample, plain / white * 2 - 1, atol=1e-6)


def test_images_are_resized_cropped_and_flipped_as_from_a_folder(tmp_path):
    rows = [{"images": Image.fromarray(pixels(i, (12, 9)))} for i in range(4)]
    for number, row in enumerate(rows):
        row["images"].save(tmp_path / f"{number}.png")
    options = {"resolution": 6, "resize_scale": 1.2, "random_flip": True, "seed": 3}
    own, folder = as_training_data(rows, **options), load_image_data(train_data_dir=tmp_path, **options)
    keys = [(index, epoch) for epoch in range(3) for index in range(4)]
    assert torch.equal(own.__getitems__(keys)["samples"], folder.__getitems__(keys)["samples"])


def test_floats_keep_their_precision_when_resized():
    values = np.random.default_rng(0).random((12, 12))
    sample = as_training_data([{"images": values}], resolution=5, channels=3)[0]["samples"]
    expected = np.asarray(Image.fromarray(values.astype(np.float32)).resize((5, 5), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(sample, np.stack([expected] * 3) * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 10), (2, 8, 4), (3, 4, 4, 4)])
def test_samples_of_any_dimension_pass_unchanged(shape):
    values = torch.rand(5, *shape) * 2 - 1
    data = as_training_data([{"samples": value} for value in values])
    assert torch.equal(data.__getitems__(range(5))["samples"], values)
    assert (data.channels, *data.size) == shape


def test_a_mixture_of_grey_and_colour_becomes_colour():
    rows = [{"images": Image.fromarray(pixels(0, channels=1))}, {"images": Image.fromarray(pixels(1))}]
    assert as_training_data(rows).__getitems__([0, 1])["samples"].shape == (2, 3, 6, 6)


@pytest.mark.parametrize("values", [["dog", "cat", "dog"], [20240101, 5, 20240101], [torch.tensor(8), np.int64(-3), 8]])
def test_classes_are_numbered_by_what_occurs_and_keep_their_names(values):
    data = as_training_data([{"samples": torch.zeros(1, 4), "label": value} for value in values])
    assert data.labels.tolist() == [1, 0, 1]
    assert data.label_names == [str(int(v) if not isinstance(v, str) else v) for v in (values[1], values[0])]


def test_names_of_classes_come_with_the_data_set():
    own = Listed([{"samples": torch.zeros(1, 4), "label": label} for label in (2, 0, "tail")])
    own.label_names = ["head", "body", "tail"]
    data = as_training_data(own)
    assert (data.labels.tolist(), data.label_names) == ([2, 0, 2], ["head", "body", "tail"])


def test_captions_numbers_and_a_second_sample_come_along():
    rows = [
        {
            "samples": torch.zeros(1, 4),
            "condition": torch.full((2, 4), 0.5),
            "text": f"row {i}",
            "angle": i / 2,
            "place": [i, 1],
        }
        for i in range(4)
    ]
    data = as_training_data(rows)
    batch = data.__getitems__([3, 1])
    assert data.captions == ["row 0", "row 1", "row 2", "row 3"]
    assert batch["angle"].tolist() == [[1.5], [0.5]]
    assert batch["place"].tolist() == [[3, 1], [1, 1]]
    assert data.columns["place"].shape == (4, 2)
    assert torch.equal(batch["condition"], torch.full((2, 2, 4), 0.5))
    assert data.companion.channels == 2


def test_a_column_with_empty_cells_is_ignored_with_a_warning(caplog):
    rows = [*waves(2, angle=1.0, size=2.0), *waves(1, size=float("nan")), *waves(1, angle=3.0)]
    for dataset in (
        rows,
        datasets.Dataset.from_list([{"image": pixels(0), **row} for row in rows]).with_format("numpy"),
    ):
        caplog.clear()
        assert as_training_data(dataset).columns == {}
        assert "'angle' in row 2 of train_dataset must hold finite numbers" in caplog.text
        assert "'size' in row 2" in caplog.text


def test_random_augmentation_depends_on_the_key_alone():
    data = as_training_data(Noisy([None] * 4), seed=1)
    keys = [(0, 0), (1, 0), (0, 1)]
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    samples = data.__getitems__(keys)["samples"]
    assert torch.equal(data.__getitems__(keys[::-1])["samples"].flip(0), samples)
    assert len({sample.sum().item() for sample in samples}) == 3
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    schedule = BatchSchedule(len(data), 2, seed=3)
    loader = load_batches(data, schedule, num_workers=1)
    for keys, batch in itertools.islice(zip(schedule, loader), 4):
        assert torch.equal(batch["samples"], data.__getitems__(keys)["samples"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_resumes_after_any_batch(rank):
    class Augmented(Streamed):
        def __iter__(self):
            for row in self.rows:
                yield {**row, "samples": row["samples"] * torch.rand(())}

    stream = as_training_data(Augmented(waves(7, label="a")), seed=2).stream
    whole = list(itertools.islice(stream.batches(2, 2, rank), 8))
    for done in range(7):
        (following,) = itertools.islice(stream.batches(2, 2, rank, tuple(whole[done]["position"].tolist())), 1)
        assert all(torch.equal(following[name], values) for name, values in whole[done + 1].items())


def test_processes_share_the_rows_of_a_stream():
    stream = as_training_data(Streamed(waves(8))).stream
    shares = [[b["index"].item() for b in itertools.islice(stream.batches(1, 2, rank), 4)] for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(8))


def test_the_only_image_column_of_a_table_may_have_any_name():
    table = datasets.Dataset.from_dict(
        {"photo": [Image.fromarray(pixels(i)) for i in range(3)], "size": [1.0, 2.0, 3.0]}
    )
    data = as_training_data(table)
    assert data.__getitems__([0, 2])["samples"].shape == (2, 3, 6, 6)
    assert data.columns["size"].tolist() == [[1], [2], [3]]


def test_pixels_in_a_table_of_arrays_are_images():
    table = datasets.Dataset.from_dict({"images": [np.full((4, 4), value, np.uint8) for value in (0, 255)]})
    samples = as_training_data(table).__getitems__([0, 1])["samples"]  # rows of a table are lists of integers
    assert samples.flatten(1).unique(dim=1).tolist() == [[-1.0], [1.0]]


def test_a_table_may_hold_a_second_image():
    images = [Image.fromarray(pixels(i)) for i in range(2)]
    data = as_training_data(datasets.Dataset.from_dict({"image": images, "condition": images[::-1]}))
    batch = data.__getitems__([0, 1])
    assert torch.equal(batch["condition"], batch["samples"].flip(0))


def test_a_stream_of_datasets_works_too():
    table = datasets.Dataset.from_list([{"image": Image.fromarray(pixels(i)), "label": "ab"[i % 2]} for i in range(6)])
    data = as_training_data(table.to_iterable_dataset())
    batch = next(iter(data.stream.batches(4)))
    assert (batch["samples"].shape, batch["labels"].tolist()) == ((4, 3, 6, 6), [0, 1, 0, 1])


WRONG = [
    ([], "train_dataset has no rows"),
    ([torch.zeros(3)], "row 0 of train_dataset must be a dictionary with 'images' or 'samples', got Tensor"),
    ([(torch.zeros(3), 1)], "must be a dictionary with 'images' or 'samples', got tuple"),
    ([{"x": 1, "y": 2}], "must have 'images' or 'samples', but the first row has x, y"),
    ([{"samples": torch.zeros(3)}], r"'samples' in row 0 .* shape \(channels, \*size\), got \(3,\)"),
    ([{"samples": torch.zeros(1, 3, dtype=torch.uint8)}], r"must be floats in \[-1, 1\], got uint8"),
    ([{"samples": torch.full((1, 3), float("nan"))}], r"must be in \[-1, 1\], got values from nan to nan"),
    ([{"samples": torch.full((1, 3), 2.0)}], r"must be in \[-1, 1\], got values from 2 to 2"),
    ([{"samples": "zero"}], "must hold numbers, got str"),
    ([{"samples": torch.zeros(1, 0)}], "is empty"),
    ([{"images": np.zeros((4, 4, 2), np.uint8)}], r"array of 1 or 3 channels, .* got the shape \(4, 4, 2\)"),
    ([{"images": np.zeros((4, 4), np.uint16)}], r"must be uint8 or floats in \[0, 1\], got uint16"),
    ([{"images": np.full((4, 4), 200.0)}], r"floats from 200 to 200; give data in \[-1, 1\] as 'samples'"),
    (waves(2) + waves(1, label=1), None),
    (waves(2, label=1) + waves(1), "row 2 of train_dataset has no 'label', which the first row has"),
    (waves(1, label=1) + waves(1, label="a"), "labels of train_dataset must be all integers or all strings"),
    (waves(1, label=1.5), "label in row 0 .* one integer or string, got 1.5"),
    (7, "must be a torch Dataset, a datasets.Dataset, a list or an iterable of dictionaries, got int"),
    ({"samples": torch.zeros(2, 1, 3)}, "list or an iterable of dictionaries, got dict"),
    ((row for row in waves()), "can be read only once"),
    (Streamed([]), "train_dataset has no rows"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_what_is_wrong_with_a_data_set_is_one_sentence(rows, message):
    if message is None:
        assert as_training_data(rows).labels is None
        return
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        as_training_data(rows)
    assert "\n" not in str(caught.value)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"must have one shape, got \(1, 4\) and \(1, 5\)"):
        as_training_data([{"samples": torch.zeros(1, 4)}, {"samples": torch.zeros(1, 5)}]).__getitems__([0, 1])
    images = as_training_data([{"images": pixels(0)}, {"images": pixels(0, (8, 6))}])
    for keys in ([0, 1], [1]):  # a batch of one size must not pass either
        with pytest.raises(ValueError, match=r"resolution must be given when the images differ in size \(6x6, 6x8"):
            images.__getitems__(keys)
    with pytest.raises(ValueError, match="have the size 10 and are used as they are, but resolution is 28"):
        as_training_data(waves(), resolution=28)


def test_an_unknown_class_in_a_stream_is_named():
    rows = waves(3, label=0) + waves(1, label=4)
    stream = as_training_data(Streamed(rows), streamed_examples=2).stream
    with pytest.raises(ValueError, match=r"label in row 3 .* is 4, which is not among its 1 classes; list all classes"):
        next(iter(stream.batches(4)))


def test_the_fingerprint_changes_with_the_data_and_not_with_where_they_are(tmp_path):
    def written(folder, seeds, kind="a"):
        for number, seed in enumerate(seeds):
            (tmp_path / folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(seed)).save(tmp_path / folder / kind / f"{number}.png")
        return load_image_data(
            train_data_dir=tmp_path / folder, **({"max_memory_bytes": 0} if folder == "disk" else {})
        )

    same = [written("one", range(4)), written("other", range(4)), written("disk", range(4))]
    same.append(load_image_data(train_data_dir=tmp_path / "one", random_flip=True, seed=1))
    assert len({data.fingerprint() for data in same}) == 1
    different = [
        written("fewer", range(3)),
        written("pixels", [0, 1, 2, 9]),
        load_image_data(train_data_dir=tmp_path / "one", channels=1),
        as_training_data(picture_rows(4)),
        as_training_data(list(reversed(picture_rows(4)))),
        as_training_data([{**row, "labels": 1} for row in picture_rows(4)]),
        as_training_data(waves(4)),
        as_training_data(waves(4, angle=1.0)),
    ]
    assert len({data.fingerprint() for data in (*different, same[0])}) == len(different) + 1
    assert as_training_data(picture_rows(4)).fingerprint() == as_training_data(Listed(picture_rows(4))).fingerprint()


def test_a_unet2d_refuses_oblong_samples_that_it_does_not_halve_in_one_sentence(tiny_run):
    data = [{"samples": torch.zeros(1, 16, 18)}] * 8
    options = '{"block_out_channels": [8, 8, 8], "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"], '
    options += '"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"], "norm_num_groups": 4}'
    with pytest.raises(ValueError, match=r"needs a resolution divisible by 4, got \[16, 18\]"):
        Trainer(tiny_run(model="unet2d", model_options=options), train_dataset=data)


def test_held_out_data_without_the_condition_images_of_training_are_refused(tiny_run):
    plain = {"samples": torch.zeros(1, 16, 16)}
    told = {**plain, "condition": torch.zeros(1, 16, 16)}
    settings = tiny_run(model="small-adm", model_options='{"base_channels": 8, "norm_num_groups": 4}')
    with pytest.raises(ValueError, match="have condition images of their own, and the held-out data have none"):
        Trainer(settings, train_dataset=[told] * 8, eval_dataset=[plain] * 8, condition=ImageCondition())
