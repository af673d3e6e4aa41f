"""Shared pieces of the tests."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
SHARED_DATA = ROOT.parent / "shared" / "data"

# A network and a run small enough for a test: a few thousand weights, a hundred digits.
TINY_MODEL = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side, one a core."""
    torch.set_num_threads(1)


def records_of(folder):
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def tiny_run(tmp_path):
    """Settings of a run of seconds; keyword arguments override them."""
    from diffusers_ext.training import TrainingArguments

    def make(**overrides):
        settings = {
            "train_split": "train[:128]",
            "model_options": json.dumps(TINY_MODEL),
            "train_batch_size": 8,
            "eval_batch_size": 2,
            "validation_size": 16,
            "max_train_steps": 6,
            "lr_warmup_steps": 2,
            "schedule": "cosine",
            "prediction_type": "v_prediction",
            "sampler": "ddim",
            "ddpm_num_inference_steps": 2,
            "checkpointing_steps": 2,
            "logging_steps": 2,
            "logger": "none",
            "save_figures": False,
            "use_ema": True,
            "output_dir": str(tmp_path / "run"),
        }
        return TrainingArguments(**{**settings, **overrides})

    return make


@pytest.fixture(scope="session")
def environment():
    """Environment variables for child processes: this checkout importable, one thread, no network."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHON": sys.executable}


@pytest.fixture(scope="session")
def corners_data(tmp_path_factory):
    """A folder of the images of `corners`, with splits and classes."""
    import corners

    folder = tmp_path_factory.mktemp("corners")
    corners.write_files(folder)
    return str(folder)


@pytest.fixture(scope="session")
def corners_classifier(corners_data, tmp_path_factory):
    """The folder of a classifier of `corners_data`, which names nearly every test image right."""
    from diffusers_ext import ImageClassifier
    from diffusers_ext.cli import main

    folder = str(tmp_path_factory.mktemp("classifier"))
    small = ["--block_channels", "8", "16", "--train_batch_size", "16", "--num_epochs", "5", "--learning_rate", "0.02"]
    still = ["--shift", "0", "--rotation", "0", "--zoom", "0", "--mixed_precision", "no"]
    assert main(["classifier", "train", "--train_data_dir", corners_data, *small, *still, "--output_dir", folder]) == 0
    assert ImageClassifier.from_pretrained(folder).config.test_accuracy > 0.98
    return folder


@pytest.fixture
def stop_at():
    """A callback that ends a run after a step, as if the clock had; the learning rate still aims at the end."""
    return StopAt


class StopAt:
    """Ends a run after step `last`."""

    def __init__(self, last):
        self.last = last

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.last:
            control.should_training_stop = True


class Killed(BaseException):
    """Ends a run as a kill would: nothing handles it."""


class KillAt:
    """Raises `Killed` at the first `event` from step `step` on."""

    def __init__(self, event, step=0):
        self.step = step
        setattr(self, event, self._kill)

    def _kill(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise Killed
