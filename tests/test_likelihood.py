"""Bits per dimension: on mixtures, where the density is known, and by the command."""

from __future__ import annotations

import json
import math

import diffusers
import pytest
import torch

import diffusers_ext
from diffusers_ext.cli.program import main
from diffusers_ext.evaluation.likelihood import (
    FlowDensity,
    bits_per_dimension,
    check_likelihood,
    dequantized,
    likelihood,
    variational_bound,
)
from diffusers_ext.models import SignalUNet1DModel
from diffusers_ext.proofs import MIXTURES, ExactNetwork, GaussianMixture

LN2 = math.log(2)

SCHEDULERS = {
    "discrete vp": lambda kind: diffusers_ext.SubsequenceDDIMScheduler(
        beta_schedule="linear_log_snr", schedule_options={"end": -13.3}, prediction_type=kind
    ),
    "continuous vp": lambda kind: diffusers_ext.ScoreSDEScheduler(
        continuous=True, prediction_type=kind, sampling_eps=1e-5
    ),
    "continuous ve": lambda kind: diffusers_ext.ScoreSDEScheduler(
        continuous=True, sde="ve", sigma_min=1e-3, sigma_max=300.0, prediction_type=kind, sampling_eps=1e-5
    ),
    "flow matching of diffusers": lambda kind: diffusers.FlowMatchEulerDiscreteScheduler(),
    "euler of diffusers": lambda kind: diffusers.EulerDiscreteScheduler(beta_start=1e-6, prediction_type=kind),
}


def exact_bits(mixture, x):
    return -mixture.log_density(x) / (x.shape[1] * LN2)


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("discrete vp", "epsilon", "two modes"),
        ("discrete vp", "v_prediction", "balls"),
        ("continuous vp", "sample", "two modes"),
        ("continuous ve", "score", "two modes"),
        ("flow matching of diffusers", "flow", "ellipses"),
        ("euler of diffusers", "epsilon", "balls"),
    ],
)
def test_density_of_a_mixture_is_exact_to_a_thousandth_of_a_bit(path, kind, name):
    mixture, scheduler = MIXTURES[name], SCHEDULERS[path](kind)
    x = mixture.sample(6, torch.Generator().manual_seed(0))
    density = FlowDensity(ExactNetwork(mixture, scheduler), scheduler, tolerance=1e-5, trace="exact")
    bits = -density.log_density(x) / (x.shape[1] * LN2)
    assert (bits - exact_bits(mixture, x)).mean().abs() < 1e-3


def test_hutchinson_is_unbiased_and_fixed_steps_agree():
    mixture, scheduler = MIXTURES["ellipses"], SCHEDULERS["discrete vp"]("epsilon")
    x = mixture.sample(8, torch.Generator().manual_seed(0))
    network = ExactNetwork(mixture, scheduler)
    exact = FlowDensity(network, scheduler, 1e-5, trace="exact").log_density(x)
    fixed = FlowDensity(network, scheduler, steps=60, trace="exact").log_density(x)
    torch.testing.assert_close(fixed, exact, rtol=0, atol=2e-3)
    many = x.repeat_interleave(200, 0)
    estimates = FlowDensity(network, scheduler, 1e-4).log_density(many, torch.Generator().manual_seed(1)).reshape(8, -1)
    errors = estimates.std(1) / 200**0.5
    assert (estimates.std(1) > 1e-3).any()
    assert ((estimates.mean(1) - exact).abs() < 4 * errors + 2e-3).all()


def test_the_constant_is_the_logarithm_of_half_the_range():
    """A uniform density on [-1, 1] is a uniform code of 255 levels: log2(255) bits, of which log2(127.5) are scale."""
    log_density = torch.tensor([784 * math.log(0.5)], dtype=torch.float64)
    assert bits_per_dimension(log_density, 784).item() == pytest.approx(math.log2(127.5) + 1)
    assert math.log2(127.5) + 1 == pytest.approx(math.log2(255))


