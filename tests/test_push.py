"""Pushing while training, later by hand, and with a Hub that is out of order, against a Hub on loopback."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import TINY_MODEL
from datasets import load_dataset
from diffusers import DiffusionPipeline
from hub_server import READ_TOKEN, TOKEN, running_hub
from huggingface_hub import HfApi
from local_processes import run_program

import diffusers_ext
from diffusers_ext.cli import main
from diffusers_ext.cli.train import run_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module", autouse=True)
def _machine(environment, hub, tmp_path_factory):
    """The fork server of this process is a machine that knows this Hub alone: it imports what `run` runs there."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).parent)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, **settings}.items():
            patch.setenv(name, value)
        multiprocessing.set_forkserver_preload([__name__, "diffusers_ext.training"])
        forkserver.ensure_running()


@pytest.fixture
def run(tmp_path):
    """Runs a function on that machine; gives the exit status and what was printed."""

    def run(function, *arguments, **environment):
        (tmp_path / "log").unlink(missing_ok=True)
        server = multiprocessing.get_context("forkserver")
        return run_program(tmp_path / "log", function, *arguments, start=server, **environment)

    return run


def recipe_of(arguments):
    """Flags of a training run."""
    path = Path(arguments.output_dir).parent / "recipe.yaml"
    path.write_text(arguments.to_yaml())
    return ["--recipe", str(path)]


def compare_images(*names):
    images = []
    for name in names:
        pipeline = DiffusionPipeline.from_pretrained(name)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline(num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*images)


def test_a_run_pushes_in_the_background_and_whole_at_its_end(tiny_run, run, hub):
    """Pushed while it trains (after each epoch of 16 steps) and at the end; loads by name without remote code."""
    arguments = tiny_run(
        push_to_hub=True,
        hub_model_id="user/digits",
        hub_private_repo=True,
        max_train_steps=20,
        checkpointing_steps=10,
        save_model_epochs=1,
        save_figures=True,
    )
    status, shown = run(run_script, [*recipe_of(arguments), "--hub_token", TOKEN])
    assert status == 0, shown
    repo = hub.repos["user/digits"]
    assert repo.private
    assert repo.messages[0] == "Trained 20 steps"
    assert "Step 16" in repo.messages
    files = repo.files
    assert {"model_index.json", "unet/config.json", "recipe.yaml", "metrics.jsonl", "figures/samples.png"} <= set(files)
    assert not [path for path in files if "checkpoint" in path or "partial" in path or path.startswith("logs")]
    assert TOKEN.encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert '"user/digits"' in card
    assert "validation loss" in card
    status, shown = run(compare_images, "user/digits", arguments.output_dir, HF_TOKEN=TOKEN)
    assert status == 0, shown


def test_a_hub_that_refuses_does_not_stop_the_run_and_a_command_pushes_later(tiny_run, run, hub):
    arguments = tiny_run(push_to_hub=True, hub_model_id="user/later")
    status, shown = run(run_script, [*recipe_of(arguments), "--hub_token", READ_TOKEN])
    assert status == 0, shown
    assert "Pushing to the Hub failed" in shown
    assert READ_TOKEN not in shown
    command = shown.partition("push them later with: diffusers-ext ")[2].splitlines()[0].split()
    assert command == ["push", "--model", arguments.output_dir, "--repo_id", "user/later"]
    status, shown = run(main, command, HF_TOKEN=READ_TOKEN)
    assert status == 1
    assert shown.strip().splitlines()[-1].startswith("error: The Hub refused")
    hub.out_of_order = 2  # tried again after a second, and again after four
    status, shown = run(main, command, HF_TOKEN=TOKEN)
    assert status == 0, shown
    assert shown.count("trying again") == 2
    assert f"Pushed: {hub.url}/user/later/commit/" in shown
    assert "model_index.json" in hub.repos["user/later"].files


def push_data():
    api, name = HfApi(), "user/images"
    api.create_repo(name, repo_type="dataset", private=True)
    file = Path(diffusers_ext.__file__).parent / "data" / "mnist_test.parquet"
    api.upload_file(path_or_fileobj=file, path_in_repo="data/train.parquet", repo_id=name, repo_type="dataset")
    assert load_dataset(name, split="train").num_rows == 1000


def test_trains_on_a_private_data_set_of_the_hub(tiny_run, run):
    status, shown = run(push_data, HF_TOKEN=TOKEN)
    assert status == 0, shown
    arguments = tiny_run(dataset_name="user/images", resolution=28, max_train_steps=1)
    status, shown = run(run_script, recipe_of(arguments), HF_TOKEN=TOKEN)
    assert status == 0, shown
    assert "- user/images\n" in Path(arguments.output_dir, "README.md").read_text()


def push_over_a_card(folder, titles):
    """Push three times, and write down the title of the card that is on the Hub then."""
    api, name = HfApi(), "user/cards"
    network = diffusers_ext.build_model("small", **TINY_MODEL)
    pipeline = diffusers_ext.GenerationPipeline(network, diffusers_ext.AncestralDDPMScheduler())
    api.create_repo(name)

    def push():
        diffusers_ext.push_to_hub(folder, name)
        card = Path(api.hf_hub_download(name, "README.md")).read_text()
        with titles.open("a") as file:
            print(card.partition("# ")[2].splitlines()[0], file=file)

    for text in (b"---\nlicense: mit\n---\n", b"---\nlicense: mit\n---\n# Written on the Hub\n"):
        api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=name)
        diffusers_ext.export(pipeline, folder)
        (folder / "recipe.yaml").write_text("train_data_dir: /home/somebody/photos\n")
        push()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Written here")
    push()


def test_a_card_written_on_the_hub_stays_and_places_are_not_told(run, hub, tmp_path):
    titles = tmp_path / "titles"
    status, shown = run(push_over_a_card, tmp_path / "exported", titles, HF_TOKEN=TOKEN)
    assert status == 0, shown
    assert titles.read_text().splitlines() == ["cards", "Written on the Hub", "Written here"]
    files = hub.repos["user/cards"].files
    assert b"somebody" not in b"".join(files.values())
    assert files["recipe.yaml"] == b"train_data_dir: ./photos\n"


def push_to_nowhere(folder):
    huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
    return main(["push", "--model", str(folder), "--repo_id", "user/name", "--attempts", "2"])


def test_a_hub_that_is_not_there_is_one_sentence(tmp_path, run):
    (tmp_path / "model_index.json").write_text("{}")
    status, shown = run(push_to_nowhere, tmp_path, HF_TOKEN=TOKEN)
    assert status == 1
    assert shown.splitlines()[-1].startswith("error: The Hub could not be reached")
    assert "Traceback" not in shown
