"""Noise paths: every schedule's formula and numbers, and conversions of predictions that agree with one another."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from diffusers_ext.proofs import MIXTURES
from diffusers_ext.schedulers import (
    PREDICTION_TYPES,
    SCHEDULES,
    DiscretePath,
    NoisePath,
    Prediction,
    RectifiedFlowPath,
    SubsequenceDDIMScheduler,
    SubVariancePreservingPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from diffusers_ext.schedulers.noise_path import CLEAN
from diffusers_ext.schedulers.schedules import make_betas, rescale_zero_terminal_snr

CONTINUOUS_PATHS = {
    "vp": VariancePreservingPath(),
    "sub_vp": SubVariancePreservingPath(),
    "ve": VarianceExplodingPath(),
    "rectified flow": RectifiedFlowPath(),
}


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "steps", "alphas_cumprod"),
    [
        ("linear", 300, 0.048),
        ("linear", 1000, 4.0e-5),
        ("quadratic", 300, 0.114),
        ("quadratic", 1000, 7.3e-4),
        ("exponential", 300, 0.58),
        ("exponential", 1000, 0.17),
    ],
)
def test_published_last_alphas_cumprod(schedule, steps, alphas_cumprod):
    path = NoisePath.from_schedule(schedule, steps)
    assert path.alphas_cumprod[-1] == pytest.approx(alphas_cumprod, rel=0.02)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cosine_bar(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def sigmoid_bar(u: float) -> float:
    return (sigmoid(3) - sigmoid(6 * u - 3)) / (sigmoid(3) - sigmoid(-3))


# beta at 0-based step i of T, written out one number at a time.
FORMULAS = {
    "linear": lambda i, T: 1e-4 + (0.02 - 1e-4) * i / (T - 1),
    "linear_rescaled": lambda i, T: 1000 / T * (1e-4 + (0.02 - 1e-4) * i / (T - 1)),
    "scaled_linear": lambda i, T: (0.01 + (math.sqrt(0.02) - 0.01) * i / (T - 1)) ** 2,
    "quadratic": lambda i, T: (0.01 + (math.sqrt(0.02) - 0.01) * i / (T - 1)) ** 2,
    "exponential": lambda i, T: (
        1e-4 + 0.0199 * (math.exp(-6 + 12 * i / (T - 1)) - math.exp(-6)) / (math.exp(6) - math.exp(-6))
    ),
    "sigmoid": lambda i, T: 1e-4 + 0.0199 * sigmoid(-6 + 12 * i / (T - 1)),
    "cosine": lambda i, T: min(0.999, 1 - cosine_bar((i + 1) / T) / cosine_bar(i / T)),
    "squaredcos_cap_v2": lambda i, T: min(0.999, 1 - cosine_bar((i + 1) / T) / cosine_bar(i / T)),
    "sigmoid_alpha_bar": lambda i, T: min(0.999, 1 - sigmoid_bar((i + 1) / T) / sigmoid_bar(i / T)),
}


@pytest.mark.parametrize("steps", [10, 300, 1000])
@pytest.mark.parametrize("schedule", FORMULAS)
def test_schedule_is_its_formula(schedule, steps):
    if schedule == "linear_rescaled":
        steps *= 10  # 1000 / T times 0.02 must stay below 1
    expected = [FORMULAS[schedule](i, steps) for i in range(steps)]
    np.testing.assert_allclose(make_betas(schedule, steps), expected, rtol=1e-9)


def test_linear_log_snr_is_linear_between_its_ends():
    path = NoisePath.from_schedule("linear_log_snr", 1000, options={"start": 12.0, "end": -6.0})
    log_snr = np.log(path.alphas_cumprod / (1 - path.alphas_cumprod))
    np.testing.assert_allclose(log_snr, np.linspace(12, -6, 1000), rtol=1e-6, atol=1e-6)


def test_log_snr_of_laplace_has_a_laplace_distribution():
    """Half of the levels lie above the mean, and a share exp(-x / scale) / 2 lies x above it."""
    assert set(SCHEDULES) - set(FORMULAS) == {"laplace", "linear_log_snr"}
    path = NoisePath.from_schedule("laplace", 1000, options={"mean": 0.3, "scale": 0.4})
    log_snr = np.log(path.alphas_cumprod / (1 - path.alphas_cumprod))
    for x in (0.0, 0.2, 0.5, 1.0, 1.5):
        share = math.exp(-x / 0.4) / 2
        assert (log_snr > 0.3 + x).mean() == pytest.approx(share, abs=2e-3)
        assert (log_snr < 0.3 - x).mean() == pytest.approx(share, abs=2e-3)


def test_a_path_that_begins_far_from_the_data_warns():
    with pytest.warns(UserWarning, match="ends at"), pytest.warns(UserWarning, match=r"begins at noise level 0\.21"):
        NoisePath.from_schedule("laplace", 1000).warn_about_ends()


def test_diffusers_own_laplace_schedule_is_another_path_and_is_refused():
    from diffusers import DDPMScheduler

    with pytest.raises(ValueError, match="its formula differs"):
        SubsequenceDDIMScheduler.from_config(DDPMScheduler(beta_schedule="laplace").config)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_v_of_unit_data_has_unit_size_at_every_level_of_an_exploding_path(sigma):
    """Its x0 is that of diffusers' EulerDiscreteScheduler, x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) * v."""
    p, q = Prediction("v_prediction").output(1.0, sigma)
    assert p**2 + q**2 == pytest.approx(1)
    norm = 1 + sigma**2
    assert Prediction("v_prediction").x0(1.0, sigma) == pytest.approx((1 / norm, -sigma / norm**0.5))


