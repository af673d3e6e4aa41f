"""The proof: every scheduler against exact answers, for Gaussian mixtures whose perfect network is known.

A proof is a function of `make`, which builds a scheduler from keyword arguments, so that the planted mistakes of
test_schedulers_mutants.py can be put through the same proofs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_ext.proofs import (
    LINE_MIXTURES,
    MIXTURES,
    ExactNetwork,
    GaussianMixture,
    exact_line_statistics,
    fitted_order,
    gaussian_law,
    guided_density,
    inversion_errors,
    line_law,
    line_statistics,
    sample,
    standard_errors,
    starting_noise,
    total_variation,
)
from diffusers_ext.schedulers import (
    PREDICTION_TYPES,
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    GuidedLangevinScheduler,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)

pytestmark = pytest.mark.filterwarnings("ignore:This noise path ends")

Make = Callable[..., Any]


# Three schedules that reach noise at any T.
SCHEDULES = ("linear_rescaled", "cosine", "sigmoid_alpha_bar")

ancestral = partial(AncestralDDPMScheduler, clip_sample=False, timestep_spacing="trailing")
ddim = partial(SubsequenceDDIMScheduler, clip_sample=False, timestep_spacing="trailing")
langevin = partial(GuidedLangevinScheduler, timestep_spacing="trailing")
score_sde = partial(ScoreSDEScheduler, timestep_spacing="trailing")


def exact_network(mixture: GaussianMixture, scheduler: Any) -> ExactNetwork:
    scale = scheduler.config.num_train_timesteps if isinstance(scheduler, FlowMatchScheduler) else 1
    kind = scheduler.config.prediction_type
    return ExactNetwork(mixture, scheduler.path, kind, time=lambda t: t / scale if scale > 1 else t)


# --- deterministic samplers converge to the exact flow at their order -------------------------------------------------


def flow_errors(scheduler, mixture: GaussianMixture, counts, n: int = 32, prediction_type: str = "epsilon"):
    """rms distance to the exact flow, from the first time to the last, for each number of steps.

    In continuous time the sample is compared before its last call, the step of fixed size to the data.
    """
    path, continuous = scheduler.path, hasattr(scheduler.path, "drift")
    x = starting_noise(scheduler, n, mixture.means.shape[1])
    first, last = (1.0, scheduler._times[-1]) if continuous else (len(path) - 1, path.clean)
    exact = mixture.flow(x, (path.alpha(first), path.sigma(first)), (path.alpha(last), path.sigma(last)))
    errors = []
    for count in counts:
        scheduler.set_timesteps(count + 1 if continuous else count)
        got = sample(scheduler, exact_network(mixture, scheduler), x, calls=-1 if continuous else None)
        errors.append((got - exact).pow(2).mean().sqrt().item())
    return errors


def prove_discrete_flow(make: Make, mixture: GaussianMixture, schedule: str, prediction_type: str = "epsilon") -> None:
    # With sigmoid_alpha_bar sigma grows steeply at first, and the order shows only on finer grids.
    scale = 2 if schedule == "sigmoid_alpha_bar" else 1
    counts = [scale * count for count in (100, 200, 400, 1000)]
    scheduler = make(num_train_timesteps=8000 * scale, beta_schedule=schedule, prediction_type=prediction_type)
    errors = flow_errors(scheduler, mixture, counts, prediction_type=prediction_type)
    assert fitted_order(counts, errors) == pytest.approx(scheduler.convergence_order, abs=0.2), errors
    assert errors[-1] < 3e-3


def prove_continuous_flow(make: Make, mixture: GaussianMixture, prediction_type: str = "epsilon") -> None:
    scheduler = make(continuous=True, prediction_type=prediction_type)
    counts = [20, 40, 80, 200]
    errors = flow_errors(scheduler, mixture, counts, prediction_type=prediction_type)
    assert fitted_order(counts, errors) == pytest.approx(scheduler.convergence_order, abs=0.2), errors
    assert errors[-1] < (4e-4 if scheduler.convergence_order == 2 else 2e-2)


def with_predictions(*choices, kinds=PREDICTION_TYPES):
    """The product of the choices, each with the next prediction type in turn: all types, at the cost of one."""
    return [(*choice, kind) for choice, kind in zip(itertools.product(*choices), itertools.cycle(kinds))]


@pytest.mark.parametrize(("name", "schedule", "prediction_type"), with_predictions(MIXTURES, SCHEDULES))
def test_ddim_converges_to_the_flow_with_order_one(name, schedule, prediction_type):
    prove_discrete_flow(ddim, MIXTURES[name], schedule, prediction_type)


CONTINUOUS_PREDICTIONS = [kind for kind in PREDICTION_TYPES if kind != "mean"]


@pytest.mark.parametrize(
    ("name", "sde", "predictor", "prediction_type"),
    # Five of the six types, so that the turn does not fall in with the product's.
    with_predictions(MIXTURES, ("vp", "sub_vp", "ve"), ("ode_euler", "ode_heun"), kinds=CONTINUOUS_PREDICTIONS[1:]),
)
def test_probability_flow_converges_with_its_declared_order(name, sde, predictor, prediction_type):
    prove_continuous_flow(partial(score_sde, sde=sde, predictor=predictor), MIXTURES[name], prediction_type)


def rectified_flow(continuous: bool = True, last_time: float = 1e-3, **settings: Any) -> FlowMatchScheduler:
    return FlowMatchScheduler(**{**settings, "num_train_timesteps": round(1 / last_time)})


@pytest.mark.parametrize("predictor", ["ode_euler", "ode_heun"])
@pytest.mark.parametrize(
    ("name", "prediction_type"), with_predictions(MIXTURES, kinds=("flow", "sample", "v_prediction"))
)
def test_rectified_flow_converges_with_its_declared_order(name, prediction_type, predictor):
    prove_continuous_flow(partial(rectified_flow, predictor=predictor), MIXTURES[name], prediction_type)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_discrete_ode_euler_is_ddim(schedule):
    mixture, settings = MIXTURES["ellipses"], {"num_train_timesteps": 200, "beta_schedule": schedule}
    one, other = ddim(**settings), score_sde(predictor="ode_euler", **settings)
    ends = []
    for scheduler in (one, other):
        scheduler.set_timesteps(50)
        ends.append(sample(scheduler, ExactNetwork(mixture, scheduler.path), starting_noise(scheduler, 16, 2)))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


# --- every prediction gives the same trajectory -----------------------------------------------------------------------

FAMILY: dict[str, Make] = {
    "ancestral": ancestral,
    "ancestral, beta": partial(ancestral, variance_type="fixed_large"),
    "ddim": ddim,
    "ddim, eta": partial(ddim, eta=0.5),
    "ddim, sigma-hat": partial(ddim, sigma_hat=True),
    "langevin": partial(langevin, rule="langevin", inner_steps=2),
    "langevin, reverse": partial(langevin, rule="reverse_sde", inner_steps=2),
    "langevin, original": partial(langevin, rule="original"),
    "sde, euler-maruyama": partial(score_sde, predictor="euler_maruyama"),
    "sde, reverse diffusion": partial(score_sde, predictor="reverse_diffusion", corrector_steps=1),
    "sde, ancestral ve": partial(score_sde, predictor="ancestral", sde="ve"),
    "sde, heun sub-vp": partial(score_sde, predictor="ode_heun", sde="sub_vp"),
    "sde, heun continuous": partial(score_sde, predictor="ode_heun", continuous=True),
    "sde, pc ve continuous": partial(score_sde, sde="ve", continuous=True, corrector_steps=1, measured_norms=True),
}


def trajectory_end(make: Make, mixture: GaussianMixture, prediction_type: str, n: int = 8, **settings) -> torch.Tensor:
    scheduler = make(num_train_timesteps=100, prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(10)
    model = ExactNetwork(mixture, scheduler.path, prediction_type)
    return sample(scheduler, model, starting_noise(scheduler, n, 2), generator=torch.Generator().manual_seed(1))


def prove_predictions_agree(make: Make, schedule: str) -> None:
    mixture = MIXTURES["ellipses"]
    expected = trajectory_end(make, mixture, "epsilon", beta_schedule=schedule)
    for kind in PREDICTION_TYPES:
        if kind == "mean" and getattr(make, "keywords", {}).get("continuous"):
            continue
        got = trajectory_end(make, mixture, kind, beta_schedule=schedule)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FAMILY)
def test_all_predictions_give_one_trajectory(name, schedule):
    prove_predictions_agree(FAMILY[name], schedule)


@pytest.mark.parametrize("name", [name for name in FAMILY if "continuous" not in name and "ve" not in name.split()])
def test_zero_terminal_snr_walks_from_pure_noise(name):
    """v, x0, flow and mean at alphas_cumprod = 0, from the path's last time."""
    ends = [
        trajectory_end(FAMILY[name], MIXTURES["ellipses"], kind, rescale_betas_zero_snr=True)
        for kind in ("v_prediction", "sample", "flow", "mean")
    ]
    for end in ends:
        assert end.isfinite().all()
        assert end.abs().max() < 3
        torch.testing.assert_close(end, ends[0], rtol=1e-6, atol=1e-6)


