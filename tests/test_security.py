"""Hostile files: nothing in them runs, nothing of this machine leaves it, and the answer is one sentence."""

import json
import os
import pickle
import signal
import zipfile

import pytest
import torch

from diffusers_ext.cli import main
from diffusers_ext.conditions.text_encoder import load_text_encoder
from diffusers_ext.evaluation.feature_networks import load_feature_network
from diffusers_ext.hub.convert import convert
from diffusers_ext.hub.safe_loading import read_tensors

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
