"""Each model against an independent writing of its source system: equal outputs with equal weights."""

import pytest
import torch
from reference_models import (
    RefADM,
    RefAnnotated,
    RefAttentionUNet,
    RefGuided,
    RefSimple,
    RefToy,
    parameters,
    randomized,
)

from diffusers_ext.hub.convert import translate
from diffusers_ext.models import (
    PRESETS,
    ADMUNet2DModel,
    AnnotatedUNet2DModel,
    AttentionUNet2DModel,
    GuidedUNet2DModel,
    SimpleUNet2DModel,
    ToyUNet2DModel,
    build_model,
)

TIMESTEPS = torch.tensor([0.0, 7.0, 250.5])
PACKAGE = {
    "stem_kernel_size": 7,
    "norm_num_groups": 8,
    "weight_standardization": None,
    "level_attention": ("linear", "full"),
    "attention_norm": "rms",
    "num_memory_kv": 4,
}
ANNOTATED = {"level_attention": ("linear", "linear")}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(4)


def images(channels, size=16):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


def take_weights(ours, reference, architecture):
    ours.load_state_dict(translate(architecture, reference.state_dict(), ours))


def assert_same(ours, expected):
    assert expected.std() > 0.05, "a constant reference would prove nothing"
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("reference_options", "options"),
    [
        ({}, ANNOTATED),
        ({"inverted": True}, {**ANNOTATED, "weight_standardization": "inverted"}),
        ({"lineage": "package"}, PACKAGE),
        ({"lineage": "package", "rms_blocks": True}, {**PACKAGE, "block_norm": "rms"}),
    ],
    ids=["annotated", "annotated-inverted", "package-1.11", "package-2"],
)
@torch.no_grad()
def test_annotated_family_equals_the_reference(reference_options, options):
    reference = randomized(RefAnnotated(16, (1, 2), 3, **reference_options))
    ours = AnnotatedUNet2DModel(in_channels=3, base_channels=16, channel_multipliers=(1, 2), **options).eval()
    take_weights(ours, reference, "usurf-unet")
    x = images(3)
    assert_same(ours(x, TIMESTEPS).sample, reference(x, TIMESTEPS))


@torch.no_grad()
def test_self_conditioning_equals_the_reference():
    reference = randomized(RefAnnotated(16, (1, 2), 1, self_condition=True))
    ours = AnnotatedUNet2DModel(
        in_channels=1, base_channels=16, channel_multipliers=(1, 2), self_condition=True, **ANNOTATED
    ).eval()
    take_weights(ours, reference, "usurf-unet")
    x, earlier = images(1), images(1).flip(0)
    expected = reference(x, TIMESTEPS, x_self_cond=earlier)
    assert_same(ours(x, TIMESTEPS, self_condition=earlier).sample, expected)
    assert_same(ours(x, TIMESTEPS).sample, reference(x, TIMESTEPS))
    torch.testing.assert_close(ours(x, TIMESTEPS).sample, ours(x, TIMESTEPS, self_condition=0 * x).sample)


@torch.no_grad()
def test_guided_equals_the_reference_with_and_without_labels():
    reference = randomized(RefGuided(16, (1, 2), 1))
    ours = GuidedUNet2DModel(
        in_channels=1, base_channels=16, channel_multipliers=(1, 2), class_conditioning="bottleneck"
    ).eval()
    take_weights(ours, reference, "usurf-guided-unet")
    x, labels = images(1), torch.tensor([0, 3, 9])
    conditional, null = reference(x, TIMESTEPS, labels), reference(x, TIMESTEPS)
    assert_same(ours(x, TIMESTEPS, labels).sample, conditional)
    assert_same(ours(x, TIMESTEPS).sample, null)
    mixed = ours(x, TIMESTEPS, torch.tensor([0, 10, 9])).sample
    assert_same(mixed, torch.stack([conditional[0], null[1], conditional[2]]))


@pytest.mark.parametrize("gain", [1.0, 10.0])
@torch.no_grad()
def test_adm_equals_the_reference(gain):
    # In float64: at gain 10 the softmax is so steep that float32's rounding shows in the third digit.
    reference = randomized(RefADM(32, (1, 2), 3, attend_at=(2,), heads=2, gain=gain)).double()
    ours = ADMUNet2DModel(
        in_channels=3,
        base_channels=32,
        channel_multipliers=(1, 2),
        attention_resolutions=(2,),
        attention_heads=2,
        attention_scale=gain,
    ).eval()
    take_weights(ours.double(), reference, "generative-pytorch-adm")
    x, timesteps = images(3).double(), torch.tensor([0.0, 1.0, 2.5])
    assert_same(ours(x, timesteps).sample, reference(x, timesteps))


@torch.no_grad()
def test_attention_everywhere_equals_the_reference():
    reference = randomized(RefAttentionUNet(3, unit=8, time=32))
    ours = AttentionUNet2DModel(
        in_channels=3, down_widths=(8, 16, 32, 32), mid_width=64, up_widths=(16, 8, 8), time_embed_dim=32
    ).eval()
    take_weights(ours, reference, "ddpm-accelerate-attention")
    x = images(3)
    assert_same(ours(x, TIMESTEPS).sample, reference(x, TIMESTEPS))


@torch.no_grad()
def test_simple_equals_the_reference_on_raw_time_and_on_time_over_t():
    reference = randomized(RefSimple(3, unit=8))
    x = images(3)
    for raw, seen in ((True, TIMESTEPS), (False, TIMESTEPS / 1000)):
        ours = SimpleUNet2DModel(widths=(8, 16, 32), raw_time=raw).eval()
        take_weights(ours, reference, "ict1022-simple")
        assert_same(ours(x, TIMESTEPS).sample, reference(x, seen))


@torch.no_grad()
def test_toy_equals_the_reference():
    reference = randomized(RefToy(1))
    ours = ToyUNet2DModel().eval()
    take_weights(ours, reference, "playground-toy")
    assert_same(ours(images(1), 3).sample, reference(images(1)))


@pytest.mark.parametrize(
    ("preset", "build"),
    [
        ("usurf-unet", lambda: RefAnnotated(32, (1, 2, 4, 8), 1)),
        ("usurf-guided-unet", lambda: RefGuided(32, (1, 2, 4, 8), 1)),
        ("playground-ddpm", lambda: RefAnnotated(28, (1, 2, 4), 1)),
        ("denoising-diffusion-pytorch", lambda: RefAnnotated(64, (1, 2, 4, 8), 3, lineage="package")),
        ("generative-pytorch-adm", lambda: RefADM(128, (1, 2, 2), 1)),
        ("ddpm-accelerate-attention", lambda: RefAttentionUNet(3)),
        ("ict1022-simple", lambda: RefSimple(3)),
        ("playground-toy", lambda: RefToy(1)),
    ],
)
def test_presets_take_the_weights_of_the_reference_at_full_size(preset, build):
    with torch.device("meta"):
        reference, ours = build(), build_model(preset)
    state = translate(preset, reference.state_dict(), ours)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert parameters(reference) == parameters(ours) == PRESETS[preset].parameter_count