def test_zero_terminal_snr_refuses_epsilon_only_where_it_matters():
    scheduler = SubsequenceDDIMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="'epsilon' does not determine x0 at timestep 999"):
        scheduler.set_timesteps(10, timesteps=None, subsequence="quadratic")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 900


def prove_the_walk_ends_at_the_data(make: Make) -> None:
    """The last step gives the predicted x0 itself: nothing of the noise is left, and none is added."""
    scheduler, x = make(num_train_timesteps=50), torch.randn(4, 2, dtype=torch.float64)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        step = scheduler.step(torch.tanh(x), t, x)
        x = step.prev_sample
    torch.testing.assert_close(x, step.pred_original_sample, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "langevin, original"])
def test_the_walk_ends_at_the_data(name):
    prove_the_walk_ends_at_the_data(FAMILY[name])


# --- stochastic samplers: the law's bias falls with the declared weak order -------------------------------------------

DISCRETE_STOCHASTIC: dict[str, Make] = {
    "ancestral": ancestral,
    "ancestral, beta": partial(ancestral, variance_type="fixed_large"),
    "ddim, eta": partial(ddim, eta=0.5),
    "ddim, sigma-hat": partial(ddim, sigma_hat=True),
    "langevin, reverse": langevin,
    "sde, reverse diffusion": score_sde,
}
CONTINUOUS_STOCHASTIC: dict[str, Make] = {
    "vp": partial(score_sde, predictor="euler_maruyama", sde="vp", continuous=True),
    # beta_min = 1 keeps the last steps' noise wide enough for the quadrature.
    "sub_vp": partial(score_sde, predictor="euler_maruyama", sde="sub_vp", continuous=True, beta_min=1.0),
    "ve": partial(score_sde, predictor="ancestral", sde="ve", continuous=True, sigma_min=0.03, sigma_max=20.0),
}


