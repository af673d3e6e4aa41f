"""Pushing while training, later by hand, and with a Hub that is out of order, against a Hub on loopback."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import READ_TOKEN, TOKEN, running_hub
from test_training import launch

pytestmark = pytest.mark.slow


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def there(environment, hub, tmp_path):
    """A machine that knows this Hub alone, with an empty cache."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return {**environment, **settings, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(there, *words, **environment):
    return subprocess.run([sys.executable, *words], env={**there, **environment}, capture_output=True, text=True)


SAME_IMAGES = """
import sys, torch, diffusers_ext
from diffusers import DiffusionPipeline
images = []
for name in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(name)
    generator = torch.Generator().manual_seed(0)
    images.append(pipeline(num_inference_steps=2, generator=generator, output_type="pt").images)
assert torch.equal(*images)
"""


def test_a_run_pushes_in_the_background_and_whole_at_its_end(tiny_run, there, hub):
    """Pushed while it trains (after each epoch of 16 steps) and at the end; loads by name without remote code."""
    arguments = tiny_run(
        push_to_hub=True, hub_model_id="user/digits", hub_private_repo=True, max_train_steps=40, save_model_epochs=1
    )
    process = launch(there, arguments, "--hub_token", TOKEN)
    _, error = process.communicate()
    assert process.returncode == 0, error
    repo = hub.repos["user/digits"]
    assert repo.private
    assert repo.messages[0] == "Trained 40 steps"
    assert "Step 16" in repo.messages
    files = repo.files
    assert {"model_index.json", "unet/config.json", "recipe.yaml", "metrics.jsonl", "figures/samples.png"} <= set(files)
    assert not [path for path in files if "checkpoint" in path or "partial" in path or path.startswith("logs")]
    assert TOKEN.encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert '"user/digits"' in card
    assert "validation loss" in card
    result = run(there, "-c", SAME_IMAGES, "user/digits", arguments.output_dir, HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr


def test_a_hub_that_refuses_does_not_stop_the_run_and_a_command_pushes_later(tiny_run, there, hub, tmp_path):
    arguments = tiny_run(push_to_hub=True, hub_model_id="user/digits")
    process = launch(there, arguments, "--hub_token", READ_TOKEN)
    _, error = process.communicate()
    assert process.returncode == 0
    assert "Pushing to the Hub failed" in error
    assert READ_TOKEN not in error
    command = error.partition("push them later with: diffusers-ext ")[2].splitlines()[0].split()
    assert command == ["push", "--model", arguments.output_dir, "--repo_id", "user/digits"]
    refused = run(there, "-m", "diffusers_ext.cli", *command, HF_TOKEN=READ_TOKEN)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("error: The Hub refused")
    hub.out_of_order = 2  # tried again after a second, and again after four
    pushed = run(there, "-m", "diffusers_ext.cli", *command, HF_TOKEN=TOKEN)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stderr.count("trying again") == 2
    assert f"Pushed: {hub.url}/user/digits/commit/" in pushed.stdout
    assert "model_index.json" in hub.repos["user/digits"].files


PUSH_DATA = """
from pathlib import Path
import diffusers_ext
from datasets import load_dataset
from huggingface_hub import HfApi
api, name = HfApi(), "user/images"
api.create_repo(name, repo_type="dataset", private=True)
file = Path(diffusers_ext.__file__).parent / "data" / "mnist_test.parquet"
api.upload_file(path_or_fileobj=file, path_in_repo="data/train.parquet", repo_id=name, repo_type="dataset")
assert load_dataset(name, split="train").num_rows == 1000
"""


def test_trains_on_a_private_data_set_of_the_hub(tiny_run, there, hub):
    created = run(there, "-c", PUSH_DATA, HF_TOKEN=TOKEN)
    assert created.returncode == 0, created.stderr
    arguments = tiny_run(dataset_name="user/images", resolution=28, max_train_steps=1)
    process = launch({**there, "HF_TOKEN": TOKEN}, arguments)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert "- user/images\n" in Path(arguments.output_dir, "README.md").read_text()
