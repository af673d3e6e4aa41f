"""Shared pieces of the tests."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# A network and a run small enough for a test: a few thousand weights, a hundred digits.
TINY_MODEL = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side, one a core."""
    torch.set_num_threads(1)


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
