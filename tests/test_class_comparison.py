"""Samplers compared class by class on a perfect network: the original Langevin rule fails, the repaired ones do not."""

import csv

import corners
import pytest
import torch
from PIL import Image

from diffusers_ext import ImageClassifier
from diffusers_ext.cli import compare as compare_command
from diffusers_ext.cli import main
from diffusers_ext.evaluation.class_comparison import compare_classes
from diffusers_ext.evaluation.comparison import timed_samples
from diffusers_ext.schedulers.registry import SamplerChoice


@pytest.fixture
def perfect(monkeypatch):
    pipeline = corners.perfect_pipeline()
    monkeypatch.setattr(compare_command, "load_pipeline", lambda *_: pipeline)
    return pipeline


def rows_of(folder):
    with (folder / "comparison.csv").open() as file:
        return {(row["sampler"], float(row["guidance_scale"])): row for row in csv.DictReader(file)}


def test_one_command_shows_the_failure_and_its_repair(perfect, corners_data, corners_classifier, tmp_path, capsys):
    samplers = ["langevin-original:50", "langevin:12x6", "reverse-sde:50", "ddim:20"]
    flags = ["--samplers", *samplers, "--guidance_scales", "0.1", "1", "--num_images", "8"]
    judged = ["--classifier", corners_classifier, "--train_data_dir", corners_data, "--output_dir", str(tmp_path)]
    assert main(["compare", "--model", "perfect", *flags, *judged]) == 0
    rows = rows_of(tmp_path)
    assert list(rows) == [
        (name, scale) for name in ("langevin-original", "langevin x6", "reverse-sde", "ddim") for scale in (0.1, 1.0)
    ]
    frechet = {key: float(row["frechet_distance"]) for key, row in rows.items()}
    accuracy = {key: float(row["class_accuracy"]) for key, row in rows.items()}
    for name in ("langevin x6", "reverse-sde", "ddim"):
        assert accuracy[name, 1.0] > 0.9
        assert accuracy[name, 0.1] < 0.75  # nine tenths unconditional
        assert frechet[name, 1.0] < 0.5 * frechet["langevin-original", 1.0]
    assert {row["num_images"] for row in rows.values()} == {"32"}
    assert Image.open(tmp_path / "comparison.png").width > 500
    printed = capsys.readouterr().out
    assert printed.count("class accuracy") == 8
    assert "real images: Frechet" in printed


def test_evaluations_are_counted_for_each_image(perfect, corners_classifier, tmp_path):
    flags = ["--samplers", "ddim:6", "langevin:3", "--inner_steps", "2", "--guidance_scales", "0", "1", "2"]
    few = ["--class_labels", "2", "corner0", "--num_images", "3", "--batch_size", "4"]
    words = [
        "compare",
        "--model",
        "perfect",
        *flags,
        *few,
        "--classifier",
        corners_classifier,
        "--output_dir",
        str(tmp_path),
    ]
    assert main(words) == 0
    rows = rows_of(tmp_path)
    counts = {key: int(row["evaluations"]) for key, row in rows.items()}
    assert counts == {
        ("ddim", 0.0): 6,
        ("ddim", 1.0): 6,
        ("ddim", 2.0): 12,
        ("langevin x2", 0.0): 7,
        ("langevin x2", 1.0): 7,
        ("langevin x2", 2.0): 14,
    }
    assert {row["num_images"] for row in rows.values()} == {"6"}
    assert {row["frechet_distance"] for row in rows.values()} == {""}  # there were no real images


def test_without_a_classifier_there_are_pictures_only(perfect, tmp_path):
    words = ["--samplers", "ddim", "--lengths", "2", "4", "--num_images", "1", "--output_dir", str(tmp_path)]
    assert main(["compare", "--model", "perfect", *words]) == 0
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["length"], row["class_accuracy"]) for row in rows] == [("2", ""), ("4", "")]
    assert (tmp_path / "comparison.png").exists()


def test_classes_beyond_the_names_are_drawn_by_their_number(perfect, tmp_path):
    perfect.register_to_config(id2label={"0": "first"})
    of_two = {"0": "first", "1": "second"}
    ImageClassifier(in_channels=1, num_classes=2, block_channels=(8,), id2label=of_two).save_pretrained(
        tmp_path / "two"
    )
    flags = ["--samplers", "ddim:2", "--class_labels", "0", "3", "--num_images", "1", "--output_dir", str(tmp_path)]
    assert main(["compare", "--model", "perfect", "--classifier", str(tmp_path / "two"), *flags]) == 0
    assert (tmp_path / "comparison.png").is_file()


def test_batches_change_nothing_for_samplers_without_noise(perfect):
    latents, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 4
    whole, parts = (
        compare_classes(perfect, latents, labels, [SamplerChoice("ddim", 5)], [], [1.5], batch_size=size)[1][0].images
        for size in (6, 4)
    )
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_pipelines_own_scheduler_comes_back(perfect):
    own = perfect.scheduler
    with pytest.raises(ValueError, match="num_inference_steps"):
        timed_samples(
            perfect, SamplerChoice("ddim").build(own.config), torch.randn(1, 1, 8, 8), 0, num_inference_steps=0
        )
    assert perfect.scheduler is own


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--samplers", "magic"], "samplers takes names among ddim, "),
        (["--samplers", "ddim:5x2"], "samplers takes a number of inner steps for predictor-corrector, langevin, "),
        (["--inner_steps", "0"], "inner_steps must be at least 1, got 0"),
        (["--class_labels", "4"], "class_labels takes all, 0 to 3, got '4'"),
        (["--guidance_scales", "-1"], "guidance_scale"),
    ],
)
def test_wrong_words_are_one_sentence(perfect, tmp_path, capsys, words, sentence):
    assert main(["compare", "--model", "perfect", "--output_dir", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
