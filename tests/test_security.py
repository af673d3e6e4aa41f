"""Hostile files: nothing in them runs, nothing of this machine leaves it, and the answer is one sentence."""

import json
import os
import pickle
import re
import signal
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import torch
import yaml
from safetensors.torch import save_file

from diffusers_ext.cli import main
from diffusers_ext.conditions.text_encoder import load_text_encoder
from diffusers_ext.evaluation.feature_networks import load_feature_network
from diffusers_ext.hub.averages import weights_of
from diffusers_ext.hub.convert import convert
from diffusers_ext.hub.model_card import card_text, make_card, write_card
from diffusers_ext.hub.push import companions, files_to_push, push_to_hub
from diffusers_ext.hub.redaction import clean_token, redacted
from diffusers_ext.hub.safe_loading import read_tensors
from diffusers_ext.training import TrainingArguments

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def one_sentence(function, *arguments):
    """The message of the ValueError that the call must raise."""
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- files of weights -------------------------------------------------------------------------------------------------


class Vandal(torch.nn.Module):
    """Overwrites a file through TorchScript's own operations, whatever it is asked."""

    def __init__(self, target):
        super().__init__()
        self.target: str = str(target)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        torch.from_file(self.target, True, 4, dtype=torch.uint8).copy_(torch.zeros(4, dtype=torch.uint8))
        return torch.zeros(img.shape[0], 4)


@pytest.mark.parametrize("name", ["inception.pt", "inception.pth", "inception.safetensors"])
def test_a_program_of_torchscript_is_never_run(tmp_path, name):
    target = tmp_path / "thesis.txt"
    target.write_bytes(b"mine")
    torch.jit.save(torch.jit.script(Vandal(target)), tmp_path / name)
    one_sentence(load_feature_network, str(tmp_path / name))
    one_sentence(convert, tmp_path / name)
    assert target.read_bytes() == b"mine"