def test_predictions_are_checked_against_one_another():
    """x0 and epsilon of every type, put back into both equations, give the sample and the output again."""
    alpha, sigma = 0.6, 0.7
    for kind in PREDICTION_TYPES:
        view = Prediction(kind)

        def posterior():
            return 0.4, 0.9

        p, q = view.output(alpha, sigma, posterior)
        (a, b), (c, d) = view.x0(alpha, sigma, posterior), view.epsilon(alpha, sigma, posterior)
        x, output = 0.8, -1.7
        x0, epsilon = a * x + b * output, c * x + d * output
        assert alpha * x0 + sigma * epsilon == pytest.approx(x)
        assert p * x0 + q * epsilon == pytest.approx(output)
    with pytest.raises(ValueError, match="Unknown prediction_type 'noise'; choose one of epsilon"):
        Prediction("noise")


def test_clipped_cosine_of_the_annotated_lineage():
    betas = make_betas("cosine", 300, options={"s": 0.008, "clip": [1e-4, 0.9999]})
    expected = [min(max(1 - cosine_bar((i + 1) / 300) / cosine_bar(i / 300), 1e-4), 0.9999) for i in range(300)]
    np.testing.assert_allclose(betas, expected, rtol=1e-9)
    assert betas.min() == 1e-4 or betas.min() > 1e-4
    assert betas.max() == 0.9999


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_path_is_float64_variance_preserving_and_decreasing(schedule):
    path = NoisePath.from_schedule(schedule, 1000)
    for table in (path.betas, path.alphas_cumprod, path.alphas, path.sigmas):
        assert table.dtype == np.float64
        assert table.shape == (1000,)
    np.testing.assert_allclose(path.alphas**2 + path.sigmas**2, 1, rtol=1e-14)
    assert (np.diff(path.alphas_cumprod) < 0).all()


