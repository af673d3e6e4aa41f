"""Progress bars: what takes long shows the time left in a terminal, and nothing elsewhere."""

import io
import sys

import pytest
import torch
from conftest import TINY_MODEL

from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler, build_model
from diffusers_ext.cli import main


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    scheduler = SubsequenceDDIMScheduler(beta_schedule="cosine", num_train_timesteps=8, timestep_spacing="trailing")
    GenerationPipeline(build_model("small", **TINY_MODEL, sample_size=8), scheduler).save_pretrained(folder)
    return str(folder)


def printed(words, stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(words) == 0, stream.getvalue()
    return stream.getvalue()


COMMANDS = {
    "sample": (["sample", "--num_images", "4", "--batch_size", "2", "--num_inference_steps", "2"], "Batches"),
    "compare": (["compare", "--samplers", "ddim", "ddpm", "--lengths", "2", "--num_images", "1"], "Comparing"),
    "evaluate": (["evaluate", "--num_images", "8", "--batch_size", "4", "--num_inference_steps", "2"], "Sampling"),
    "likelihood": (["likelihood", "--num_images", "2", "--batch_size", "1", "--steps", "1"], "Likelihood"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bar_shows_the_time_left_in_a_terminal_only(name, model, tmp_path, monkeypatch, request):
    words, title = COMMANDS[name]
    words = [*words, "--model", model]
    monkeypatch.chdir(tmp_path)
    if name == "evaluate":
        words += ["--classifier", request.getfixturevalue("eight_pixels_classifier")]
    shown = printed(words, Terminal(), monkeypatch)
    assert title in shown
    assert "<" in shown  # 1/4 [00:01<00:03, ...]
    hidden = printed(words, io.StringIO(), monkeypatch)
    assert "%|" not in hidden


@pytest.fixture(scope="module")
def eight_pixels_classifier(tmp_path_factory):
    from diffusers_ext import ImageClassifier

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    names = {str(digit): str(digit) for digit in range(10)}
    ImageClassifier(in_channels=1, num_classes=10, block_channels=[8], sample_size=8, id2label=names).save_pretrained(
        folder
    )
    return str(folder)
