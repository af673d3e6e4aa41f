"""Training with a class, a text or an image as the condition: the network's arguments, and that samples follow."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, TINY_MODEL, records_of
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from diffusers_ext.cli import evaluate as evaluate_command
from diffusers_ext.cli import main
from diffusers_ext.conditions import text_encoder
from diffusers_ext.conditions.image_transforms import image_transform
from diffusers_ext.conditions.text import TextCondition, encode_prompts, tokenize
from diffusers_ext.conditions.text_encoder import Captions, load_text_encoder, small_text_encoder, train_tokenizer
from diffusers_ext.data.images import load_image_data
from diffusers_ext.evaluation.classifier import ImageClassifier
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.sample_evaluation import SampleEvaluation

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
TINY_ADM = {
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "layers_per_level": 1,
    "attention_resolutions": [2],
    "norm_num_groups": 4,
}

# A longer run without stops for checkpoints and previews.
UNDISTURBED = {"checkpointing_steps": 1000, "validation_steps": 1000, "logging_steps": 50}


@pytest.fixture
def conditional_run(tiny_run):
    """As `tiny_run`, with a condition."""

    def make(**overrides):
        return TrainingArguments(**{**vars(tiny_run()), "condition": "class", **overrides})

    return make


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    """A data set of plainly coloured squares 8x8 with captions and a grey image beside each."""
    folder = tmp_path_factory.mktemp("captioned")
    names = [name for _ in range(16) for name in COLOURS]
    generator = np.random.default_rng(0)
    noise = generator.integers(-20, 20, (len(names), 8, 8, 3))
    pixels = (np.array([COLOURS[name] for name in names])[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    table = datasets.Dataset.from_dict(
        {"image": images, "text": [f"a {n} square" for n in names], "grey": [im.convert("L") for im in images]},
        features=datasets.Features(
            {"image": datasets.Image(), "text": datasets.Value("string"), "grey": datasets.Image()}
        ),
    )
    datasets.DatasetDict({"train": table, "test": table.select(range(6))}).save_to_disk(str(folder))
    return str(folder)


def captioned_run(conditional_run, captioned, **overrides):
    settings = {
        "dataset_name": captioned,
        "train_split": "train",
        "validation_split": "test",
        "image_column": "image",
        "resolution": 8,
        "model": "small-adm",
        "model_options": json.dumps(TINY_ADM),
    }
    return conditional_run(**{**settings, **overrides})


def generated(pipeline, **request):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline(generator=generator, output_type="pt", **{"num_inference_steps": 3, **request}).images


def same_weights(first, second):
    a, b = (load_file(os.path.join(folder, "model.safetensors")) for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("model", ["small", "usurf-guided-unet", "unet2d"])
def test_classes_are_trained_saved_and_loaded(conditional_run, model):
    options = {
        "small": TINY_MODEL,
        "usurf-guided-unet": TINY_MODEL,
        "unet2d": {
            "block_out_channels": [8, 16],
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
            "norm_num_groups": 4,
        },
    }
    arguments = conditional_run(model=model, model_options=json.dumps(options[model]), guidance_scale=2.0)
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    request = {"class_labels": [0, "7"], "guidance_scale": 2.0}
    assert torch.equal(generated(pipeline, **request), generated(loaded, **request))
    assert not torch.equal(generated(loaded, class_labels=[0]), generated(loaded, class_labels=[7]))
    assert loaded.config.id2label == {str(i): str(i) for i in range(10)}


def test_labels_are_dropped_as_often_as_asked_and_the_same_on_any_number_of_processes(conditional_run):
    trainer = Trainer(conditional_run(condition_dropout=0.25))
    dropped = torch.cat([trainer.conditioning.dropped(number, 0, 64) for number in range(100)])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(trainer.conditioning.dropped(5, 0, 64), trainer.conditioning.dropped(5, 0, 64))
    batch = {"samples": torch.zeros(2, 1, 28, 28), "labels": torch.tensor([3, 4]), "index": torch.tensor([0, 1])}
    told = trainer.conditioning.inputs(batch, trainer.train_dataset, torch.tensor([True, False]), 0, slice(0, 2))
    assert told["class_labels"].tolist() == [10, 4]


def test_label_free_epochs_are_the_last(conditional_run):
    trainer = Trainer(conditional_run(condition_dropout=0.0, num_epochs=6, label_free_epochs=1, max_train_steps=None))
    shares = [trainer.conditioning.dropped(0, epoch, 8).float().mean().item() for epoch in range(6)]
    assert shares == [0, 0, 0, 0, 0, 1]


def test_the_class_is_learnt(conditional_run):
    """Ones are dark and few pixels are bright in them; zeros are brighter: the mean brightness of samples follows."""
    arguments = conditional_run(
        train_split="train[:2000]",
        max_train_steps=80,
        train_batch_size=32,
        learning_rate=3e-3,
        lr_warmup_steps=10,
        **UNDISTURBED,
    )
    pipeline = train(arguments)
    zeros, ones = (
        generated(pipeline, class_labels=[label] * 32, num_inference_steps=10).mean().item() for label in (0, 1)
    )
    assert zeros > ones + 0.02


def test_captions_are_learnt_with_a_text_encoder_of_their_own(conditional_run, captioned):
    arguments = captioned_run(
        conditional_run,
        captioned,
        condition="text",
        max_train_steps=100,
        train_batch_size=16,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        **UNDISTURBED,
    )
    train(arguments)
    pipeline = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.tokenizer, PreTrainedTokenizerFast)
    images = generated(pipeline, prompt=["a red square", "a green square", "a blue square"], num_inference_steps=10)
    assert images.mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 2]


def test_text_pipeline_comes_back_bit_for_bit_and_resumes(conditional_run, captioned, tmp_path):
    whole = captioned_run(conditional_run, captioned, condition="text", output_dir=str(tmp_path / "whole"))
    pipeline = train(whole)
    loaded = DiffusionPipeline.from_pretrained(whole.output_dir)
    request = {"prompt": ["a red square"], "guidance_scale": 2.0}
    assert torch.equal(generated(pipeline, **request), generated(loaded, **request))
    halves = {"condition": "text", "output_dir": str(tmp_path / "halves")}
    train(captioned_run(conditional_run, captioned, **halves, max_train_steps=4, lr_scheduler="constant"))
    straight = captioned_run(
        conditional_run, captioned, condition="text", output_dir=str(tmp_path / "straight"), lr_scheduler="constant"
    )
    train(straight)
    train(captioned_run(conditional_run, captioned, **halves, lr_scheduler="constant", resume_from_checkpoint="latest"))
    assert same_weights(tmp_path / "straight" / "checkpoint-6", tmp_path / "halves" / "checkpoint-6")


@pytest.mark.parametrize("trained", [False, True])
def test_a_named_text_encoder_stays_as_it_is_unless_trained_along(conditional_run, captioned, tmp_path, trained):
    tokenizer = train_tokenizer(["a red square", "a blue square"], 16)
    small_text_encoder(tokenizer).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    before = {k: v.clone() for k, v in load_text_encoder(str(tmp_path / "encoder"), 16)[0].state_dict().items()}
    arguments = captioned_run(
        conditional_run,
        captioned,
        condition="text",
        text_encoder=str(tmp_path / "encoder"),
        train_text_encoder=trained,
        use_ema=False,
    )
    after = train(arguments).text_encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) != trained


def test_captions_are_encoded_once_and_no_longer_than_the_longest(monkeypatch):
    tokenizer = train_tokenizer(["a red square", "a blue square", "a green square of some size"], 16)
    encoder = small_text_encoder(tokenizer).eval()
    calls = []
    encoder.register_forward_hook(lambda module, args, kwargs, output: calls.append(kwargs), with_kwargs=True)
    captions = Captions(["a red square", "a blue square", "a red square"], tokenizer)
    assert captions.rows.tolist() == [1, 2, 1]
    assert captions.ids.shape == captions.mask.shape == (3, int(captions.mask.sum(dim=1).max()))
    assert captions.ids.shape[1] < tokenizer.model_max_length
    rows = torch.tensor([2, 0, 2])
    states = captions.states(rows, encoder)
    assert torch.equal(captions.states(torch.tensor([2]), encoder), states[:1])
    assert len(calls) == 1
    padded = encode_prompts(tokenizer, encoder, ["a blue square", "", "a blue square"], "cpu")[0]
    kept = captions.mask[rows].bool()
    torch.testing.assert_close(states[kept], padded[:, : states.shape[1]][kept])
    monkeypatch.setattr(text_encoder, "MOST_STATES", 0)
    many = Captions(["a red square", "a blue square", "a red square"], tokenizer)
    torch.testing.assert_close(many.states(rows, encoder)[kept], states[kept])


def test_a_tokenizer_reads_words_it_has_never_seen():
    tokenizer = train_tokenizer(["man running", "woman swimming"], 32)
    ids, mask = tokenize(tokenizer, ["Man swimming", "zebra"])
    assert ids.shape == mask.shape == (2, tokenizer.model_max_length)
    assert "man" in tokenizer.decode(ids[0], skip_special_tokens=True)
    assert tokenizer.unk_token_id not in ids[1].tolist()


def test_image_conditions_of_a_column(conditional_run, captioned):
    arguments = captioned_run(
        conditional_run,
        captioned,
        condition="image",
        condition_image_column="grey",
    )
    trainer = Trainer(arguments)
    assert trainer.network.config.condition_channels == 1
    batch = trainer.train_dataset.__getitems__([(5, 0), (7, 0)])
    grey = batch["samples"].mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert (batch["condition"] - grey).abs().max() < 0.02
    assert trainer.train().config.condition == "image"


@pytest.mark.parametrize("name", ["super_resolution_2", "colorization", "inpainting"])
def test_image_conditions_made_from_the_target(conditional_run, captioned, name):
    arguments = captioned_run(conditional_run, captioned, condition="image", image_condition=name)
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert loaded.config.condition == name
    targets = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    request = image_transform(name, 3).user_input(targets, torch.Generator().manual_seed(0))
    images = generated(pipeline, **request)
    assert torch.equal(images, generated(loaded, **request))
    other = image_transform(name, 3).user_input(-targets, torch.Generator().manual_seed(0))
    assert not torch.equal(images, generated(loaded, **other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition": "sound"}, "condition must be one of class, text, image, vector, got 'sound'"),
        ({"condition_dropout": 1.0}, "condition_dropout must be at least 0 and below 1"),
        ({"label_free_epochs": 200}, "label_free_epochs must be below num_epochs, got"),
        ({"label_free_epochs": 1, "max_train_seconds": 5.0}, "leave max_train_seconds out"),
        ({"condition": "image"}, "condition image needs either condition_image_column or image_condition"),
        ({"condition": "text"}, "condition text needs texts"),
        ({"label_column": "kind"}, "label_column='kind' is not a column"),
        ({"condition": "text", "caption_column": "label"}, "must hold strings"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be at least 0, got nan"),
        ({"guidance_scale": 2.0, "condition_dropout": 0.0}, "needs a null condition that is trained"),
        ({"image_condition": "inpainting"}, "image_condition has no effect: condition is not image"),
        ({"train_text_encoder": True}, "train_text_encoder has no effect: condition is not text"),
        ({"condition": "image", "image_condition": "image"}, "image_condition must be one of super_resolution_2, "),
        ({"model_options": json.dumps({**TINY_MODEL, "num_class_embeds": 5})}, "sets num_class_embeds to 5, but .* 10"),
        (
            {"condition": "image", "image_condition": "super_resolution_8", "model": "small-adm"},
            "super_resolution_8 needs a height and width divisible by 8, got 28x28",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(conditional_run, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Trainer(conditional_run(**settings))
    assert "\n" not in str(error.value)


def classes_in_folders(root, **splits):
    """A folder of grey images, three a class, in folders split/class."""
    for split, names in splits.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (28, 28), 40 * i).save(root / split / name / f"{i}.png")
    return {"train_data_dir": str(root), "train_split": "train", "validation_split": "test", "resolution": 28}


def test_held_out_classes_are_numbered_as_those_of_the_training_images(conditional_run, tmp_path):
    settings = classes_in_folders(tmp_path / "data", train=["cat", "dog", "owl"], test=["dog", "owl"])
    trainer = Trainer(conditional_run(**settings))
    assert trainer.conditioning.condition.id2label == {"0": "cat", "1": "dog", "2": "owl"}
    assert trainer.eval_dataset.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert trainer.eval_dataset.label_names == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("names", "message"), [(["cat", "eel"], "has a class 'eel', which the training"), (["cat"], "has no classes, but")]
)
def test_held_out_images_of_no_known_class_are_one_sentence(conditional_run, tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        Trainer(conditional_run(**classes_in_folders(tmp_path / "data", train=["cat", "dog"], test=names)))


def test_a_split_that_says_minus_one_for_its_classes_is_one_sentence(conditional_run, tmp_path):
    images = [Image.new("L", (28, 28), 80 * i) for i in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    split = [
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        for labels in ([0, 1, 0], [-1, -1, -1])
    ]
    datasets.DatasetDict({"train": split[0], "test": split[1]}).save_to_disk(str(tmp_path / "data"))
    settings = {"dataset_name": str(tmp_path / "data"), "train_split": "train", "validation_split": "test"}
    with pytest.raises(ValueError, match="has a class '-1', which the training data do not have"):
        Trainer(conditional_run(**settings, resolution=28))


def test_a_network_of_diffusers_from_a_file_gets_a_null_class(conditional_run, tmp_path):
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "norm_num_groups": 4,
    }
    (tmp_path / "unet.json").write_text(json.dumps(config))
    trainer = Trainer(conditional_run(model=str(tmp_path / "unet.json"), model_options=None))
    assert trainer.network.config.num_class_embeds == 11


def test_a_text_encoder_of_half_precision_is_trained_in_full(tmp_path):
    tokenizer = train_tokenizer(["a red square"], 16)
    small_text_encoder(tokenizer).half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_text_encoder(str(tmp_path), 16)[0].dtype == torch.float32


@pytest.mark.parametrize("broken", ["image", "grey"])
def test_a_row_with_an_unreadable_image_on_disk_is_replaced_whole(conditional_run, captioned, tmp_path, broken):
    """Both images are replaced by those of one row, and cropped and mirrored alike."""
    rng = np.random.default_rng(0)
    table = {"image": [], "grey": []}
    for _ in range(6):
        image = Image.fromarray(rng.integers(0, 256, (8, 12), dtype=np.uint8))
        for name in table:
            path = tmp_path / f"{name}{len(table[name])}.png"
            image.save(path)
            table[name].append({"bytes": path.read_bytes(), "path": None})
    table[broken][2] = {"bytes": b"broken", "path": None}
    features = datasets.Features(dict.fromkeys(table, datasets.Image()))
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(table, features=features)}).save_to_disk(
        str(tmp_path / "data")
    )
    arguments = captioned_run(
        conditional_run,
        str(tmp_path / "data"),
        validation_split=None,
        condition="image",
        condition_image_column="grey",
        max_memory_dataset_gb=1e-9,
        random_flip=True,
    )
    batch = Trainer(arguments).train_dataset.__getitems__([(i, epoch) for epoch in range(5) for i in range(6)])
    assert batch["index"].tolist() == [0, 1, 3, 3, 4, 5] * 5
    assert torch.equal(batch["samples"], batch["condition"])


def test_a_folder_without_classes_is_one_sentence(conditional_run, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="condition class needs classes"):
        Trainer(conditional_run(train_data_dir=str(tmp_path), train_split="train", resolution=28))


@pytest.mark.slow
def test_the_script_under_torchrun_trains_on_two_processes_as_one_does(conditional_run, environment, tmp_path):
    one, two = (
        conditional_run(train_batch_size=8 // n, logging_steps=1, output_dir=str(tmp_path / f"on{n}")) for n in (1, 2)
    )
    train(one)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(two.to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*torchrun, str(ROOT / "train" / "train_conditional.py"), "--recipe", str(recipe)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = []
    for arguments in (one, two):
        losses.append([record["loss"] for record in records_of(arguments.output_dir) if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_conditions_stay_when_a_run_outlasts_its_num_epochs(conditional_run):
    """`max_train_steps` may take more epochs than `num_epochs`, which then ends nothing."""
    trainer = Trainer(conditional_run(condition_dropout=0.0, num_epochs=1))
    assert not trainer.conditioning.dropped(0, 7, 64).any()


class Recorded:
    """A pipeline that keeps the arguments of its calls."""

    def __init__(self, pipeline):
        self.pipeline, self.calls = pipeline, []

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.pipeline(**arguments)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"condition": "text"}, "prompt"), ({"condition": "image", "image_condition": "colorization"}, "image")],
)
def test_samples_are_measured_with_the_conditions_of_real_images(
    conditional_run, captioned, settings, argument, tmp_path, monkeypatch
):
    ImageClassifier(3, 2, block_channels=(4,)).save_pretrained(tmp_path / "classifier")
    features = str(tmp_path / "classifier")
    measured = {"features": features, "evaluation_size": 3, "guidance_scale": 2.0, "ddpm_num_inference_steps": 1}
    arguments = captioned_run(conditional_run, captioned, **settings, **measured, max_train_steps=1)
    train(arguments)
    record = next(record for record in records_of(arguments.output_dir) if "frechet_distance" in record)
    assert (record["evaluation_samples"], record["evaluation_guidance_scale"]) == (3, 2.0)

    pipeline = Recorded(DiffusionPipeline.from_pretrained(arguments.output_dir))
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: pipeline)
    words = ["--features", features, "--dataset_name", captioned, "--image_column", "image", "--guidance_scale", "2"]
    output = ["--output", str(tmp_path / "report.json")]
    sizes = ["--num_images", "8", "--batch_size", "5", "--num_inference_steps", "1"]
    assert main(["evaluate", "--model", "recorded", *words, *sizes, *output]) == 0
    assert [(call["batch_size"], call["guidance_scale"]) for call in pipeline.calls] == [(5, 2.0), (3, 2.0)]
    given = [value for call in pipeline.calls for value in call[argument]]
    if argument == "prompt":
        assert sorted(given[:6]) == sorted(f"a {name} square" for name in COLOURS for _ in range(2))
        assert given[6:] == given[:2]  # of six real images
    else:
        assert {value.shape for value in given} == {(3, 8, 8)}


@pytest.mark.parametrize(
    ("settings", "data", "sentence"),
    [
        ({"condition": "image", "condition_image_column": "grey"}, None, "images from a column of their own"),
        ({"condition": "text"}, "embedded", "name the caption_column"),
    ],
)
def test_data_without_the_condition_are_refused_before_features_are_computed(
    conditional_run, captioned, settings, data, sentence, tmp_path, capsys, monkeypatch
):
    arguments = captioned_run(conditional_run, captioned, **settings, max_train_steps=1)
    train(arguments)
    monkeypatch.setattr(evaluate_command, "extract", lambda *_: pytest.fail("Features were computed."))
    ImageClassifier(3, 2, block_channels=(4,)).save_pretrained(tmp_path / "classifier")
    words = ["--model", arguments.output_dir, "--features", str(tmp_path / "classifier"), "--num_images", "2"]
    assert main(["evaluate", *words, "--dataset_name", data or captioned, "--image_column", "image"]) == 1
    assert sentence in capsys.readouterr().err


def test_a_text_condition_that_is_prepared_again_forgets_earlier_captions():
    condition, data = TextCondition(), SimpleNamespace(captions=["a red square", "a blue square"])
    batch = {"samples": torch.zeros(1, 3, 8, 8), "index": torch.tensor([0])}
    read = []
    for _ in range(2):
        condition.prepare(data)
        ids = condition.inputs(batch, data, torch.tensor([False]), torch.Generator(), 0)["input_ids"]
        read.append(condition.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
        data.captions = data.captions[::-1]
    assert read == ["a red square", "a blue square"]


def test_classes_of_held_out_texts_must_be_those_of_the_classifier(captioned, tmp_path):
    names = {"0": "red", "1": "green"}
    ImageClassifier(3, 2, block_channels=(4,), id2label=names).save_pretrained(tmp_path / "classifier")
    data = load_image_data(captioned, split="test", image_column="image")
    data.labels, data.label_names = torch.tensor([0, 1] * 3), ["green", "red"]
    with pytest.raises(ValueError, match="Class 0 is 'red' for the classifier and 'green' for the held-out data"):
        SampleEvaluation(
            Accelerator(cpu=True), data, "test", TextCondition(), {}, classifier=str(tmp_path / "classifier"), size=2
        )
