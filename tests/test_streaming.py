"""Data that are read as they come: every image once an epoch, whoever reads it, and the next one after a resume."""

import itertools
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from local_processes import run_processes
from PIL import Image
from safetensors.torch import load_file

from diffusers_ext.conditions import ClassCondition
from diffusers_ext.data.examples import UnreadableImageError
from diffusers_ext.data.images import load_image_data
from diffusers_ext.training import TrainingArguments, train
from diffusers_ext.training.checkpoint import CheckpointError

ROWS = 60


def table(rows):
    """Images that say by their grey which row they are."""
    images = [Image.fromarray(np.full((8, 8), row, dtype=np.uint8)) for row in rows]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    return datasets.Dataset.from_dict({"picture": images, "label": [row % 2 for row in rows]}, features=features)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Folders of 60 images in four parquet files, of unequal length, and in three."""
    folders = {}
    for count in (3, 4):
        folders[count] = tmp_path_factory.mktemp(f"shards{count}")
        ends = [0, 10, 30, 45, ROWS] if count == 4 else [0, 10, 30, ROWS]
        for shard, (start, end) in enumerate(itertools.pairwise(ends)):
            table(range(start, end)).to_parquet(str(folders[count] / f"train-{shard:05d}-of-{count:05d}.parquet"))
    return folders


def stream_of(folder, **options):
    options = {"streamed_examples": 8, "shuffle_buffer_size": 16, **options}
    return load_image_data(str(folder), **options).stream


def greys(batch):
    return ((batch["samples"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_numbers_of_a_stream_come_along(tmp_path):
    rows = table(range(12)).add_column("angle", [row / 4 for row in range(12)])
    rows.to_parquet(str(tmp_path / "train.parquet"))
    data = load_image_data(str(tmp_path), streamed_examples=4, number_columns=["angle"])
    assert data.columns["angle"].tolist() == [[0.0], [0.25], [0.5], [0.75]]
    batch = next(iter(data.stream.batches(6)))
    assert batch["angle"].flatten().tolist() == [grey / 4 for grey in greys(batch)]


def test_a_stream_without_rows_is_one_sentence(tmp_path):
    table([]).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match="holds no rows"):
        stream_of(tmp_path)
    table([]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"holds no rows|saved' could not be loaded"):
        stream_of(tmp_path / "saved")


def epochs(batches, rows):
    """The rows of a process, cut into its epochs."""
    seen = itertools.chain.from_iterable(map(greys, batches))
    while True:
        yield list(itertools.islice(seen, rows))


@pytest.mark.parametrize("num_shards", [3, 4])
def test_processes_see_disjoint_rows_that_together_are_the_epoch(shards, num_shards):
    stream = stream_of(shards[num_shards])
    # How many rows a process has is known from the stream itself: the epoch in a batch's position.
    shares = []
    for rank in range(2):
        batches = itertools.islice(stream.batches(1, 2, rank), 2 * ROWS)
        rows = [(batch["position"][0].item(), greys(batch)[0]) for batch in batches]
        shares.append([[grey for epoch, grey in rows if epoch == wanted] for wanted in range(2)])
    for first, second in zip(*shares):
        assert sorted(first + second) == list(range(ROWS))
        assert len(first) >= 10 <= len(second)


def test_the_order_is_a_function_of_seed_and_epoch(shards):
    first, second = itertools.islice(epochs(stream_of(shards[4]).batches(6), ROWS), 2)
    again, _ = itertools.islice(epochs(stream_of(shards[4]).batches(4), ROWS), 2)
    (other,) = itertools.islice(epochs(stream_of(shards[4], seed=1).batches(6), ROWS), 1)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(ROWS))
    assert first == again
    assert len({tuple(order) for order in (first, second, other, sorted(first))}) == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_resumes_after_any_batch(shards, rank):
    stream = stream_of(shards[3], random_flip=True)
    whole = list(itertools.islice(stream.batches(4, 2, rank), 20))
    assert whole[-1]["position"][0] >= 2  # it has come to the third epoch
    for done in range(19):
        (following,) = itertools.islice(stream.batches(4, 2, rank, tuple(whole[done]["position"].tolist())), 1)
        assert all(torch.equal(following[name], values) for name, values in whole[done + 1].items())
        assert torch.equal(following["labels"], torch.tensor(greys(following)) % 2)


def test_flips_belong_to_a_row_and_not_to_who_reads_it(tmp_path):
    image = np.repeat(np.arange(8, dtype=np.uint8)[None], 8, axis=0)
    rows = {"image": [Image.fromarray(image + 16 * row) for row in range(8)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    stream = stream_of(tmp_path, random_flip=True)

    def mirrored(batches, count):
        images = torch.cat([batch["samples"] for batch in itertools.islice(batches, count)])
        return {int(max(row) + 0.5) // 16: bool(row[0] > row[-1]) for row in (images[:, 0, 0] + 1) * 127.5}

    alone = mirrored(stream.batches(8), 1)
    assert {**mirrored(stream.batches(4, 2, 0), 1), **mirrored(stream.batches(4, 2, 1), 1)} == alone
    assert len(set(alone.values())) == 2


def test_a_worker_gives_the_batches_of_the_main_process(shards):
    stream = stream_of(shards[4])
    loader = torch.utils.data.DataLoader(stream.batches(4), batch_size=None, num_workers=1)
    for ours, theirs in itertools.islice(zip(stream.batches(4), loader), 20):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tables_on_this_machine_stream_too(tmp_path):
    table(range(20)).save_to_disk(str(tmp_path / "table"))
    (seen,) = itertools.islice(epochs(stream_of(tmp_path / "table").batches(5), 20), 1)
    assert sorted(seen) == list(range(20))
    assert seen != sorted(seen)
    assert next(iter(stream_of("embedded").batches(2)))["samples"].shape == (2, 1, 28, 28)


@pytest.fixture
def broken(tmp_path):
    whole = [row["picture"] for row in table(range(6)).cast_column("picture", datasets.Image(decode=False))]
    whole[2] = {"bytes": b"no image", "path": None}
    whole[4] = None
    features = datasets.Features({"picture": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"picture": whole}, features=features)
    rows.cast_column("picture", datasets.Image()).to_parquet(str(tmp_path / "train.parquet"))
    return tmp_path


def test_unreadable_images_of_a_stream_are_named_and_skipped(broken, caplog):
    (batch,) = itertools.islice(stream_of(broken).batches(4), 1)
    assert sorted(greys(batch)) == [0, 1, 3, 5]
    assert "row 2 of shard 0" in caplog.text
    with pytest.raises(UnreadableImageError, match=r"row [24] of shard 0"):
        next(iter(stream_of(broken, streamed_examples=1, on_unreadable_image="error").batches(6)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_train_steps": None}, "streaming needs max_train_steps, for a stream does not say how long an epoch is."),
        ({"train_data_dir": "photos"}, "streaming reads a dataset_name; a train_data_dir is"),
        ({"dataloader_num_workers": 2}, "streaming takes dataloader_num_workers 0 or 1"),
        ({"condition": "text"}, "streaming can't give texts yet"),
        ({"condition": "image", "condition_image_column": "sketch"}, "can't give condition_image_column yet"),
        ({"shuffle_buffer_size": 0}, "shuffle_buffer_size must be at least 1, got 0"),
    ],
)
def test_what_a_stream_cannot_give_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        TrainingArguments(**{"streaming": True, "max_train_steps": 5, **options})
    assert "\n" not in str(caught.value)


def test_columns_and_splits_that_a_stream_cannot_give_are_named(shards, tmp_path):
    with pytest.raises(
        ValueError, match=r"split='train\[:8\]' is not in .*; streaming takes whole splits; it has: train"
    ):
        stream_of(shards[3], split="train[:8]")
    numbers = table(range(4)).cast_column("label", datasets.Value("int64"))
    numbers.to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=r"label_column='label' of .* has no list of its classes"):
        stream_of(tmp_path, label_column="label")
    assert "labels" not in next(iter(stream_of(tmp_path).batches(2)))
    with pytest.raises(ValueError, match="no row for process 4 of 5"):
        next(iter(stream_of(tmp_path).batches(1, 5, 4)))


def train_alone(rank, arguments):
    torch.set_num_threads(1)
    train(arguments)


def test_a_streamed_run_resumes_bit_for_bit_on_two_processes_and_on_no_other_number(tiny_run, shards, tmp_path):
    settings = {
        "dataset_name": str(shards[4]),
        "train_split": "train",
        "validation_split": "train",
        "resolution": 8,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "streaming": True,
        "shuffle_buffer_size": 10,
        "model_options": json.dumps({**TINY_MODEL, "dropout": 0.1}),
    }

    def run(**more):
        return TrainingArguments(**{**vars(tiny_run()), "condition": "class", **settings, **more})

    whole, half = run(), run(output_dir=str(tmp_path / "half"), dataloader_num_workers=1)
    assert run_processes(2, train_alone, whole) == 0
    shutil.copytree(whole.output_dir, half.output_dir)  # as a kill in the middle leaves it
    for late in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "half" / late)
    half.resume_from_checkpoint = "latest"
    with pytest.raises(
        CheckpointError, match="of a streamed run by 2 processes, whose shares 1 processes can't take over"
    ):
        train(half)
    assert run_processes(2, train_alone, half) == 0
    for file in ("model.safetensors", "ema.safetensors"):
        first, second = (load_file(tmp_path / name / "checkpoint-6" / file) for name in ("run", "half"))
        assert all(torch.equal(first[name], second[name]) for name in first), file


def test_a_recipe_may_stream():
    assert (
        TrainingArguments(streaming=True, max_train_steps=3)
        .to_yaml()
        .endswith("\nstreaming: true\nmax_train_steps: 3\n")
    )


def test_a_row_without_a_class_matters_only_where_classes_are_told(tmp_path):
    rows = table(range(4))
    rows = rows.remove_columns("label").add_column("label", [0, -1, 1, 0]).cast_column("label", rows.features["label"])
    rows.to_parquet(str(tmp_path / "train.parquet"))
    data = load_image_data(str(tmp_path), streamed_examples=4, shuffle_buffer_size=1)
    batch = next(iter(data.stream.batches(4)))
    assert sorted(batch["labels"].tolist()) == [-1, 0, 0, 1]
    with pytest.raises(ValueError, match="a row of the stream has no class; every sample needs one"):
        ClassCondition().inputs(batch, data, torch.zeros(4, dtype=torch.bool), torch.Generator(), 0)