def eight_bit_images(number: int) -> torch.Tensor:
    pixels = torch.randint(100, 156, (number, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    return pixels.float() / 127.5 - 1


def test_dequantisation_keeps_the_level_and_refuses_other_values():
    images = eight_bit_images(50)
    noisy = dequantized(images, torch.Generator().manual_seed(0))
    assert torch.equal(((noisy + 1) * 127.5).round(), ((images + 1) * 127.5).round())
    difference = (noisy - images) * 127.5
    assert difference.std().item() == pytest.approx(12**-0.5, rel=0.1)
    with pytest.raises(ValueError, match="8-bit images as they are"):
        dequantized(images + 0.3 / 127.5)


def image_model(scheduler):
    """Images of four independent pixels with standard deviation 20 levels, and their exact network."""
    gaussian = GaussianMixture([1.0], [[0.0] * 4], [(20 / 127.5) ** 2])
    return gaussian, ExactNetwork(gaussian, scheduler)


def test_likelihood_of_images_is_the_entropy_of_their_levels():
    """E[-log2 p] of a Gaussian of 20 levels: log2(20 sqrt(2 pi e)) bits, known without the package."""
    scheduler = SCHEDULERS["discrete vp"]("epsilon")
    gaussian, network = image_model(scheduler)
    x = gaussian.sample(200, torch.Generator().manual_seed(2)).float().reshape(-1, 1, 2, 2)
    images = ((x + 1) * 127.5).round() / 127.5 - 1
    found = likelihood(network, scheduler, images, trace="exact", batch_size=100)
    expected = math.log2(20 * math.sqrt(2 * math.pi * math.e))
    assert found.bits_per_dimension == pytest.approx(expected, abs=4 * found.standard_error)
    assert found.standard_error < 0.05
    assert found.evaluations > 20
    assert "200 images" in str(found)
    bound = variational_bound(network, scheduler, images, num_timesteps=100)
    assert len(bound.diffusion) == 100
    # What a Gaussian's samples tell about it at the lowest noise level, in closed form.
    information = 0.5 * math.log2(1 + math.exp(13.3) * (20 / 127.5) ** 2)
    assert bound.total - bound.decoder == pytest.approx(information, abs=0.1)
    assert bound.total > expected
    assert 0 <= bound.decoder < 0.1


def test_all_terms_of_the_bound_add_up():
    scheduler = diffusers_ext.AncestralDDPMScheduler(num_train_timesteps=60, beta_schedule="linear_log_snr")
    _, network = image_model(scheduler)
    images = eight_bit_images(30)
    bound = variational_bound(network, scheduler, images)
    assert sorted(bound.diffusion) == list(range(1, 60))
    assert bound.total == pytest.approx(bound.prior + sum(bound.diffusion.values()) + bound.decoder)


def test_wrong_settings_are_sentences():
    scheduler = SCHEDULERS["discrete vp"]("epsilon")
    _, network = image_model(scheduler)
    with pytest.raises(ValueError, match="trace must be one of hutchinson, exact, got 'none'"):
        FlowDensity(network, scheduler, trace="none")
    with pytest.raises(ValueError, match="eps must lie between"):
        FlowDensity(network, scheduler, eps=1e-9)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        FlowDensity(network, scheduler, tolerance=0)
    with pytest.raises(ValueError, match="needs a discrete noise path"):
        variational_bound(network, diffusers.FlowMatchEulerDiscreteScheduler(), eight_bit_images(2))
    with pytest.raises(ValueError, match="num_timesteps must be between 1 and 999"):
        variational_bound(network, scheduler, eight_bit_images(2), num_timesteps=5000)


def test_latent_and_conditional_models_are_refused_in_a_sentence():
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    pipeline = diffusers_ext.GenerationPipeline(network, SCHEDULERS["discrete vp"]("epsilon"))
    check_likelihood(pipeline)
    pipeline.vae = network
    with pytest.raises(ValueError, match="latent diffusion"):
        check_likelihood(pipeline)
    conditional = diffusers_ext.GenerationPipeline(
        diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            num_class_embeds=3,
        ),
        SCHEDULERS["discrete vp"]("epsilon"),
    )
    with pytest.raises(ValueError, match="unconditional models"):
        check_likelihood(conditional)


def test_signals_are_refused_in_a_sentence():
    network = SignalUNet1DModel(
        sample_size=32,
        in_channels=1,
        base_channels=8,
        channel_multipliers=(1,),
        attention_resolutions=(),
        norm_num_groups=4,
    )
    pipeline = diffusers_ext.SignalPipeline(network, SCHEDULERS["discrete vp"]("epsilon"))
    with pytest.raises(ValueError, match="makes one-dimensional signals"):
        check_likelihood(pipeline)


def test_command_on_8_bit_images(tmp_path, capsys):
    network = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipeline = diffusers_ext.GenerationPipeline(network, SCHEDULERS["discrete vp"]("epsilon"))
    pipeline.save_pretrained(tmp_path / "model")
    output = tmp_path / "bits.json"
    flags = ["--num_images", "3", "--steps", "2", "--bound_timesteps", "2", "--output", str(output)]
    assert main(["likelihood", "--model", str(tmp_path / "model"), *flags]) == 0
    found, text = json.loads(output.read_text()), capsys.readouterr().out
    assert len(found["per_image"]) == 3
    assert found["evaluations"] == 8
    assert found["trace"] == "hutchinson"
    assert "bits per dimension" in text
    assert "Variational bound" in text
