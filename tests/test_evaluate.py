"""Evaluating a pipeline by its samples: a perfect network gets what real images get, and a poor one does not."""

import csv
import json

import corners
import pytest
import torch
from PIL import Image

from diffusers_ext import ImageClassifier
from diffusers_ext.cli import evaluate as evaluate_command
from diffusers_ext.cli import main
from diffusers_ext.evaluation.features import FeatureSet, compare_sets, evenly_spread, extract
from diffusers_ext.hub.averages import Reconstruction, weights_of
from diffusers_ext.pipelines.batched_generation import generate_images
from diffusers_ext.schedulers.registry import SamplerChoice


@pytest.fixture
def perfect(monkeypatch):
    pipeline = corners.perfect_pipeline()
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: pipeline)
    return pipeline


@pytest.fixture
def data(corners_data):
    return corners_data


@pytest.fixture
def classifier(corners_classifier):
    return corners_classifier


@pytest.fixture
def run(data, classifier, tmp_path):
    def evaluate(*words):
        output = tmp_path / "report.json"
        flags = ["--model", "perfect", "--classifier", classifier, "--train_data_dir", data, "--output", str(output)]
        steps = [] if "--num_inference_steps" in words else ["--num_inference_steps", "20"]
        assert main(["evaluate", *flags, "--num_images", "80", *steps, *words]) == 0
        return json.loads(output.read_text())

    return evaluate


def test_samples_of_a_perfect_network_measure_like_real_images(perfect, run, capsys):
    report = run("--sampler", "reverse-sde:100")
    samples, real = report["measures"]["samples"], report["measures"]["real_images"]
    assert samples["class_accuracy"] > 0.97
    assert real["class_accuracy"] > 0.97
    assert samples["frechet_distance"] < 3 * real["frechet_distance"]
    assert samples["diversity"] == pytest.approx(1, abs=0.2)
    assert min(samples[name] for name in ("precision", "recall", "coverage")) > 0.7
    printed = capsys.readouterr().out
    assert "80 samples of perfect (weights: unknown)" in printed
    assert f"{100 * samples['class_accuracy']:.2f} %" in printed


def test_a_report_says_what_it_was_taken_with(perfect, run, classifier, capsys):
    report = run("--sampler", "ddpm", "--guidance_scale", "1.5", "--seed", "3", "--class_labels", "1", "corner3")
    assert report["samples"]["sampler"] == "ddpm"
    assert report["samples"]["scheduler"] == "AncestralDDPMScheduler"
    assert report["samples"]["guidance_scale"] == 1.5
    assert report["samples"]["seed"] == 3
    assert report["samples"]["class_labels"] == [1, 3]
    assert report["real_images"] == {"data": report["real_images"]["data"], "split": "test", "num_images": 80}
    assert report["baseline"]["split"] == "train"  # the test split has 80 of these classes, which is not twice 80
    assert "The real-data baseline is of another split, for test has too few such images" in capsys.readouterr().out
    assert "% right on 160 (test)" in report["classifier"]["description"]


def test_without_guidance_the_class_is_left_to_chance(perfect, run):
    report = run("--guidance_scale", "0")
    assert report["measures"]["samples"]["class_accuracy"] == pytest.approx(0.25, abs=0.15)
    assert report["measures"]["samples"]["diversity"] > 1.5
    assert report["measures"]["real_images"]["class_accuracy"] > 0.97


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 25), ("ddim:7", 7)])
def test_samples_take_25_steps_unless_told(perfect, run, sampler, steps):
    report = run("--num_inference_steps", "none", "--sampler", sampler)
    assert report["samples"]["num_inference_steps"] == steps


def test_steps_outside_the_interval_are_not_guided(perfect, run, capsys):
    report = run(
        "--guidance_scale", "0", "--guidance_interval", "0.5", "0.5"
    )  # no step: conditional, not unconditional
    assert report["measures"]["samples"]["class_accuracy"] > 0.9
    assert report["samples"]["guidance_interval"] == [0.5, 0.5]
    assert "guidance 0.0 from 50 % to 50 % of the steps" in capsys.readouterr().out


