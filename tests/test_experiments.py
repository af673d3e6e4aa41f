"""Experiments: studies are read, runs are neither repeated nor lost, failures stop nobody, one table."""

import csv
import json
import time

import pytest
import torch
from conftest import TINY_MODEL
from local_processes import start_program
from PIL import Image

from diffusers_ext import ExperimentManager
from diffusers_ext.cli import main
from diffusers_ext.experiments import StudyFailed, read_study
from diffusers_ext.training import TrainerCallback, TrainingInterrupted

TINY = {
    "train_split": "train[:32]",
    "model_options": json.dumps(TINY_MODEL),
    "train_batch_size": 8,
    "validation_size": 16,
    "validation_steps": 2,
    "max_train_steps": 4,
    "logging_steps": 2,
    "lr_warmup_steps": 0,
    "schedule": "cosine",
    "prediction_type": "v_prediction",
    "sampler": "ddim",
    "ddpm_num_inference_steps": 2,
    "eval_batch_size": 2,
    "logger": "none",
    "save_figures": False,
}
STUDY = """
output_dir: {folder}
settings:
  train_split: "train[:32]"
  model_options: {{base_channels: 8, channel_multipliers: [1, 2], norm_num_groups: 4}}
  train_batch_size: 8
  validation_size: 16
  max_train_steps: 2
  eval_batch_size: 2
  ddpm_num_inference_steps: 2
  lr_warmup_steps: 0
  logger: none
  save_figures: false
  learning_rate: 1e-3
{rest}
"""


def study(tmp_path, rest):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(folder=tmp_path / "out", rest=rest))
    return file


def table(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A manager that has run two experiments, one of them with two seeds, and its results."""
    manager = ExperimentManager(tmp_path_factory.mktemp("study"), report=lambda line: None)
    manager.add_experiment(note="slow", seeds=[0, 1], learning_rate=1e-4, **TINY)
    manager.add_experiment(learning_rate=5e-3, **TINY)
    return manager, manager.run_all()


def test_results_are_keyed_as_the_source_project_keys_them(finished):
    _, results = finished
    assert list(results) == ["Experiment_1", "Experiment_2"]
    first = results["Experiment_1"]
    assert len(first["train_losses"]) == 2
    assert len(first["val_losses"]) == 2
    assert first["note"] == "slow"
    assert all(0 < loss < 10 for loss in first["train_losses"] + first["val_losses"])


def test_mean_and_standard_error_are_over_the_seeds(finished):
    _, results = finished
    ends = [run.val_losses[-1] for run in results["Experiment_1"]["runs"]]
    mean, error = results["Experiment_1"]["summary"]["last_val_loss"]
    assert ends[0] != ends[1]
    assert mean == pytest.approx(sum(ends) / 2)
    assert error == pytest.approx(abs(ends[0] - ends[1]) / 2)


def test_one_table_one_figure(finished):
    manager, results = finished
    rows = table(manager.output_dir)
    assert [(row["experiment"], row["seed"], row["status"]) for row in rows] == [
        ("Experiment_1", "0", "finished"),
        ("Experiment_1", "1", "finished"),
        ("Experiment_2", "0", "finished"),
    ]
    assert float(rows[2]["learning_rate"]) == 5e-3
    assert float(rows[2]["images_per_second"]) > 0
    assert float(rows[2]["best_val_loss"]) == min(results["Experiment_2"]["val_losses"])
    text = (manager.output_dir / "results.md").read_text()
    assert "±" in text
    assert "slow" in text
    with Image.open(manager.output_dir / "results.png") as picture:
        assert picture.width > 800


def test_tensorboard_has_the_hyperparameters(finished):
    manager, _ = finished
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = [path for path in (manager.output_dir / "tensorboard").iterdir() if path.is_dir()]
    assert len(folders) == 3
    events = EventAccumulator(str(folders[0])).Reload()
    assert "result/last_val_loss" in events.Tags()["scalars"]
    assert events.PluginTagToContent("hparams")


def test_a_finished_run_is_never_repeated(finished, tmp_path):
    manager, _results = finished
    lines = []
    again = ExperimentManager(manager.output_dir, report=lines.append)
    again.add_experiment(note="slow", seeds=[0, 1], learning_rate=1e-4, **TINY)
    files = {path: path.stat().st_mtime_ns for path in (manager.output_dir / "runs").rglob("*.safetensors")}
    again.run_all()
    assert lines == ["2 of 2 runs have finished before."]
    assert files == {path: path.stat().st_mtime_ns for path in (manager.output_dir / "runs").rglob("*.safetensors")}


class Killer(TrainerCallback):
    """Stops the run as a signal would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise TrainingInterrupted("stopped", 15)


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(tmp_path, finished):
    unbroken, _ = finished
    manager = ExperimentManager(tmp_path, report=lambda line: None)
    manager.add_experiment(learning_rate=5e-3, **TINY, checkpointing_steps=2, callbacks=[Killer(3)])
    with pytest.raises(TrainingInterrupted):
        manager.run_all()
    assert table(tmp_path)[0]["status"] == "stopped"
    manager.experiments[0].objects["callbacks"][0].step = None
    results = manager.run_all()
    assert table(tmp_path)[0]["status"] == "finished"
    whole = unbroken.jobs()[2].output_dir / "unet" / "diffusion_pytorch_model.safetensors"
    resumed = results["Experiment_1"]["runs"][0].folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert whole.read_bytes() == resumed.read_bytes()


def test_failures_are_reported_and_stop_nobody(tmp_path, capsys):
    rest = "changes:\n  - {train_data_dir: no/such/folder, note: wrong}\n  - {learning_rate: 2e-3}\n"
    assert main(["experiments", "run", str(study(tmp_path, rest))]) == 1
    assert "1 of 2 runs did not finish" in capsys.readouterr().err
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "finished"]
    assert "no/such/folder" in rows[0]["error"]
    assert rows[0]["note"] == "wrong"


