"""Half precision: more sampling steps must not give a worse result, for any scheduler and in any sampling loop."""

from __future__ import annotations

import csv
import logging
import time

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)

from diffusers_ext import GenerationPipeline, ScoreSDEScheduler, SubsequenceDDIMScheduler, build_model
from diffusers_ext.cli import main
from diffusers_ext.pipelines.batched_generation import seconds_of_choosing
from diffusers_ext.proofs import MIXTURES, MixtureNetwork
from diffusers_ext.schedulers import AncestralDDPMScheduler, MixScheduler
from diffusers_ext.training.fastest import compute_fastest

HALVES = (torch.bfloat16, torch.float16)
MIXTURE = MIXTURES["two modes"]


class HalfNetwork(MixtureNetwork):
    """The exact network, whose input and output are rounded to half precision."""

    def __init__(self, path, dtype):
        super().__init__(MIXTURE, path, "v_prediction")
        self.dtype = dtype

    def forward(self, sample, timestep):
        assert sample.dtype == self.dtype
        output = super().forward(sample.double(), timestep)
        output.sample = output.sample.to(self.dtype)
        return output


def scheduler_of(kind, **options):
    ours = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    return ours.path, ours if kind is SubsequenceDDIMScheduler else kind.from_config(ours.config, **options)


def rms_to_the_exact_flow(path, samples, noise):
    exact = MIXTURE.flow(noise.double(), (path.alpha(999), path.sigma(999)), (1.0, 0.0))
    return (samples.double() - exact).square().mean().sqrt().item()


