"""GenerationPipeline: arguments, outputs, callbacks, schedulers of both houses, saving and loading."""

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_ext import (
    AncestralDDPMScheduler,
    GenerationPipeline,
    MixScheduler,
    SubsequenceDDIMScheduler,
    build_model,
)


def make_pipeline(scheduler=None, **options):
    torch.manual_seed(0)
    model = build_model("small", **{**TINY_MODEL, "zero_init_output": False, **options})
    scheduler = scheduler or SubsequenceDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    pipeline = GenerationPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_output_types_agree():
    pipeline = make_pipeline()
    images = {
        kind: pipeline(batch_size=2, num_inference_steps=3, generator=generator(), output_type=kind).images
        for kind in ("pt", "np", "pil", "latent")
    }
    assert images["pt"].shape == (2, 1, 28, 28)
    assert 0 <= images["pt"].min() < images["pt"].max() <= 1
    assert np.array_equal(images["np"], images["pt"].permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(images["pil"][1]), (images["np"][1, ..., 0] * 255).round().astype("uint8"))
    assert torch.equal(images["pt"], (images["latent"] / 2 + 0.5).clamp(0, 1))
    assert images["pil"][0].mode == "L"


def test_returns_a_tuple_when_asked():
    (images,) = make_pipeline()(num_inference_steps=2, return_dict=False, output_type="pt")
    assert images.shape[0] == 1


@pytest.mark.parametrize("scheduler_class", [SubsequenceDDIMScheduler, AncestralDDPMScheduler])
def test_saved_and_loaded_gives_the_same_images(tmp_path, scheduler_class):
    pipeline = make_pipeline(
        scheduler_class(prediction_type="v_prediction", beta_schedule="cosine", timestep_spacing="trailing")
    )
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    arguments = {"batch_size": 2, "num_inference_steps": 4, "output_type": "pt"}
    assert type(loaded) is GenerationPipeline
    assert torch.equal(
        pipeline(**arguments, generator=generator()).images, loaded(**arguments, generator=generator()).images
    )


@pytest.mark.parametrize(
    "scheduler_class",
    [
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_runs_schedulers_of_diffusers(scheduler_class):
    pipeline = make_pipeline()
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline(num_inference_steps=5, generator=generator(), output_type="pt").images.isfinite().all()


def test_many_steps_of_dpm_solver_and_ddim_reach_the_same_image():
    pipeline = make_pipeline(SubsequenceDDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    reference = pipeline(num_inference_steps=500, generator=generator(), output_type="latent").images
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    other = pipeline(num_inference_steps=60, generator=generator(), output_type="latent").images
    assert (other - reference).abs().max() < 0.02 * reference.abs().max()


def test_one_generator_per_image_is_as_good_as_one_image_at_a_time():
    pipeline = make_pipeline(AncestralDDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"))
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    both = pipeline(batch_size=2, generator=[generator(5), generator(6)], **arguments).images
    single = pipeline(batch_size=1, generator=generator(6), **arguments).images
    assert torch.allclose(both[1:], single, atol=1e-5)


def test_latents_give_the_start():
    pipeline = make_pipeline()
    noise = torch.randn(3, 1, 28, 28, generator=generator(1))
    arguments = {"num_inference_steps": 3, "output_type": "pt"}
    first, second = (pipeline(latents=noise, generator=generator(s), **arguments).images for s in (1, 2))
    assert first.shape[0] == 3
    assert torch.equal(first, second)


def test_callback_sees_every_step_and_can_change_the_sample():
    pipeline, seen = make_pipeline(), []

    def zero_at_the_end(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    images = pipeline(num_inference_steps=3, callback_on_step_end=zero_at_the_end, output_type="latent").images
    assert [s[:2] for s in seen] == [(0, 999), (1, 666), (2, 332)]
    assert images.abs().max() == 0
    assert pipeline.num_timesteps == 3


def test_eta_reaches_the_scheduler():
    pipeline = make_pipeline()
    latents = torch.randn(1, 1, 28, 28, generator=generator(1))
    arguments = {"latents": latents, "num_inference_steps": 5, "output_type": "pt"}
    first, second = (pipeline(**arguments, eta=1.0, generator=generator(s)).images for s in (0, 1))
    assert not torch.equal(first, second)


def test_timesteps_can_be_given():
    pipeline = make_pipeline()
    seen = []
    pipeline(timesteps=[900, 17, 3], output_type="pt", callback_on_step_end=lambda p, i, t, _: seen.append(int(t)))
    assert seen == [900, 17, 3]


def test_mix_scheduler_starts_uniform_and_keeps_its_range():
    pipeline = make_pipeline(MixScheduler())
    start = pipeline.scheduler.sample_prior((2, 1, 64, 64), generator=generator())
    assert 0 <= start.min() < 0.01
    assert 0.99 < start.max() < 1
    assert start.mean() == pytest.approx(0.5, abs=0.01)
    last = pipeline(num_inference_steps=4, generator=generator(), output_type="latent").images
    assert torch.equal(
        pipeline(num_inference_steps=4, generator=generator(), output_type="pt").images, last.clamp(0, 1)
    )


def test_bfloat16_pipeline_gives_float_images():
    pipeline = make_pipeline().to(torch.bfloat16)
    images = pipeline(num_inference_steps=2, generator=generator(), output_type="np").images
    assert images.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"output_type": "jpeg"}, "output_type must be one of"),
        ({"batch_size": 3, "generator": [torch.Generator()]}, "got 1 for 3 images"),
        ({"latents": torch.zeros(1, 3, 28, 28)}, "latents must have shape"),
        ({"num_inference_steps": 5, "timesteps": [5, 1]}, "not both"),
        ({"num_inference_steps": 5000}, "between 1 and 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be an integer of at least 1, got 2.5"),
        ({"num_inference_steps": True}, "num_inference_steps must be an integer"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer of at least 1"),
        ({"num_images_per_prompt": 2, "latents": torch.zeros(3, 1, 28, 28)}, "latents are for 3 images"),
        ({"height": "28"}, "height must be an integer of at least 1, got '28'"),
        ({"eta": -1}, "eta must be a number from 0 to 1, got -1"),
        ({"eta": float("nan")}, "eta must be a number from 0 to 1"),
        ({"eta": "a"}, "eta must be a number from 0 to 1"),
        ({"latents": torch.full((1, 1, 28, 28), float("nan"))}, "latents must be finite"),
        ({"latents": np.zeros((1, 1, 28, 28))}, "latents must be a tensor"),
        ({"latents": torch.zeros(1, 1, 28, 28, dtype=torch.int64)}, "floating-point numbers, got torch.int64"),
        ({"latents": torch.zeros(0, 1, 28, 28)}, "latents must have shape"),
        ({"generator": 7}, "generator must be a torch.Generator or a list of them, got int"),
        ({"generator": [7]}, "generator must be a torch.Generator or a list"),
        ({"timesteps": 5}, "timesteps must be a list of numbers"),
        ({"timesteps": ["a"]}, "timesteps must be a list of numbers"),
        ({"callback_on_step_end": "print"}, "callback_on_step_end must be a function, got str"),
        ({"output_type": None}, "output_type must be one of"),
        ({"callback_on_step_end_tensor_inputs": 3}, "callback_on_step_end_tensor_inputs may name"),
        ({"timesteps": [1, 5]}, "descending"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs may name"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make_pipeline()(**arguments)
    assert "\n" not in str(caught.value)