def rewritten(source, target, change):
    """A copy of a zip file; `change` gets (name, content) and gives the new content and whether to compress it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content, compressed = change(name, old.read(name))
            new.writestr(name, content, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    return target


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_in_an_archive_of_torchscript_runs_nothing(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "good.pt")
    assert set(read_tensors(tmp_path / "good.pt")) == {"weight", "bias"}
    harm = pickle.dumps(Harmful(tmp_path / "made"), protocol=2)
    bad = rewritten(
        tmp_path / "good.pt", tmp_path / "bad.pt", lambda n, c: (harm if n.endswith("data.pkl") else c, False)
    )
    assert "mkdir" in one_sentence(read_tensors, bad)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("save", [torch.save, lambda value, file: torch.jit.save(torch.jit.script(value), file)])
def test_compressed_parts_are_not_unpacked(tmp_path, save):
    """torch.load would: a megabyte of zeros in such a file becomes a gigabyte in memory."""
    network = torch.nn.Linear(300, 300)
    save(network.state_dict() if save is torch.save else network, tmp_path / "good.pt")
    bad = rewritten(tmp_path / "good.pt", tmp_path / "bad.pt", lambda n, c: (c, "data/" in n))
    assert "compressed" in one_sentence(read_tensors, bad)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**10)}, tmp_path / "expanded.pt")
    assert "larger than the file" in one_sentence(read_tensors, tmp_path / "expanded.pt")


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="is not a regular file"):
        read_tensors(tmp_path / "weights.pt")
    assert main(["convert", "--checkpoint", str(tmp_path / "weights.pt"), "--output_dir", str(tmp_path / "out")]) == 1


# --- names of models --------------------------------------------------------------------------------------------------


def test_a_text_encoder_with_code_of_its_own_is_refused_without_a_question(tmp_path, monkeypatch):
    """transformers would ask "run code? y/N" at the prompt."""
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = tmp_path / "made"
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a question was about to be asked"))
    assert "needs code of its own" in one_sentence(load_text_encoder, str(tmp_path), 77)
    assert not made.exists()


# --- tokens -----------------------------------------------------------------------------------------------------------

TOKEN = "hf_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize("around", ["{}\r", "{}\r\n", " {}\n", "\ufeff{}"])
def test_a_token_from_a_file_of_windows_is_stripped(around):
    assert TrainingArguments(hub_token=around.format(TOKEN)).hub_token == TOKEN
    assert clean_token(around.format(TOKEN)) == TOKEN


@pytest.mark.parametrize("bad", [f"{TOKEN}\r{TOKEN}", f"{TOKEN} x", f"{TOKEN}é", "\r\n"])
def test_a_token_that_is_none_is_refused_and_not_repeated(tmp_path, capsys, bad):
    (tmp_path / "model_index.json").write_text("{}")
    words = ["push", "--model", str(tmp_path), "--repo_id", "user/name", f"--token={bad}"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "The Hub token" in error
    assert "hf_" not in error
    with pytest.raises(ValueError, match="The Hub token") as caught:
        TrainingArguments(hub_token=bad)
    assert "hf_" not in str(caught.value)


def test_a_token_is_in_no_message_in_no_form():
    odd = "se+cret/wörd\r"
    for text in (odd, repr(odd), repr(odd.encode()), quote(odd), quote(odd, safe=""), f"Bearer {odd}", f"x={TOKEN}&"):
        assert "***" in redacted(ValueError(text), odd)
        assert "cret" not in redacted(text, odd)
        assert TOKEN not in redacted(text, odd)


def test_a_token_is_not_in_the_settings_that_are_shown_or_written():
    arguments = TrainingArguments(hub_token=TOKEN)
    assert TOKEN not in repr(arguments) + arguments.to_yaml()


# --- folders of others ------------------------------------------------------------------------------------------------

HOSTILE = (
    "x](y) ![a](/etc/hostname)<img src=https://evil.example/p.png>\n\n# Heading\n\n<script>alert(1)</script>\n"
    "![b](figures/../../secret.png)\n---\nlicense: mit\n---\n| a | b |\n```\n```python\nimport os\n`"
)


@pytest.fixture
def hostile(tmp_path):
    """A download whose every text is hostile, beside a file that nobody should get."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "download"
    for part in ("unet", "scheduler", "figures"):
        (folder / part).mkdir(parents=True)
    index = {"_class_name": HOSTILE, "unet": ["diffusers", HOSTILE], "id2label": {"0": HOSTILE, "1": "```"}}
    (folder / "model_index.json").write_text(json.dumps(index))
    network = {"_class_name": HOSTILE, "num_class_embeds": 2, "in_channels": 1, "sample_size": 8}
    (folder / "unet" / "config.json").write_text(json.dumps(network))
    scheduler = {"_class_name": HOSTILE, "prediction_type": HOSTILE, "beta_schedule": HOSTILE}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    recipe = {"condition": "class", "dataset_name": HOSTILE, "train_split": HOSTILE, "loss": HOSTILE, HOSTILE: HOSTILE}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "seed": HOSTILE, "ema_kind": HOSTILE}))
    record = {"step": 1, "epoch": 1, "seconds": 1, "loss": 0.5, "validation_loss": 0.5, HOSTILE: 1}
    used = {"flops_over_peak": 1, "peak_flops": 1, "time_outside_steps": 0, "peak_memory_bytes": 1, "mode": HOSTILE}
    (folder / "metrics.jsonl").write_text(json.dumps({**record, **used}))
    report = {
        "measures": {"samples": {HOSTILE: 1.0}, "real_images": {HOSTILE: 1.0}},
        "samples": dict.fromkeys(("weights", "sampler", "scheduler", "num_inference_steps", "seed"), HOSTILE),
        "real_images": {"num_images": 1, "split": HOSTILE},
        "baseline": {"num_images": 1, "split": HOSTILE},
        "classifier": {"description": HOSTILE},
        "features": {"name": HOSTILE},
    }
    report["samples"]["num_images"] = 1
    (folder / "evaluation.json").write_text(json.dumps(report))
    (folder / "provenance.json").write_text(json.dumps({"versions": {HOSTILE: HOSTILE}}))
    (folder / "figures" / "samples.png").symlink_to(tmp_path / "secret.png")
    return folder


def test_a_card_shows_hostile_text_and_nothing_comes_of_it(hostile):
    card = make_card(hostile, "user/name", title=HOSTILE, limits=[HOSTILE])
    assert card.data.license == "apache-2.0"
    assert set(yaml.safe_load(card.data.to_yaml())) == set(card.data.to_dict())
    prose, fence = [], False
    for line in card.text.splitlines():
        fence = not fence if line.startswith("```") else fence
        prose += [] if fence else [line]
    text = "\n".join(prose)
    assert not re.findall(r"(?<!\\)!?\[[^]]*(?<!\\)\]\(", text)
    assert not re.findall(r"<(?!!-- Written by)", text)
    assert "://" not in text
    headings = ["How to use", "Model", "Training data", "Training", "Evaluation", "Limits"]
    assert [line for line in prose if line.startswith("## ")] == [f"## {name}" for name in headings]
    assert len([line for line in prose if line.startswith("# ")]) == 1
    assert card.text.count("\n```") % 2 == 0
    assert "\nimport os" not in card.text
    assert "alert" in text  # shown, and not left out


