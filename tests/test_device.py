"""The same numbers on an accelerator as on the CPU: networks, schedulers, pipelines, exact resume, compiled training.

Every test runs on the CPU too, with small networks, so that its code is known to work where there is no accelerator.
The reference is always the float64 result of the CPU.
"""

import copy
import math
import os

import pytest
import torch

from diffusers_ext import (
    PRESETS,
    GenerationPipeline,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
    build_model,
)
from diffusers_ext.schedulers.registry import BETAS, build_sampler, samplers_on
from diffusers_ext.schedulers.registry import FLOW as FLOW_PATH
from diffusers_ext.training import train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; exact resume needs it

ACCELERATOR = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
DEVICES = [
    "cpu",
    pytest.param(
        "accelerator", marks=pytest.mark.skipif(ACCELERATOR is None, reason="this machine has no accelerator")
    ),
]
# Largest relative error of one network call. Eight bits of a bfloat16 number are significant, eleven of a float16.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCES]
NARROW = {
    "AnnotatedUNet2DModel": {"base_channels": 8, "attention_head_dim": 8, "norm_num_groups": 4},
    "GuidedUNet2DModel": {"base_channels": 8, "attention_head_dim": 8},
    "ADMUNet2DModel": {"base_channels": 16, "norm_num_groups": 8},
    "SignalUNet1DModel": {
        "base_channels": 16,
        "channel_multipliers": (1, 2),
        "attention_resolutions": (2,),
        "norm_num_groups": 8,
        "patch_size": 1,
    },
    "AttentionUNet2DModel": {"down_widths": (8, 8, 16, 16), "mid_width": 32, "up_widths": (16, 8, 8)},
    "SimpleUNet2DModel": {"widths": (8, 16, 32)},
    "ToyUNet2DModel": {"widths": (8, 16)},
}
LINEAR = SubsequenceDDIMScheduler(beta_schedule="linear", prediction_type="v_prediction").config
FLOW = {"num_train_timesteps": 1000, "beta_schedule": "rectified_flow", "prediction_type": "flow"}
SCHEDULERS = {
    **{name: lambda name=name: build_sampler(name, LINEAR) for name in samplers_on(BETAS)},
    **{f"flow-{name}": lambda name=name: build_sampler(name, FLOW) for name in samplers_on(FLOW_PATH)},
    **{
        f"sde-{sde}": lambda sde=sde: ScoreSDEScheduler(sde=sde, continuous=True, corrector_steps=1)
        for sde in ("vp", "sub_vp", "ve")
    },
    "mix": MixScheduler,
}


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """The CPU or the accelerator, with full float32 products and kernels that give the same bits every time."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return torch.device("cpu") if request.param == "cpu" else ACCELERATOR


@pytest.fixture
def training_device(device):
    """`device` for tests that train: Accelerate takes the accelerator wherever there is one."""
    if device.type == "cpu" and ACCELERATOR is not None:
        pytest.skip("Accelerate trains on the accelerator of this machine")
    return device


def network_of(preset, device, **overrides):
    """A network of the preset on the CPU, narrow unless the device is an accelerator; no weight matrix is zero."""
    torch.manual_seed(0)
    narrow = NARROW[PRESETS[preset].model_class.__name__] if device.type == "cpu" else {}
    network = build_model(preset, **{**narrow, **overrides}).eval()
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
    return network


def relative_error(found, expected):
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def output_and_gradient(network, sample, times):
    """The network's output, and the gradient of its mean square with respect to all weights, as one vector."""
    output = network(sample, times).sample
    gradients = torch.autograd.grad(output.float().square().mean() * 1.0, list(network.parameters()), allow_unused=True)
    return output.detach(), torch.cat([g.flatten().double().cpu() for g in gradients if g is not None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_networks_compute_forward_and_backward_as_in_float64(preset, dtype, device):
    network = network_of(preset, device)
    size = 32 if device.type != "cpu" else 16
    sizes = (size,) * PRESETS[preset].dims
    sample = torch.randn(2, network.config.in_channels, *sizes, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([3, 15])
    expected, expected_gradient = output_and_gradient(copy.deepcopy(network).double(), sample.double(), times)
    found, gradient = output_and_gradient(network.to(device, dtype), sample.to(device, dtype), times.to(device))
    assert relative_error(found, expected) < TOLERANCES[dtype]
    assert relative_error(gradient, expected_gradient) < 3 * TOLERANCES[dtype]


def generate(network, scheduler, device, dtype, **options):
    """Latents of a pipeline: two samples in four steps, from noise that is drawn on the CPU."""
    pipeline = GenerationPipeline(network, scheduler).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    options = {"batch_size": 2, "num_inference_steps": 4, **options}
    return pipeline(**options, generator=torch.Generator().manual_seed(1), output_type="latent").images


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_as_on_the_cpu(name, dtype, device):
    network = network_of("small", device, base_channels=8)
    expected = generate(copy.deepcopy(network), SCHEDULERS[name](), torch.device("cpu"), torch.float32)
    found = generate(network, SCHEDULERS[name](), device, dtype)
    assert found.device.type == device.type
    assert relative_error(found, expected.double()) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_guided_sampling_of_classes_as_on_the_cpu(dtype, device):
    network = network_of("small", device, base_channels=8, num_class_embeds=10)
    options = {"class_labels": [3, 7], "guidance_scale": 2.0}
    scheduler = SubsequenceDDIMScheduler.from_config(LINEAR)
    expected = generate(copy.deepcopy(network), scheduler, torch.device("cpu"), torch.float32, **options)
    unguided = generate(copy.deepcopy(network), scheduler, torch.device("cpu"), torch.float32, class_labels=[3, 7])
    found = generate(network, scheduler, device, dtype, **options)
    assert relative_error(found, expected.double()) < min(
        4 * TOLERANCES[dtype], relative_error(unguided, expected.double())
    )


@pytest.mark.parametrize("preset", ["small", "ict1022-simple"] if ACCELERATOR is None else PRESETS)
def test_networks_compile_and_compute_the_same(preset, device):
    """With Inductor on an accelerator; on the CPU, where it takes a minute a network, only the graph is captured."""
    network = network_of(preset, device).to(device)
    size = 32 if device.type != "cpu" else 16
    sizes = (size,) * PRESETS[preset].dims
    sample = torch.randn(2, network.config.in_channels, *sizes, generator=torch.Generator().manual_seed(1))
    sample, times = sample.to(device), torch.tensor([3, 15], device=device)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager" if device.type == "cpu" else "inductor")
    with torch.no_grad():
        expected, found = network(sample, times).sample, compiled(sample, times).sample
    assert relative_error(found, expected.double().cpu()) < TOLERANCES[torch.float32]


def weights_of(folder):
    """The saved network's weights, by name."""
    pipeline = GenerationPipeline.from_pretrained(folder)
    return pipeline.unet.state_dict()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_resumed_run_ends_with_the_same_bits(precision, training_device, tiny_run, tmp_path):
    if precision == "fp16" and training_device.type == "cpu":
        pytest.skip("float16 training needs an accelerator")
    settings = {"mixed_precision": precision, "train_split": "train[:64]", "lr_scheduler": "constant"}
    train(tiny_run(**settings, lr_warmup_steps=0, output_dir=str(tmp_path / "through")))
    half = tiny_run(**settings, lr_warmup_steps=0, max_train_steps=4, output_dir=str(tmp_path / "half"))
    train(half)
    half.max_train_steps, half.resume_from_checkpoint = 6, "latest"
    train(half)
    through, resumed = (weights_of(tmp_path / name) for name in ("through", "half"))
    assert all(torch.equal(resumed[name], weight) for name, weight in through.items())


def test_a_compiled_run_ends_with_nearly_the_same_weights(training_device, tiny_run, tmp_path, monkeypatch):
    """Compiled by Accelerate's launcher settings; what is saved has the names of a run that is not compiled."""
    settings = {"mixed_precision": "no", "train_split": "train[:64]", "max_train_steps": 3, "validation_size": 8}
    settings |= {"model": "ict1022-simple", "model_options": '{"widths": [8, 8, 16]}'}
    train(tiny_run(**settings, output_dir=str(tmp_path / "plain")))
    torch.compiler.reset()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager" if training_device.type == "cpu" else "inductor")
    train(tiny_run(**settings, output_dir=str(tmp_path / "compiled")))
    plain, compiled = (weights_of(tmp_path / name) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-5)
