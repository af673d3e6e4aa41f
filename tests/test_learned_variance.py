"""Learned variances: the bound against closed forms, the hybrid loss's gradients, and whole runs."""

import json
import math

import pytest
import torch
from conftest import TINY_MODEL
from diffusers import DiffusionPipeline
from torch.distributions import Normal, kl_divergence

from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.objectives.learned_variance import (
    BOUND_WEIGHT,
    LearnedVarianceObjective,
    binned_log_likelihood,
    gaussian_divergence,
)
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.schedulers.noise_path import NoisePath
from diffusers_ext.training import Trainer, TrainingArguments, train

STEPS = 100
PATH = NoisePath.from_schedule("cosine", STEPS)


def generator():
    return torch.Generator().manual_seed(0)


def test_the_divergence_is_that_of_torch():
    means, variances = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    got = gaussian_divergence(means[0], variances[0].log(), means[1], variances[1].log())
    expected = kl_divergence(Normal(means[0], variances[0].sqrt()), Normal(means[1], variances[1].sqrt()))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("deviation", [0.003, 0.1, 2.0])
def test_the_probabilities_of_all_bins_sum_to_one(deviation):
    values = torch.arange(256) / 127.5 - 1
    log_probabilities = binned_log_likelihood(values, torch.tensor(0.2), torch.tensor(2 * math.log(deviation)))
    assert log_probabilities.exp().sum().item() == pytest.approx(1, abs=1e-4)
    inner = log_probabilities[1:-1]  # the outermost bins reach to infinity
    assert inner.argmax().item() + 1 == pytest.approx((0.2 + 1) * 127.5, abs=1)


@pytest.mark.parametrize("t", [3, 20, 60])
def test_the_bound_is_least_at_the_true_variance_of_the_reverse_step(t):
    """For data N(0, s^2), x_{t-1} given x_t is a Gaussian of variance beta_tilde + c0^2 Var(x0 | x_t)."""
    s, count = 0.3, 200_000
    alpha, sigma = PATH.alpha(t), PATH.sigma(t)
    c0, _, tilde = PATH.posterior(t, t - 1)
    beta = PATH.transition(t, t - 1)[1]
    gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)  # E[x0 | x_t] = gain * x_t
    true_variance = tilde + c0**2 * (s**2 - gain * alpha * s**2)
    best = 2 * math.log(true_variance / tilde) / math.log(beta / tilde) - 1
    assert -1 < best < 1
    x0, noise = (torch.randn(1, 1, count, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    times = torch.tensor([t])
    noisy = alpha * s * x0 + sigma * noise
    objective = LearnedVarianceObjective(PATH, "sample")
    values = torch.tensor([best - 0.3, best, best + 0.3])
    bounds = [
        objective.bound(gain * noisy, torch.full_like(x0, value), s * x0, noisy, times).item() for value in values
    ]
    assert bounds[1] < min(bounds[0], bounds[2])


@pytest.mark.parametrize("t", [0, 1, 50])
def test_the_prediction_learns_from_the_simple_loss_alone_and_the_variance_from_the_bound(t):
    x0, noise = (torch.rand(2, 1, 4, 4, generator=generator()) for _ in range(2))
    times = torch.full((2,), t)
    output = torch.randn(2, 2, 4, 4, generator=generator()).mul_(0.3).requires_grad_()
    objective, simple = LearnedVarianceObjective(PATH), DiffusionObjective(PATH)
    losses = objective.losses(lambda sample, timestep: output, x0, noise, times)
    (gradient,) = torch.autograd.grad(losses.sum(), output)
    prediction = output.detach()[:, :1].requires_grad_()
    plain = simple.losses(lambda sample, timestep: prediction, x0, noise, times)
    (expected,) = torch.autograd.grad(plain.sum(), prediction)
    torch.testing.assert_close(gradient[:, :1], expected)
    assert gradient[:, 1:].abs().sum() > 0
    noisy = PATH.add_noise(x0, noise, times)
    bound = objective.bound(output[:, :1], output[:, 1:], x0, noisy, times)
    torch.testing.assert_close(losses, plain + BOUND_WEIGHT * STEPS * bound)


def test_a_network_without_the_channels_is_one_sentence():
    batch = {"samples": torch.zeros(2, 1, 4, 4), "index": torch.arange(2)}
    net = ConditionedNetwork(lambda sample, timestep: sample)
    with pytest.raises(ValueError, match="needs a network with 2 output channels, twice the sample's, got 1"):
        LearnedVarianceObjective(PATH)(net, batch, generator())


def learned_run(tiny_run, **overrides):
    return TrainingArguments(**{**vars(tiny_run()), "variance_type": "learned_range", "sampler": "ddpm", **overrides})


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_run_learns_variances_and_its_pipeline_samples_with_them(tiny_run, sampler):
    arguments = learned_run(tiny_run, sampler=sampler)
    pipeline = train(arguments)
    assert pipeline.unet.config.out_channels == 2
    if sampler == "ddpm":
        assert pipeline.scheduler.config.variance_type == "learned_range"
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    images = []
    for one in (pipeline, loaded):
        one.set_progress_bar_config(disable=True)
        images.append(one(num_inference_steps=3, generator=generator(), output_type="pt").images)
    assert images[0].shape == (1, 1, 28, 28)
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"timestep_sampling": "importance"}, "timestep_sampling importance and variance_type learned_range can't be"),
        ({"schedule": "rectified_flow", "prediction_type": "flow"}, "at least two discrete timesteps"),
        ({"model_options": json.dumps({**TINY_MODEL, "out_channels": 1})}, "output has 1 channels, but must have 2"),
    ],
)
def test_what_has_no_learned_variance_is_one_sentence(tiny_run, overrides, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Trainer(learned_run(tiny_run, **overrides))
    assert "\n" not in str(caught.value)