def prove_weak_order(
    make: Make, mixture: GaussianMixture, counts=(40, 100, 200, 400), prediction_type: str = "epsilon", **settings
) -> None:
    exact, biases = exact_line_statistics(mixture), []
    for count in counts:
        scheduler = make(num_train_timesteps=4000, prediction_type=prediction_type, **settings)
        scheduler.set_timesteps(count)
        law = line_law(scheduler, exact_network(mixture, scheduler))
        biases.append((line_statistics(*law, mixture) - exact).norm().item())
    assert fitted_order(counts, biases) == pytest.approx(1, abs=0.2), biases
    assert biases[-1] < 0.015


@pytest.mark.parametrize(
    ("kind", "name", "schedule", "prediction_type"), with_predictions(DISCRETE_STOCHASTIC, LINE_MIXTURES, SCHEDULES)
)
def test_weak_order_one(kind, name, schedule, prediction_type):
    # As for the flow: the steep start of sigmoid_alpha_bar asks for finer grids.
    counts = (60, 150, 300, 600) if schedule == "sigmoid_alpha_bar" else (40, 100, 200, 400)
    prove_weak_order(DISCRETE_STOCHASTIC[kind], LINE_MIXTURES[name], counts, prediction_type, beta_schedule=schedule)


@pytest.mark.parametrize(
    ("kind", "name", "prediction_type"),
    with_predictions(CONTINUOUS_STOCHASTIC, LINE_MIXTURES, kinds=CONTINUOUS_PREDICTIONS),
)
def test_weak_order_one_in_continuous_time(kind, name, prediction_type):
    prove_weak_order(CONTINUOUS_STOCHASTIC[kind], LINE_MIXTURES[name], (40, 80, 200, 400), prediction_type)


def test_weak_order_one_on_a_rectified_flow():
    # An early end keeps the last steps' noise wide enough for the quadrature.
    make = partial(rectified_flow, predictor="ancestral", last_time=0.02)
    prove_weak_order(make, LINE_MIXTURES["two modes"], (20, 40, 80, 160), "flow")


# --- stochastic samplers at T steps: within four standard errors of 20,000 draws --------------------------------------

