"""The network for signals keeps the promises of the networks for images."""

import diffusers
import pytest
import torch

from diffusers_ext.models import ADMUNet2DModel, SignalUNet1DModel
from diffusers_ext.models.lapped import from_bands, to_bands
from diffusers_ext.models.layers import from_patches, to_patches

TINY = {
    "sample_size": 32,
    "in_channels": 2,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "layers_per_level": 1,
    "attention_resolutions": (2,),
    "attention_heads": 2,
    "norm_num_groups": 4,
    "patch_size": 2,
}


def tiny(**overrides):
    torch.manual_seed(0)
    return SignalUNet1DModel(**{**TINY, **overrides}).eval()


def signals(batch=2, channels=2, length=32):
    return torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model, x, t=5, **conditions):
    return model(x, t, **conditions).sample


@pytest.mark.parametrize(("batch", "channels", "length"), [(1, 1, 32), (3, 5, 40), (2, 2, 4)])
def test_any_batch_channels_and_fitting_length(batch, channels, length):
    x = signals(batch, channels, length)
    out = run(tiny(in_channels=channels), x)
    assert out.shape == x.shape
    assert out.std() > 0


def test_patches_of_a_signal_are_channels_and_come_back():
    x = torch.arange(8.0).reshape(1, 1, 8)
    folded = to_patches(x, 2)
    assert folded.tolist() == [[[0, 2, 4, 6], [1, 3, 5, 7]]]
    two = signals()
    assert torch.equal(from_patches(to_patches(two, 4), 4), two)


def test_lapped_patches_are_an_orthogonal_transform():
    x, y = signals(length=64), signals(length=64).flip(0)
    torch.testing.assert_close(from_bands(to_bands(x, 8)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close((to_bands(x, 8) * to_bands(y, 8)).sum(), (x * y).sum(), rtol=1e-4, atol=1e-4)
    tone = torch.cos(torch.pi / 8 * 5.5 * torch.arange(64.0))[None, None]  # the middle of band 5
    power = to_bands(tone, 8).square().mean(-1).flatten()
    assert power[5] > 0.8 * power.sum()


def test_a_network_of_lapped_patches_keeps_the_contract():
    model, x = tiny(patch_size=8, lapped_patches=True, input_skip=True), signals()
    assert run(model, x).shape == x.shape
    assert run(model.to(torch.bfloat16), x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="lapped_patches is for signals"):
        ADMUNet2DModel(lapped_patches=True)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (signals(length=30), "sample is 30; its length must be a multiple of 4"),
        (signals(channels=3), r"it takes \(batch, 2, length\)"),
        (torch.zeros(1, 2, 8, 8), r"it takes \(batch, 2, length\)"),
    ],
)
def test_wrong_signals_are_refused(x, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tiny(), x)


def test_timesteps_are_numbers_or_one_for_each_signal():
    model, x = tiny(), signals()
    mixed = run(model, x, torch.tensor([3.0, 700.5]))
    torch.testing.assert_close(mixed[:1], run(model, x[:1], 3), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1:], run(model, x[1:], torch.tensor(700.5)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1:], run(model, x[1:], 3), atol=1e-5)


def test_every_part_of_the_output_sees_the_whole_signal():
    """Attention at the coarse level joins the two ends, which convolutions of this depth do not."""
    model, x = tiny(channel_multipliers=(1, 1), attention_resolutions=()), signals(batch=1, length=256)
    moved = x.clone()
    moved[..., 0] += 1
    assert (run(model, moved) - run(model, x))[..., -1].abs().max() > 0


def test_conditions_change_the_output_and_their_absence_is_the_null():
    model = tiny(num_class_embeds=3, vector_dim=2, condition_channels=1, cross_attention_dim=6)
    x, text = signals(), torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
    plain = run(model, x, encoder_hidden_states=text)
    for conditions in (
        {"class_labels": torch.tensor([0, 1])},
        {"vector": torch.tensor([[0.3, 1.0], [2.0, -1.0]])},
        {"image_condition": signals(channels=1)},
        {"encoder_hidden_states": text.flip(2)},
    ):
        assert not torch.allclose(run(model, x, **{"encoder_hidden_states": text, **conditions}), plain, atol=1e-5)
    null = {"class_labels": torch.tensor([3, 3]), "vector": torch.full((2, 2), torch.nan)}
    torch.testing.assert_close(run(model, x, encoder_hidden_states=text, **null), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(dtype):
    out = run(tiny().to(dtype), signals().to(dtype))
    assert out.dtype == dtype
    expected = run(tiny(), signals())
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


def test_gradient_checkpointing_gives_equal_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(signals(), torch.tensor([3, 700])).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    model, x = tiny(vector_dim=1), signals()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    numbers = torch.tensor([[0.5], [torch.nan]])
    torch.testing.assert_close(run(compiled, x, vector=numbers), run(model, x, vector=numbers))


def test_saves_loads_and_is_known_to_diffusers(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = diffusers.SignalUNet1DModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, signals()), run(model, signals()))


def test_it_learns_the_frequency_that_a_number_says():
    """x0 prediction of sines whose frequency is the vector: without it the loss stays high."""
    model = tiny(in_channels=1, vector_dim=1, patch_size=1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator, places = torch.Generator().manual_seed(3), torch.linspace(0, 1, 32)
    losses = {}
    for step in range(81):
        numbers = torch.rand(16, 1, generator=generator)
        target = torch.sin(2 * torch.pi * (1 + 2 * numbers[:, :, None]) * places)
        noise = torch.randn(16, 1, 32, generator=generator)
        loss = (model(noise, 999, vector=numbers).sample - target).square().mean()
        if step == 80:
            losses["with"] = loss.item()
            losses["without"] = (model(noise, 999).sample - target).square().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses["with"] < 0.15 < losses["without"]


@pytest.mark.parametrize("lapped", [False, True])
def test_the_gate_passes_the_sample_and_no_condition(lapped):
    model, x = tiny(patch_size=8, lapped_patches=lapped, input_gate=True, condition_channels=1), signals()
    condition = torch.randn(2, 1, 32)
    ungated = run(model, x, image_condition=condition)
    with torch.no_grad():
        model.gate_out.bias.fill_(0.5)
    torch.testing.assert_close(run(model, x, image_condition=condition), ungated + x / 2, atol=1e-5, rtol=0)


def test_a_gate_needs_as_many_outputs_as_inputs():
    with pytest.raises(ValueError, match="input_gate needs as many out_channels as in_channels, 2"):
        tiny(input_gate=True, out_channels=4)
