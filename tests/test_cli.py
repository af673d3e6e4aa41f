"""The command line, and the comparison of samplers behind it."""

import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_MODEL
from PIL import Image

from diffusers_ext import AnnotatedUNet2DModel, GenerationPipeline, SubsequenceDDIMScheduler, build_model
from diffusers_ext.cli import main
from diffusers_ext.evaluation.comparison import compare, full_flow


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    model = build_model("small", **{**TINY_MODEL, "zero_init_output": False})
    scheduler = SubsequenceDDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="cosine",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    pipeline = GenerationPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def noise():
    return torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class PerfectNetwork(torch.nn.Module):
    """What a perfect network predicts (v) for pixels drawn independently from N(0.5, 0.2^2)."""

    def __init__(self, path):
        super().__init__()
        self.path, self.dtype, self.device = path, torch.float32, torch.device("cpu")
        self.config = SimpleNamespace(in_channels=1, sample_size=28)

    def forward(self, x, t):
        alpha, sigma = self.path.alpha(int(t)), self.path.sigma(int(t))
        x0 = 0.5 + alpha * 0.04 / (alpha**2 * 0.04 + sigma**2) * (x - alpha * 0.5)
        return SimpleNamespace(sample=alpha * (x - alpha * x0) / sigma - sigma * x0)