NOISE = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [SubsequenceDDIMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_more_steps_are_no_worse_in_a_pipeline_of_half_precision(kind, dtype):
    path, scheduler = scheduler_of(kind)
    pipeline = GenerationPipeline(HalfNetwork(path, dtype), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    errors = []
    for steps in (50, 250, 1000):
        samples = pipeline(latents=NOISE, num_inference_steps=steps, output_type="latent").images
        assert samples.dtype == torch.float32
        errors.append(rms_to_the_exact_flow(path, samples, NOISE))
    assert errors[2] < 1.1 * errors[1] + 1e-3, errors
    assert errors[2] < 0.005, errors


@pytest.mark.parametrize("dtype", HALVES)
def test_more_steps_are_no_worse_in_a_loop_that_hands_half_precision_on(dtype):
    """As the pipelines of diffusers do: the scheduler's step receives and returns the network's dtype."""
    path, scheduler = scheduler_of(SubsequenceDDIMScheduler)
    network, errors = HalfNetwork(path, dtype), []
    for steps in (50, 250, 1000):
        scheduler.set_timesteps(steps)
        x = NOISE.to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
            assert x.dtype == dtype
        errors.append(rms_to_the_exact_flow(path, x, NOISE.to(dtype)))
    assert errors[2] < 1.1 * errors[1] + 2e-3, errors
    assert errors[2] < 0.01, errors


@pytest.mark.parametrize(
    "make",
    [
        lambda: AncestralDDPMScheduler(gamma=0.0, clip_sample=False),
        lambda: SubsequenceDDIMScheduler(clip_sample=False),
        lambda: ScoreSDEScheduler(predictor="ode_euler"),
        lambda: ScoreSDEScheduler(predictor="ode_heun"),
    ],
)
def test_every_scheduler_carries_a_sample_of_half_precision(make):
    """A thousand steps in bfloat16 end where they end in float32, up to the rounding of the network's input."""
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler = make()
        scheduler.set_timesteps(1000)
        x = NOISE.bfloat16().to(dtype)
        for t in scheduler.timesteps:
            level = scheduler.path.alpha(int(t)), scheduler.path.sigma(int(t))
            x = scheduler.step(MIXTURE.output("epsilon", x.double(), level).float(), t, x).prev_sample
        ends.append(x.float())
    assert (ends[0] - ends[1]).square().mean().sqrt() < 0.02


def test_a_sample_that_somebody_changed_is_taken_as_it_is():
    scheduler = SubsequenceDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 1, 4, 4).bfloat16()
    first = scheduler.step(x, 900, x).prev_sample
    first.mul_(0)
    changed = scheduler.step(x, 800, first).prev_sample
    torch.testing.assert_close(changed, scheduler.step(x, 800, torch.zeros_like(x)).prev_sample)


def test_the_toy_sampler_keeps_small_steps():
    scheduler = MixScheduler()
    scheduler.set_timesteps(1000)
    x = torch.zeros(1, 1, 2, 2).bfloat16()
    for t in scheduler.timesteps[:500]:
        x = scheduler.step(torch.ones_like(x), t, x).prev_sample
    assert x.float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_trained_network_in_bfloat16_follows_its_own_float32_flow():
    """A small network, briefly trained: its bfloat16 samples stay as near to its float32 ones at 100 steps as at 10."""
    torch.manual_seed(0)
    network = build_model(
        "small", in_channels=1, out_channels=1, sample_size=8, base_channels=8, channel_multipliers=(1, 2)
    )
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(60):
        x0 = torch.where(torch.rand(16, 1, 1, 1) < 0.5, -0.7, 0.7).expand(-1, -1, 8, 8)
        noise, t = torch.randn(16, 1, 8, 8), torch.randint(1000, (16,))
        target = scheduler.get_velocity(x0, noise, t)
        loss = (network(scheduler.add_noise(x0, noise, t), t).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipeline = GenerationPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    errors = []
    for steps in (10, 100):
        ends = [
            pipeline.to(dtype)(latents=latents, num_inference_steps=steps, output_type="latent").images.float()
            for dtype in (torch.float32, torch.bfloat16)
        ]
        pipeline.to(torch.float32)
        errors.append((ends[0] - ends[1]).square().mean().sqrt().item())
        assert ends[1].std() > 0.1
    assert errors[1] < 1.5 * errors[0] + 0.01, errors


def test_guidance_is_formed_in_full_precision():
    """Two half-precision predictions that differ by one rounding step: their difference is scaled, then not rounded."""
    from diffusers_ext.pipelines.guidance import GuidedNetwork

    class Shifted(torch.nn.Module):
        dtype = torch.bfloat16

        def forward(self, sample, timestep, shift):
            return torch.ones_like(sample) + shift.reshape(-1, 1, 1, 1).to(sample.dtype)

    step = torch.tensor([2.0**-7])
    network = GuidedNetwork(Shifted(), {"shift": step}, {"shift": 0 * step}, scale=1.37)
    got = network(torch.zeros(1, 1, 2, 2), 5, 0.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full_like(got, 1 + 1.37 * 2.0**-7))


@pytest.mark.parametrize("kind", [SubsequenceDDIMScheduler, EulerDiscreteScheduler])
def test_the_starting_noise_does_not_depend_on_the_networks_precision(kind):
    path, scheduler = scheduler_of(kind)
    starts = []
    for dtype in HALVES:
        pipeline = GenerationPipeline(HalfNetwork(path, dtype), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        pipeline(
            batch_size=2,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            callback_on_step_end=lambda p, i, t, kept: starts.append(kept["latents"]) if i == 0 else None,
        )
    torch.testing.assert_close(*starts, rtol=0, atol=0.02)


@pytest.mark.parametrize("pipeline_class", [GenerationPipeline, DDIMPipeline])
def test_the_fastest_precision_gives_the_same_samples_up_to_rounding(pipeline_class, caplog):
    torch.manual_seed(0)
    unet = UNet2DModel(
        8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, attention_head_dim=4,
    ).eval()  # fmt: skip
    pipeline = pipeline_class(unet, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    draw = {"batch_size": 4, "num_inference_steps": 4, "output_type": "np"}
    exact = pipeline(generator=torch.Generator().manual_seed(0), **draw).images
    said = []
    compute_fastest(unet, said.append)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    for _ in range(2):  # the choice is made once
        fast = pipeline(generator=torch.Generator().manual_seed(0), **draw).images
    assert len(said) == 1
    logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert "float32" not in caplog.text  # no warning of modules to keep in it: there are none
    assert "the fastest here" in said[0]
    assert unet.dtype in (torch.float32, *HALVES)
    # In bfloat16 it is 0.0065, and 0.73 for other noise. Single values differ by more: 1 / alpha_t enlarges rounding.
    assert ((fast - exact) ** 2).mean() ** 0.5 < 0.02


def test_a_command_chooses_its_precision(tmp_path, capsys):
    unet = build_model("small", in_channels=1, sample_size=8, base_channels=8, norm_num_groups=4)
    GenerationPipeline(unet, SubsequenceDDIMScheduler()).save_pretrained(tmp_path / "model")
    picture = tmp_path / "samples.png"
    arguments = (
        f"sample --model {tmp_path}/model --num_images 4 --num_inference_steps 2 --dtype auto --output {picture}"
    )
    assert main(arguments.split()) == 0
    assert "Computes in" in capsys.readouterr().out
    assert picture.is_file()


def test_trials_of_a_command_count_neither_as_network_calls_nor_as_its_time(tmp_path, capsys):
    unet = build_model("small", in_channels=1, sample_size=8, base_channels=8, norm_num_groups=4, num_class_embeds=2)
    GenerationPipeline(unet, SubsequenceDDIMScheduler()).save_pretrained(tmp_path / "model")
    words = f"compare --model {tmp_path}/model --samplers ddim:2 ddim:2 --num_images 2 --dtype auto"
    assert main([*words.split(), "--output_dir", str(tmp_path / "comparison")]) == 0
    assert "Computes in" in capsys.readouterr().out
    with (tmp_path / "comparison" / "comparison.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["evaluations"] == second["evaluations"] == "2"


class SlowNetwork(UNet2DModel):
    """Each sample takes so many seconds."""

    each, samples = 0.0, 0

    def forward(self, sample, *arguments, **named):
        type(self).samples += len(sample)
        time.sleep(self.each * len(sample))
        return super().forward(sample, *arguments, **named)


@pytest.mark.parametrize("each", [0.0, 0.02])
def test_choosing_takes_few_samples_of_a_slow_network_and_its_time_is_known(each, monkeypatch):
    network = SlowNetwork(
        8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, add_attention=False,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    monkeypatch.setattr(SlowNetwork, "each", each)
    monkeypatch.setattr(SlowNetwork, "samples", 0)
    monkeypatch.setattr("diffusers_ext.training.fastest.SECONDS", 1.0)
    pipeline = GenerationPipeline(network, SubsequenceDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    compute_fastest(network, lambda told: None)
    began = time.perf_counter()
    pipeline(batch_size=16, num_inference_steps=1, output_type="pt")
    passed = time.perf_counter() - began
    assert 0 < seconds_of_choosing(pipeline) < passed - 16 * each
    tried = SlowNetwork.samples - 16
    assert tried <= 8 * 8 if each else tried > 8 * 8


def test_a_mode_that_the_device_does_not_compute_is_left_out(monkeypatch):
    monkeypatch.setattr("diffusers_ext.training.fastest.resolve_mixed_precision", lambda wanted: "bf16")
    network = OnlyFloat32()
    said = []
    compute_fastest(network, said.append)
    with torch.no_grad():
        network(torch.zeros(2, 1, 4, 4), 5)
    assert "Computes in fp32" in said[0]


class OnlyFloat32(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1)

    def forward(self, sample, timestep):
        if sample.dtype != torch.float32:
            raise NotImplementedError("not implemented for 'BFloat16'")
        return self.layer(sample)