DRAWS = 20_000
SAMPLERS: dict[str, tuple[Make, int]] = {
    "ancestral": (ancestral, 500),
    "ancestral, beta": (partial(ancestral, variance_type="fixed_large"), 500),
    "ddim, eta": (partial(ddim, eta=0.5), 500),
    "langevin, reverse": (langevin, 500),
    "sde, reverse diffusion with corrector": (partial(score_sde, corrector_steps=1), 250),
    "sde, ancestral sub-vp": (partial(score_sde, predictor="ancestral", sde="sub_vp"), 500),
    "sde, euler-maruyama ve": (partial(score_sde, predictor="euler_maruyama", sde="ve", continuous=True), 500),
}


def prove_moments(make: Make, steps: int, mixture: GaussianMixture, schedule: str) -> None:
    scheduler = make(num_train_timesteps=steps, beta_schedule=schedule)
    scheduler.set_timesteps(steps)
    model = ExactNetwork(mixture, scheduler.path)
    x = starting_noise(scheduler, DRAWS, mixture.means.shape[1])
    x = sample(scheduler, model, x, generator=torch.Generator().manual_seed(1))
    assert standard_errors(x, mixture).max() < 4


@pytest.mark.parametrize(("name", "schedule"), list(zip(MIXTURES, SCHEDULES)))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_moments_and_mode_weights_at_every_step(kind, name, schedule):
    make, steps = SAMPLERS[kind]
    prove_moments(make, steps, MIXTURES[name], schedule)


# --- guidance ---------------------------------------------------------------------------------------------------------


def guided_end(make: Make, mixture: GaussianMixture, guidance=None, n: int = 2000) -> torch.Tensor:
    scheduler = make(num_train_timesteps=100, beta_schedule="cosine")
    scheduler.set_timesteps(100)
    model = ExactNetwork(mixture, scheduler.path, guidance=guidance)
    return sample(scheduler, model, starting_noise(scheduler, n, 2), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [name for name in FAMILY if name != "langevin, original"])
def test_guidance_scale_zero_is_the_marginal_and_one_the_class(kind):
    mixture, make = MIXTURES["ellipses"], FAMILY[kind]
    for scale, expected in ((0.0, mixture), (1.0, mixture.conditional(1))):
        guided = guided_end(make, mixture, (1, scale))
        torch.testing.assert_close(guided, guided_end(make, expected), rtol=1e-6, atol=1e-6)
        share = mixture.class_posterior(guided, (1.0, 0.0))[:, 1].mean().item()
        assert share == pytest.approx(0.5 if scale == 0 else 1.0, abs=0.06)
        assert ((guided.mean(0) - expected.moments()[0]).abs() < 0.06).all()


def langevin_distances(inner_steps, w: float, rule: str = "langevin") -> list[float]:
    """Total variation between the law before the last call and the guided density at the lowest level."""
    mixture, distances = LINE_MIXTURES["overlapping"], []
    for k in inner_steps:
        betas = np.geomspace(0.004, 0.4, 30).tolist()
        scheduler = langevin(trained_betas=betas, rule=rule, inner_steps=k, snr=0.2)
        scheduler.set_timesteps(30)
        model = ExactNetwork(mixture, scheduler.path, guidance=(1, w))
        x, mass = line_law(scheduler, model, calls=-1)
        level = (scheduler.path.alpha(0), scheduler.path.sigma(0))
        distances.append(total_variation(mass, guided_density(mixture, level, 1, w, x)))
    return distances


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0])
def test_guided_langevin_tends_with_k_to_the_guided_density(w):
    distances = langevin_distances((1, 4, 16, 64), w)
    assert distances == sorted(distances, reverse=True), distances
    # What is left is the bias of Langevin steps of finite size, and of K itself.
    assert distances[-1] < 0.03


def test_the_reverse_equation_alone_does_not_sample_the_guided_density():
    """Why the inner steps are there: at w = 2 the reverse-time equation ends elsewhere, and inner steps mend it."""
    distances = langevin_distances((1, 16, 64), 2.0, rule="reverse_sde")
    assert distances[0] > 0.05
    assert distances[-1] < 0.02


# --- inversion --------------------------------------------------------------------------------------------------------


def prove_inversion(make: Make, mixture: GaussianMixture, schedule: str) -> None:
    counts = (100, 200, 500, 1000)
    errors = inversion_errors(make(num_train_timesteps=4000, beta_schedule=schedule), mixture, counts)
    assert fitted_order(counts, errors) == pytest.approx(1, abs=0.2), errors


@pytest.mark.parametrize(("name", "schedule"), list(zip(MIXTURES, SCHEDULES)))
def test_inversion_then_sampling_returns_the_start_with_order_one(name, schedule):
    prove_inversion(ddim, MIXTURES[name], schedule)


