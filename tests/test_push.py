"""Pushing while training, later by hand, and with a Hub that is out of order, against a Hub on loopback."""

import os
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
        push_to_hub=True,
        hub_model_id="user/digits",
        hub_private_repo=True,
        max_train_steps=40,
        save_model_epochs=1,
        save_figures=True,
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


PUSH_OVER_A_CARD = """
import sys, diffusers_ext
from huggingface_hub import HfApi
from conftest import TINY_MODEL
api, name = HfApi(), "user/cards"
pipeline = diffusers_ext.GenerationPipeline(
    diffusers_ext.build_model("small", **TINY_MODEL), diffusers_ext.AncestralDDPMScheduler()
)
api.create_repo(name)
api.upload_file(path_or_fileobj=b"---\\nlicense: mit\\n---\\n", path_in_repo="README.md", repo_id=name)
for text in (None, b"---\\nlicense: mit\\n---\\n# Written on the Hub\\n"):
    if text is not None:
        api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=name)
    folder = diffusers_ext.export(pipeline, sys.argv[1])
    (folder / "recipe.yaml").write_text("train_data_dir: /home/somebody/photos\\n")
    diffusers_ext.push_to_hub(folder, name)
    print(open(api.hf_hub_download(name, "README.md")).read().partition("# ")[2].splitlines()[0])
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\n# Written here")
diffusers_ext.push_to_hub(folder, name)
print(open(api.hf_hub_download(name, "README.md")).read().partition("# ")[2])
"""


def test_a_card_written_on_the_hub_stays_and_places_are_not_told(there, hub, tmp_path):
    there["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    result = run(there, "-c", PUSH_OVER_A_CARD, tmp_path, HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["cards", "Written on the Hub", "Written here"]
    files = hub.repos["user/cards"].files
    assert b"somebody" not in b"".join(files.values())
    assert files["recipe.yaml"] == b"train_data_dir: ./photos\n"


def test_a_hub_that_is_not_there_is_one_sentence(there, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    words = ["push", "--model", str(tmp_path), "--repo_id", "user/name"]
    result = run(there, "-m", "diffusers_ext.cli", *words, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: The Hub could not be reached")
    assert "Traceback" not in result.stderr