def test_the_baseline_is_of_other_images_of_the_split_where_it_has_enough(perfect, run, capsys):
    report = run("--num_images", "40")
    assert "another split" not in capsys.readouterr().out
    assert report["baseline"] == {**report["real_images"], "num_images": 40}
    assert report["measures"]["real_images"]["frechet_distance"] > 0


def test_one_image_is_too_few_for_two_sets(perfect, classifier, tmp_path, capsys):
    corners.write_files(tmp_path, train=4, test=4)
    flags = ["--model", "perfect", "--train_data_dir", str(tmp_path), "--classifier", classifier, "--num_images", "1"]
    assert main(["evaluate", *flags, "--baseline_split", "test", "--class_labels", "0"]) == 1
    assert "test has one image for the samples and for the baseline, which need one each" in capsys.readouterr().err


def test_a_poor_sampler_is_found_out(perfect, run):
    good, poor = run("--sampler", "reverse-sde:50"), run("--sampler", "langevin-original:100")
    measures = [report["measures"]["samples"] for report in (good, poor)]
    assert measures[0]["frechet_distance"] < 0.5 * measures[1]["frechet_distance"]


def test_a_sweep_needs_two_samples_of_a_class(perfect, data, classifier, tmp_path, capsys):
    flags = ["--model", "perfect", "--train_data_dir", data, "--classifier", classifier, "--output_dir", str(tmp_path)]
    assert main(["sweep", *flags, "--num_images", "1", "--num_inference_steps", "1"]) == 1
    assert "num_images 1 gives one of each" in capsys.readouterr().err


def test_a_sweep_needs_a_condition(perfect, data, classifier, tmp_path, capsys):
    perfect.unet.config.num_class_embeds = None
    flags = ["--model", "plain", "--train_data_dir", data, "--classifier", classifier, "--output_dir", str(tmp_path)]
    assert main(["sweep", *flags, "--num_images", "4", "--num_inference_steps", "1"]) == 1
    assert "A sweep needs a conditional network, and that of 'plain' has no condition." in capsys.readouterr().err


def test_sweep_draws_and_tells_what_guidance_gives_and_takes(perfect, data, classifier, tmp_path):
    flags = ["--model", "perfect", "--classifier", classifier, "--train_data_dir", data, "--output_dir", str(tmp_path)]
    few = ["--num_images", "40", "--num_inference_steps", "10", "--guidance_scales", "3", "0", "1"]
    assert main(["sweep", *flags, *few]) == 0
    with (tmp_path / "sweep.csv").open() as file:
        *rows, real = csv.DictReader(file)
    assert [row["guidance_scale"] for row in rows] == ["0.0", "1.0", "3.0"]
    accuracy, diversity = ([float(row[name]) for row in rows] for name in ("class_accuracy", "diversity"))
    assert accuracy[0] < 0.6 < 0.95 < accuracy[1]
    assert diversity[0] > diversity[1]
    assert float(real["class_accuracy"]) > 0.95
    assert Image.open(tmp_path / "sweep.png").width > 600


# the pieces


def test_any_part_of_the_real_images_has_the_classes_in_their_proportions():
    labels = torch.tensor([2] * 60 + [0] * 20 + [1] * 40)
    order = evenly_spread(labels)
    assert sorted(order.tolist()) == list(range(120))
    for part in order.split(30):
        counts = labels[part].bincount(minlength=3)
        assert (counts - torch.tensor([5, 10, 15])).abs().max() <= 1


def test_features_of_any_module():
    images = corners.draw(6, 0)[0]
    found = extract([images[:4], images[4:]], torch.nn.Flatten())
    assert torch.equal(found.features, images.flatten(1))
    assert found.predicted is None
    assert found.accuracy() is None
    assert "class_accuracy" not in compare_sets(found, found)
    with pytest.raises(ValueError, match=r"labels must have shape \(6,\), one an image, got \(5,\)"):
        extract([images], torch.nn.Flatten(), labels=torch.zeros(5))


