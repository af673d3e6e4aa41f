"""Evaluation of samples during training: right, the same on any number of processes, and without effect on it."""

import json

import corners
import pytest
import torch
from accelerate import Accelerator
from conftest import records_of
from diffusers import DiffusionPipeline
from local_processes import run_processes
from safetensors.torch import load_file

from diffusers_ext.conditions.registry import CONDITIONS
from diffusers_ext.data.images import load_image_data
from diffusers_ext.pipelines.batched_generation import as_tensor
from diffusers_ext.pipelines.guidance import GuidedNetwork
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.sample_evaluation import SampleEvaluation


@pytest.fixture
def run(tiny_run, corners_data):
    """Settings of a run on the four corners under their classes."""

    def make(name, **overrides):
        folder = tiny_run().output_dir
        corner = {"train_data_dir": corners_data, "train_split": "train", "validation_split": "test", "resolution": 8}
        few = {"evaluation_size": 60, "validation_steps": 100, "checkpointing_steps": 100, "guidance_scale": 2.0}
        settings = {
            **vars(tiny_run()),
            "condition": "class",
            **corner,
            **few,
            "output_dir": f"{folder}-{name}",
            **overrides,
        }
        return TrainingArguments(**settings)

    return make


def evaluations(arguments):
    return [record for record in records_of(arguments.output_dir) if "frechet_distance" in record]


def test_it_is_measured_every_so_many_steps_and_changes_no_weight(run, corners_classifier):
    judged, alone = run("judged", classifier=corners_classifier, evaluation_steps=4), run("alone")
    for arguments in (judged, alone):
        train(arguments)
    records = evaluations(judged)
    assert [record["step"] for record in records] == [4, 6]
    assert evaluations(alone) == []
    for record in records:
        assert (record["evaluation_samples"], record["evaluation_split"]) == (60, "test")
        assert record["evaluation_features"] == "the classifier's"
        assert record["evaluation_scheduler"] == "SubsequenceDDIMScheduler"
        assert (record["evaluation_num_inference_steps"], record["evaluation_guidance_scale"]) == (2, 2.0)
        assert (record["evaluation_weights"], record["evaluation_weights_step"]) == ("EMA", record["step"])
        assert {f"{name}_real" for name in ("kernel_distance", "recall", "coverage", "diversity")} < record.keys()
        assert record["class_accuracy_real"] > 0.95
        assert 0 <= record["class_accuracy"] < 0.6  # hardly trained
        assert record["frechet_distance"] > 3 * record["frechet_distance_real"]
    weights = [load_file(f"{a.output_dir}/unet/diffusion_pytorch_model.safetensors") for a in (judged, alone)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_samples_that_are_no_numbers_are_told_and_do_not_stop_the_run(run, corners_classifier, monkeypatch):
    def broken(self, noise, *_, **__):
        return torch.where(torch.arange(len(noise)).reshape(-1, 1, 1, 1) == 3, torch.nan, noise)

    monkeypatch.setattr(GuidedNetwork, "__call__", broken)
    train(arguments := run("broken", classifier=corners_classifier, evaluation_steps=4))
    assert evaluations(arguments) == []
    records = [record for record in records_of(arguments.output_dir) if "evaluation_samples" in record]
    assert [record["evaluation_samples_not_finite"] for record in records] == [2, 2]  # one a batch
    with open(f"{arguments.output_dir}/metrics.jsonl") as file:
        assert "2 samples to be measured hold pixels that are no numbers" in file.read()
    assert DiffusionPipeline.from_pretrained(arguments.output_dir)


def test_under_early_stopping_the_last_evaluation_judges_what_is_saved(run, corners_classifier):
    worse = {"learning_rate": 0.5, "max_grad_norm": 1e9, "lr_scheduler": "constant", "use_ema": False}
    early = {"validation_steps": 1, "early_stopping_patience": 2, "checkpointing_steps": 1, "max_train_steps": 200}
    trainer = Trainer(
        arguments := run("stopped", classifier=corners_classifier, evaluation_steps=100, **early, **worse)
    )
    pipeline = trainer.train()
    record, best = evaluations(arguments)[-1], trainer.state.global_step - 2
    assert record["step"] == trainer.state.global_step
    assert (record["evaluation_weights"], record["evaluation_weights_step"]) == ("raw", best)
    again = trainer.run.evaluation(pipeline)
    assert {name: record[name] for name in again} == pytest.approx(again)
    last = load_file(f"{arguments.output_dir}/checkpoint-{record['step']}/model.safetensors")
    assert any(not torch.equal(value, last[name]) for name, value in pipeline.unet.state_dict().items())
    arguments.resume_from_checkpoint = "latest"
    train(arguments)
    assert len(evaluations(arguments)) == 1  # these weights have been judged


def test_the_last_record_is_of_what_is_saved_though_it_was_judged_before(run, corners_classifier):
    worse = {"learning_rate": 0.5, "max_grad_norm": 1e9, "lr_scheduler": "constant", "use_ema": False}
    early = {"validation_steps": 1, "early_stopping_patience": 1, "max_train_steps": 200}
    trainer = Trainer(arguments := run("stopped", classifier=corners_classifier, evaluation_steps=1, **early, **worse))
    trainer.train()
    steps = [(record["step"], record["evaluation_weights_step"]) for record in evaluations(arguments)]
    best = trainer.state.global_step - 1
    assert steps == [*((step, step) for step in range(1, best + 2)), (best + 1, best)]


@pytest.fixture
def evaluation(run, corners_data, corners_classifier):
    def make(condition="class", **overrides):
        accelerator = Accelerator(cpu=True)
        data = load_image_data(train_data_dir=corners_data, split="test")
        settings = {"classifier": corners_classifier, "num_inference_steps": 20, "size": 60, **overrides}
        options = {"guidance_scale": 1.0} if condition else {}
        condition = CONDITIONS[condition]() if condition else None
        return SampleEvaluation(accelerator, data, "test", condition, options, **settings)

    return make


def test_a_perfect_network_is_found_to_be_one(evaluation):
    first, again = (evaluation()(corners.perfect_pipeline()) for _ in range(2))
    assert first == again
    assert first["class_accuracy"] > 0.97
    assert first["frechet_distance"] < 3 * first["frechet_distance_real"] + 0.02
    unasked = evaluation(condition=None)(corners.perfect_pipeline())
    assert "class_accuracy" not in unasked


class Counted:
    """A pipeline that counts the images it makes."""

    def __init__(self, pipeline):
        self.pipeline, self.images = pipeline, 0

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, batch_size, **arguments):
        self.images += batch_size
        return self.pipeline(batch_size=batch_size, **arguments)


