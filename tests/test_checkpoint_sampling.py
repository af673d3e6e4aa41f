"""What was saved is what is sampled: by a recipe's name, a checkpoint of a run, or a file of another project."""

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from PIL import Image, ImageSequence
from reference_models import RefAnnotated

from diffusers_ext import GenerationPipeline, build_model
from diffusers_ext.cli import main
from diffusers_ext.training import train
from diffusers_ext.training.unfinished import pipeline_of_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_tiny(folder, recipe="", **config):
    torch.manual_seed(0)
    from diffusers_ext import SubsequenceDDIMScheduler

    model = build_model("small", **{**TINY_MODEL, "zero_init_output": False, **config})
    scheduler = SubsequenceDDIMScheduler(
        num_train_timesteps=20, beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    names = {str(number): f"digit {number}" for number in range(config.get("num_class_embeds", 0))} or None
    GenerationPipeline(model, scheduler, id2label=names).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(recipe)


def test_the_name_of_a_recipe_means_what_it_trained(here, capsys):
    assert main(["sample", "ddim"]) == 1
    assert "diffusers-ext train ddim" in capsys.readouterr().err
    save_tiny(here / "outputs" / "ddim", "ddpm_num_inference_steps: 3\n")
    assert main(["sample", "ddim", "--num_images", "4", "--gif", "r.gif"]) == 0
    with Image.open("r.gif") as gif:
        assert gif.n_frames == 3


def test_a_guided_model_draws_every_class_when_none_is_named(here, capsys):
    recipe = "condition: class\nguidance_scale: 2.0\nddpm_num_inference_steps: 2\n"
    save_tiny(here / "outputs" / "guided", recipe, num_class_embeds=2)
    assert main(["sample", "guided", "--num_images", "6", "--output", "all.png"]) == 0
    with Image.open("all.png") as grid:
        assert grid.width > grid.height  # two classes, three images each
    assert main(["sample", "guided", "--num_images", "6", "--class_labels", "1", "--output", "one.png"]) == 0


def test_every_class_has_as_many_samples_when_no_number_is_given(here, capsys):
    recipe = "condition: class\nguidance_scale: 2.0\nddpm_num_inference_steps: 1\n"
    save_tiny(here / "outputs" / "guided", recipe, num_class_embeds=10)
    assert main(["sample", "guided"]) == 0
    assert "60 images" in capsys.readouterr().out
    with Image.open("samples.png") as grid:
        assert np.asarray(grid)[-3].min() == 0  # its last row is full


def test_what_a_run_left_at_its_default_holds_for_its_samples(here, capsys):
    """A run's file omits defaults: its sampler ddpm takes ddpm's options, and all of its timesteps are visited."""
    save_tiny(here / "outputs" / "ddpm", "resolution: 28\n")
    flags = ["--num_images", "1", "--gamma", "sigmoid_decay", "--variance_type", "fixed_large", "--gif", "r.gif"]
    assert main(["sample", "ddpm", *flags]) == 0, capsys.readouterr().err
    with Image.open("r.gif") as gif:
        assert gif.n_frames == 20
    assert main(["sample", "ddpm", "--eta", "0.5"]) == 1
    assert "eta has no effect on sampler 'ddpm'" in capsys.readouterr().err


def test_gifs_take_frames_and_fps(here):
    save_tiny(here / "model")
    flags = ["--num_inference_steps", "8", "--num_images", "1", "--gif", "r.gif", "--frames", "4", "--fps", "5"]
    assert main(["sample", "model", *flags]) == 0
    with Image.open("r.gif") as gif:
        assert gif.n_frames == 4
        assert next(ImageSequence.Iterator(gif)).info["duration"] == 200


@pytest.mark.parametrize("use_ema", [True, False])
def test_a_checkpoint_of_an_unfinished_run_is_sampled(tiny_run, here, use_ema):
    pipeline = train(tiny_run(output_dir="run", max_train_steps=4, use_ema=use_ema, ddpm_num_inference_steps=3))
    found = pipeline_of_checkpoint("run/checkpoint-4")
    weights, expected = found.unet.state_dict(), pipeline.unet.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert found.scheduler.config["beta_schedule"] == pipeline.scheduler.config["beta_schedule"]
    earlier = pipeline_of_checkpoint("run/checkpoint-2").unet.state_dict()
    assert not all(torch.equal(earlier[name], expected[name]) for name in expected)
    few = ["--num_images", "2", "--gif", "early.gif"]
    assert main(["sample", "--checkpoint", "run/checkpoint-2", *few, "--output", "early.png"]) == 0
    assert (here / "early.png").is_file()
    with Image.open("early.gif") as gif:
        assert gif.n_frames == 3  # as many steps as the run's previews have


def test_checkpoints_of_a_run_side_by_side(tiny_run, here, capsys):
    train(tiny_run(output_dir="run", max_train_steps=4))
    assert main(["compare", "--model", "run", "--checkpoints", "--lengths", "2"]) == 0
    assert "3 rows" in capsys.readouterr().out
    assert main(["compare", "--model", "nothing", "--checkpoints"]) == 1
    assert "holds no checkpoint-N" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_named_by_its_recipe(tiny_run, here, capsys):
    train(tiny_run(output_dir="outputs/ddpm", max_train_steps=4))
    (here / "outputs" / "ddpm" / "model_index.json").unlink()
    assert main(["compare", "--model", "ddpm", "--checkpoints", "--lengths", "2"]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert main(["sample", "ddpm"]) == 1
    assert "sampled by --checkpoint outputs/ddpm/checkpoint-4" in capsys.readouterr().err


def test_a_checkpoint_of_another_project_is_sampled_directly(here, capsys):
    torch.manual_seed(0)
    torch.save(RefAnnotated(8, (1, 2), 1).state_dict(), "theirs.pt")
    flags = ["--num_images", "1", "--num_inference_steps", "1", "--output", "theirs.png"]
    assert main(["sample", "--checkpoint", "theirs.pt", *flags]) == 1
    assert "architecture" in capsys.readouterr().err  # several projects have such a network
    assert main(["sample", "--checkpoint", "theirs.pt", "--architecture", "playground-ddpm", *flags]) == 0
    assert (here / "theirs.png").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give a model"),
        (["m", "--checkpoint", "c"], "one of both"),
        (["--checkpoint", "no-such"], "There is no checkpoint 'no-such'"),
        (["--checkpoint", "."], "has no readable manifest.json"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(here, capsys, words, sentence):
    assert main(["sample", *words]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