def test_the_classifiers_own_features_cost_one_pass(classifier):
    network = ImageClassifier.from_pretrained(classifier)
    calls = []
    network.conv_in.register_forward_hook(lambda *_: calls.append(1))
    images, labels = corners.draw(8, 5)
    found = extract([images], network, network, labels)
    assert len(calls) == 1
    assert found.accuracy() == 1
    assert found.features.shape == (8, 16)
    other = extract([images], torch.nn.Flatten(), network, labels)
    assert torch.equal(other.predicted, found.predicted)


def test_class_measures_need_a_class_in_common():
    first = FeatureSet(torch.randn(10, 3), labels=torch.zeros(10))
    second = FeatureSet(torch.randn(10, 3), labels=torch.ones(10))
    assert "diversity" in compare_sets(first, first)
    assert "diversity" not in compare_sets(first, second)


def test_images_come_in_batches_with_their_labels(perfect):
    labels = torch.tensor([0, 1, 2, 3, 3])
    images = generate_images(perfect, 5, labels, batch_size=2, num_inference_steps=20)
    nearest = torch.cdist(images.flatten(1), corners.templates().flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, labels)
    again = generate_images(perfect, 5, labels, batch_size=2, num_inference_steps=20)
    assert torch.equal(images, again)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), one an image, got \(5,\)"):
        generate_images(perfect, 4, labels)


def test_weights_are_told_where_the_recipe_tells(tmp_path):
    assert weights_of(str(tmp_path)) == "unknown"
    for use_ema, expected in ((True, "EMA"), (False, "raw")):
        (tmp_path / "recipe.yaml").write_text(f"use_ema: {str(use_ema).lower()}\n")
        assert weights_of(str(tmp_path)) == expected
    Reconstruction(0.15, 96, 0.00123, 16, [0.05, 0.1]).write(tmp_path)
    assert weights_of(str(tmp_path)) == (
        "power-function average of sigma_rel 0.15 at step 96, reconstructed from 16 snapshots with an error of 0.0012"
    )
    (tmp_path / "average.json").write_text('{"sigma": 1}')
    with pytest.raises(ValueError, match=r"average\.json' is not what `diffusers-ext ema` writes"):
        weights_of(str(tmp_path))


def test_sampler_choices():
    assert SamplerChoice.parse("ddim") == SamplerChoice("ddim", None, None)
    assert SamplerChoice.parse("langevin:30x5") == SamplerChoice("langevin", 30, 5)
    config = corners.perfect_pipeline().scheduler.config
    built = [SamplerChoice.parse(text).build(config) for text in ("langevin:30x5", "langevin-original", "reverse-sde")]
    assert [(s.config.rule, s.config.inner_steps) for s in built] == [
        ("langevin", 5),
        ("original", 1),
        ("reverse_sde", 1),
    ]
    for text in ("magic", "ddim:0", "ddim:10x3", "langevin:10x0", "ddim:"):
        with pytest.raises(ValueError, match="samplers takes"):
            SamplerChoice.parse(text)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classifier", "/nowhere"], "There is no classifier '/nowhere'"),
        (["--class_labels", "7"], "class_labels takes all, 0 to 3 or a name among corner0"),
        (["--sampler", "magic"], "got 'magic'"),
        (["--subsequence", "exp"], "subsequence has no effect on the saved sampler; it belongs to the samplers ddim"),
        (["--sampler", "unipc", "--subsequence", "exp"], "subsequence has no effect on sampler 'unipc'; it belongs to"),
        (["--num_images", "0"], "num_images must be at least 1, got 0"),
    ],
)
def test_wrong_words_are_one_sentence(perfect, data, classifier, capsys, words, sentence):
    assert main(["evaluate", "--model", "perfect", "--classifier", classifier, "--train_data_dir", data, *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error


def test_a_classifier_of_other_classes_or_channels_is_refused(perfect, data, classifier, capsys):
    flags = ["--model", "perfect", "--classifier", classifier, "--train_data_dir", data]
    perfect.register_to_config(id2label={"0": "somewhere else"})
    assert main(["evaluate", *flags]) == 1
    assert "Class 0 is 'corner0' for the classifier and 'somewhere else' for the pipeline" in capsys.readouterr().err
    perfect.unet.config.in_channels = 3
    assert main(["evaluate", *flags]) == 1
    assert "The classifier takes 1 channels, and the pipeline makes 3" in capsys.readouterr().err
