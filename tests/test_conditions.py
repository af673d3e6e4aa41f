"""Real numbers as a condition, and conditions of the user: training, guidance, saving, sampling, cards."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_ext import AnnotatedUNet2DModel, GenerationPipeline, SubsequenceDDIMScheduler
from diffusers_ext.cli.sample import SampleArguments, sample
from diffusers_ext.conditions import CONDITIONS, ClassCondition, Condition, VectorCondition, register
from diffusers_ext.hub.model_card import write_card
from diffusers_ext.training import Trainer, TrainingArguments, train

NETWORK = {
    "sample_size": 8,
    "in_channels": 1,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "level_attention": (None, None),
    "layers_per_level": 1,
}


@pytest.fixture(scope="session")
def graded(tmp_path_factory):
    """Plain grey images 8x8: brightness goes from 30 to 230, which `level` says as 100 to 300."""
    folder = tmp_path_factory.mktemp("graded")
    levels = np.linspace(0, 1, 64)
    images = [Image.fromarray(np.full((8, 8), 30 + 200 * level, dtype=np.uint8)) for level in levels]
    columns = {"level": 100 + 200 * levels, "other": -levels, "word": ["x"] * 64, "gap": [float("nan"), *levels[1:]]}
    table = datasets.Dataset.from_dict({"image": images, **columns}, features=None).cast_column(
        "image", datasets.Image()
    )
    datasets.DatasetDict({"train": table, "test": table.select(range(0, 64, 8))}).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture
def vector_run(tiny_run, graded):
    def make(**overrides):
        settings = {
            "condition": "vector",
            "vector_columns": "level",
            "dataset_name": graded,
            "train_split": "train",
            "validation_split": "test",
            "resolution": 8,
            "model_options": json.dumps(TINY_MODEL),
        }
        return TrainingArguments(**{**vars(tiny_run()), **settings, **overrides})

    return make


def vector_network(**config):
    torch.manual_seed(0)
    return AnnotatedUNet2DModel(**{**NETWORK, "vector_dim": 2, **config}).eval()


def vector_pipeline(columns="angle,scale", **config):
    pipeline = GenerationPipeline(
        vector_network(**config),
        SubsequenceDDIMScheduler(timestep_spacing="trailing"),
        conditions={"vector": {"vector_columns": columns}},
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generated(pipeline, **request):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline(generator=generator, output_type="pt", **{"num_inference_steps": 4, **request}).images


def test_samples_follow_the_number_and_guidance_exaggerates_it(vector_run):
    arguments = vector_run(
        max_train_steps=100,
        train_batch_size=32,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        prediction_type="v_prediction",
        schedule="cosine",
        use_ema=False,
        checkpointing_steps=1000,
        validation_steps=1000,
        logging_steps=50,
    )
    pipeline = train(arguments)
    assert pipeline.unet.config.vector_mean == pytest.approx([200], rel=1e-4)
    brightness = [generated(pipeline, vector=[[level]] * 8).mean().item() for level in (110, 200, 290)]
    expected = [(30 + level - 100) / 255 for level in (110, 200, 290)]
    assert brightness == pytest.approx(expected, abs=0.12)
    assert brightness == sorted(brightness)
    guided = generated(pipeline, vector=[[270]] * 8, guidance_scale=2.0).mean().item()
    assert guided > generated(pipeline, vector=[[270]] * 8).mean().item() + 0.01
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert torch.equal(generated(loaded, vector=150), generated(pipeline, vector=150))
    write_card(arguments.output_dir)
    card = (Path(arguments.output_dir) / "README.md").read_text()
    assert "A vector-conditional diffusion model" in card
    assert "vector=[[" in card
    assert "level (200 ± " in card


def test_numbers_are_normalised_and_a_row_of_nan_is_the_null_condition():
    raw, plain = vector_network(vector_mean=(10.0, -4.0), vector_std=(2.0, 8.0)), vector_network()
    plain.load_state_dict(raw.state_dict())
    x, given = torch.randn(2, 1, 8, 8), torch.tensor([[12.0, 4.0], [8.0, -4.0]])
    normalised = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    with torch.no_grad():
        torch.testing.assert_close(raw(x, 5, vector=given).sample, plain(x, 5, vector=normalised).sample)
        null = raw(x, 5).sample
        assert not torch.allclose(null, raw(x, 5, vector=given).sample, atol=1e-5)
        given[1] = torch.nan
        mixed = raw(x, 5, vector=given).sample
    torch.testing.assert_close(mixed[1], null[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[0], null[0], atol=1e-5)


def test_dropped_numbers_become_nan_and_the_others_stay(vector_run):
    trainer = Trainer(vector_run(vector_columns="level, other"))
    batch = trainer.train_dataset.__getitems__([0, 63])
    told = trainer.conditioning.inputs(batch, trainer.train_dataset, torch.tensor([True, False]), 0, slice(0, 2))[
        "vector"
    ]
    assert told[0].isnan().all()
    assert told[1].tolist() == [300, -1]


def test_numbers_are_given_in_many_forms_that_mean_the_same():
    pipeline = vector_pipeline()
    expected = generated(pipeline, vector=[[30, 1.5], [60, 1.5]])
    for same in (
        torch.tensor([[30, 1.5], [60, 1.5]]),
        np.array([[30, 1.5], [60, 1.5]]),
        {"scale": 1.5, "angle": [30, 60]},
    ):
        assert torch.equal(generated(pipeline, vector=same), expected)
    once = generated(pipeline, vector=[30, 1.5], batch_size=2)
    assert torch.equal(once, generated(pipeline, vector=[[30, 1.5]] * 2))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"vector": [1, 2, 3]}, r"vector takes 2 numbers for each sample, got shape \(1, 3\)"),
        ({"vector": "tall"}, "vector takes numbers, got 'tall'"),
        ({"vector": [[1, float("nan")]]}, "vector takes finite numbers"),
        ({"vector": {"angle": 3}}, "vector takes the names angle, scale, got angle"),
        ({"vector": {"angle": [1, 2], "scale": [1, 2, 3]}}, "as many numbers under each name"),
        ({"negative_vector": [1, 2]}, "negative_vector goes with vector, which is missing"),
        ({"height_of": 3}, "There is no argument height_of; conditions are given as class_labels, "),
        ({"vector": [[1, 2]] * 3, "batch_size": 2}, "batch_size 2, vector 3"),
    ],
)
def test_wrong_numbers_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        generated(vector_pipeline(), **given)
    assert "\n" not in str(caught.value)


def test_a_network_without_numbers_refuses_them():
    with pytest.raises(
        ValueError, match=r"vector was given, but the network takes no vector \(vector_dim is not set\)"
    ):
        generated(vector_pipeline(vector_dim=None), vector=[1, 2])
    with pytest.raises(ValueError, match="build it with vector_dim"):
        vector_network(vector_dim=None)(torch.zeros(1, 1, 8, 8), 1, vector=torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"vector_columns": None}, "condition vector needs vector_columns"),
        ({"vector_columns": "level,level"}, "different names with commas between them, got 'level,level'"),
        ({"vector_columns": "depth"}, "number_columns='depth' is not a column of"),
        ({"vector_columns": "word"}, "number_columns='word' of .* must hold numbers"),
        ({"vector_columns": "gap"}, "'gap' in row 0 of .* must hold finite numbers"),
        ({"model": "usurf-guided-unet", "model_options": None}, "can't be conditioned on a vector; choose a model"),
    ],
)
def test_what_the_data_lack_is_one_sentence(vector_run, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Trainer(vector_run(**overrides))
    assert "\n" not in str(caught.value)


def test_the_command_line_gives_numbers(tmp_path):
    vector_pipeline().save_pretrained(tmp_path / "model")
    arguments = {"model": str(tmp_path / "model"), "num_images": 4, "num_inference_steps": 2}
    for name, numbers in (("a", ["30,1", "30,2"]), ("b", ["30,1", "99,2"])):
        sample(SampleArguments(**arguments, vector=numbers, output=str(tmp_path / f"{name}.png")))
    first, second = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("a", "b"))
    half = len(first) // 2
    assert np.array_equal(first[: half - 8], second[: half - 8])
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="vector takes numbers with commas between them, got 'wide'"):
        sample(SampleArguments(**arguments, vector=["wide"], output=str(tmp_path / "c.png")))


class Strength(Condition):
    """A condition of a user: the data's column, the network's argument and the pipeline's have its name."""

    name = "strength"
    null_value = -1.0