@pytest.mark.slow
def test_runs_in_processes_of_their_own_and_samples_side_by_side(tmp_path, capsys):
    file = study(tmp_path, "grid:\n  schedule: [cosine, linear]\n")
    assert main(["experiments", "run", str(file), "--parallel", "2"]) == 0
    assert {row["status"] for row in table(tmp_path / "out")} == {"finished"}
    assert (
        main(["experiments", "compare", str(tmp_path / "out"), "--num_images", "2", "--num_inference_steps", "2"]) == 0
    )
    assert {"losses.png", "samples.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_runs_stop_when_the_study_is_killed_and_go_on_later(tmp_path):
    rest = "changes: [{max_train_steps: 100000, checkpointing_steps: 1, checkpoints_total_limit: 1}]\n"
    file = study(tmp_path, rest)
    killed = start_program(tmp_path / "log", main, ["experiments", "run", str(file), "--parallel", "2"])
    runs = tmp_path / "out" / "runs"
    try:
        wait_until(lambda: any(runs.glob("*/checkpoint-*")))
    finally:
        killed.kill()
        killed.join()
    (log,) = runs.glob("*.log")
    wait_until(lambda: "Stopped by signal 15" in log.read_text())


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_grid_meets_every_change_and_every_seed(tmp_path):
    rest = "grid:\n  schedule: [cosine, linear]\n  seed: [1]\n"
    with pytest.raises(ValueError, match="give seed by the study's own `seeds`"):
        read_study(study(tmp_path, rest))
    rest = (
        "grid:\n  schedule: [cosine, linear]\n  loss: [l1, l2]\nchanges:\n  - {learning_rate: 1e-2, note: fast}\n"
        "  - {model_options: {base_channels: 16}}\nseeds: [3, 4]\n"
    )
    experiments, folder = read_study(study(tmp_path, rest))
    assert len(experiments) == 8
    assert folder == str(tmp_path / "out")
    assert experiments[0].changes == {"learning_rate": 1e-2, "schedule": "cosine", "loss": "l1"}
    assert experiments[0].note == "fast"
    assert list(experiments[0].seeds) == [3, 4]
    assert json.loads(experiments[7].arguments(0).model_options) == {"base_channels": 16}
    names = {experiment.run_name(seed) for experiment in experiments for seed in experiment.seeds}
    assert len(names) == 16


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ("grids: {}\n", "unknown key 'grids'"),
        ("grid: {schedule: cosine}\n", "grid must map settings to lists"),
        ("changes: {schedule: cosine}\n", "changes must be a list"),
        ("seeds: [1, one]\n", "seeds must be a list of different whole numbers"),
        ("seeds: [1, 1]\n", "seeds must be a list of different whole numbers"),
        ("changes: [{learning_rates: 1}]\n", "Unknown setting 'learning_rates'"),
        ("recipe: nothing-such\n", "There is no recipe 'nothing-such'"),
    ],
)
def test_a_wrong_study_is_one_sentence_before_anything_runs(tmp_path, capsys, rest, sentence):
    assert main(["experiments", "run", str(study(tmp_path, rest))]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_common_settings_hold_for_all_and_stand_in_no_name(tmp_path):
    manager = ExperimentManager(tmp_path, settings={"max_train_steps": 7, "learning_rate": 1e-3})
    for rate in (1e-3, 5e-3):
        manager.add_experiment("mnist", learning_rate=rate)
    assert [experiment.label() for experiment in manager.experiments] == ["learning_rate 0.001", "learning_rate 0.005"]
    arguments = manager.experiments[1].arguments(0)
    assert (arguments.max_train_steps, arguments.learning_rate) == (7, 5e-3)


def test_objects_of_python_need_this_process(tmp_path):
    manager = ExperimentManager(tmp_path, parallel=2)
    with pytest.raises(ValueError, match="parallel must be 1 with model"):
        manager.add_experiment(model=torch.nn.Identity())
    with pytest.raises(ValueError, match="There are no experiments"):
        manager.run_all()


def test_unfinished_runs_are_an_error_of_the_study(tmp_path):
    manager = ExperimentManager(tmp_path, report=lambda line: None)
    manager.add_experiment(**{**TINY, "dataset_name": "no/such/folder"})
    manager.run_all()
    with pytest.raises(StudyFailed, match="no/such/folder"):
        manager.raise_for_failures()
