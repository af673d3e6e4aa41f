"""The annotated U-Net's own options, and how conditions enter each model that takes them."""

import pytest
import torch
from test_models_contract import TINY, images, run, tiny

from diffusers_ext.models import AnnotatedUNet2DModel
from diffusers_ext.models.layers import (
    PLAIN_ATTENTION_TOKENS,
    ChannelRMSNorm,
    StandardizedConv2d,
    fourier_features,
    make_pixel_attention,
    sinusoidal_embedding,
)

NAME = "AnnotatedUNet2DModel"
ADDED_CLASSES = [NAME, "ADMUNet2DModel", "AttentionUNet2DModel", "SimpleUNet2DModel"]
CLASSED = [*ADDED_CLASSES, "GuidedUNet2DModel"]


def test_sinusoids_run_from_one_cycle_to_a_ten_thousandth():
    waves = sinusoidal_embedding(torch.tensor([0.0, 2.0]), 6)
    assert waves[0].tolist() == [0, 0, 0, 1, 1, 1]
    angles = torch.tensor([2.0, 0.02, 0.0002])
    torch.testing.assert_close(waves[1], torch.cat([angles.sin(), angles.cos()]))


def test_standardized_filters_have_mean_0_and_variance_1():
    conv = StandardizedConv2d(3, 5, 3, padding=1, mode="standard")
    with torch.no_grad():
        conv.weight.mul_(7).add_(2)
    filters = conv.standardized_weight().flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.var(1, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_inverted_standardization_multiplies_by_the_deviation():
    conv = StandardizedConv2d(3, 5, 3, padding=1, mode="inverted")
    deviation = conv.weight.flatten(1).var(1, correction=0).add(1e-5).sqrt()
    expected = (conv.weight.flatten(1) - conv.weight.flatten(1).mean(1, keepdim=True)) * deviation[:, None]
    torch.testing.assert_close(conv.standardized_weight().flatten(1), expected)


def test_fourier_features_show_what_bf16_does_not_have():
    """An eighth of a level of an 8-bit image, at the darkest pixel, is lost in bf16 and is an eighth of a wave."""
    x = torch.tensor([-1.0, -1 + 0.125 / 127.5]).reshape(2, 1, 1, 1)
    assert x.bfloat16().unique().numel() == 1
    sample, sine, cosine = fourier_features(x, (127.5,)).flatten(1).T
    torch.testing.assert_close(sample, x.flatten())
    torch.testing.assert_close(sine, torch.tensor([0.0, -(0.5**0.5)]), atol=1e-3, rtol=0)
    torch.testing.assert_close(cosine, torch.tensor([-1.0, -(0.5**0.5)]), atol=1e-3, rtol=0)
    model = tiny(NAME, fourier_frequencies=(2.0, 127.5))
    first, second = run(model, x.expand(2, 1, 16, 16))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_the_root_of_the_mean_square_and_takes_film_in_one_step(dtype):
    norm = ChannelRMSNorm(6)
    with torch.no_grad():
        norm.gain.copy_(torch.linspace(0.5, 2, 6))
    x = 300 * images(6, 4, 4)  # its squares are past float16's largest number
    x[0, :, 0, 0] = 0
    unit = x / x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-9) * norm.gain[:, None, None]
    scale, shift = torch.tensor([0.5, 3.0]).reshape(2, 1, 1, 1), torch.randn(2, 6, 1, 1)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(norm(x.to(dtype)).float(), unit, **close)
    torch.testing.assert_close(norm(x.to(dtype), scale, shift).float(), unit * scale + shift, **close)
    assert norm(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("tokens_wide", [8, 16])
@torch.no_grad()
def test_short_and_long_images_attend_alike(tokens_wide):
    """The plain product serves images of few pixels, the fused kernel larger ones; both must be softmax attention."""
    assert 8 * 8 <= PLAIN_ATTENTION_TOKENS < 16 * 16
    torch.manual_seed(0)
    attention = make_pixel_attention(8, "full", "group", heads=2, head_dim=4, num_memory_kv=3)
    x = images(8, tokens_wide, tokens_wide)
    q, k, v = attention.query_key_value(attention.norm(x))
    weights = torch.einsum("bhid,bhjd->bhij", q, k).div(2.0).softmax(-1)
    mixed = torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)
    expected = x + attention.to_out[0](mixed).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
    assert k.shape[2] == tokens_wide**2 + 3


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 2, "stem_kernel_size": 3},
        {"block_norm": "layer", "attention_norm": "layer"},
        {"block_norm": "rms", "weight_standardization": None},
        {"level_attention": (None, None), "mid_attention": None},
        {"level_attention": ("full", None), "mid_attention": "linear"},
        {"layers_per_level": 1, "upsample_type": "transposed", "stem_skip": False},
        {"layers_per_level": 3, "time_embed_dim": 20},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_builds_a_model_that_depends_on_all_its_inputs(options):
    model, x = tiny(NAME, **options), images()
    out = run(model, x)
    assert out.shape == x.shape
    assert not torch.allclose(run(model, x, 900), out, atol=1e-6)
    moved = run(model, x + 0.1 * images().flip(0))
    assert ((moved - out).abs().amax(dim=1) > 1e-7).float().mean() > 0.9