def test_float64_tables_differ_from_float32_ones():
    """What rounding each factor to float32 costs over 1000 of them: our tables must not have it."""
    exact = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000))
    path = NoisePath.from_schedule("linear", 1000)
    assert path.alphas_cumprod[-1] == pytest.approx(exact, rel=1e-12)
    in_float32 = torch.cumprod(1 - torch.from_numpy(path.betas).float(), 0).numpy()
    assert abs(np.sqrt(1 - in_float32.astype(np.float64)) / path.sigmas - 1).max() > 5e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr(schedule):
    before = NoisePath.from_schedule(schedule, 300)
    after = NoisePath.from_schedule(schedule, 300, rescale_betas_zero_snr=True)
    assert after.alpha(299) == 0
    assert after.sigma(299) == 1
    assert after.alpha(0) == pytest.approx(before.alpha(0), rel=1e-12)
    assert after.snr(299) == 0
    np.testing.assert_allclose(rescale_zero_terminal_snr(after.betas), after.betas, rtol=1e-9)
    # Lin et al., algorithm 1: sqrt(alphas_cumprod) is shifted and scaled, so its increments keep their proportions.
    ratio = np.diff(after.alphas) / np.diff(before.alphas)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_a_path_that_never_reaches_noise_warns_and_one_that_does_is_silent():
    with pytest.warns(UserWarning, match=r"ends at alphas_cumprod = 0\.169"):
        NoisePath.from_schedule("exponential", 1000).warn_about_ends()
    with pytest.warns(UserWarning, match="22% of the signal"):
        NoisePath.from_schedule("linear", 300).warn_about_ends()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NoisePath.from_schedule("linear", 1000).warn_about_ends()
        NoisePath.from_schedule("linear_rescaled", 300).warn_about_ends()
        NoisePath.from_schedule("linear", 300, rescale_betas_zero_snr=True).warn_about_ends()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "parabolic"}, "Unknown schedule 'parabolic'"),
        ({"num_train_timesteps": 1}, "num_train_timesteps must be at least 2, got 1"),
        ({"beta_end": 1.5}, r"Betas must lie in \[0, 1\]"),
        ({"beta_start": 0.0}, "start above 0"),
        ({"beta_end": float("nan")}, "Betas must lie in"),
        ({"schedule": "linear", "options": {"s": 1}}, r"takes beta_start and beta_end only, got options \['s'\]"),
        ({"schedule": "cosine", "options": {"tau": 1}}, r"has no option \['tau'\]"),
    ],
)
def test_wrong_settings_are_sentences(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_betas(**arguments)


@pytest.mark.parametrize("betas", [[0.1], [[0.1, 0.2]], [0.1, -0.2], [0.1, 2.0]])
def test_wrong_given_betas(betas):
    with pytest.raises(ValueError, match="Betas must"):
        NoisePath(betas)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariancePreservingPath(2.0, 1.0),
        lambda: SubVariancePreservingPath(0.0, 1.0),
        lambda: VarianceExplodingPath(1.0, 0.5),
        lambda: DiscretePath.variance_exploding(0.0, 1.0, 10),
    ],
)
def test_wrong_continuous_settings(make):
    with pytest.raises(ValueError, match="must satisfy 0 <"):
        make()


# --- numbers at one time ----------------------------------------------------------------------------------------------


def test_clean_time():
    path = NoisePath.from_schedule("linear", 10)
    assert (path.alpha(CLEAN), path.sigma(CLEAN), path.snr(CLEAN)) == (1.0, 0.0, math.inf)
    for continuous in CONTINUOUS_PATHS.values():
        assert (continuous.alpha(0.0), continuous.sigma(0.0), continuous.snr(0.0)) == (1.0, 0.0, math.inf)


def test_neighbouring_transition_is_beta_and_posterior_is_ho_et_al():
    path = NoisePath.from_schedule("cosine", 100)
    t, beta = 60, path.betas[60]
    bar, previous = path.alphas_cumprod[60], path.alphas_cumprod[59]
    assert path.transition(t, t - 1) == pytest.approx((math.sqrt(1 - beta), beta))
    expected = (
        math.sqrt(previous) * beta / (1 - bar),
        math.sqrt(1 - beta) * (1 - previous) / (1 - bar),
        (1 - previous) / (1 - bar) * beta,
    )
    assert path.posterior(t, t - 1) == pytest.approx(expected)


def test_posterior_over_a_gap_is_bayes_rule():
    """The product of the normal densities q(x_t | x_s) and q(x_s | x0), with all their constants computed afresh."""
    path = NoisePath.from_schedule("linear", 1000)
    t, s = 700, 300
    ratio, variance = path.transition(t, s)
    precision = ratio**2 / variance + 1 / path.sigma(s) ** 2
    c0, ct, posterior_variance = path.posterior(t, s)
    assert posterior_variance == pytest.approx(1 / precision)
    assert ct == pytest.approx(ratio / variance / precision)
    assert c0 == pytest.approx(path.alpha(s) / path.sigma(s) ** 2 / precision)


@pytest.mark.parametrize("name", CONTINUOUS_PATHS)
def test_continuous_paths_solve_their_equation(name):
    """d log(alpha)/dt = drift and d(sigma^2)/dt = 2 drift sigma^2 + g^2, by central differences."""
    path = CONTINUOUS_PATHS[name]
    for t in (0.05, 0.4, 0.9):
        h = 1e-5
        slope = (math.log(path.alpha(t + h)) - math.log(path.alpha(t - h))) / (2 * h)
        growth = (path.sigma(t + h) ** 2 - path.sigma(t - h) ** 2) / (2 * h)
        assert slope == pytest.approx(path.drift(t), rel=1e-6, abs=1e-12)
        expected = 2 * path.drift(t) * path.sigma(t) ** 2 + path.diffusion_squared(t)
        assert growth == pytest.approx(expected, rel=1e-6)
        f, g2 = path.sde_increment(t, t - h)
        assert (f, g2) == pytest.approx((path.drift(t) * h, path.diffusion_squared(t) * h))


