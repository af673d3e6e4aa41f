"""Sharing: every kind of pipeline through a Hub on loopback, on machines with this package and without it."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import pytest
from conftest import ROOT
from hub_server import READ_TOKEN, TOKEN, running_hub
from packaging.version import Version

from diffusers_ext import PRESETS

pytestmark = pytest.mark.slow
WORKER = ROOT / "tests" / "hub_worker.py"
NAMES = [f"preset-{name}" for name in PRESETS]
NAMES += [f"scheduler-{name}" for name in ("AncestralDDPMScheduler", "SubsequenceDDIMScheduler", "MixScheduler")]
NAMES += [
    "scheduler-GuidedLangevinScheduler",
    "scheduler-ScoreSDEScheduler",
    "classes",
    "larger",
    "own-ddpm",
    "own-ddim",
]
# What this project says of its own models; the template is none of them.
CARDS = [path for path in sorted((ROOT / "model_cards").glob("*.md")) if path.name != "TEMPLATE.md"]


@dataclass
class World:
    """A Hub, the place of the tests' files, and what the machines found: step -> result."""

    hub: object
    folder: Path
    environment: dict
    found: dict = field(default_factory=dict)

    def machine(self, name, *steps, **environment):
        """Run steps on a machine of this name; it keeps its cache between calls."""
        settings = {"HF_HOME": str(self.folder / name), "TRACE": str(self.folder / "trace"), **environment}
        result = subprocess.run(
            [sys.executable, "-P", WORKER, json.dumps([list(map(_plain, step)) for step in steps])],
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert result.returncode == 0, result.stderr[-4000:]
        answers = json.loads(result.stdout.splitlines()[-1])
        for step, answer in zip(steps, answers, strict=True):
            self.found[(name, *(a for a in step if isinstance(a, str) and "/" not in a))] = answer


def _plain(argument):
    return str(argument) if isinstance(argument, Path) else argument


@pytest.fixture(scope="module")
def world(environment, tmp_path_factory):
    """All that the machines do, in six processes."""
    folder = tmp_path_factory.mktemp("world")
    with running_hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        world = World(hub, folder, {**environment, **settings, **quiet})
        images = folder / "images.safetensors"
        cards = folder / "cards"
        cards.mkdir()
        for card in CARDS:
            shutil.copy(card, cards)
        author = [("push", images, folder), ("push_again", folder / "again"), ("push_stand_ins", cards)]
        world.machine("author", *author)
        hub.lose_connection_once["user/large"] = 11 << 20
        with_cards = ("preset-small", "classes", "larger", "own-ddim")
        for name in with_cards:
            (cards / f"{name}.md").write_bytes(hub.repos[f"user/{name}"].files["README.md"])
        snippets = [("run_snippets", name, cards) for name in (*with_cards, *(card.stem for card in CARDS))]
        world.machine(
            "plugin",
            ("load", images, NAMES),
            *(("load_planted", kind) for kind in ("ours", "plain", "foreign", "pair")),
            ("load_parts",),
            ("load_private", "nobody", {"token": False}),
            ("load_private", "reader", {"token": READ_TOKEN}),
            ("load_large", folder / "large"),
            *snippets,
        )
        world.machine(
            "diffusers",
            ("load", images, NAMES),
            ("load_twins", images, folder),
            ("load_twice", images, "preset-small"),
            ("load_planted", "ours"),
            ("download", "preset-small"),
            ("load_revision", world.found[("author", "push_again")]["commit 0"]),
            *snippets,
            HIDE_PLUGIN="1",
        )
        offline = [("load_offline", images, name) for name in ("preset-small", "own-ddim")]
        world.machine("plugin", *offline, HF_HUB_OFFLINE="1")
        world.machine(
            "diffusers", ("load_snapshot", images, "preset-small"), offline[1], HIDE_PLUGIN="1", HF_HUB_OFFLINE="1"
        )
        yield world


@pytest.fixture(scope="module")
def found(world):
    """What the machines found; a step that failed fails the test that asks for it."""

    def answer(*step):
        result = world.found[step]
        assert not (isinstance(result, dict) and "error" in result), result["error"]
        return result

    return answer


@pytest.mark.parametrize("name", NAMES)
def test_images_are_the_same_before_and_after(found, name):
    own = name.startswith("own-")
    for machine, home in (("plugin", "diffusers_ext"), ("diffusers", "diffusers_modules")):
        assert found(machine, "load")[name] == {"same": True, "from": ["diffusers" if own else home]}, machine


def test_the_names_are_those_that_were_pushed(found):
    assert sorted([*NAMES, "twin-0", "twin-1"]) == found("author", "push")


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_no_code_of_a_repository_runs_without_trust(found, kind):
    assert found("plugin", "load_planted", kind) == ["loaded", ""]


@pytest.mark.parametrize("kind", ["foreign", "pair"])
def test_code_that_only_trust_could_load_is_refused_and_not_run(found, kind):
    answer, ran = found("plugin", "load_planted", kind)
    assert "trust_remote_code=True" in answer
    assert ran == ""


def test_the_trap_goes_off_when_code_is_trusted(found):
    answer, ran = found("diffusers", "load_planted", "ours")
    assert answer == "loaded"
    assert ran


def test_repositories_with_the_same_file_names_and_sizes_stay_apart(found, world):
    first, second = (
        {path: file for path, file in world.hub.repos[f"user/twin-{n}"].files.items() if path.endswith(".py")}
        for n in (0, 1)
    )
    code = [sorted(len(data) for path, data in files.items() if path != "pipeline.py") for files in (first, second)]
    assert code[0] == code[1]
    ways = [f"{place}, {custom}" for place in ("hub", "folder") for custom in (None, "pipeline", "source")]
    same = {way: [True, True] for way in ways}
    if Version(diffusers.__version__).release < (0, 38):
        # It runs the first file of a name only; the calls that name the code, or the repository, hold all the same.
        same = {way: result for way, result in same.items() if way in ("hub, None", "hub, source", "folder, None")}
    assert same.items() <= found("diffusers", "load_twins").items()


def test_a_repository_loaded_twice_gives_two_whole_pipelines(found):
    assert found("diffusers", "load_twice", "preset-small") == [[True, True], True]


def test_networks_and_schedulers_load_alone(found):
    names = ["AnnotatedUNet2DModel", "AnnotatedUNet2DModel", "AncestralDDPMScheduler"]
    assert found("plugin", "load_parts") == names


def test_an_interrupted_download_goes_on_where_it_stopped(found, world):
    answer = found("plugin", "load_large")
    assert answer["same"]
    assert answer["files"] > 4  # of which the folder has several of weights
    ranges = [wanted for _, path, wanted in world.hub.requests if wanted and path.startswith("/user/large/")]
    assert len(ranges) == 1
    assert int(re.fullmatch(r"bytes=(\d+)-", ranges[0])[1]) >= 10 << 20


def test_a_private_repository_is_not_there_without_a_token(found):
    for said in (found("plugin", "load_private", "nobody"), found("plugin", "load_private", "reader")):
        assert "Repository Not Found" in said
        assert "private" in said


def test_a_card_s_calls_work_as_printed(found):
    swapped = "DPMSolverMultistepScheduler"
    assert found("plugin", "run_snippets", "preset-small") == [["AncestralDDPMScheduler", 4], [swapped, 4]]
    assert found("diffusers", "run_snippets", "preset-small") == [["AncestralDDPMScheduler", 4]]
    assert found("plugin", "run_snippets", "classes") == [["SubsequenceDDIMScheduler", 2], [swapped, 2]]
    assert found("diffusers", "run_snippets", "classes") == [["SubsequenceDDIMScheduler", 2]]
    assert found("plugin", "run_snippets", "larger") == [["SubsequenceDDIMScheduler", 1], [swapped, 1]]
    assert found("diffusers", "run_snippets", "larger") == [["SubsequenceDDIMScheduler", 1]]
    assert found("diffusers", "run_snippets", "own-ddim") == [["DDIMScheduler", 4]]


@pytest.mark.parametrize("card", [card.stem for card in CARDS])
def test_the_calls_on_this_project_s_own_cards_work_as_printed(found, card):
    assert not found("author", "push_stand_ins")
    for machine, calls in (("plugin", 2), ("diffusers", 1)):
        made = found(machine, "run_snippets", card)
        assert len(made) == calls
        assert all(images == 4 for _, images in made)


def test_loads_offline_from_the_cache(found):
    assert found("plugin", "load_offline", "preset-small")
    assert found("plugin", "load_offline", "own-ddim")
    assert found("diffusers", "load_offline", "own-ddim")
    assert found("diffusers", "load_snapshot", "preset-small")


def test_pushed_again_replaces_what_is_stale_and_leaves_the_rest(found):
    answer = found("author", "push_again")
    before, after = set(answer["files 0"]), set(answer["files 1"])
    assert {path for path in before - after if "weak_unet" not in path} == {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    }
    assert {path for path in before if "weak_unet" in path}
    assert not {path for path in after if "weak_unet" in path}
    assert after - before == {"unet/mine.txt", "unet/diffusion_pytorch_model.safetensors"}


def test_revisions_branches_and_pull_requests_load(found):
    answer = found("author", "push_again")
    assert len({answer[f"images {state}"] for state in range(3)}) == 3
    assert answer[f"images of {answer['commit 0']}"] == answer["images 0"]
    assert answer["images of main"] == answer["images 1"]
    assert answer["images of refs/pr/1"] == answer["images 2"]
    assert answer["images of experiment"] == answer["images 2"]
    assert found("diffusers", "load_revision", answer["commit 0"]) == answer["images 0"]


def test_no_token_is_in_any_file(world):
    for name, repo in world.hub.repos.items():
        for commit in repo.commits.values():
            assert not [path for path, file in commit.files.items() if TOKEN.encode() in file.data], name
