"""Samplers by name: one entry each, with the options that it takes, on every kind of noise path."""

from __future__ import annotations

import re
import sys
from dataclasses import fields

import diffusers
import pytest
import torch

from diffusers_ext import (
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    GuidedLangevinScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
    build_sampler,
)
from diffusers_ext.cli.sampler_options import OneSampler
from diffusers_ext.schedulers.registry import BETAS, FLOW, OPTIONS, SAMPLERS, SDE, SamplerChoice, samplers_on

CONFIG = SubsequenceDDIMScheduler(beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing")
CONFIG = CONFIG.config
CONFIGS = {
    BETAS: CONFIG,
    SDE: ScoreSDEScheduler(sde="ve", continuous=True).config,
    FLOW: FlowMatchScheduler().config,
}
VALUES = {
    "subsequence": "exp",
    "eta": 0.4,
    "gamma": 0.5,
    "variance_type": "fixed_large",
    "clip_sample": True,
    "inner_steps": 3,
    "snr": 0.2,
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CONFIGS for name in samplers_on(kind)])
def test_every_sampler_takes_a_finite_step_on_every_path_that_it_names(kind, name):
    scheduler = build_sampler(name, CONFIGS[kind])
    scheduler.set_timesteps(5)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    assert scheduler.step(0.1 * x, scheduler.timesteps[0], x).prev_sample.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_exactly_its_options(name):
    for option, value in VALUES.items():
        if option in SAMPLERS[name].options:
            scheduler = build_sampler(name, CONFIG, **{option: value})
            assert scheduler.config[SAMPLERS[name].options[option]] == value
        else:
            with pytest.raises(ValueError, match=f"{option} has no effect on sampler '{re.escape(name)}'"):
                build_sampler(name, CONFIG, **{option: value})


def test_the_classes_and_defaults_behind_the_names():
    built = {name: build_sampler(name, CONFIG) for name in samplers_on(BETAS)}
    assert type(built["ddpm"]) is AncestralDDPMScheduler
    assert (built["langevin"].config.inner_steps, built["reverse-sde"].config.inner_steps) == (4, 1)
    assert type(built["langevin"]) is GuidedLangevinScheduler
    assert built["predictor-corrector"].config.corrector_steps == 1
    assert built["ode-heun"].convergence_order == 2
    assert built["reverse-diffusion"].config.predictor == "reverse_diffusion"
    assert built["ddim-original"].config.original_targets
    assert type(build_sampler("heun", CONFIGS[FLOW])) is FlowMatchScheduler


@pytest.mark.parametrize(
    ("name", "kind", "options", "message"),
    [
        ("ddin", BETAS, {}, "sampler must be one of ddim, .*got 'ddin'"),
        ("ddim", BETAS, {"eta": 1.5}, "eta must be at least 0 and at most 1, got 1.5"),
        ("ddim", BETAS, {"eta": "a"}, "eta must be at least 0 and at most 1, got 'a'"),
        ("ddim", BETAS, {"subsequence": "log"}, "subsequence must be one of uniform"),
        ("ddpm", BETAS, {"gamma": "slow"}, "gamma must be a number of at least 0, exponential_decay"),
        ("ddpm", BETAS, {"gamma": float("nan")}, "gamma must be a number"),
        ("langevin", BETAS, {"inner_steps": 0}, "inner_steps must be at least 1, got 0"),
        ("langevin", BETAS, {"inner_steps": 2.5}, "inner_steps must be at least 1, got 2.5"),
        ("langevin", BETAS, {"snr": 0.0}, "snr must be above 0, got 0.0"),
        ("langevin", FLOW, {}, "On a rectified flow the sampler must be one of .*got 'langevin'"),
        ("unipc", SDE, {}, "On the noise path 've' the sampler must be one of .*got 'unipc'"),
        ("ddim", SDE, {"eta": 0.5}, "On a path in continuous time, sampler 'ddim' takes no eta"),
        ("no.such.module:Class", BETAS, {}, "there is no module 'no'"),
        ("diffusers:NoSuchScheduler", BETAS, {}, "'diffusers' has no 'NoSuchScheduler'"),
        ("torch:tensor", BETAS, {}, "'torch:tensor' is not a scheduler"),
        ("diffusers:DDIMScheduler", BETAS, {"eta": 0.5}, "'diffusers:DDIMScheduler' takes no eta"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name, kind, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_sampler(name, CONFIGS[kind], **options)
    assert "\n" not in str(caught.value)


def test_predictions_that_diffusers_does_not_know_are_refused_for_its_schedulers():
    config = SubsequenceDDIMScheduler(prediction_type="score").config
    with pytest.raises(ValueError, match="takes prediction_type epsilon, sample or v_prediction, got 'score'"):
        build_sampler("unipc", config)
    build_sampler("ode-heun", config)


def test_a_scheduler_of_the_users_own_by_module_and_by_file(tmp_path, monkeypatch):
    code = "from diffusers import DDIMScheduler\nclass Mine(DDIMScheduler):\n    pass\n"
    (tmp_path / "my_schedulers.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_schedulers:Mine", f"{tmp_path / 'my_schedulers.py'}:Mine"):
        scheduler = build_sampler(name, CONFIG)
        assert type(scheduler).__name__ == "Mine"
        assert scheduler.config.prediction_type == "v_prediction"
        assert SamplerChoice.parse(f"{name}:30").length == 30
    sys.modules.pop("my_schedulers", None)


def test_choices_of_the_command_line():
    choice = SamplerChoice.parse("langevin:30x5")
    assert (choice.name, choice.length, choice.inner_steps) == ("langevin", 30, 5)
    assert choice.build(CONFIG, snr=0.3).config.inner_steps == 5
    assert SamplerChoice.parse("ddim:20").with_options({"eta": 1.0, "snr": 0.2}).build(CONFIG).config.eta == 1.0
    for text, message in (("ddin:20", "samplers takes names among"), ("ddim:0", "LENGTH at least 1")):
        with pytest.raises(ValueError, match=message):
            SamplerChoice.parse(text)
    with pytest.raises(ValueError, match="number of inner steps for"):
        SamplerChoice.parse("ddim:20x3")


def test_the_flags_of_commands_are_the_options_of_the_registry():
    assert {field.name for field in fields(OneSampler)} == {"sampler", *OPTIONS}
    settings = OneSampler(sampler="ddpm", gamma="0.5")
    settings.check_sampler()
    assert build_sampler("ddpm", CONFIG, **settings.sampler_options()).config.gamma == 0.5
    with pytest.raises(ValueError, match="eta has no effect on the saved sampler; it belongs to"):
        OneSampler(eta=0.5).check_sampler()


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc", "heun"])
def test_solvers_of_diffusers_start_where_their_error_stays_small(name):
    scheduler = build_sampler(name, CONFIG)
    scheduler.set_timesteps(10)
    bar = scheduler.alphas_cumprod[int(scheduler.timesteps[0])].item()
    assert 100 < ((1 - bar) / bar) ** 0.5 < 170
    linear = SubsequenceDDIMScheduler(beta_schedule="linear").config
    assert build_sampler(name, linear).config.num_train_timesteps == 1000
    assert isinstance(scheduler, diffusers.SchedulerMixin)