def test_a_rectified_flow_goes_straight_from_the_data_to_the_noise_at_the_speed_that_flow_says():
    path = RectifiedFlowPath()
    assert (path.alpha(1.0), path.sigma(1.0)) == (0.0, 1.0)
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double().unbind()
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    x, later = path.add_noise(x0, noise, t), path.add_noise(x0, noise, t + 0.05)
    torch.testing.assert_close((later - x) / 0.05, path.target("flow", x0, noise, t))
    for kind in ("flow", "sample", "v_prediction"):
        path.check_prediction_type(kind)
    for kind in ("epsilon", "score"):
        with pytest.raises(ValueError, match=f"'{kind}' does not determine x0 at timestep 1.0"):
            path.check_prediction_type(kind)


def test_continuous_ends():
    assert VariancePreservingPath().alpha(1.0) == pytest.approx(math.exp(-0.25 * 19.9 - 0.5 * 0.1), rel=1e-12)
    assert SubVariancePreservingPath().sigma(1.0) == pytest.approx(1 - math.exp(-10.05), rel=1e-12)
    assert VarianceExplodingPath(0.01, 50.0).sigma(1.0) == pytest.approx(50.0)
    assert DiscretePath.variance_exploding(0.01, 50.0, 10).sigma(0) == pytest.approx(0.01)


# --- predictions ------------------------------------------------------------------------------------------------------

PATHS = {
    **{name: NoisePath.from_schedule(name, 50) for name in ("linear", "cosine", "sigmoid_alpha_bar")},
    "zero snr": NoisePath.from_schedule("linear", 50, rescale_betas_zero_snr=True),
    "discrete ve": DiscretePath.variance_exploding(0.01, 50.0, 50),
    "discrete sub-vp": DiscretePath.sub_variance_preserving(NoisePath.from_schedule("linear", 50).alphas),
    **CONTINUOUS_PATHS,
}


def types_of(path) -> list[str]:
    return [kind for kind in PREDICTION_TYPES if kind != "mean" or isinstance(path, DiscretePath)]


def times_of(path) -> torch.Tensor:
    if isinstance(path, DiscretePath):
        return torch.tensor([0, 20, 48])
    # At its end a rectified flow has no data left, from which epsilon could tell them.
    return torch.tensor([0.05, 0.5, 0.95 if isinstance(path, RectifiedFlowPath) else 1.0]).double()