def test_a_card_copies_no_file_but_its_own_pictures(hostile, tmp_path):
    assert main(["card", "--model", str(hostile), "--output", str(tmp_path / "cards" / "card.md")]) == 0
    assert [path.name for path in (tmp_path / "cards").rglob("*")] == ["card.md"]


def test_a_card_is_not_written_or_read_through_a_link(hostile, tmp_path):
    target = tmp_path / "thesis.md"
    target.write_text("mine")
    (hostile / "README.md").symlink_to(target)
    assert "mine" not in card_text(hostile, "user/name")
    assert write_card(hostile)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["a/b\n# x", "a b", "../x", "-x", "a/b/c", ""])
def test_the_name_of_a_repository_is_a_name(hostile, name):
    if name:
        assert "repo_id must be" in one_sentence(lambda: make_card(hostile, name))
    else:
        assert "user/download" in make_card(hostile).text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.yaml", "train_batch_size: [1, 2]"),
        ("recipe.yaml", "- a list"),
        ("recipe.yaml", "a: ["),
        ("metrics.jsonl", '{"step": "many", "loss": "low"}'),
        ("model_index.json", "[]"),
        ("unet/diffusion_pytorch_model.safetensors", "no weights"),
        ("evaluation.json", '{"measures": {}, "samples": {}, "real_images": {}, "baseline": {}}'),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_sentence(hostile, file, content):
    (hostile / file).write_text(content)
    one_sentence(lambda: make_card(hostile, "user/name"))


# --- pushing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """The output of a training run with its log in an unusual place, private files, and links out of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "passwd").write_text("root")
    folder = tmp_path / "run"
    texts = {
        "model_index.json": json.dumps({"_class_name": "P", "unet": ["diffusers", "U"], "../outside": ["a", "B"]}),
        "unet/config.json": json.dumps({"_class_name": "U", "_name_or_path": "/home/somebody/run"}),
        "recipe.yaml": "train_data_dir: secret/photos\n",
        "metrics.jsonl": '{"step": 1, "epoch": 1, "seconds": 1}\n',
    }
    own = ["unet/diffusion_pytorch_model.safetensors", "figures/losses.png", "samples/step-000010.png"]
    private = [
        "tracker/x/events.out.tfevents.1.my-host.2.0",
        "tracker/x/hparams.yml",
        "figures/events.out.tfevents.1.my-host",
        "unet/notes.txt",
        "unet/.env",
        "notes.md",
        "photos/me.png",
        "checkpoint-10/model.safetensors",
        ".git/config",
        "model.py",
    ]
    for name in (*texts, *own, *private):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts.get(name, "{}"))
    save_file({"weight": torch.zeros(2)}, folder / own[0])
    for name in ("pw", "figures/pw.png", "samples.png", "unet/model.safetensors", "README.md", "evaluation.json"):
        (folder / name).symlink_to(tmp_path / "outside" / "passwd")
    (folder / "scheduler").symlink_to(tmp_path / "outside")
    return folder, sorted([*texts, *own])


def test_only_files_of_this_package_are_pushed_and_no_link_is_followed(run_folder):
    folder, expected = run_folder
    assert files_to_push(folder) == expected
    assert files_to_push(folder, ["unet"]) == [name for name in expected if not name.startswith("unet")]


def test_what_is_pushed_names_no_place_of_this_machine(run_folder):
    folder, _ = run_folder

    class Api:
        """What `push_to_hub` asks of huggingface_hub."""

        def __init__(self, token=None):
            pass

        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def list_repo_files(self, *_, **__):
            return []

        def create_commit(self, repo, operations, **_):
            self.content = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
            return self.content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers_ext.hub.push.HfApi", Api)
        pushed = push_to_hub(folder, "user/name")
    contents = [Path(c).read_bytes() if isinstance(c, str) else c for c in pushed.values()]
    everything = b"".join(contents)
    for word in (b"somebody", b"secret", b"root", b"my-host", str(folder.parent).encode()):
        assert word not in everything
    assert pushed["recipe.yaml"] == b"train_data_dir: ./photos\n"


def test_an_export_takes_along_no_private_file(run_folder):
    folder, expected = run_folder
    records = [name for name in expected if not name.startswith(("unet", "model_index"))]
    assert companions(folder) == records


# --- recipes ----------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnop", "bcdefghijklmnopq"))


@pytest.mark.parametrize("text", [LAUGHS, "[" * 5000, "a: " + "[" * 50 + "]" * 50, "x: " + "y" * 2_000_000, "a: !!x 1"])
def test_a_recipe_that_explodes_is_refused_at_once(run_folder, text):
    folder, _ = run_folder
    (folder / "recipe.yaml").write_text(text)
    began = time.monotonic()
    for function in (make_card, weights_of):
        one_sentence(function, folder)
    assert time.monotonic() - began < 10