def test_attention_that_is_switched_off_has_no_weights():
    names = [n for n, _ in tiny(NAME, level_attention=(None, None), mid_attention=None).named_parameters()]
    assert not [n for n in names if "to_q" in n]
    assert [n for n, _ in tiny(NAME).named_parameters() if "to_q" in n]


def test_patches_leave_as_pixels_in_reading_order():
    model = tiny(NAME, patch_size=2, zero_init_output=True, out_channels=1)
    with torch.no_grad():
        model.conv_out.bias.copy_(torch.arange(4.0))
    assert torch.equal(run(model, images())[0, 0, :2, :2], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    with pytest.raises(ValueError, match="multiples of 4"):
        run(model, images(height=18))


def test_zero_initialised_output_predicts_zero_and_still_learns():
    model = tiny(NAME, zero_init_output=True)
    assert run(model, images()).abs().max() == 0
    (model(images(), 5).sample - 1).square().mean().backward()
    assert model.conv_out.weight.grad.abs().sum() > 0


def test_dropout_acts_in_training_only():
    model, x = tiny(NAME, dropout=0.5), images()
    assert torch.equal(run(model, x), run(model, x))
    model.train()
    assert not torch.equal(run(model, x), run(model, x))


def test_self_conditioning_is_refused_where_it_cannot_be_used():
    with pytest.raises(ValueError, match="self_condition=True"):
        run(tiny(NAME), images(), self_condition=images())
    with pytest.raises(ValueError, match="self_condition has shape"):
        run(tiny(NAME, self_condition=True), images(), self_condition=images(height=8))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"block_norm": "batch"}, "block_norm is 'batch'; it takes one of 'group', 'rms', 'layer'"),
        ({"attention_norm": "x"}, "attention_norm"),
        ({"weight_standardization": "reversed"}, "weight_standardization"),
        ({"upsample_type": "bicubic"}, "upsample_type"),
        ({"level_attention": ("cross", None)}, "level_attention"),
        ({"level_attention": ("full",)}, "one for each of the 2 channel_multipliers"),
    ],
)
def test_unknown_options_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        AnnotatedUNet2DModel(**{**TINY[NAME], **options})


@pytest.mark.parametrize("name", CLASSED)
def test_labels_change_the_output_and_the_null_class_is_none(name):
    model, x = tiny(name, num_class_embeds=3), images()
    outs = [run(model, x, class_labels=torch.tensor([c, c])) for c in range(4)]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(outs[i], outs[j], rtol=0, atol=1e-6)
    torch.testing.assert_close(run(model, x), outs[3])


@pytest.mark.parametrize("name", CLASSED)
def test_each_sample_has_its_own_label(name):
    model, x = tiny(name, num_class_embeds=3), images()
    mixed = run(model, x, class_labels=torch.tensor([1, 3]))
    torch.testing.assert_close(mixed[0], run(model, x, class_labels=torch.tensor([1, 1]))[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], run(model, x)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSED)
@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (torch.tensor([0, 4]), "class_labels hold 4; they take 0..3"),
        (torch.tensor([-1, 0]), "class_labels hold -1"),
        (torch.tensor([0]), r"shape \(1,\)"),
        (torch.tensor([0.0, 1.0]), "torch.float32"),
    ],
)
def test_wrong_labels_are_refused(name, labels, what):
    with pytest.raises(ValueError, match=what):
        run(tiny(name, num_class_embeds=3), images(), class_labels=labels)


@pytest.mark.parametrize("name", [*ADDED_CLASSES, "ToyUNet2DModel"])
def test_labels_are_refused_by_a_model_without_classes(name):
    with pytest.raises(ValueError, match="class_labels were given"):
        run(tiny(name), images(), class_labels=torch.tensor([0, 1]))


def test_guided_labels_enter_where_timesteps_cannot_reach():
    """A label's embedding is that of the timestep label + label_shift."""
    x, labels = images(), torch.tensor([0, 1])
    near, far = (
        tiny("GuidedUNet2DModel", class_conditioning="bottleneck", label_shift=shift) for shift in (400.0, 399.0)
    )
    torch.testing.assert_close(run(near, x, class_labels=labels), run(far, x, class_labels=labels + 1))


@pytest.mark.parametrize("place", ["everywhere", "bottleneck"])
def test_guided_class_reaches_every_block_or_the_bottleneck_alone(place):
    model, entered = tiny("GuidedUNet2DModel", class_conditioning=place), []
    block = model.down_levels[0].blocks[0]
    block.register_forward_hook(lambda *call: entered.append(call[2].detach()))
    outputs = [run(model, images(), class_labels=torch.tensor([label, label])) for label in (0, 1)]
    assert not torch.equal(*outputs)
    assert torch.equal(*entered) == (place == "bottleneck")


