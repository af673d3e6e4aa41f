"""Pushing while training, and loading by name, against a Hub on loopback."""

import subprocess
import sys

import pytest
from hub_server import TOKEN, running_hub
from test_training import launch


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


def hub_environment(environment, hub, tmp_path):
    """A machine that knows this Hub alone, with an empty cache."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return {**environment, **settings, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.mark.slow
def test_pushed_pipeline_loads_by_name_without_remote_code(tiny_run, environment, hub, tmp_path):
    arguments = tiny_run(push_to_hub=True, hub_model_id="user/digits", hub_private_repo=True)
    there = hub_environment(environment, hub, tmp_path)
    _, error = launch(there, arguments, "--hub_token", TOKEN).communicate()
    repo = hub.repos["user/digits"]
    assert repo["private"], error
    assert {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "recipe.yaml"} <= set(
        repo["files"]
    )
    assert not [path for path in repo["files"] if "checkpoint" in path or path.startswith("logs")]
    assert TOKEN.encode() not in b"".join(repo["files"].values())
    code = (
        "import sys, torch, diffusers_ext\n"
        "from diffusers import DiffusionPipeline\n"
        "images = []\n"
        "for name in sys.argv[1:]:\n"
        "    pipeline = DiffusionPipeline.from_pretrained(name)\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    images.append(pipeline(num_inference_steps=2, generator=generator, output_type='pt').images)\n"
        "assert torch.equal(*images)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "user/digits", arguments.output_dir],
        env={**there, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_a_hub_that_refuses_does_not_stop_the_run(tiny_run, environment, hub, tmp_path):
    arguments = tiny_run(push_to_hub=True, hub_model_id="user/digits")
    process = launch(hub_environment(environment, hub, tmp_path), arguments, "--hub_token", "hf_wrong")
    _, error = process.communicate()
    assert process.returncode == 0
    assert "Pushing to the Hub failed" in error
    assert (tmp_path / "run" / "model_index.json").exists()
