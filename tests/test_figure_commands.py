"""`diffusers-ext figure NAME`: each name draws a file; what is missing is one sentence."""

import types

import pytest
import torch
from conftest import TINY_MODEL
from PIL import Image

from diffusers_ext import (
    FlowMatchScheduler,
    GenerationPipeline,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
    build_model,
)
from diffusers_ext.cli import main
from diffusers_ext.evaluation import process_figures

FEW = ["--num_images", "2", "--num_inference_steps", "3", "--lengths", "2", "--gammas", "0", "1"]
SCHEDULERS = {
    "ddim": SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
    ),
    "flow": FlowMatchScheduler(),
    "ve": ScoreSDEScheduler(sde="ve", continuous=True, timestep_scale=1000.0, scale_input=True),
    "mix": MixScheduler(),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of untrained pipelines with classes by their scheduler."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = build_model("small", **TINY_MODEL, num_class_embeds=3)
    for name, scheduler in SCHEDULERS.items():
        GenerationPipeline(network, scheduler).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    "name", ["forward", "noised", "embedding", "denoiser", "trajectory", "lengths", "gamma", "guidance"]
)
def test_each_name_draws_its_picture(name, models, tmp_path):
    assert main(["figure", name, "--model", str(models / "ddim"), *FEW, "--output", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("name", ["forward", "denoiser", "trajectory"])
@pytest.mark.parametrize("kind", ["flow", "ve", "mix"])
def test_models_on_other_paths_are_drawn_too(name, kind, models, tmp_path):
    assert main(["figure", name, "--model", str(models / kind), *FEW, "--output", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("name", ["langevin", "embedding", "schedules"])
def test_some_need_no_model(name, tmp_path):
    assert main(["figure", name, "--output", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").is_file()


def test_a_perfect_network_shows_the_clean_image(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(process_figures.figures, "comparison_grid", lambda *words, **more: seen.append(words[2]))
    for kind in ("ddim", "flow", "ve", "mix"):
        images = torch.rand(2, 1, 8, 8) * 2 - 1
        pipeline = GenerationPipeline(Perfect(images, SCHEDULERS[kind]), SCHEDULERS[kind])
        process_figures.denoiser(pipeline, images, [50, 700], tmp_path / "a.png")
        _, clean, true = seen.pop()
        torch.testing.assert_close(torch.stack(clean), torch.stack(true), atol=2e-3, rtol=0)


class Perfect(torch.nn.Module):
    """Outputs what it should for these images, by the noise path's own conversions."""

    def __init__(self, images, scheduler):
        super().__init__()
        self.images, self.scheduler, self.device = images, scheduler, torch.device("cpu")
        self.config = types.SimpleNamespace(sample_size=8, in_channels=1)

    def forward(self, sample, timestep):
        if isinstance(self.scheduler, MixScheduler):
            return types.SimpleNamespace(sample=(self.images + 1) / 2)
        path, scale = self.scheduler.path, 1 if hasattr(self.scheduler.path, "__len__") else 1000
        t = int(timestep) if scale == 1 else float(timestep) / scale
        alpha, sigma = path.alpha(t), path.sigma(t)
        x = sample * (1 + sigma**2) ** 0.5 if getattr(path, "scale_input", False) else sample
        epsilon = (x - alpha * self.images) / sigma
        v = (alpha * epsilon - sigma * self.images) / (alpha**2 + sigma**2) ** 0.5
        outputs = {"v_prediction": v, "flow": epsilon - self.images}
        return types.SimpleNamespace(sample=outputs.get(self.scheduler.config.prediction_type, epsilon))


def test_the_forward_process_as_a_gif(tmp_path):
    words = ["--num_images", "2", "--output", str(tmp_path / "f.gif"), "--frames", "5", "--fps", "10"]
    assert main(["figure", "forward", *words]) == 0
    with Image.open(tmp_path / "f.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (5, 100)


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
        (["langevin", "--output", "a.gif"], "must end in .png"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(words, sentence, capsys):
    assert main(["figure", *words]) == 1
    assert sentence in capsys.readouterr().err
