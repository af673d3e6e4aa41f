"""A pipeline's calls do not disturb one another, can be interrupted, and take the arguments of diffusers' users."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from test_pipelines import generator, make_pipeline

from diffusers_ext import AnnotatedUNet2DModel, GenerationPipeline, ScoreSDEScheduler, SubsequenceDDIMScheduler

SCHEDULERS = {
    "ours": lambda config: SubsequenceDDIMScheduler.from_config(config),
    "our heun": lambda config: ScoreSDEScheduler.from_config(config, predictor="ode_heun"),
    "dpm-solver": lambda config: DPMSolverMultistepScheduler.from_config(config),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config),
    "heun": lambda config: HeunDiscreteScheduler.from_config(config),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_call_within_a_call_on_the_same_scheduler_changes_nothing(name):
    """What two threads do, in a fixed order: a second pipeline runs to its end between two steps of the first."""
    first = make_pipeline()
    first.scheduler = SCHEDULERS[name](first.scheduler.config)
    second = GenerationPipeline(first.unet, first.scheduler)
    second.set_progress_bar_config(disable=True)

    def run(callback=None):
        return first(num_inference_steps=4, generator=generator(), output_type="pt", callback_on_step_end=callback)

    def interfere(pipe, step, timestep, tensors):
        second(num_inference_steps=3, generator=generator(1), output_type="pt")
        first(num_inference_steps=2, generator=generator(2), output_type="pt")

    assert torch.equal(run().images, run(interfere).images)


def test_two_threads_give_the_images_of_one():
    pipeline = make_pipeline(
        ScoreSDEScheduler(prediction_type="v_prediction", predictor="ode_heun", timestep_spacing="trailing")
    )

    def images(seed):
        return pipeline(num_inference_steps=6, generator=generator(seed), output_type="pt").images

    expected = [images(seed) for seed in (0, 1)]
    got = [None, None]

    def work(seed):
        got[seed] = images(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


def test_the_pipelines_own_scheduler_is_left_as_it_was():
    pipeline = make_pipeline()
    before = pipeline.scheduler.timesteps.clone()
    pipeline(num_inference_steps=3, output_type="pt")
    assert torch.equal(pipeline.scheduler.timesteps, before)


def test_a_callback_can_stop_the_call_and_the_next_call_starts_afresh():
    pipeline, seen = make_pipeline(), []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1

    images = pipeline(
        num_inference_steps=5, generator=generator(), output_type="latent", callback_on_step_end=stop
    ).images
    assert len(seen) == 2
    assert torch.equal(images, seen[-1])
    pipeline(num_inference_steps=3, output_type="latent", callback_on_step_end=lambda *_: seen.append(None) or {})
    assert len(seen) == 5


def test_images_per_prompt_repeat_every_condition():
    pipeline = make_pipeline(num_class_embeds=3)
    latents = torch.randn(4, 1, 28, 28, generator=generator())
    arguments = {"num_inference_steps": 2, "output_type": "pt", "latents": latents, "guidance_scale": 2.0}
    repeated = pipeline(class_labels=[2, 0], num_images_per_prompt=2, **arguments).images
    assert torch.equal(repeated, pipeline(class_labels=[2, 2, 0, 0], **arguments).images)
    assert len(make_pipeline()(batch_size=2, num_images_per_prompt=3, num_inference_steps=1).images) == 6


@pytest.fixture(scope="module")
def self_conditioned():
    torch.manual_seed(0)
    shape = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "base_channels": 8, "channel_multipliers": (1, 2)}
    network = AnnotatedUNet2DModel(**shape, level_attention=(None, None), self_condition=True)
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    pipeline = GenerationPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_self_conditioned_network_receives_its_last_prediction(self_conditioned):
    pipeline, received = self_conditioned, []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: received.append(kwargs.get("self_condition")), with_kwargs=True
    )
    latents = torch.randn(2, 1, 8, 8, generator=generator())
    got = pipeline(latents=latents, num_inference_steps=4, output_type="latent").images
    handle.remove()
    scheduler, x, x0 = pipeline.scheduler, latents, None
    scheduler.set_timesteps(4)
    for t, given in zip(scheduler.timesteps, received):
        assert given is None if x0 is None else torch.equal(given, x0)
        with torch.no_grad():
            output = pipeline.unet(x, t, self_condition=x0).sample
        x, x0 = scheduler.step(output, t, x, return_dict=False)
    torch.testing.assert_close(got, x)


def test_a_scheduler_that_keeps_its_prediction_to_itself_is_refused_for_self_conditioning(self_conditioned):
    scheduler = DPMSolverMultistepScheduler.from_config(self_conditioned.scheduler.config)
    pipeline = GenerationPipeline(self_conditioned.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler does not return it"):
        pipeline(num_inference_steps=3)


def test_a_network_may_return_a_plain_tensor():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))
            self.config = type("Config", (), {"in_channels": 1, "sample_size": 4})()

        def forward(self, sample, timestep):
            return self.scale * sample

    pipeline = GenerationPipeline(Plain(), SubsequenceDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=3, output_type="pt").images.shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"unet": 3}, "unet must be a torch.nn.Module, got int"),
        ({"unet": AnnotatedUNet2DModel}, "unet must be a torch.nn.Module, got type"),
        ({"text_encoder": "clip"}, "text_encoder must be a torch.nn.Module, got str"),
        ({"weak_unet": [1]}, "weak_unet must be a torch.nn.Module, got list"),
        ({"scheduler": "ddim"}, "scheduler must be a scheduler .*, got str"),
        ({"scheduler": SubsequenceDDIMScheduler}, "got the class SubsequenceDDIMScheduler"),
    ],
)
def test_parts_of_a_wrong_kind_are_one_sentence(parts, sentence):
    right = make_pipeline()
    with pytest.raises(ValueError, match=sentence):
        GenerationPipeline(**{"unet": right.unet, "scheduler": right.scheduler, **parts})


@pytest.mark.parametrize("returned", [3, [1], {"latents": None}, {"latents": torch.zeros(1, 2)}])
def test_what_a_callback_must_return_is_one_sentence(returned):
    with pytest.raises(ValueError, match="callback_on_step_end must return"):
        make_pipeline()(num_inference_steps=2, callback_on_step_end=lambda *_: returned)


@pytest.mark.parametrize("name", ["batch_size", "height", "num_inference_steps", "guidance_scale", "eta"])
def test_numbers_that_nothing_can_hold_are_one_sentence(name):
    with pytest.raises(ValueError, match=name):
        make_pipeline()(**{"num_inference_steps": 1, name: 10**400})


@pytest.mark.parametrize("as_a_tuple", [True, False])
def test_a_scheduler_may_return_the_sample_itself_or_in_a_tuple(as_a_tuple):
    class Bare(SubsequenceDDIMScheduler):
        def step(self, *args, **kwargs):
            sample = super().step(*args, **kwargs).prev_sample
            return (sample,) if as_a_tuple else sample

    pipeline = make_pipeline()
    images = []
    for kind in (SubsequenceDDIMScheduler, Bare):
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        images.append(pipeline(num_inference_steps=3, generator=generator(), output_type="pt").images)
    assert torch.equal(*images)