def evaluate_share(rank, evaluation, folder):
    torch.set_num_threads(1)
    evaluation.accelerator = Accelerator(cpu=True)
    measures = evaluation(pipeline := Counted(corners.perfect_pipeline()))
    (folder / f"{rank}.json").write_text(json.dumps([measures, pipeline.images]))


def test_processes_share_the_work_and_find_the_same(evaluation, tmp_path):
    assert run_processes(2, evaluate_share, evaluation(), tmp_path) == 0
    (first, images), (second, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == pytest.approx(evaluation()(corners.perfect_pipeline()))
    assert (images, others) == (50, 10)


def test_other_features_with_a_classifier_and_without(evaluation, corners_classifier):
    pipeline = corners.perfect_pipeline()
    first, second, third = (
        evaluation(**settings)(pipeline)
        for settings in ({}, {"features": corners_classifier}, {"features": corners_classifier, "classifier": None})
    )
    names = [measures.pop("evaluation_features") for measures in (first, second, third)]
    assert names[0] == "the classifier's"
    assert names[1] == names[2]
    assert names[1].startswith("penultimate features of ")
    assert second == pytest.approx(first)
    alone = {name: value for name, value in first.items() if not name.startswith("class_accuracy")}
    assert third == pytest.approx(alone)


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_of_diffusers_pipelines_old_and_new(channels_last):
    images = torch.rand(2, 1, 4, 3)
    given = images.permute(0, 2, 3, 1).numpy() if channels_last else images
    assert torch.equal(as_tensor(given), images)


def test_the_size_is_bound_by_the_held_out_images(evaluation):
    assert evaluation(size=1000)(corners.perfect_pipeline())["evaluation_samples"] == 80


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"evaluation_steps": 5}, "evaluation_steps needs a classifier"),
        ({"classifier": "x", "validation_split": None}, "classifier needs a validation_split"),
        ({"features": "x", "validation_split": None}, "features needs a validation_split"),
        ({"classifier": "x", "evaluation_size": 0}, "evaluation_size must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(run, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        run("wrong", **overrides)


def test_a_classifier_that_is_not_there_is_one_sentence(run):
    with pytest.raises(ValueError, match="classifier '/nowhere' is no folder of a classifier"):
        Trainer(run("nowhere", classifier="/nowhere"))


def test_features_that_are_not_there_are_one_sentence(run):
    with pytest.raises(ValueError, match="There is no network '/nowhere'"):
        Trainer(run("nowhere", features="/nowhere"))


def test_a_classifier_of_other_channels_is_one_sentence(run, corners_classifier):
    with pytest.raises(ValueError, match="classifier takes images of 1 channels, and the data have 3"):
        Trainer(run("colour", classifier=corners_classifier, channels=3))
