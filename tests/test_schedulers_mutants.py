"""Planted mistakes, each of which the proofs must catch: a proof that lets one through proves nothing."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from test_schedulers_proof import (
    ancestral,
    ddim,
    langevin,
    prove_continuous_flow,
    prove_discrete_flow,
    prove_gamma_numbers,
    prove_inversion,
    prove_langevin_numbers,
    prove_moments,
    prove_predictions_agree,
    prove_the_walk_ends_at_the_data,
    prove_weak_order,
    score_sde,
)

from diffusers_ext.proofs import LINE_MIXTURES, MIXTURES
from diffusers_ext.schedulers import continuous_path, prediction, scheduling_ancestral
from diffusers_ext.schedulers.noise_path import CLEAN, GaussianPath, NoisePath
from diffusers_ext.schedulers.scheduling_ancestral import AncestralDDPMScheduler
from diffusers_ext.schedulers.scheduling_base import NoisePathScheduler
from diffusers_ext.schedulers.scheduling_langevin import GuidedLangevinScheduler
from diffusers_ext.schedulers.scheduling_repeated import RepeatedStepScheduler
from diffusers_ext.schedulers.scheduling_score_sde import ScoreSDEScheduler
from diffusers_ext.schedulers.scheduling_subsequence import SubsequenceDDIMScheduler

pytestmark = pytest.mark.filterwarnings("ignore:This noise path ends")

TWO, LINE = MIXTURES["two modes"], LINE_MIXTURES["two modes"]


def flow(make=ddim):
    prove_discrete_flow(make, TWO, "cosine")


def weak(make):
    prove_weak_order(make, LINE, (20, 40, 100), beta_schedule="cosine")


def moments(make):
    prove_moments(make, 200, TWO, "cosine")


# --- the mistakes: each takes pytest's monkeypatch and plants one -----------------------------------------------------


def targets_of_t_minus_one(patch):
    patch.setattr(NoisePathScheduler, "previous_timestep", lambda self, t: self._time(t) - 1)


def stride_instead_of_the_list(patch):
    def by_stride(self, t):
        return max(self._time(t) - len(self.path) // self.num_inference_steps - 1, CLEAN)

    patch.setattr(NoisePathScheduler, "previous_timestep", by_stride)


def swapped_sigma(patch):
    """sigma_t where sigma_s belongs, in DDIM's direction."""
    towards = SubsequenceDDIMScheduler._towards

    def wrong(self, s, std, x0, t, *rest):
        alpha_s = self.path.alpha(s)
        return towards(self, t, std, x0, t, *rest).add_(x0, alpha=alpha_s - self.path.alpha(t))

    patch.setattr(SubsequenceDDIMScheduler, "_towards", wrong)


def half_score(patch):
    mix = RepeatedStepScheduler._mix

    def wrong(self, x, sample, x0_weight, x0, std, *rest):
        # x0 enters only through the score, (alpha x0 - x) / sigma^2: half of it, and the x that goes with it.
        return mix(self, x + x0_weight / 2, sample, x0_weight / 2, x0, std, *rest)

    patch.setattr(RepeatedStepScheduler, "_mix", wrong)


def off_by_one_at_the_last_step(patch):
    previous = NoisePathScheduler.previous_timestep
    patch.setattr(NoisePathScheduler, "previous_timestep", lambda self, t: max(previous(self, t), 0))


def float32_tables(patch):
    build = NoisePath.__init__

    def wrong(self, betas):
        build(self, betas)
        bars = np.cumprod((1 - self.betas).astype(np.float32)).astype(np.float64)
        self._alpha_list, self._sigma_list = [*np.sqrt(bars), 1.0], [*np.sqrt(1 - bars), 0.0]

    patch.setattr(NoisePath, "__init__", wrong)


def beta_for_beta_tilde(patch):
    posterior = GaussianPath.posterior

    def wrong(self, t, s):
        return (*posterior(self, t, s)[:2], self.transition(t, s)[1])

    patch.setattr(GaussianPath, "posterior", wrong)


def missing_noise(patch):
    patch.setattr(NoisePathScheduler, "_noise", lambda self, output, sample, generator: torch.zeros_like(sample))


def noise_at_the_last_step(patch):
    patch.setattr(scheduling_ancestral, "CLEAN", -2)
    patch.setattr(AncestralDDPMScheduler, "_standard_deviation", lambda self, t, s, _: math.sqrt(self.path.betas[t]))


def variance_for_standard_deviation(patch):
    patch.setattr(AncestralDDPMScheduler, "_standard_deviation", lambda self, t, s, _: self.path.posterior(t, s)[2])


def doubled_noise_variance(patch):
    noise = NoisePathScheduler._noise
    patch.setattr(NoisePathScheduler, "_noise", lambda *arguments: noise(*arguments).mul_(math.sqrt(2)))


def sigma_without_square_root(patch):
    patch.setattr(NoisePath, "sigma", lambda self, t: self._sigma_list[t] ** 2)


def wrong_sign_of_v(patch):
    patch.setitem(prediction._OUTPUTS, "v_prediction", lambda alpha, sigma, _: (sigma, alpha))