@pytest.fixture
def perfect():
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    pipeline = GenerationPipeline(build_model("small", **TINY_MODEL), scheduler)
    pipeline.unet = PerfectNetwork(scheduler.path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_error_falls_with_the_length_and_evaluations_are_counted(perfect, noise):
    before = perfect.scheduler
    runs, _ = compare(perfect, noise, ["ddim", "heun"], [5, 20, 80], ["uniform", "exp"])
    assert perfect.scheduler is before
    by_name = {}
    for run in runs:
        by_name.setdefault((run.sampler, run.subsequence), []).append(run)
    assert [run.evaluations for run in by_name["ddim", "uniform"]] == [5, 20, 80]
    assert [run.evaluations for run in by_name["ddim", "exp"]] == [6, 21, 81]
    assert [run.evaluations for run in by_name["heun", ""]] == [9, 39, 159]
    errors = [run.rms_error for run in by_name["ddim", "uniform"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_the_original_targets_lose_the_flow(perfect, noise):
    exact = 0.5 + 0.2 * noise
    (right, wrong), _ = compare(perfect, noise, ["ddim", "ddim-original"], [20], ["exp"], exact)
    assert right.rms_error < 0.1
    assert wrong.rms_error > 0.4


def test_the_full_flow_is_near_the_exact_one(perfect, noise):
    assert (full_flow(perfect, noise) - (0.5 + 0.2 * noise)).abs().max() < 0.01


def test_full_flow_is_every_timestep(pipeline, noise):
    runs, samples = compare(pipeline, noise, ["ddim"], [100], ["uniform"])
    assert torch.equal(samples[0], full_flow(pipeline, noise))
    assert runs[0].rms_error == 0


def test_compare_command_writes_a_picture_and_a_table(saved, tmp_path, capsys):
    arguments = ["--model", saved, "--lengths", "3", "6", "--samplers", "ddim", "ddpm", "--num_images", "1"]
    assert main(["compare", *arguments, "--output_dir", str(tmp_path)]) == 0
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["sampler"], r["subsequence"], r["length"]) for r in rows] == [
        (sampler, tau, length)
        for sampler, tau in [("ddim", "uniform"), ("ddim", "exp"), ("ddpm", "")]
        for length in ("3", "6")
    ]
    assert Image.open(tmp_path / "comparison.png").width > 300
    assert capsys.readouterr().out.count("network calls") == 6


def test_a_perfect_network_is_compared_with_the_exact_flow(tmp_path, capsys):
    flags = ["--samplers", "ddim", "ddim-original", "--subsequences", "exp", "--lengths", "20", "100", "997"]
    assert main(["compare", "--model", "mixture", *flags, "--num_images", "50", "--output_dir", str(tmp_path)]) == 0
    with (tmp_path / "comparison.csv").open() as file:
        errors = {(row["sampler"], row["length"]): float(row["rms_error"]) for row in csv.DictReader(file)}
    assert errors["ddim", "997"] < 0.02 < errors["ddim", "20"] < 0.2
    assert errors["ddim-original", "20"] > 5 * errors["ddim", "20"]
    assert "from the exact flow" in capsys.readouterr().out
    assert Image.open(tmp_path / "comparison.png").width > 300


def test_sample_command_asks_for_classes_a_row_each(tmp_path, capsys):
    unet = AnnotatedUNet2DModel(
        sample_size=8, in_channels=1, base_channels=8, channel_multipliers=(1,), level_attention=(None,),
        num_class_embeds=3,
    )  # fmt: skip
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    pipeline = GenerationPipeline(unet, scheduler, id2label={"0": "cat", "1": "dog", "2": "owl"})
    pipeline.save_pretrained(tmp_path / "model")
    command = ["sample", "--model", str(tmp_path / "model"), "--num_inference_steps", "2", "--num_images", "6"]
    common = [*command, "--output", str(tmp_path / "grid.png")]
    told = []
    for words in (["owl", "0"], ["all"], ["2", "cat"]):
        flags = ["--guidance_scale", "2", "--dtype", "bfloat16"]
        assert main([*common, "--class_labels", *words, *flags]) == 0
        told.append(Image.open(tmp_path / "grid.png"))
    assert told[0].width > told[0].height
    assert told[1].width < told[1].height
    assert told[0].tobytes() == told[2].tobytes()
    assert main([*common, "--class_labels", "2", "cat", "--guidance_scale", "1"]) == 0
    plain = Image.open(tmp_path / "grid.png")
    interval = ["--guidance_scale", "2", "--guidance_interval", "0", "0"]  # no step is guided
    assert main([*common, "--class_labels", "2", "cat", *interval]) == 0
    assert Image.open(tmp_path / "grid.png").tobytes() == plain.tobytes()
    interval[1] = "1"
    assert main([*common, "--class_labels", "all", *interval]) == 1
    assert "guidance_interval has no effect at guidance_scale 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class_labels", "5"], "the network knows no classes"),
        (["--guidance_scale", "2"], "guidance_scale needs a condition"),
        (["--guidance_interval", "0", "0.5"], "guidance_interval needs a condition"),
        (["--guidance_interval", "0.5", "0"], "guidance_interval must be (start, stop) with"),
        (["--prompts", "a", "b", "--num_images", "1"], "fewer than the 2 conditions"),
        (["--image", "FILE"], "is not an image"),
        (["--dtype", "int8"], "dtype must be one of float32, bfloat16, float16, auto, got 'int8'"),
    ],
)
def test_sample_command_refuses_in_one_sentence(saved, tmp_path, capsys, flags, message):
    (tmp_path / "file").write_text("no image")
    flags = [str(tmp_path / "file") if flag == "FILE" else flag for flag in flags]
    assert main(["sample", "--model", saved, *flags, "--output", str(tmp_path / "grid.png")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().splitlines()[-1].startswith("error: ")


def test_sample_command_writes_a_grid_and_a_gif(saved, tmp_path):
    grid, gif = tmp_path / "new" / "grid.png", tmp_path / "reverse.gif"
    flags = ["--num_images", "5", "--batch_size", "3", "--num_inference_steps", "4", "--sampler", "dpmsolver++"]
    assert main(["sample", "--model", saved, *flags, "--output", str(grid), "--gif", str(gif)]) == 0
    assert Image.open(grid).size == (3 * (28 * 2 + 2) + 2, 2 * (28 * 2 + 2) + 2)
    assert Image.open(gif).n_frames == 4


def test_schedules_command_draws(tmp_path, capsys):
    assert main(["schedules", "--output", str(tmp_path / "s.png"), "--schedules", "linear", "cosine"]) == 0
    assert "linear               alphas_cumprod ends at 4.04e-05" in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample", "--model", "/nowhere"], "There is no pipeline '/nowhere'"),
        (["schedules", "--schedules", "cosinus"], "schedules must be one of linear"),
        (["sample", "--model", "MODEL", "--sampler", "magic"], "sampler must be one of ddim"),
        (["sample", "--model", "MODEL", "--num_images", "0"], "num_images must be at least 1, got 0"),
        (["compare", "--model", "MODEL", "--subsequences", "cubic"], "got 'cubic'"),
    ],
)
def test_wrong_words_are_one_sentence(saved, capsys, words, sentence):
    assert main([saved if word == "MODEL" else word for word in words]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error


def test_no_command_shows_what_there_is(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