def test_patches_are_channels_of_a_smaller_image():
    """A network on patches of 2x2 pixels is the one without patches on the folded image."""
    patched = tiny("ADMUNet2DModel", patch_size=2, in_channels=1)
    folded = tiny("ADMUNet2DModel", in_channels=4)
    folded.load_state_dict(patched.state_dict())
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = torch.nn.functional.pixel_shuffle(run(folded, torch.nn.functional.pixel_unshuffle(x, 2)), 2)
    torch.testing.assert_close(run(patched, x), expected)


def test_the_input_skip_mixes_the_inputs_channels_by_gains_of_the_time():
    options = {"in_channels": 1, "condition_channels": 1}
    plain = tiny("ADMUNet2DModel", **options)
    skipping = tiny("ADMUNet2DModel", **options, input_skip=True)
    skipping.load_state_dict(plain.state_dict(), strict=False)
    x, told = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(4)).unbind(0)
    expected = run(plain, x, image_condition=told)
    torch.nn.init.zeros_(skipping.input_gains.weight)
    skipping.input_gains.bias.data = torch.tensor([0.25, -2.0])
    torch.testing.assert_close(run(skipping, x, image_condition=told), expected + 0.25 * x - 2 * told)


def test_raw_time_is_time_times_its_range():
    normalised, raw = tiny("SimpleUNet2DModel", num_train_timesteps=500), tiny("SimpleUNet2DModel", raw_time=True)
    torch.testing.assert_close(run(normalised, images(), 250), run(raw, images(), 0.5))


def text(batch=2, tokens=3):
    return torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(2))


def test_text_conditions_by_cross_attention_and_masked_tokens_do_not():
    model, x = tiny("ADMUNet2DModel", cross_attention_dim=6), images()
    words = text()
    out = run(model, x, encoder_hidden_states=words)
    assert not torch.allclose(run(model, x, encoder_hidden_states=words.flip(2)), out, atol=1e-5)
    longer = torch.cat([words, 9 * text(tokens=1)], dim=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    masked = run(model, x, encoder_hidden_states=longer, encoder_attention_mask=mask)
    torch.testing.assert_close(masked, out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(model, x, encoder_hidden_states=longer), out, atol=1e-5)


@pytest.mark.parametrize(
    ("states", "what"),
    [(None, "are missing"), (torch.zeros(1, 3, 6), "have shape"), (torch.zeros(2, 3, 5), "have shape")],
)
def test_wrong_texts_are_refused(states, what):
    with pytest.raises(ValueError, match=f"encoder_hidden_states {what}"):
        run(tiny("ADMUNet2DModel", cross_attention_dim=6), images(), encoder_hidden_states=states)
    with pytest.raises(ValueError, match="without cross_attention_dim"):
        run(tiny("ADMUNet2DModel"), images(), encoder_hidden_states=text())


def test_text_projections_fuse_too():
    model, x = tiny("ADMUNet2DModel", cross_attention_dim=6), images()
    if not hasattr(model, "fuse_qkv_projections"):
        pytest.skip("this diffusers has no AttentionMixin")
    expected = run(model, x, encoder_hidden_states=text())
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, x, encoder_hidden_states=text()), expected, rtol=1e-4, atol=1e-5)


def test_an_image_conditions_by_channels_and_none_is_zeros():
    model, x = tiny("ADMUNet2DModel", condition_channels=3), images()
    condition = images(3)
    assert not torch.allclose(run(model, x, image_condition=condition), run(model, x), atol=1e-5)
    torch.testing.assert_close(run(model, x, image_condition=0 * condition), run(model, x))
    with pytest.raises(ValueError, match="image_condition has shape"):
        run(model, x, image_condition=images(2))
    with pytest.raises(ValueError, match="without condition_channels"):
        run(tiny("ADMUNet2DModel"), x, image_condition=condition)


def test_attention_resolutions_are_downsampling_factors():
    def attentions(resolutions):
        model = tiny("ADMUNet2DModel", attention_resolutions=resolutions)
        return sum(type(m).__name__ == "PixelAttention" for m in model.modules())

    assert [attentions(r) for r in ((), (2,), (1, 2))] == [1, 1 + 3, 1 + 6]
    for wrong in ((3,), (16,), "2,1"):
        with pytest.raises(ValueError, match=r"attention_resolutions (is|must)"):
            tiny("ADMUNet2DModel", attention_resolutions=wrong)


@pytest.mark.parametrize("name", [NAME, "GuidedUNet2DModel"])
def test_labels_compile_into_one_graph(name):
    torch._dynamo.reset()
    model, x, labels = tiny(name, num_class_embeds=3), images(), torch.tensor([0, 3])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled, x, class_labels=labels), run(model, x, class_labels=labels))