def score_without_its_sigma(patch):
    patch.setitem(prediction._OUTPUTS, "score", lambda alpha, sigma, _: (alpha * 0, alpha * 0 - 1))


def heun_without_its_half(patch):
    heun = ScoreSDEScheduler._heun

    def wrong(self, move, x0, sample):
        return 2 * heun(self, move, x0, sample) - sample

    patch.setattr(ScoreSDEScheduler, "_heun", wrong)


def heun_that_forgets_its_second_half(patch):
    patch.setattr(ScoreSDEScheduler, "_heun", lambda self, move, x0, sample: sample)


def drift_of_the_wrong_sign(patch):
    increment = GaussianPath.sde_increment

    def wrong(self, t, s):
        drift, variance = increment(self, t, s)
        return -drift, variance

    patch.setattr(GaussianPath, "sde_increment", wrong)
    patch.setattr(continuous_path.ContinuousPath, "sde_increment", wrong)


def langevin_step_of_twice_the_size(patch):
    step = RepeatedStepScheduler._langevin_step
    patch.setattr(RepeatedStepScheduler, "_langevin_step", lambda self, h, t, *rest: step(self, 2 * h, t, *rest))


def inversion_with_the_lower_sigma(patch):
    def wrong(self, model_output, t, s, sample):
        a, b = self.path.epsilon_coefficients(self.config.prediction_type, t)
        epsilon = a * sample + b * model_output
        return self.path.alpha(t) * sample + self.path.sigma(t) * epsilon, sample

    patch.setattr(SubsequenceDDIMScheduler, "_invert", wrong)


def gamma_counted_from_the_wrong_end(patch):
    gamma = AncestralDDPMScheduler._gamma
    patch.setattr(AncestralDDPMScheduler, "_gamma", lambda self, t: gamma(self, len(self.path) - t))


def original_rule_without_the_half(patch):
    moved = GuidedLangevinScheduler._moved

    def wrong(self, move, *rest):
        return moved(self, move._replace(kind="reverse_sde") if move.kind == "original" else move, *rest)

    patch.setattr(GuidedLangevinScheduler, "_moved", wrong)


def clamp_left_on(patch):
    bound = NoisePathScheduler._bound
    patch.setattr(NoisePathScheduler, "_bound", lambda self, x0, b: bound(self, x0, b).clamp_(-0.6, 0.6))


def tables_are_float64():
    """The proof that float32 fails: the path's sigma against its own betas, one product at a time."""
    path = NoisePath.from_schedule("linear", 1000)
    bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(6))
    assert path.sigma(5) == pytest.approx(math.sqrt(1 - bar), rel=1e-9)


def path_preserves_variance():
    path = NoisePath.from_schedule("linear", 1000)
    assert path.alpha(500) ** 2 + path.sigma(500) ** 2 == pytest.approx(1)


def langevin_numbers():
    prove_langevin_numbers("original", 1, (0.904, 0.220))


heun = partial(score_sde, sde="vp", predictor="ode_heun")
euler_maruyama = partial(score_sde, predictor="euler_maruyama")

CAUGHT_BY = {
    targets_of_t_minus_one: flow,
    stride_instead_of_the_list: flow,
    swapped_sigma: flow,
    half_score: lambda: moments(euler_maruyama),
    off_by_one_at_the_last_step: lambda: prove_the_walk_ends_at_the_data(ddim),
    float32_tables: tables_are_float64,
    beta_for_beta_tilde: lambda: prove_gamma_numbers(1.0, 0.098),
    missing_noise: lambda: moments(ancestral),
    noise_at_the_last_step: lambda: prove_the_walk_ends_at_the_data(ancestral),
    variance_for_standard_deviation: lambda: moments(ancestral),
    doubled_noise_variance: lambda: moments(langevin),
    sigma_without_square_root: path_preserves_variance,
    wrong_sign_of_v: lambda: prove_predictions_agree(ddim, "cosine"),
    score_without_its_sigma: lambda: prove_predictions_agree(ddim, "cosine"),
    heun_without_its_half: lambda: prove_continuous_flow(heun, TWO),
    heun_that_forgets_its_second_half: lambda: prove_continuous_flow(heun, TWO),
    drift_of_the_wrong_sign: lambda: weak(euler_maruyama),
    langevin_step_of_twice_the_size: langevin_numbers,
    inversion_with_the_lower_sigma: lambda: prove_inversion(ddim, TWO, "cosine"),
    gamma_counted_from_the_wrong_end: lambda: prove_gamma_numbers("sigmoid_decay", 0.009),
    original_rule_without_the_half: langevin_numbers,
    clamp_left_on: flow,
}


@pytest.mark.parametrize("mistake", CAUGHT_BY, ids=lambda mistake: mistake.__name__)
def test_planted_mistake_is_caught(mistake, monkeypatch):
    mistake(monkeypatch)
    # An AssertionError, not any error: the mistake runs, and its result is found wrong.
    with pytest.raises(AssertionError):
        CAUGHT_BY[mistake]()


def test_the_same_proofs_pass_without_a_mistake():
    for proof in dict.fromkeys(CAUGHT_BY.values()):
        proof()