@pytest.mark.parametrize("name", PATHS)
def test_all_predictions_agree_for_every_pair(name):
    path, generator = PATHS[name], torch.Generator().manual_seed(0)
    t = times_of(path)
    x0, noise = (torch.randn(3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    x = path.add_noise(x0, noise, t)
    for source, target in itertools.product(types_of(path), repeat=2):
        output = path.target(source, x0, noise, t)
        converted = path.convert(output, x, t, source, target)
        torch.testing.assert_close(converted, path.target(target, x0, noise, t), rtol=1e-7, atol=1e-7)
        again = path.convert(converted, x, t, target, source)
        torch.testing.assert_close(again, output, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_outputs_are_those_of_the_exact_solution(name):
    """`to_x0_epsilon` inverts what an independent closed form says for each type."""
    path, mixture = PATHS[name], MIXTURES["balls"]
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i, t in enumerate(times_of(path).tolist()):
        level, point = (path.alpha(t), path.sigma(t)), x[i : i + 1]
        x0, epsilon = mixture.predict(point, level)
        for kind in types_of(path):
            previous = (path.alpha(t - 1), path.sigma(t - 1)) if kind == "mean" else None
            output = mixture.output(kind, point, level, previous)
            got = path.to_x0_epsilon(kind, output, point, torch.tensor([t]))
            torch.testing.assert_close(got[0], x0, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(got[1], epsilon, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_numbers_and_tensors_give_the_same_coefficients(name):
    path = PATHS[name]
    x, output = torch.tensor([[[0.7]], [[-1.3]]], dtype=torch.float64)
    for kind, t in itertools.product(types_of(path), times_of(path).tolist()):
        a, b = path.x0_coefficients(kind, t)
        c, d = path.epsilon_coefficients(kind, t)
        x0, epsilon = path.to_x0_epsilon(kind, output, x, torch.tensor([t]))
        assert (a * 0.7 - b * 1.3, c * 0.7 - d * 1.3) == pytest.approx((x0.item(), epsilon.item()), rel=1e-12)


def test_float32_conversions_keep_float32_accuracy():
    """Coefficients are solved in float64 and rounded once: `mean` loses three digits when solved in float32."""
    path = NoisePath.from_schedule("linear", 1000)
    t = torch.arange(1, 1000, 37)
    x0, noise = torch.randn(2, len(t), 8, generator=torch.Generator().manual_seed(0))
    x = path.add_noise(x0.double(), noise.double(), t)
    for kind in PREDICTION_TYPES:
        output = path.target(kind, x0.double(), noise.double(), t)
        exact, _ = path.to_x0_epsilon(kind, output, x, t)
        rounded, _ = path.to_x0_epsilon(kind, output.float(), x.float(), t)
        a, b = path.x0_factors(kind, t, x)
        condition = a.abs() * x.abs() + b.abs() * output.abs() + 1
        assert ((rounded - exact).abs() / condition).max() < 5e-7


def test_v_prediction_at_zero_snr_and_epsilon_refused_there():
    path = NoisePath.from_schedule("linear", 50, rescale_betas_zero_snr=True)
    x, x0 = torch.randn(2, 4, 3).double().unbind()
    got, epsilon = path.to_x0_epsilon("v_prediction", -x0, x, torch.full((4,), 49))
    torch.testing.assert_close(got, x0)
    torch.testing.assert_close(epsilon, x)
    for kind in ("epsilon", "score", "scaled_epsilon"):
        with pytest.raises(ValueError, match=f"'{kind}' does not determine x0 at timestep 49"):
            path.x0_coefficients(kind, 49)
        with pytest.raises(ValueError, match="zero terminal SNR"):
            path.check_prediction_type(kind)
    for kind in ("sample", "v_prediction", "flow", "mean"):
        path.check_prediction_type(kind)


def test_unknown_prediction_and_mean_without_a_previous_time():
    with pytest.raises(ValueError, match="Unknown prediction_type 'noise'"):
        NoisePath.from_schedule().x0_coefficients("noise", 3)
    with pytest.raises(ValueError, match="'mean' needs a discrete noise path"):
        VariancePreservingPath().x0_coefficients("mean", 0.5)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_add_noise_keeps_the_dtype_and_small_noise(dtype):
    path = NoisePath.from_schedule()
    x0 = torch.zeros(2, 3, 8, 8, dtype=dtype)
    noisy = path.add_noise(x0, torch.ones_like(x0), torch.tensor([0, 5]))
    assert noisy.dtype == dtype
    for row, t in zip(noisy, (0, 5)):
        # In bfloat16 a table cast before the subtraction makes this exactly 0.
        assert row.mean().item() == pytest.approx(path.sigma(t), rel=1e-2)


def test_times_may_be_scalars_and_other_integer_types():
    path, x0 = NoisePath.from_schedule(), torch.randn(4, 1, 2, 2)
    expected = path.add_noise(x0, x0, torch.full((4,), 7))
    for t in (torch.tensor(7), torch.tensor([7]), torch.full((4,), 7, dtype=torch.int32)):
        torch.testing.assert_close(path.add_noise(x0, x0, t), expected)


def test_copies_are_equal_and_their_own():
    path = NoisePath.from_schedule("cosine", 20, rescale_betas_zero_snr=True)
    path.add_noise(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([3]))
    for other in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        np.testing.assert_array_equal(other.alphas_cumprod, path.alphas_cumprod)
        assert other.betas is not path.betas
        assert other.alpha(CLEAN) == 1.0


def test_coefficients_follow_the_device():
    path = NoisePath.from_schedule()
    like = torch.empty(2, 3, 4, 4, device="meta")
    alpha, sigma = path.coefficients(torch.zeros(2, dtype=torch.long, device="meta"), like)
    assert alpha.device.type == sigma.device.type == "meta"
    assert alpha.shape == (2, 1, 1, 1)
