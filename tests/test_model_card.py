"""Model cards: what they say is read from the folder, their metadata are valid, their pictures are there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY_MODEL
from hub_server import TAGS
from huggingface_hub import ModelCard

from diffusers_ext import (
    AncestralDDPMScheduler,
    GenerationPipeline,
    SignalPipeline,
    SignalUNet1DModel,
    build_model,
    export,
    write_card,
)
from diffusers_ext.cli import main
from diffusers_ext.hub.averages import Reconstruction
from diffusers_ext.hub.model_card import TEMPLATE, card_text, make_card

CARDS = [path for path in sorted((ROOT / "model_cards").glob("*.md")) if path.name != "TEMPLATE.md"]


@pytest.fixture
def folder(tmp_path):
    """An export with the records of a run."""
    pipeline = GenerationPipeline(build_model("small", **TINY_MODEL), AncestralDDPMScheduler())
    export(pipeline, tmp_path / "run")
    recipe = {"dataset_name": "embedded", "train_batch_size": 32, "use_ema": True, "learning_rate": 0.002}
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    records = [
        {"step": 10, "epoch": 0.1, "seconds": 30.0, "loss": 0.5, "images_per_second": 100.0},
        {"step": 10, "epoch": 0.1, "seconds": 31.0, "validation_loss": 0.25},
    ]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 20, "los']))
    (tmp_path / "run" / "figures").mkdir()
    (tmp_path / "run" / "figures" / "samples.png").write_bytes(b"a picture")
    return tmp_path / "run"


def test_says_what_the_folder_tells(folder):
    assert write_card(folder, "somebody/digits", license="mit", tags=["mine"], limits=["It can't count."])
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.license, data.library_name, data.datasets) == ("mit", "diffusers", ["ylecun/mnist"])
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"diffusers_ext", "unconditional", "mine"} <= set(data.tags)
    figures = {result.metric_name: result.metric_value for result in data.eval_results}
    assert figures == {"loss (l2, epsilon)": 0.5, "validation loss (l2, epsilon)": 0.25}
    parameters = build_model("small", **TINY_MODEL).num_parameters()
    for words in (f"{parameters:,} parameters", "28x28", "It can't count.", "(figures/samples.png)", "100 images/s"):
        assert words in card.text
    assert '"somebody/digits", custom_pipeline="somebody/digits", trust_remote_code=True' in card.text
    assert next(path.stem for path in folder.glob("diffusers_ext_*.py")) in card.text  # for folders


def test_a_card_of_signals_speaks_of_signals(tmp_path):
    network = SignalUNet1DModel(
        sample_size=32, base_channels=8, channel_multipliers=(1,), norm_num_groups=4, attention_heads=2
    )
    pipeline = SignalPipeline(network, AncestralDDPMScheduler(), signal={"sample_rate": 8000})
    export(pipeline, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump({"train_data_dir": "sounds", "train_batch_size": 4}))
    record = {"step": 10, "epoch": 0.1, "seconds": 30.0, "loss": 0.5, "images_per_second": 100.0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record))
    assert write_card(tmp_path / "run", "somebody/sounds")
    text = ModelCard.load(tmp_path / "run" / "README.md").text
    for words in ("signals of 32 frames at 8,000 Hz, 1 channel", "audios = pipe(batch_size=4", ".audios", "signals/s"):
        assert words in text
    assert "image" not in text.replace("unconditional-image-generation", "").lower()


def test_puts_an_evaluation_beside_its_baseline(folder):
    report = {
        "samples": {"num_images": 100, "weights": "EMA", "sampler": "ddim", "num_inference_steps": 25, "seed": 0}
        | {"guidance_scale": 2.0, "guidance_interval": [0.2, 0.8]},
        "real_images": {"num_images": 100, "split": "test"},
        "baseline": {"num_images": 90, "split": "train"},
        "classifier": {"description": "99 % right on 1,000 test images"},
        "measures": {"samples": {"class_accuracy": 0.9, "recall": 0.5}, "real_images": {"class_accuracy": 0.99}},
    }
    (folder / "evaluation.json").write_text(json.dumps(report))
    card = make_card(folder, "somebody/digits")
    assert "| class accuracy | 0.9 (real images: 0.99) |" in card.text
    assert "99 % right" in card.text
    assert "25 steps, guidance 2.0 from 20 % to 80 % of the steps, seed 0" in card.text
    assert {"class_accuracy", "recall"} <= {result.metric_type for result in card.data.eval_results}
    (folder / "evaluation.json").write_text('{"measures": 1}')
    with pytest.raises(ValueError, match="is not a report of `diffusers-ext evaluate`"):
        make_card(folder, "somebody/digits")


def test_says_which_average_the_weights_are(folder):
    card = make_card(folder, "somebody/digits").text
    assert "| weights | exponential moving average |" in card
    assert "fixed noise, EMA weights |" in card
    recipe = {"use_ema": True, "ema_kind": "power"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "| weights | power-function average |" in make_card(folder, "somebody/digits").text
    average = Reconstruction(0.15, 96, 0.00123, 16, [0.05, 0.1])
    average.write(folder)
    card = make_card(folder, "somebody/digits").text
    assert f"| weights | {average} |" in card
    assert "fixed noise, the run's own EMA weights |" in card


def test_says_nothing_of_this_machine(folder):
    recipe = {"train_data_dir": str(folder / "private" / "photos.zip")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = make_card(folder, "somebody/photos")
    assert "photos.zip" in card.text
    assert "private" not in str(card)
    assert card.data.datasets is None


def test_a_card_somebody_took_over_is_left_alone(folder):
    assert write_card(folder, "somebody/digits")
    assert write_card(folder, "somebody/digits")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert not write_card(folder, "somebody/digits")
    assert card_text(folder, "another/name") == "---\nlicense: mit\n---\n# Mine\n"


def test_a_pushed_card_names_the_repository(folder):
    write_card(folder, "user/run")
    text = card_text(folder, "another/name")
    assert text.count('"another/name"') == 4
    assert "user/run" not in text


def test_command_copies_a_card_with_its_pictures(folder, tmp_path, capsys):
    output = tmp_path / "cards" / "digits.md"
    assert main(["card", "--model", str(folder), "--repo_id", "a/b", "--output", str(output), "--title", "Digits"]) == 0
    assert "# Digits\n" in output.read_text()
    assert (tmp_path / "cards" / "pictures" / "digits-samples.png").read_bytes() == b"a picture"
    assert main(["card", "--model", str(tmp_path)]) == 1
    assert "model_index.json is missing" in capsys.readouterr().err


def test_command_makes_the_folder_of_a_card_without_pictures(folder, tmp_path):
    (folder / "figures" / "samples.png").unlink()
    output = tmp_path / "new" / "folder" / "digits.md"
    assert main(["card", "--model", str(folder), "--output", str(output)]) == 0
    assert output.is_file()
    assert not (output.parent / "pictures").exists()


def test_command_exports_a_run_with_its_records(folder, tmp_path, capsys):
    assert main(["export", "--model", str(folder), "--output_dir", str(tmp_path / "out"), "--repo_id", "a/b"]) == 0
    assert {"recipe.yaml", "metrics.jsonl", "figures", "README.md"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert '"a/b"' in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", "--model", str(folder), "--output_dir", str(folder)]) == 1
    assert "must be another folder" in capsys.readouterr().err


def test_the_template_in_sight_is_the_one_in_use():
    assert (ROOT / "model_cards" / "TEMPLATE.md").resolve() == TEMPLATE


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.name)
def test_cards_of_this_project_are_valid_and_whole(path):
    card = ModelCard.load(path)
    assert card.data.license
    assert card.data.pipeline_tag in TAGS
    assert card.data.eval_results
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text):
        assert Path(path.parent, picture).is_file()
    assert "/work" not in str(card)
    assert "/tmp" not in str(card)
