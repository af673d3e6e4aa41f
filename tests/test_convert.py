"""Other projects' checkpoints: what a file becomes computes and samples as what was saved."""

import importlib
import json
import sys
import types

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
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
from safetensors.torch import save_file

from diffusers_ext import GenerationPipeline
from diffusers_ext.cli import main
from diffusers_ext.hub.convert import (
    FILE_TYPES,
    SOURCES,
    build_from_weights,
    convert,
    detect_architecture,
    detect_noise,
    unwrap,
)
from diffusers_ext.models import PRESETS
from diffusers_ext.schedulers.schedules import make_betas

TIMESTEPS = torch.tensor([0.0, 7.0, 250.0])


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """Some projects' paths end far from noise, of which their schedulers warn; that is tested with the schedulers."""


def images(channels, size=16, batch=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def saved(content, folder, suffix=".pt"):
    path = folder / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def largest(a, b):
    return (a - b).abs().max().item()


# name -> (the network, channels, what must be asked for)
USURF, PLAYGROUND = "usurf-unet", "playground-ddpm"
NETWORKS = {
    "usurf": (lambda: RefAnnotated(16, (1, 2), 1, inverted=True), 1, USURF),
    "playground": (lambda: RefAnnotated(16, (1, 2), 3), 3, PLAYGROUND),
    "self-conditioned": (lambda: RefAnnotated(16, (1, 2), 1, self_condition=True), 1, PLAYGROUND),
    "three levels": (lambda: RefAnnotated(8, (2, 1, 3), 1), 1, PLAYGROUND),
    "guided": (lambda: RefGuided(16, (1, 2), 1, inverted=True), 1, None),
    "package 1.11": (lambda: RefAnnotated(16, (1, 2), 3, lineage="package"), 3, None),
    "package 2": (lambda: RefAnnotated(16, (1, 2), 3, lineage="package", rms_blocks=True), 3, None),
    "adm": (lambda: RefADM(32, (1, 2), 3, gain=10.0), 3, None),
    "adm, three blocks": (lambda: RefADM(32, (1, 2), 1, gain=10.0, layers=3), 1, None),
    "attention": (lambda: RefAttentionUNet(3, unit=8, time=32), 3, None),
    "simple": (lambda: RefSimple(3, unit=8), 3, None),
    "toy": (lambda: RefToy(1), 1, None),
}


def network(name):
    build, channels, asked = NETWORKS[name]
    torch.manual_seed(4)
    return randomized(build()), channels, asked


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_saved_network_computes_the_same(name, tmp_path):
    reference, channels, asked = network(name)
    pipeline = convert(saved(reference.state_dict(), tmp_path), asked)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert isinstance(loaded, GenerationPipeline)
    x = images(channels)
    expected = reference(x) if name == "toy" else reference(x, TIMESTEPS)
    assert expected.std() > 0.05
    assert largest(pipeline.unet(x, TIMESTEPS).sample, expected) < 1e-5 * max(1, expected.abs().max().item())
    assert torch.equal(loaded.unet(x, TIMESTEPS).sample, pipeline.unet(x, TIMESTEPS).sample)
    for key, value in pipeline.scheduler.config.items():
        assert key.startswith("_") or loaded.scheduler.config[key] == value


@torch.no_grad()
def test_adm_attends_at_the_levels_of_the_file_with_short_and_long_sequences(tmp_path):
    reference = randomized(RefADM(32, (1, 2, 2), 1, attend_at=(1, 4), gain=10.0))
    model = convert(saved(reference.state_dict(), tmp_path)).unet.double()
    reference.double()  # at the project's gain of 10 the softmax is so steep that float32's rounding shows
    assert model.config.attention_resolutions == (1, 4)
    x, timesteps = images(1, 16).double(), torch.tensor([0.0, 1.0, 2.0])
    assert largest(model(x, timesteps).sample, reference(x, timesteps)) < 1e-5


@torch.no_grad()
def test_labels_and_an_earlier_prediction_enter_alike(tmp_path):
    x, labels = images(1), torch.tensor([0, 3, 9])
    reference, _, _ = network("guided")
    guided = convert(saved(reference.state_dict(), tmp_path)).unet
    assert guided.config.label_shift == 400
    assert largest(guided(x, TIMESTEPS, labels).sample, reference(x, TIMESTEPS, labels)) < 1e-5
    reference, _, asked = network("self-conditioned")
    conditioned = convert(saved(reference.state_dict(), tmp_path), asked).unet
    given = conditioned(x, TIMESTEPS, self_condition=x.flip(0)).sample
    assert largest(given, reference(x, TIMESTEPS, x_self_cond=x.flip(0))) < 1e-5
    reference = randomized(RefAttentionUNet(1, unit=8, time=32, classes=10))
    classed = convert(saved(reference.state_dict(), tmp_path)).unet
    assert classed.config.num_class_embeds == 10
    assert largest(classed(x, TIMESTEPS, labels).sample, reference(x, TIMESTEPS, labels)) < 1e-5
    assert largest(classed(x, TIMESTEPS).sample, reference(x, TIMESTEPS)) < 1e-5


@torch.no_grad()
def ddim(network, x, betas, times, prediction_type, clamp, rederive):
    """Deterministic DDIM, written out; `rederive` takes the noise from the bounded image again."""
    alphas_cumprod = (1 - torch.tensor(betas)).cumprod(0)
    for t, s in zip(times, [*times[1:], -1]):
        a, b = alphas_cumprod[t].item(), 1.0 if s < 0 else alphas_cumprod[s].item()
        output = network(x, torch.full((len(x),), float(t)))
        if prediction_type == "scaled_epsilon":
            output = output / (1 - a) ** 0.5
        v = prediction_type == "v_prediction"
        noise = a**0.5 * output + (1 - a) ** 0.5 * x if v else output
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        clean = clean.clamp(-1, 1) if clamp else clean
        noise = (x - a**0.5 * clean) / (1 - a) ** 0.5 if rederive else noise
        x = b**0.5 * clean + (1 - b) ** 0.5 * noise
    return x


SAMPLED = {
    "usurf": ("linear", 300, {}, "epsilon", False),
    "guided": ("linear", 300, {}, "epsilon", False),
    "playground": ("cosine", 300, {"clip": (1e-4, 0.9999)}, "scaled_epsilon", False),
    "package 1.11": ("sigmoid_alpha_bar", 1000, {}, "v_prediction", True),
    "package 2": ("sigmoid_alpha_bar", 1000, {}, "v_prediction", True),
    "adm": ("linear", 1000, {}, "epsilon", True),
    "attention": ("linear", 1000, {}, "epsilon", False),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_saved_network_samples_the_same(name, tmp_path):
    reference, channels, asked = network(name)
    schedule, steps, options, prediction_type, clamp = SAMPLED[name]
    pipeline = convert(saved(reference.state_dict(), tmp_path), asked, sampler="ddim")
    pipeline.set_progress_bar_config(disable=True)
    times = [steps // 2, steps // 3, 20, 3]
    x = images(channels, batch=2)
    if name == "adm":  # at the project's gain of 10 the softmax is so steep that float32's rounding shows
        x, reference, pipeline.unet = x.double(), reference.double(), pipeline.unet.double()
    betas = make_betas(schedule, steps, options=options)
    expected = ddim(reference, x, betas, times, prediction_type, clamp, rederive="package" in name)
    got = pipeline(latents=x, timesteps=times, output_type="latent").images
    assert expected.std() > 0.05
    assert largest(got, expected) < 1e-5 * max(1, expected.abs().max().item())


@torch.no_grad()
def test_the_toy_mixes(tmp_path):
    reference, _, _ = network("toy")
    pipeline = convert(saved(reference.state_dict(), tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    x = expected = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for left in (3, 2, 1):
        expected = expected + (reference(expected) - expected) / left
    got = pipeline(latents=x, num_inference_steps=3, output_type="latent").images
    assert largest(got, expected) < 1e-5


@pytest.mark.parametrize("architecture", SOURCES)
def test_every_preset_is_detected_at_its_own_size(architecture):
    full = {
        "usurf-unet": lambda: RefAnnotated(32, (1, 2, 4, 8), 1),
        "usurf-guided-unet": lambda: RefGuided(32, (1, 2, 4, 8), 1),
        "playground-ddpm": lambda: RefAnnotated(28, (1, 2, 4), 1),
        "denoising-diffusion-pytorch": lambda: RefAnnotated(64, (1, 2, 4, 8), 3, lineage="package"),
        "generative-pytorch-adm": lambda: RefADM(128, (1, 2, 2), 1),
        "ddpm-accelerate-attention": lambda: RefAttentionUNet(3),
        "ict1022-simple": lambda: RefSimple(3),
        "playground-toy": lambda: RefToy(1),
    }
    with torch.device("meta"):
        weights = full[architecture]().state_dict()
    assert detect_architecture(weights) == architecture
    model = build_from_weights(architecture, weights)
    assert parameters(model) == PRESETS[architecture].parameter_count


# --- what wraps the weights -------------------------------------------------------------------------------------------


def tables(schedule="cosine", steps=50, prediction_type="v_prediction", bound=None):
    """A diffusion class's buffers, float32, with the weight of its loss."""
    betas = torch.tensor(make_betas(schedule, steps))
    alphas_cumprod = (1 - betas).cumprod(0)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    bounded = snr if bound is None else snr.clamp(max=bound)
    unit = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction_type]
    values = {"betas": betas, "alphas_cumprod": alphas_cumprod, "loss_weight": bounded / unit}
    return {key: value.float() for key, value in values.items()}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def trainer_file(raw, averaged):
    """What denoising-diffusion-pytorch's trainer saves."""
    ema = {**prefixed("ema_model.", tables()), **prefixed("ema_model.model.", averaged)}
    counters = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    model = {**tables(), **prefixed("model.", raw)}
    return {"step": 7, "model": model, "opt": {"state": {}}, "ema": {**counters, **ema}, "scaler": None, "version": "2"}


@pytest.fixture(scope="module")
def raw_and_averaged():
    raw, averaged = (randomized(RefAnnotated(8, (1, 2), 1, lineage="package"), seed) for seed in (0, 1))
    return raw.state_dict(), averaged.state_dict()


def same_weights(pipeline, state):
    return torch.equal(pipeline.unet.stem.weight, state["init_conv.weight"])


WRAPPED = {
    "trainer": trainer_file,
    "without average": lambda raw, averaged: {**trainer_file(averaged, raw), "ema": None},
    "DDP": lambda raw, averaged: {"model": prefixed("module.", averaged), "optimizer": {}, "epoch": 3},
    "compiled": lambda raw, averaged: prefixed("_orig_mod.", averaged),
    "state_dict": lambda raw, averaged: {"state_dict": averaged, "loss": 0.1},
    "flat average": lambda raw, averaged: {**prefixed("online_model.", raw), **prefixed("ema_model.", averaged)},
    "bare": lambda raw, averaged: averaged,
    "half precision": lambda raw, averaged: {key: value.half() for key, value in averaged.items()},
}


def in_order(state):
    return [value for key, value in state.items()]


def without_dots(state):
    return {key.replace(".", ""): value for key, value in state.items()}


# Where trainers keep averages, beside the weights as trained under `model`.
AVERAGES = {
    "ema.shadow": lambda averaged: {"ema": {"decay": 0.99, "shadow": averaged, "backup": averaged and {}}},
    "ema.shadow_params": lambda averaged: {
        "ema": {"decay": 0.99, "num_updates": 7, "shadow_params": in_order(averaged), "collected_params": None}
    },
    "shadow_params": lambda averaged: {"shadow_params": in_order(averaged), "decay": 0.99},
    "ema_state_dict": lambda averaged: {"ema_state_dict": averaged},
    "model_ema": lambda averaged: {"model_ema": prefixed("module.", averaged)},
    "state.ema_model": lambda averaged: {"state": {"ema_model": {"n_averaged": torch.tensor(3), **averaged}}},
    "EMA": lambda averaged: {"EMA": averaged},
    "ema_0": lambda averaged: {"ema_0": averaged, "ema_1": {"x": torch.ones(2, 2)}},
    "averaged_weights": lambda averaged: {"averaged_weights": averaged},
}


@pytest.mark.parametrize("where", AVERAGES)
def test_averages_are_found_wherever_trainers_keep_them(where, raw_and_averaged, tmp_path):
    raw, averaged = raw_and_averaged
    optimizer = {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": []}
    content = {"model": prefixed("module.", raw), "optimizer": optimizer, **AVERAGES[where](averaged), "step": 7}
    path, reports = saved(content, tmp_path), []
    assert same_weights(convert(path, report=reports.append), averaged)
    assert reports[0].startswith(
        f"Found in '{path}': averaged (EMA) weights, from `{where}`; weights are also in `model"
    )
    assert same_weights(convert(path, ema=False, report=reports.append), raw)
    assert f"weights as trained, from `model`; weights are also in `{where}`" in reports[1]


@pytest.mark.parametrize("prefix", ["model_ema.", "ema.", "ema_net."])
def test_averages_beside_weights_in_one_state_dict(prefix, raw_and_averaged, tmp_path):
    raw, averaged = raw_and_averaged
    counters = {f"{prefix}decay": torch.tensor(0.99), f"{prefix}num_updates": torch.tensor(7)}
    path = saved({"state_dict": {**prefixed("model.", raw), **prefixed(prefix, averaged), **counters}}, tmp_path)
    assert same_weights(convert(path), averaged)
    assert same_weights(convert(path, ema=False), raw)


def test_averages_whose_names_lost_their_dots(raw_and_averaged, tmp_path):
    """As latent-diffusion's LitEma stores them."""
    raw, averaged = raw_and_averaged
    both = {**prefixed("model.", raw), **prefixed("model_ema.", without_dots(averaged))}
    assert same_weights(convert(saved({"state_dict": both}, tmp_path)), averaged)
    assert same_weights(convert(saved({"model": raw, "ema": without_dots(averaged)}, tmp_path)), averaged)


def test_averages_that_match_no_names_are_not_passed_over(raw_and_averaged, tmp_path):
    raw, averaged = raw_and_averaged
    path = saved({"model": raw, "ema": {"shadow_params": in_order(averaged)[1:]}}, tmp_path)
    with pytest.raises(ValueError, match=r"averaged weights without names in `ema.shadow_params`.*--weights raw"):
        convert(path)
    assert same_weights(convert(path, ema=False), raw)


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_in_what_wraps_them(name, raw_and_averaged, tmp_path):
    raw, averaged = raw_and_averaged
    pipeline = convert(saved(WRAPPED[name](raw, averaged), tmp_path))
    expected = {key: value.half().float() for key, value in averaged.items()} if "half" in name else averaged
    assert same_weights(pipeline, expected)
    assert pipeline.unet.dtype == torch.float32
    assert not pipeline.unet.training


@pytest.mark.parametrize("name", ["trainer", "flat average"])
def test_raw_weights_come_when_asked_for(name, raw_and_averaged, tmp_path):
    raw, averaged = raw_and_averaged
    assert same_weights(convert(saved(WRAPPED[name](raw, averaged), tmp_path), ema=False), raw)


@pytest.mark.parametrize("suffix", FILE_TYPES)
def test_every_type_of_file_is_read(suffix, raw_and_averaged, tmp_path):
    assert same_weights(convert(saved(raw_and_averaged[0], tmp_path, suffix)), raw_and_averaged[0])


@torch.no_grad()
def test_a_toy_in_safetensors_keeps_its_order(tmp_path):
    reference, _, _ = network("toy")
    model = convert(saved(reference.state_dict(), tmp_path, ".safetensors")).unet
    assert largest(model(images(1), 0).sample, reference(images(1))) < 1e-5


# --- noise and prediction ---------------------------------------------------------------------------------------------


def test_tables_tell_schedule_and_prediction(raw_and_averaged, tmp_path):
    pipeline = convert(saved(trainer_file(*raw_and_averaged), tmp_path))
    config = pipeline.scheduler.config
    assert (config.beta_schedule, config.num_train_timesteps) == ("cosine", 50)
    assert config.prediction_type == "v_prediction"
    pipeline.scheduler.set_timesteps(5)
    assert pipeline.scheduler.timesteps[0] == 49, "sampling starts at the path's end"


@pytest.mark.parametrize("schedule", ["linear", "linear_rescaled", "quadratic", "exponential", "sigmoid", "cosine"])
@pytest.mark.parametrize("only", ["betas", "alphas_cumprod"])
def test_a_schedule_is_recognised_by_its_tables(schedule, only):
    found = detect_noise({only: tables(schedule, 200)[only]})
    name = {"quadratic": "scaled_linear", "linear_rescaled": "linear"}.get(schedule, schedule)
    assert found.pop("beta_schedule") == name
    steps = found.pop("num_train_timesteps")
    again = make_betas(name, steps, found.pop("beta_start", 1e-4), found.pop("beta_end", 0.02))
    assert abs(again - make_betas(schedule, 200)).max() < 2e-6


def test_an_unknown_schedule_stays_a_list_of_betas():
    betas = torch.linspace(0.01, 0.3, 20) ** 3
    found = detect_noise({"betas": betas})
    torch.testing.assert_close(torch.tensor(found["trained_betas"]), betas)
    assert "beta_schedule" not in found


@pytest.mark.parametrize("bound", [None, 5, 1])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid_alpha_bar"])
def test_the_loss_weight_tells_the_prediction(schedule, prediction_type, bound):
    found = detect_noise(tables(schedule, 1000, prediction_type, bound))
    assert found["prediction_type"] == prediction_type


def test_what_is_asked_for_goes_first(raw_and_averaged, tmp_path):
    path = saved(trainer_file(*raw_and_averaged), tmp_path)
    config = convert(path, schedule="linear", beta_end=0.1, prediction_type="epsilon", sample_size=8).scheduler.config
    assert (config.beta_schedule, config.num_train_timesteps, config.beta_end) == ("linear", 50, 0.1)
    assert config.prediction_type == "epsilon"
    pipeline = convert(path, num_train_timesteps=20, sample_size=8, model_options={"dropout": 0.1}, sampler="ddim")
    assert pipeline.scheduler.config.num_train_timesteps == len(pipeline.scheduler.betas) == 20
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.dropout) == (8, 0.1)


def test_a_learned_variance_is_told_by_the_last_convolution(tmp_path):
    reference = RefAnnotated(8, (1, 2), 1, lineage="package")
    reference.final_conv = torch.nn.Conv2d(8, 2, 1)
    pipeline = convert(saved(reference.state_dict(), tmp_path), prediction_type="epsilon")
    assert pipeline.scheduler.config.variance_type == "learned_range"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, height=8, width=8, output_type="pt").images.shape == (1, 1, 8, 8)


# --- diffusers' folders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def test_a_diffusers_pipeline_keeps_its_samples(unet, tmp_path):
    theirs = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=40, beta_schedule="squaredcos_cap_v2"))
    theirs.save_pretrained(tmp_path)
    ours = convert(tmp_path)
    for pipeline in (theirs, ours):
        pipeline.set_progress_bar_config(disable=True)
    expected, got = (
        pipeline(
            batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for pipeline in (theirs, ours)
    )
    assert abs(expected - got).max() < 1e-5
    assert convert(tmp_path, prediction_type="v_prediction").scheduler.config.prediction_type == "v_prediction"
    assert convert(tmp_path, schedule="linear", sampler="ddim").scheduler.config.beta_schedule == "linear"


def test_a_diffusers_model_alone_needs_its_noise_said(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give num_train_timesteps, prediction_type"):
        convert(tmp_path, schedule="linear")
    pipeline = convert(tmp_path, schedule="linear", num_train_timesteps=40, prediction_type="epsilon", sample_size=16)
    x = images(1, 8)
    assert torch.equal(pipeline.unet(x, 3).sample, unet(x, 3).sample)
    assert pipeline.unet.config.sample_size == 16


# --- what is refused --------------------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint ran')",))


def test_code_in_a_file_is_refused(raw_and_averaged, tmp_path):
    path = saved({"model": raw_and_averaged[0], "extra": Trap()}, tmp_path)
    with pytest.raises(ValueError, match=r"holds a pickled exec, and unpickling it could run any code"):
        convert(path)


def test_all_that_does_not_fit_is_listed_at_once(raw_and_averaged, tmp_path):
    state = dict(raw_and_averaged[0])
    del state["ups.0.1.block2.norm.weight"], state["mid_attn.to_qkv.weight"]
    state["mid_attn.to_qkv.weight"] = raw_and_averaged[0]["mid_attn.to_qkv.weight"]
    state["downs.0.0.block1.proj.bias"] = torch.zeros(5)
    state["downs.9.surprise"] = state["head.weight"] = torch.zeros(2)
    del state["downs.9.surprise"]
    with pytest.raises(ValueError) as error:
        convert(saved(state, tmp_path))
    assert str(error.value) == (
        "The file does not fit the network of 'denoising-diffusion-pytorch': unknown: head.weight; "
        "missing: ups.0.1.block2.norm.weight; "
        "wrong shapes: downs.0.0.block1.proj.bias is (5,) and should be (8,)."
    )


def broken(key, value=None):
    """The smallest package network's weights, one of them taken out or replaced."""

    def make():
        state = RefAnnotated(8, (1, 2), 1, lineage="package").state_dict()
        state.pop(key)
        return state if value is None else {**state, key: value}

    return make


REFUSED = {
    "no known network": (lambda: {"head.weight": torch.zeros(2)}, {}, "No known network has these weights"),
    "two fit": (lambda: RefAnnotated(16, (1, 2), 1).state_dict(), {}, "fit usurf-unet and playground-ddpm"),
    "no such name": (lambda: RefToy(1).state_dict(), {"architecture": "unet"}, "architecture must be one of"),
    "another network": (
        lambda: RefToy(1).state_dict(),
        {"architecture": USURF},
        "The weights are those of playground-toy, and 'usurf-unet' was asked for",
    ),
    "size untold": (broken("final_conv.weight"), {}, "'final_conv.weight' is missing from the file"),
    "channels": (broken("final_conv.weight", torch.zeros(3, 8, 1, 1)), {}, "takes 1 channels and gives 3"),
    "Fourier features": (broken("time_mlp.1.weight", torch.zeros(32, 17)), {}, "The time MLP takes 17 numbers"),
    "widths": (broken("downs.1.3.weight", torch.zeros(12, 8, 3, 3)), {}, "The levels are 8, 12 wide"),
    "half a toy": (
        lambda: dict(list(RefToy(1).state_dict().items())[:18]),
        {"architecture": "playground-toy"},
        "18 tensors are not the toy's",
    ),
    "toy's noise": (lambda: RefToy(1).state_dict(), {"schedule": "linear"}, "is sampled without betas"),
    "uneven levels": (
        lambda: {k: v for k, v in RefADM(32, (1, 2), 1).state_dict().items() if "down_blocks.1." not in k},
        {},
        "down_blocks.1.0.conv1.2.weight' is missing",
    ),
    "option": (broken("init_conv.bias"), {"model_options": {"depth": 3}}, "can't be built with {'depth': 3}"),
    "option's value": (
        lambda: RefSimple(1, 8).state_dict(),
        {"model_options": {"widths": 3}},
        "widths must be a list of 3 numbers, got 3",
    ),
    "size": (lambda: RefToy(1).state_dict(), {"sample_size": 0}, "sample_size must be at least 1, got 0"),
    "sampler": (lambda: RefToy(1).state_dict(), {"sampler": "magic"}, "sampler must be one of ddpm, ddim"),
    "prediction": (broken("init_conv.bias"), {"prediction_type": "noise"}, "init_conv.bias"),
    "only averaged": (
        lambda: prefixed("ema_model.", RefToy(1).state_dict()),
        {"ema": False},
        "averaged (EMA) weights only",
    ),
    "list": (lambda: [torch.zeros(2)], {}, "holds a list, not a state dict"),
    "nothing": (lambda: {"step": 3, "loss": 0.5}, {}, "its entries are step, loss"),
    "betas of another length": (
        lambda: {**prefixed("model.", RefSimple(1, 8).state_dict()), "betas": torch.linspace(0.1, 0.5, 9) ** 3},
        {"num_train_timesteps": 20},
        "a list of 9 betas",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence(name, tmp_path):
    make, options, sentence = REFUSED[name]
    with pytest.raises(ValueError) as error:
        convert(saved(make(), tmp_path), **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_a_checkpoint_is_one_sentence(tmp_path, unet):
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        convert(tmp_path / "nowhere.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is not a checkpoint file"):
        convert(tmp_path / "notes.txt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_text("")
    whole = saved(RefToy(1).state_dict(), tmp_path).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    for file in ("text.pt", "empty.pt", "cut.pt"):
        with pytest.raises(ValueError, match=r"not a file that torch\.save wrote"):
            convert(tmp_path / file)
    (tmp_path / "cut.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        convert(tmp_path / "cut.safetensors")


def test_what_is_not_a_fitting_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"is not a diffusers model: it has no config\.json"):
        convert(tmp_path)
    with pytest.raises(ValueError, match="architecture and model_options are for files"):
        convert(tmp_path, architecture=USURF)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        convert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="holds a AutoencoderKL"):
        convert(tmp_path)


def test_a_prefix_that_few_keys_carry_is_left_to_be_told():
    state = {**prefixed("model.", RefToy(1).state_dict()), "betas": torch.ones(3), "other": torch.ones(2, 2)}
    weights, found = unwrap(state)
    assert list(found) == ["betas"]
    assert set(weights) == {*RefToy(1).state_dict(), "other"}


# --- the command line -------------------------------------------------------------------------------------------------


def test_convert_command_writes_a_pipeline(raw_and_averaged, tmp_path, capsys):
    path = saved(trainer_file(*raw_and_averaged), tmp_path)
    words = ["--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), "--sampler", "ddim"]
    words += ["--schedule", "sigmoid_alpha_bar", "--schedule_options", '{"tau": 0.9}', "--weights", "raw"]
    assert main(["convert", *words]) == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert same_weights(pipeline, raw_and_averaged[0])
    assert pipeline.scheduler.config.schedule_options == {"tau": 0.9}
    printed = capsys.readouterr().out
    assert "AnnotatedUNet2DModel" in printed
    assert "weights as trained, from `model`" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--architecture", "unet"], "architecture must be one of"),
        (["--model_options", "{"], "model_options must be a JSON object"),
        (["--schedule_options", "[1]"], "schedule_options must be a JSON object"),
        (["--weights", "best"], "weights must be one of ema, raw, got 'best'"),
    ],
)
def test_convert_command_says_what_is_wrong(raw_and_averaged, tmp_path, capsys, words, sentence):
    path = saved(raw_and_averaged[0], tmp_path)
    assert main(["convert", "--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the package itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package():
    """denoising-diffusion-pytorch, with stand-ins for what it imports and these tests do not use."""
    names = (
        "torchvision",
        "torchvision.transforms",
        "torchvision.utils",
        "pytorch_fid",
        "pytorch_fid.fid_score",
        "pytorch_fid.inception",
    )
    added = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            added.append(name)
            if "." in name:
                setattr(sys.modules[name.split(".")[0]], name.split(".")[1], sys.modules[name])
    if "pytorch_fid.fid_score" in added:
        sys.modules["pytorch_fid.fid_score"].calculate_frechet_distance = None
        sys.modules["pytorch_fid.inception"].InceptionV3 = None
    try:
        yield pytest.importorskip(
            "denoising_diffusion_pytorch", reason="denoising-diffusion-pytorch is not installed", exc_type=ImportError
        )
    finally:
        for name in added:
            del sys.modules[name]


PACKAGE_NETWORKS = {
    "default": {},
    "other attention": {"attn_heads": 2, "attn_dim_head": 16, "full_attn": (True, False, True)},
    "self-conditioned": {"self_condition": True, "channels": 1},
    "learned variance": {"learned_variance": True},
    "four channels": {"channels": 4},
}


@pytest.mark.parametrize("name", PACKAGE_NETWORKS)
@torch.no_grad()
def test_the_package_s_networks_compute_the_same(package, name, tmp_path):
    torch.manual_seed(0)
    theirs = randomized(package.Unet(16, dim_mults=(1, 2, 4), **PACKAGE_NETWORKS[name]))
    model = convert(saved(theirs.state_dict(), tmp_path)).unet
    assert parameters(model) == parameters(theirs)
    x = images(theirs.channels)
    assert largest(model(x, TIMESTEPS).sample, theirs(x, TIMESTEPS)) < 1e-5


@pytest.fixture(scope="module")
def diffusion(package):
    def make(**options):
        torch.manual_seed(0)
        theirs = package.Unet(16, dim_mults=(1, 2), channels=1)
        return package.GaussianDiffusion(randomized(theirs), image_size=16, **options).eval()

    return make


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_the_package_s_samples_are_the_same(diffusion, schedule, objective, tmp_path, monkeypatch):
    """In float64: its tables in float32 are off by as much as noise at the path's end magnifies, 1e-4 of an image."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # the dtype in which it stores its tables
        theirs = diffusion(timesteps=40, sampling_timesteps=4, objective=objective, beta_schedule=schedule).double()
    theirs.model.time_mlp[0].register_forward_hook(lambda module, inputs, waves: waves.double())
    path = saved({"model": theirs.state_dict(), "step": 1, "version": "2"}, tmp_path)
    ours = convert(path, sampler="ddim", sample_size=16)
    ours.unet.double()
    ours.set_progress_bar_config(disable=True)
    assert len(ours.scheduler) == 40
    noise = torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise.clone())
    expected = theirs.ddim_sample((2, 1, 16, 16))
    monkeypatch.undo()
    got = ours(latents=noise, num_inference_steps=4, output_type="latent").images
    assert expected.std() > 0.05
    assert largest((got + 1) / 2, expected) < 1e-5


def test_the_package_s_ancestral_samples_are_the_same(diffusion, tmp_path):
    theirs = diffusion(timesteps=12)
    ours = convert(saved({"model": theirs.state_dict()}, tmp_path), sample_size=16)
    ours.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    expected = theirs.p_sample_loop((2, 1, 16, 16)).clamp(0, 1)
    torch.manual_seed(3)
    got = ours(batch_size=2, num_inference_steps=12, output_type="pt").images
    assert largest(got, expected) < 1e-5


def test_the_package_s_trainer_file_is_read(package, diffusion, tmp_path):
    from ema_pytorch import EMA

    theirs = diffusion(timesteps=30)
    average = EMA(theirs, beta=0.9, update_every=1)
    average.update()
    with torch.no_grad():
        theirs.model.init_conv.weight.add_(1)
    average.update()
    content = {"step": 2, "model": theirs.state_dict(), "opt": {}, "ema": average.state_dict(), "scaler": None}
    path = saved(content, tmp_path)
    assert same_weights(convert(path), average.ema_model.model.state_dict())
    assert same_weights(convert(path, ema=False), theirs.model.state_dict())
