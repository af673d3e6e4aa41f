"""`diffusers-ext figure NAME`: each name draws a file; what is missing is one sentence."""

import pytest
import torch
from conftest import TINY_MODEL
from PIL import Image

from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler, build_model
from diffusers_ext.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    folder = tmp_path_factory.mktemp("model")
    GenerationPipeline(build_model("small", **TINY_MODEL), scheduler).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["forward", "noised", "embedding", "denoiser", "trajectory", "lengths", "gamma"])
def test_each_name_draws_its_picture(name, model, tmp_path):
    few = ["--num_images", "2", "--num_inference_steps", "3", "--lengths", "2", "--gammas", "0", "1"]
    assert main(["figure", name, "--model", model, *few, "--output", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 100


def test_a_distribution_moves_to_noise_and_back(tmp_path):
    assert main(["figure", "distribution", "--frames", "2", "--output", str(tmp_path / "d.gif")]) == 0
    with Image.open(tmp_path / "d.gif") as gif:
        assert gif.n_frames == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "name must be one of"),
        (["gamma"], "needs a --model"),
        (["distribution", "--output", "a.png"], "must end in .gif"),
        (["forward", "--times", "1000"], "times must lie in 0 to 999"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(words, sentence, capsys):
    assert main(["figure", *words]) == 1
    assert sentence in capsys.readouterr().err