# --- the source projects' numbers -------------------------------------------------------------------------------------

# N(1, 0.1^2) from a start of N(0, 1): the exact mean and standard deviation of what comes out.
ONE = GaussianMixture([1.0], [[1.0]], [0.01])


def law_of_one(scheduler, *arguments, **keywords) -> tuple[float, float]:
    scheduler.set_timesteps(*arguments, **keywords)
    return gaussian_law(scheduler, ExactNetwork(ONE, scheduler.path))


def prove_langevin_numbers(rule: str, inner_steps: int, expected: tuple[float, float]) -> None:
    scheduler = langevin(num_train_timesteps=300, rule=rule, inner_steps=inner_steps)
    assert law_of_one(scheduler, 300) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("rule", "inner_steps", "expected"),
    [
        ("original", 1, (0.904, 0.220)),
        # Reported from draws as 0.993 / 0.118: the exact law of the same rule is 0.995 / 0.117.
        ("original", 4, (0.995, 0.117)),
        ("original", 16, (0.999, 0.104)),
        ("reverse_sde", 1, (0.999, 0.102)),
    ],
)
def test_guided_langevin_numbers(rule, inner_steps, expected):
    prove_langevin_numbers(rule, inner_steps, expected)


@pytest.mark.parametrize(
    ("length", "wrong", "right"), [(20, (0.18, 0.82), (0.999, 0.089)), (100, (0.69, 0.33), (0.999, 0.098))]
)
def test_exponential_subsequence_numbers(length, wrong, right):
    assert law_of_one(ddim(subsequence="exp"), length) == pytest.approx(right, abs=1.1e-3)
    assert law_of_one(ddim(subsequence="exp", original_targets=True), length) == pytest.approx(wrong, abs=6e-3)


@pytest.mark.parametrize(("gamma", "std"), [(1.0, 0.098), ("sigmoid_decay", 0.009), ("exponential_decay", 0.003)])
def test_gamma_numbers(gamma, std):
    prove_gamma_numbers(gamma, std)


def prove_gamma_numbers(gamma, std) -> None:
    """System C's cosine path, T = 1000."""
    scheduler = ancestral(beta_schedule="cosine", schedule_options={"clip": [1e-4, 0.9999]}, gamma=gamma)
    assert law_of_one(scheduler, 1000) == pytest.approx((1.0, std), abs=6e-4)


@pytest.mark.parametrize("name", ["exp", "comp exp"])
def test_same_noise_gives_the_same_image_at_every_length(name):
    mixture, ends, wrong = MIXTURES["ellipses"], {}, {}
    for length in (20, 100, 350, 997):
        for original, table in ((False, ends), (True, wrong)):
            scheduler = ddim(subsequence=name, original_targets=original)
            scheduler.set_timesteps(length)
            table[length] = sample(scheduler, ExactNetwork(mixture, scheduler.path), starting_noise(scheduler, 64, 2))
    path = ddim().path
    exact = mixture.flow(starting_noise(ddim(), 64, 2), (path.alpha(999), path.sigma(999)), (1.0, 0.0))
    rms = {length: (end - exact).pow(2).mean().sqrt().item() for length, end in ends.items()}
    wrong_rms = {length: (end - exact).pow(2).mean().sqrt().item() for length, end in wrong.items()}
    assert list(rms.values()) == sorted(rms.values(), reverse=True), rms
    assert rms[20] < 0.2, rms
    assert rms[350] < 0.05, rms
    assert wrong_rms[20] > 0.5, wrong_rms


# --- the toy sampler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 20])
def test_mix_ends_at_the_last_prediction_and_follows_the_line_to_a_fixed_one(n):
    scheduler, generator = MixScheduler(), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(n)
    x = first = scheduler.sample_prior((2, 1, 4, 4), generator=generator)
    assert 0 <= first.min() < first.max() < 1
    target = torch.rand(first.shape, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        step = scheduler.step(target, t, x)
        x = step.prev_sample
        # With a prediction that stays, x lies on the straight line, one n-th further at each step.
        torch.testing.assert_close(x, first + (target - first) * (i + 1) / n)
    torch.testing.assert_close(x, target)
    assert step.pred_original_sample is target


def test_corruption_amounts():
    scheduler, x0, noise = MixScheduler(), torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    noisy = scheduler.add_noise(x0, noise, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(noisy, torch.stack([x0[0], noise[1]]))