class OwnNetwork(torch.nn.Module):
    """Predicts its condition everywhere."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.config = type("Config", (dict,), {"in_channels": 1, "sample_size": 4})()

    def forward(self, sample, timestep, strength=None):
        return self.gain * strength[:, :, None, None].expand_as(sample)


@pytest.fixture
def strength():
    register(Strength)
    yield Strength
    del CONDITIONS["strength"]


def test_a_registered_condition_is_an_argument_of_the_pipeline(strength):
    pipeline = GenerationPipeline(OwnNetwork(), SubsequenceDDIMScheduler(prediction_type="sample", clip_sample=False))
    request = {"strength": [0.25, 0.5], "num_inference_steps": 3}
    assert generated(pipeline, **request)[:, 0, 0, 0].tolist() == pytest.approx([0.625, 0.75])
    guided = generated(pipeline, **request, guidance_scale=1.2)  # -1 + 1.2 * (strength + 1)
    assert guided[:, 0, 0, 0].tolist() == pytest.approx([0.75, 0.9])
    negative = generated(pipeline, **request, guidance_scale=1.2, negative_strength=0.5)
    assert negative[:, 0, 0, 0].tolist() == pytest.approx([0.6, 0.75])


def test_a_registered_condition_is_a_value_of_the_setting(strength, tmp_path):
    assert TrainingArguments(output_dir=str(tmp_path), condition="strength").condition == "strength"


def test_samples_need_the_column_of_their_condition(strength):
    data = SimpleNamespace(columns={}, description="4 images")
    with pytest.raises(ValueError, match=r"4 images has no column 'strength'.*override Strength.of_samples"):
        strength().of_samples(data, [0], torch.Generator())
    with pytest.raises(ValueError, match="condition vector needs vector_columns"):
        VectorCondition().adopt(data)  # of a pipeline that was put together by hand


def test_a_registered_condition_trains_with_dropped_rows(strength):
    batch = {"strength": torch.tensor([[0.1], [0.2]])}
    inputs = strength().inputs(batch, None, torch.tensor([False, True]), torch.Generator(), 0)
    torch.testing.assert_close(inputs, {"strength": torch.tensor([[0.1], [-1.0]])})


def test_a_condition_given_to_the_trainer_is_read_from_its_column_and_known_to_the_pipeline(tiny_run):
    rows = [{"samples": torch.zeros(1, 4, 4), "strength": 0.1 * number} for number in range(8)]
    arguments = TrainingArguments(**{**vars(tiny_run()), "model_options": None})
    try:
        trainer = Trainer(arguments, model=OwnNetwork(), train_dataset=rows, condition=Strength())
        batch = trainer.train_dataset.__getitems__([3, 5])
        kept = torch.zeros(2, dtype=torch.bool)
        inputs = trainer.conditioning.inputs(batch, trainer.train_dataset, kept, 0, slice(0, 2))
        torch.testing.assert_close(inputs, {"strength": torch.tensor([[0.3], [0.5]])})
        pipeline = trainer.train()
        assert not torch.equal(generated(pipeline, strength=0.1), generated(pipeline, strength=0.9))
    finally:
        CONDITIONS.pop("strength", None)


def test_a_condition_of_two_numbers_knows_its_width_from_the_data(strength):
    condition = strength()
    condition.prepare(SimpleNamespace(columns={"strength": torch.zeros(4, 2)}))
    saved = condition.pipeline_parts(None)["conditions"]["strength"]
    assert saved == {"width": 2}
    config = SimpleNamespace(conditions={"strength": saved})
    loaded = strength.for_pipeline(SimpleNamespace(unet=OwnNetwork(), config=config))
    assert loaded.read("strength", {"strength": [2.0, 1.0]}, (4, 4)).tolist() == [[2.0, 1.0]]
    with pytest.raises(ValueError, match=r"strength takes 2 numbers for each sample, got shape \(1, 3\)"):
        loaded.read("strength", {"strength": [2.0, 1.0, 0.0]}, (4, 4))
    # A call without the condition is unconditional, also for a network that must be given the argument.
    assert loaded.absent(3, torch.device("cpu"))["strength"].tolist() == [[-1.0, -1.0]] * 3


def test_conditions_that_share_a_name_or_an_argument_are_refused():
    with pytest.raises(ValueError, match="has no name"):
        register(type("Nameless", (Condition,), {}))
    for attributes in ({"name": "class"}, {"name": "kind", "argument": "class_labels"}):
        with pytest.raises(ValueError, match="has the name or an argument of the condition 'class'"):
            register(type("Other", (Condition,), attributes))
    assert CONDITIONS["class"] is ClassCondition
    assert CONDITIONS["vector"] is VectorCondition
