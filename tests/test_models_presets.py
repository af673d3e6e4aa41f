"""The named models: their sizes, and building them with other channels and sizes."""

import dataclasses

import pytest
import torch

from diffusers_ext.models import PRESETS, build_model

COUNTS = {
    "usurf-unet": 9_191_553,
    "usurf-guided-unet": 11_686_017,
    "generative-pytorch-adm": 24_514_817,
    "playground-toy": 203_777,
    "playground-ddpm": 2_020_257,
    "ddpm-accelerate-attention": 23_332_739,
    "denoising-diffusion-pytorch": 35_719_555,
    "ict1022-simple": 2_377_215,
    "small": 2_012_164,
    "small-adm": 2_804_428,
    "speech": 17_883_393,
    "series": 1_605_569,
}


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_every_source_system_has_a_preset_and_there_are_no_others():
    assert {name: preset.parameter_count for name, preset in PRESETS.items()} == COUNTS


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_are_exact(name):
    with torch.device("meta"):
        assert count(build_model(name)) == COUNTS[name]


def test_todays_denoising_diffusion_pytorch_has_8064_parameters_less():
    """Its blocks' RMS norm has a gain only, where release 1.11 had GroupNorm's weight and bias."""
    with torch.device("meta"):
        assert count(build_model("denoising-diffusion-pytorch", block_norm="rms")) == 35_719_555 - 8_064


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_at_which_size_it_is_trained(name):
    preset = PRESETS[name]
    assert preset.shape[1:] == (preset.config["sample_size"],) * preset.dims
    with torch.device("meta"):
        model = build_model(name)
        sample = torch.zeros(1, *preset.shape)
        assert model(sample, torch.zeros(1)).sample.shape == sample.shape


@pytest.mark.parametrize("name", PRESETS)
def test_channels_and_size_can_be_the_datas_own(name):
    with torch.device("meta"):
        model = build_model(name, in_channels=4, sample_size=64)
    assert (model.config.in_channels, model.config.out_channels, model.config.sample_size) == (4, 4, 64)


def test_building_leaves_the_preset_alone():
    before = dict(PRESETS["small"].config)
    build_model("small", in_channels=3)
    assert dict(PRESETS["small"].config) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["small"].parameter_count = 1


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no model preset 'smal'") as error:
        build_model("smal")
    assert all(name in str(error.value) for name in PRESETS)


def test_unknown_overrides_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="ToyUNet2DModel takes no base_channels; it takes sample_size"):
        build_model("playground-toy", base_channels=8)


def test_the_small_model_starts_at_zero_and_learns_to_predict():
    torch.manual_seed(0)
    model = build_model("small")
    sample, target = torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(6):
        loss = (model(sample, torch.arange(2)).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(target.square().mean().item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.beta_schedule is not None])
def test_the_hints_name_a_noise_path_that_can_be_built(name):
    from diffusers_ext.schedulers import NoisePath

    preset = PRESETS[name]
    start, end = preset.betas or (1e-4, 0.02)
    path = NoisePath.from_schedule(preset.beta_schedule, preset.num_train_timesteps, start, end)
    path.check_prediction_type(preset.prediction_type)
    assert len(path) == preset.num_train_timesteps
