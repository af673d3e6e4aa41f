"""What every option of a scheduler does, against a formula written out here or another way to the same thing."""

from __future__ import annotations

import math
import runpy
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from conftest import ROOT

from diffusers_ext.proofs import MIXTURES, ExactNetwork, sample
from diffusers_ext.schedulers import (
    AncestralDDPMScheduler,
    GuidedLangevinScheduler,
    MixScheduler,
    NoisePath,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)
from diffusers_ext.schedulers.scheduling_subsequence import quadratic_subsequence

pytestmark = pytest.mark.filterwarnings("ignore:This noise path ends")


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(sample, output) in float64."""
    sample, output = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return sample, output


def draws() -> torch.Generator:
    """A generator that gives a step the noise `drawn`."""
    return torch.Generator().manual_seed(7)


def drawn(sample: torch.Tensor) -> torch.Tensor:
    return torch.randn(sample.shape, dtype=sample.dtype, generator=draws())


# --- bounds on x0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [AncestralDDPMScheduler, SubsequenceDDIMScheduler])
def test_clip_sample_range_is_the_bound(ours):
    scheduler = ours(clip_sample=True, clip_sample_range=0.25)
    scheduler.set_timesteps(10)
    sample, output = pair(2, 3, 8, 8)
    x0 = scheduler.step(output, 500, sample).pred_original_sample
    assert (x0.min().item(), x0.max().item()) == (-0.25, 0.25)


def test_dynamic_thresholding_bounds_every_sample_by_its_own_quantile():
    settings = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0}
    scheduler = AncestralDDPMScheduler(prediction_type="sample", **settings)
    _, output = pair(3, 1, 10, 10)
    output *= torch.tensor([0.1, 2.0, 50.0]).reshape(3, 1, 1, 1)
    x0 = scheduler.step(output, 500, torch.zeros_like(output)).pred_original_sample
    for got, raw in zip(x0, output):
        bound = min(max(np.quantile(raw.abs().numpy(), 0.8), 1.0), 3.0)
        torch.testing.assert_close(got, raw.clamp(-bound, bound) / bound)


# --- the ancestral chain's noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_gamma_is_a_factor_on_the_standard_deviation(kind):
    sample, output = pair(1, 1, 4, 4)
    if kind.startswith("learned"):
        output = torch.cat([output, output.abs()], dim=1)
    ends = {}
    for gamma in (0.0, 0.5, 1.0):
        scheduler = AncestralDDPMScheduler(variance_type=kind, gamma=gamma)
        ends[gamma] = scheduler.step(output, 500, sample, generator=draws()).prev_sample
    assert ((ends[1.0] - ends[0.0]) / drawn(sample)).min() > 1e-3
    torch.testing.assert_close(ends[0.5] - ends[0.0], 0.5 * (ends[1.0] - ends[0.0]))


def test_a_learned_variance_below_zero_counts_as_zero():
    sample, output = pair(1, 1, 4, 4)
    scheduler = AncestralDDPMScheduler(variance_type="learned")
    got, without = (
        scheduler.step(torch.cat([output, value * torch.ones_like(output)], dim=1), 500, sample).prev_sample
        for value in (-0.1, 0.0)
    )
    torch.testing.assert_close(got, without)


# --- DDIM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_sigma_hat_is_the_ancestral_chain_with_the_larger_variance(schedule):
    """Song et al. 2021 (arXiv:2010.02502), section 4.1: the mean of eta = 1 with noise of variance beta_{t|s}."""
    settings = {"beta_schedule": schedule, "clip_sample": False}
    ends = []
    for scheduler in (
        SubsequenceDDIMScheduler(sigma_hat=True, **settings),
        AncestralDDPMScheduler(variance_type="fixed_large", **settings),
    ):
        scheduler.set_timesteps(20)
        model, start = ExactNetwork(MIXTURES["ellipses"], scheduler.path), pair(8, 2)[0]
        ends.append(sample(scheduler, model, start, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_noise_can_be_given():
    sample, output = pair(2, 3, 4, 4)
    noise = torch.randn(sample.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    scheduler = SubsequenceDDIMScheduler(eta=0.7)
    scheduler.set_timesteps(10)
    given = scheduler.step(output, 500, sample, variance_noise=noise).prev_sample
    drawn = scheduler.step(output, 500, sample, generator=torch.Generator().manual_seed(7)).prev_sample
    torch.testing.assert_close(given, drawn)
    with pytest.raises(ValueError, match="either generator or variance_noise"):
        scheduler.step(output, 500, sample, generator=torch.Generator(), variance_noise=noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_inverted_step_names_the_x0_that_it_noises_again(prediction_type):
    scheduler = SubsequenceDDIMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(10, inverse=True)
    assert scheduler.timesteps.tolist() == list(range(0, 1000, 100))
    sample, output = pair(2, 3, 4, 4)
    step = scheduler.step(output, 500, sample)
    path, x0 = scheduler.path, step.pred_original_sample
    epsilon = (step.prev_sample - path.alpha(500) * x0) / path.sigma(500)
    torch.testing.assert_close(path.alpha(400) * x0 + path.sigma(400) * epsilon, sample)


def test_quadratic_subsequences_are_squares_of_even_roots():
    assert quadratic_subsequence(5, 1000).tolist() == [0, 62, 250, 562, 999]
    assert quadratic_subsequence(8, 300).tolist() == [0, 6, 24, 55, 98, 153, 220, 299]
    assert quadratic_subsequence(300, 300).tolist() == list(range(300))
    for length in (1, 301):
        with pytest.raises(ValueError, match=f"between 2 and 300, got {length}"):
            quadratic_subsequence(length, 300)


# --- score SDE: one step of each predictor and corrector, from the paper's formulas -----------------------------------


def score_step(scheduler, output: torch.Tensor, call: int, sample: torch.Tensor) -> torch.Tensor:
    return scheduler.step(output, scheduler.timesteps[call], sample, generator=draws()).prev_sample


def test_discrete_vp_predictors_are_the_papers():
    """Song et al. 2021 (arXiv:2011.13456), appendix E and F, with beta_i of the table."""
    sample, score = pair(2, 3, 4, 4)
    z, i = drawn(sample), 500
    make = partial(ScoreSDEScheduler, prediction_type="score")
    beta = make().path.betas[i]
    expected = {
        "reverse_diffusion": (2 - math.sqrt(1 - beta)) * sample + beta * score + math.sqrt(beta) * z,
        "euler_maruyama": (1 + beta / 2) * sample + beta * score + math.sqrt(beta) * z,
    }
    for predictor, value in expected.items():
        got = score_step(make(predictor=predictor), score, 999 - i, sample)
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)


def test_discrete_ve_predictors_are_the_papers():
    sample, score = pair(2, 3, 4, 4)
    z, i = drawn(sample), 500
    make = partial(ScoreSDEScheduler, prediction_type="score", sde="ve")
    after, before = make().path.sigmas[i], make().path.sigmas[i - 1]
    increase = after**2 - before**2
    expected = {
        "reverse_diffusion": sample + increase * score + math.sqrt(increase) * z,
        "ancestral": sample + increase * score + math.sqrt(before**2 * increase / after**2) * z,
    }
    for predictor, value in expected.items():
        got = score_step(make(predictor=predictor), score, 999 - i, sample)
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("measured_norms", [False, True])
def test_corrector_is_the_papers(sde, measured_norms):
    """Algorithms 4 and 5: step 2 * alpha * (r |z| / |score|)^2 with alpha = 1 - beta, or 1 with VE."""
    sample, score = pair(2, 3, 4, 4)
    z, i = drawn(sample), 500
    settings = {"sde": sde, "corrector_steps": 1, "snr": 0.2, "measured_norms": measured_norms}
    scheduler = ScoreSDEScheduler(prediction_type="score", **settings)
    ratio = scheduler.path.sigma(i)
    if measured_norms:
        ratio = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
    step = 2 * (1 - scheduler.path.betas[i] if sde == "vp" else 1) * (0.2 * ratio) ** 2
    expected = sample + step * score + (2 * step) ** 0.5 * z
    torch.testing.assert_close(score_step(scheduler, score, 2 * (999 - i), sample), expected, rtol=1e-12, atol=1e-12)


def test_every_level_is_corrected_before_its_predictor():
    scheduler = ScoreSDEScheduler(corrector_steps=2)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [750] * 3 + [500] * 3 + [250] * 3 + [0] * 3
    heun = ScoreSDEScheduler(predictor="ode_heun")
    heun.set_timesteps(4)
    # From 250 to 0 sigma falls 69-fold: a correction there would multiply errors of x0, so that step is of first order.
    assert heun.timesteps.tolist() == [750, 500, 500, 250, 250, 0]


@pytest.mark.parametrize("continuous", [False, True])
def test_a_walk_starts_as_wide_as_its_path_ends(continuous):
    """A start that is too narrow is soon forgotten by the exact network, so no proof would notice."""
    for sde, expected in (("vp", 1.0), ("sub_vp", 1.0), ("ve", 20.0)):
        scheduler = ScoreSDEScheduler(sde=sde, continuous=continuous, sigma_max=20.0)
        assert scheduler.init_noise_sigma == pytest.approx(expected)
        last = 1.0 if continuous else len(scheduler.path) - 1
        assert scheduler.path.sigma(last) == pytest.approx(expected, rel=1e-3)


def test_times_told_on_another_scale_find_their_level():
    scheduler = ScoreSDEScheduler(timestep_scale=0.1)
    assert scheduler.timesteps[:2].tolist() == pytest.approx([99.9, 99.8])
    x0, noise = torch.zeros(1000, 1), torch.ones(1000, 1)
    noisy = scheduler.add_noise(x0, noise, scheduler.timesteps)
    expected = torch.from_numpy(scheduler.path.sigmas[::-1].copy()).float()
    torch.testing.assert_close(noisy[:, 0], expected)


# --- guided Langevin and the toy sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "extra"), [("langevin", 1), ("reverse_sde", 0), ("original", 0)])
def test_langevin_calls_the_network_k_times_a_level(rule, extra):
    scheduler = GuidedLangevinScheduler(rule=rule, inner_steps=3)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [750] * 3 + [500] * 3 + [250] * 3 + [0] * (3 + extra)


def test_mix_noise_and_data_have_their_own_range():
    noise = MixScheduler(low=-1.0, high=3.0).sample_prior((20_000,), generator=torch.Generator().manual_seed(0))
    assert -1 <= noise.min() < -0.99
    assert 2.99 < noise.max() <= 3
    assert noise.mean().item() == pytest.approx(1, abs=0.05)
    assert noise.std().item() == pytest.approx(4 / math.sqrt(12), rel=0.02)


# --- the path's numbers -----------------------------------------------------------------------------------------------


def test_signal_to_noise_ratio():
    path = NoisePath.from_schedule("linear", 1000)
    bar = path.alphas_cumprod[300]
    assert path.snr(300) == pytest.approx(bar / (1 - bar))


# --- a part of a walk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        SubsequenceDDIMScheduler,
        partial(ScoreSDEScheduler, predictor="ode_heun"),
        partial(GuidedLangevinScheduler, inner_steps=2),
    ],
)
def test_a_list_that_somebody_cut_goes_on_where_it_was_cut(make, copied):
    """As pipelines do that start in the middle: `scheduler.timesteps = scheduler.timesteps[k:]`."""
    x, ends = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), []
    for cut in (False, True):
        scheduler = make()
        scheduler.set_timesteps(10)
        rest = scheduler.timesteps[6:]
        if cut:
            scheduler.timesteps = rest.clone() if copied else rest
        y, generator = x, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps if cut else rest:
            y = scheduler.step(torch.tanh(y), t, y, generator=generator).prev_sample
        ends.append(y)
    torch.testing.assert_close(*ends, rtol=0, atol=0)


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SubsequenceDDIMScheduler, diffusers.DDIMScheduler, {}),
        (SubsequenceDDIMScheduler, diffusers.DDIMScheduler, {"eta": 1.0}),
        (AncestralDDPMScheduler, diffusers.DDPMScheduler, {}),
    ],
)
def test_a_step_costs_a_fraction_of_theirs_in_operations_and_memory(ours, theirs, options):
    """What the benchmark times, counted with its own counter: counts do not depend on how busy a machine is."""
    counts, Counter = [], runpy.run_path(str(ROOT / "benchmarks" / "scheduler_step.py"))["Counter"]
    sample, output = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours(), theirs()):
        scheduler.set_timesteps(50)
        with Counter() as counter:
            scheduler.step(output, 500, sample, generator=torch.Generator(), **options)
        counts.append(counter)
    assert counts[0].operations <= 0.4 * counts[1].operations
    assert counts[0].allocations <= 0.7 * counts[1].allocations
    assert counts[0].copies == 0


@pytest.mark.parametrize("timesteps", [[-1], [10], [3, 99]])
def test_noising_to_a_time_that_the_path_does_not_have_is_refused(timesteps):
    scheduler, x0 = SubsequenceDDIMScheduler(num_train_timesteps=10), torch.zeros(len(timesteps), 1)
    with pytest.raises(ValueError, match="between 0 and 9"):
        scheduler.add_noise(x0, x0, torch.tensor(timesteps))


@pytest.mark.parametrize(
    "bounds", [{"clip_sample_range": 0.0}, {"sample_max_value": -1.0}, {"dynamic_thresholding_ratio": 1.5}], ids=str
)
def test_bounds_that_leave_nothing_of_x0_are_refused(bounds):
    with pytest.raises(ValueError, match=f"{next(iter(bounds))} must be"):
        SubsequenceDDIMScheduler(**bounds)
