"""Both ways with diffusers: equal trajectories where a scheduler means the same, configurations that swap, and habits.

diffusers keeps its tables in float32, whose rounding alone moves a whole trajectory by 1e-5 to 3e-4. Trajectories are
therefore compared with diffusers' own code on our float64 tables.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ext.proofs import MIXTURES, ExactNetwork, sample
from diffusers_ext.schedulers import (
    SCHEDULES,
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    GuidedLangevinScheduler,
    MixScheduler,
    NoisePath,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)
from diffusers_ext.schedulers.registry import FLOW, build_sampler, samplers_on

# Both packages' default spacing, and every schedule, whatever they are good for.
pytestmark = pytest.mark.filterwarnings("ignore:This noise path", "ignore:With timestep_spacing 'leading'")

OURS = (AncestralDDPMScheduler, SubsequenceDDIMScheduler, GuidedLangevinScheduler, ScoreSDEScheduler)
THEIRS = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "dpm-solver++": (diffusers.DPMSolverMultistepScheduler, {}),
    "sde-dpm-solver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
}


def in_float64(theirs, path: NoisePath):
    """diffusers' scheduler with our tables, in float64."""
    theirs.betas = torch.from_numpy(path.betas)
    theirs.alphas = 1 - theirs.betas
    theirs.alphas_cumprod = torch.from_numpy(path.alphas_cumprod)
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(theirs, "final_alpha_cumprod"):
        theirs.final_alpha_cumprod = theirs.one if theirs.config.set_alpha_to_one else theirs.alphas_cumprod[0]
    return theirs


def ends(ours, theirs, prediction_type: str, steps: int, **theirs_step) -> tuple[torch.Tensor, torch.Tensor]:
    """Both trajectories' ends from one noise with one seed, with the exact network of a mixture."""
    mixture, results = MIXTURES["ellipses"], []
    model = ExactNetwork(mixture, ours.path, prediction_type)
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scheduler, keywords in ((ours, {}), (theirs, theirs_step)):
        scheduler.set_timesteps(steps)
        results.append(sample(scheduler, model, x, generator=torch.Generator().manual_seed(1), **keywords))
    return results[0], results[1]


PREDICTIONS = ("epsilon", "sample", "v_prediction")
SHARED_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("schedule", "prediction_type"), list(zip(SHARED_SCHEDULES, PREDICTIONS)))
def test_ancestral_is_their_ddpm(spacing, variance_type, schedule, prediction_type):
    settings = {
        "beta_schedule": schedule,
        "prediction_type": prediction_type,
        "variance_type": variance_type,
        "timestep_spacing": spacing,
    }
    ours = AncestralDDPMScheduler(**settings)
    theirs = in_float64(diffusers.DDPMScheduler(**settings), ours.path)
    for steps in (50, 77, 200):
        got, expected = ends(ours, theirs, prediction_type, steps)
        if spacing == "trailing" and variance_type == "fixed_large":
            # Their last step adds noise when it starts above t = 0: ours never does on reaching the data.
            assert (got - expected).abs().max() > 0.01
        else:
            assert (got - expected).abs().max() < 1e-5


def test_ancestral_is_their_ddpm_over_all_thousand_steps():
    ours = AncestralDDPMScheduler()
    got, expected = ends(ours, in_float64(diffusers.DDPMScheduler(), ours.path), "epsilon", 1000)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", [{}, {"clip_sample": False}, {"set_alpha_to_one": False, "steps_offset": 1}])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("leading", 77), ("trailing", 50)])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_subsequence_ddim_is_their_ddim(eta, options, spacing, steps, prediction_type):
    settings = {"prediction_type": prediction_type, "timestep_spacing": spacing, **options}
    ours = SubsequenceDDIMScheduler(eta=eta, **settings)
    theirs = in_float64(diffusers.DDIMScheduler(**settings), ours.path)
    got, expected = ends(ours, theirs, prediction_type, steps, eta=eta)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("use_clipped", [False, True])
def test_clipped_model_output_and_thresholding_are_theirs(use_clipped):
    settings = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9, "clip_sample": False}
    ours = SubsequenceDDIMScheduler(**settings)
    theirs = in_float64(diffusers.DDIMScheduler(**settings), ours.path)
    output, x = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(50)
    for t in (980, 500, 0):
        one, other = (s.step(output, t, x, use_clipped_model_output=use_clipped) for s in (ours, theirs))
        torch.testing.assert_close(one.prev_sample, other.prev_sample, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variance_is_theirs(variance_type):
    ours = AncestralDDPMScheduler(variance_type=variance_type)
    theirs = in_float64(diffusers.DDPMScheduler(variance_type=variance_type), ours.path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    output = torch.rand(2, 6, 8, 8, dtype=torch.float64, generator=generator)
    for t in (999, 500, 1, 0):
        one, other = (s.step(output, t, x, generator=torch.Generator().manual_seed(2)) for s in (ours, theirs))
        torch.testing.assert_close(one.prev_sample, other.prev_sample, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="twice the sample's channels"):
        ours.step(output[:, :3], 500, x)


def flow_scheduler(**settings):
    return FlowMatchScheduler(**settings)


@pytest.mark.parametrize("steps", [4, 50])
def test_euler_on_a_rectified_flow_is_their_flow_matching(steps):
    ours = flow_scheduler()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    model = ExactNetwork(MIXTURES["ellipses"], ours.path, "flow", time=lambda t: t / 1000)
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    x = noise
    for t in theirs.timesteps:
        x = theirs.step(model(x, t), t, x).prev_sample
    torch.testing.assert_close(sample(ours, model, noise), x, rtol=1e-4, atol=1e-5)


def test_schedulers_of_other_paths_refuse_a_rectified_flow():
    config = flow_scheduler().config
    for scheduler_class in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler):
        with pytest.raises(NotImplementedError, match="rectified_flow"):
            scheduler_class.from_config(config)


@pytest.mark.parametrize("name", samplers_on(FLOW))
def test_samplers_by_name_on_a_rectified_flow_end_where_the_exact_flow_does(name):
    """From our configuration and from diffusers'; ddpm, which draws noise, ends on the data's moments."""
    ours, mixture = flow_scheduler(), MIXTURES["ellipses"]
    noise = torch.randn(4000 if name == "ddpm" else 64, 2, generator=torch.Generator().manual_seed(0)).double()
    ends = []
    for config in (ours.config, diffusers.FlowMatchEulerDiscreteScheduler().config):
        scheduler = build_sampler(name, config)
        scheduler.set_timesteps(40)
        model = ExactNetwork(mixture, ours.path, "flow", time=lambda t: t / 1000)
        draws = {"generator": torch.Generator().manual_seed(1)} if name == "ddpm" else {}
        ends.append(sample(scheduler, model, noise, **draws))
    torch.testing.assert_close(*ends)
    if name == "ddpm":
        mean, covariance = mixture.moments()
        assert (ends[0].mean(0) - mean).abs().max() < 0.05
        assert (torch.cov(ends[0].T) - covariance).abs().max() < 0.05
    else:
        error = (ends[0] - mixture.flow(noise, (0.0, 1.0), (1.0, 0.0))).square().mean().sqrt()
        # A flow map that is given the velocity takes Euler steps.
        assert error < (0.05 if name in ("ddim", "ode-euler", "flow-map") else 0.005)


def test_what_there_is_not_on_a_rectified_flow_is_a_sentence():
    config = flow_scheduler().config
    with pytest.raises(ValueError, match=r"sampler must be one of ddim, ddpm, .*heun.*got 'langevin'"):
        build_sampler("langevin", config)
    with pytest.raises(ValueError, match="On a rectified flow, sampler 'ddim' takes no subsequence"):
        build_sampler("ddim", config, subsequence="exp")
    with pytest.raises(ValueError, match="takes prediction_type 'flow', got 'sample'"):
        build_sampler("unipc", flow_scheduler(prediction_type="sample").config)


def test_score_sde_ve_is_theirs():
    """On their geometric levels, with the paper's corrector, from one seed; their predictor is reverse diffusion."""
    settings = {"sigma_min": 0.05, "sigma_max": 20.0, "snr": 0.15}
    ours = ScoreSDEScheduler(
        num_train_timesteps=60, sde="ve", corrector_steps=2, measured_norms=True, prediction_type="score", **settings
    )
    theirs = diffusers.ScoreSdeVeScheduler(num_train_timesteps=60, correct_steps=2, **settings)
    theirs.set_timesteps(60)
    theirs.set_sigmas(60)
    theirs.discrete_sigmas = torch.from_numpy(ours.path.sigmas)
    ours.set_timesteps(60)
    model = ExactNetwork(MIXTURES["ellipses"], ours.path, "score")
    x = theirs_x = 20.0 * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = sample(ours, model, x, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    # Their corrector draws its noise in the default dtype.
    torch.set_default_dtype(torch.float64)
    try:
        for i, t in zip(reversed(range(60)), theirs.timesteps):
            for _ in range(2):
                theirs_x = theirs.step_correct(model(theirs_x, i), theirs_x, generator=generator).prev_sample
            step = theirs.step_pred(model(theirs_x, i), t.double(), theirs_x, generator=generator)
            theirs_x = step.prev_sample
    finally:
        torch.set_default_dtype(torch.float32)
    assert (x - step.prev_sample_mean).abs().max() < 1e-5


# --- where diffusers can not, or is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 600), ("trailing", 600)])
def test_their_ddim_steps_by_a_stride_where_ours_follows_the_list(spacing, steps):
    """Their previous time is t - T // n: not the list's next entry with linspace, or when n does not divide T."""
    settings = {"timestep_spacing": spacing, "clip_sample": False}
    ours = SubsequenceDDIMScheduler(**settings)
    theirs = in_float64(diffusers.DDIMScheduler(**settings), ours.path)
    got, expected = ends(ours, theirs, "epsilon", steps)
    path = ours.path
    start = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = MIXTURES["ellipses"].flow(start, (path.alpha(999), path.sigma(999)), (1.0, 0.0))
    ours_error, theirs_error = ((x - exact).pow(2).mean().sqrt() for x in (got, expected))
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours_error < 5e-3
    assert theirs_error > 20 * ours_error


def test_any_decreasing_list_is_walked():
    """An arbitrary list converges to the exact flow when it is refined; diffusers' DDIM takes no list at all."""
    ours, mixture = SubsequenceDDIMScheduler(clip_sample=False), MIXTURES["two modes"]
    path = ours.path
    start = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = mixture.flow(start, (path.alpha(999), path.sigma(999)), (1.0, 0.0))
    errors = []
    for gap in (100, 10):
        chooser = np.random.default_rng(0)
        times = [999, *sorted(chooser.choice(999, 999 // gap, replace=False).tolist(), reverse=True)]
        ours.set_timesteps(timesteps=times)
        assert ours.timesteps.tolist() == times
        errors.append((sample(ours, ExactNetwork(mixture, path), start) - exact).pow(2).mean().sqrt().item())
    assert errors[1] < errors[0] / 3
    with pytest.raises(TypeError):
        diffusers.DDIMScheduler().set_timesteps(timesteps=[999, 3])


def test_small_noise_survives_in_bfloat16():
    x0, noise, t = torch.zeros(1, 3, 8, 8).bfloat16(), torch.ones(1, 3, 8, 8).bfloat16(), torch.tensor([5])
    assert diffusers.DDPMScheduler().add_noise(x0, noise, t).abs().max() == 0
    assert AncestralDDPMScheduler().add_noise(x0, noise, t).float().mean() == pytest.approx(0.0297, rel=0.05)


# --- configurations swap both ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_our_configuration_makes_their_scheduler_on_the_same_path(ours, name, schedule):
    """From the configuration in memory and from the saved one; then back again."""
    scheduler = ours(beta_schedule=schedule, num_train_timesteps=500, prediction_type="v_prediction")
    kind, options = THEIRS[name]
    theirs = kind.from_config(scheduler.config, **options)
    expected = torch.from_numpy(scheduler.path.alphas_cumprod)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), expected, rtol=2e-4, atol=1e-6)
    assert theirs.config.prediction_type == "v_prediction"
    assert theirs.config.num_train_timesteps == 500
    back = ours.from_config(theirs.config)
    # What the configuration says is read in float64 on both sides.
    np.testing.assert_allclose(back.path.alphas_cumprod, scheduler.path.alphas_cumprod, rtol=1e-12)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_their_configuration_makes_our_scheduler(ours, name):
    kind, options = THEIRS[name]
    theirs = kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)
    got = ours.from_config(theirs.config)
    torch.testing.assert_close(got.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)
    got.set_timesteps(10)
    assert got.config.beta_end == 0.012


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_their_defaults_are_taken_for_what_they_are(ours, name):
    """HeunDiscreteScheduler's default betas are not DDPM's."""
    kind, options = THEIRS[name]
    theirs = kind(**options)
    got = ours.from_config(theirs.config)
    torch.testing.assert_close(got.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "exponential", "sigmoid_alpha_bar", "cosine"])
@pytest.mark.parametrize("name", THEIRS)
def test_their_schedulers_sample_on_our_path(name, schedule):
    """Twenty steps of each end near the exact flow (deterministic ones), or among the modes (the others)."""
    ours = SubsequenceDDIMScheduler(beta_schedule=schedule, clip_sample=False)
    kind, options = THEIRS[name]
    if name in ("ddpm", "ddim", "pndm"):
        options = {**options, "timestep_spacing": "trailing"}
    theirs = kind.from_config(ours.config, **options)
    theirs.set_timesteps(50)
    mixture = MIXTURES["two modes"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 1, 1, generator=generator) * theirs.init_noise_sigma
    table = torch.from_numpy(ours.path.alphas_cumprod)
    for t in theirs.timesteps:
        # Euler and Heun ask at times between the levels.
        bar = np.exp(np.interp(float(t), np.arange(1000), table.log().numpy()))
        output = mixture.output("epsilon", theirs.scale_model_input(x, t), (bar**0.5, (1 - bar) ** 0.5))
        x = theirs.step(output.float(), t, x).prev_sample
    log_densities = mixture.log_density(x.double().reshape(-1, 1))
    assert (log_densities > -6).float().mean() > 0.95
    if schedule != "exponential":
        assert x.mean().item() == pytest.approx(mixture.moments()[0].item(), abs=0.15)


def test_defaults_do_not_turn_into_other_defaults_on_a_swap():
    for ours in OURS:
        scheduler = ours()
        theirs = diffusers.DDIMScheduler.from_config(scheduler.config)
        assert theirs.config.clip_sample == scheduler.config.clip_sample
        assert theirs.config.prediction_type == scheduler.config.prediction_type == "epsilon"


# --- habits -----------------------------------------------------------------------------------------------------------

VARIANTS = {
    "ancestral": lambda: AncestralDDPMScheduler(beta_schedule="cosine", gamma="sigmoid_decay"),
    "ddim": lambda: SubsequenceDDIMScheduler(subsequence="exp", eta=0.3, beta_schedule="exponential"),
    "langevin": lambda: GuidedLangevinScheduler(rule="langevin", inner_steps=3, snr=0.2),
    "score sde": lambda: ScoreSDEScheduler(sde="ve", continuous=True, corrector_steps=1, sigma_max=10.0),
    "heun": lambda: ScoreSDEScheduler(predictor="ode_heun"),
    "mix": lambda: MixScheduler(),
}


def run(scheduler, seed: int = 0, n: int = 12, dtype=torch.float32, generator=None) -> torch.Tensor:
    """A walk with a made-up network that any scheduler can bear."""
    scheduler.set_timesteps(n)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    x = x.to(dtype)
    generator = generator or torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t)) * 0.5
        x = scheduler.step(output, t, x, generator=generator).prev_sample
        assert x.dtype == dtype
    return x


@pytest.mark.parametrize("name", VARIANTS)
def test_save_load_deepcopy_and_pickle_sample_the_same(name, tmp_path):
    scheduler = VARIANTS[name]()
    expected = run(scheduler)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    for other in (loaded, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        torch.testing.assert_close(run(other), expected, rtol=0, atol=0)
        assert dict(other.config).keys() >= {"num_train_timesteps", "prediction_type"}


@pytest.mark.parametrize("name", VARIANTS)
def test_set_timesteps_twice_and_walking_twice(name):
    scheduler = VARIANTS[name]()
    expected = run(scheduler)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(run(scheduler), expected, rtol=0, atol=0)
    # Without a new set_timesteps, and with plain numbers for times.
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(torch.tanh(x) * 0.5, t, x, generator=generator).prev_sample
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_list_of_generators_makes_each_sample_its_own(name):
    scheduler = VARIANTS[name]()
    together = run(scheduler, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    swapped = run(scheduler, generator=[torch.Generator().manual_seed(i) for i in (0, 7)])
    torch.testing.assert_close(together[0], swapped[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_samples_stay_near_the_float32_ones(name, dtype):
    if name in ("ancestral", "ddim", "langevin", "score sde"):
        # Noise is drawn in the sample's dtype, so only the deterministic walks can be compared number by number.
        assert run(VARIANTS[name](), dtype=dtype).isfinite().all()
        return
    expected = run(VARIANTS[name]())
    difference = run(VARIANTS[name](), dtype=dtype).float() - expected
    assert difference.abs().mean() / expected.abs().mean() < (0.01 if dtype == torch.float16 else 0.06)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_step_is_rounded_once(dtype):
    """Coefficients stay float64 until the last multiplication: the step is the float64 one, rounded to half."""
    scheduler = SubsequenceDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    x, output = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    for t in scheduler.timesteps[::10]:
        got = scheduler.step(output, t, x).prev_sample
        exact = scheduler.step(output.double(), t, x.double()).prev_sample
        assert ((got.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() / 2 + 1e-5).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_walk_on_another_device_reads_nothing_back(name):
    """On the meta device any `.item()` or copy to the host raises."""
    scheduler = VARIANTS[name]()
    scheduler.set_timesteps(7, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    x = torch.empty(2, 3, 4, 4, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(torch.empty_like(x), t, x).prev_sample
        assert x.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "mix"])
def test_tuples_and_step_outputs(name):
    scheduler = VARIANTS[name]()
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 1, 2, 2)
    previous, x0 = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert previous.shape == x0.shape == x.shape
    with pytest.raises(ValueError, match="does not fit a sample"):
        scheduler.step(torch.zeros(1, 1, 2, 3), scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="exactly one of num_inference_steps and timesteps"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="one timestep for the whole batch"):
        scheduler.step(x, scheduler.timesteps[:2], x)


@pytest.mark.parametrize("ours", OURS[:3])
@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "non-empty list"),
        ([3, 5], "strictly descending"),
        ([5, 5, 1], "strictly descending"),
        ([1000, 3], "between 0 and 999"),
        ([5, -1], "between 0 and 999"),
        ([5.5, 1], "integers"),
    ],
)
def test_wrong_lists_are_sentences(ours, timesteps, message):
    with pytest.raises(ValueError, match=message):
        ours().set_timesteps(timesteps=timesteps)


EXP_20 = [*range(1, 14), 24, 43, 81, 151, 283, 532, 999]
COMP_EXP_20 = [1, 2, 3, 4, 7, 13, 24, 43, 81, 151, 283, 532, 999]


def test_published_subsequences():
    scheduler = SubsequenceDDIMScheduler(subsequence="exp")
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == [*reversed(EXP_20), 0]
    assert len(scheduler.timesteps) == 21
    scheduler.set_timesteps(20, subsequence="comp exp")
    assert scheduler.timesteps.tolist() == [*reversed(COMP_EXP_20), 0]
    for length, entries in ((100, 49), (350, 133), (997, 290)):
        scheduler.set_timesteps(length, subsequence="comp exp")
        assert len(scheduler.timesteps) == entries + 1
        scheduler.set_timesteps(length)
        times = scheduler.timesteps.tolist()
        assert len(times) == length + 1
        assert (times[0], times[-2], times[-1]) == (999, 1, 0)


@pytest.mark.parametrize("length", [1, 1000, 0])
@pytest.mark.parametrize("name", ["exp", "comp exp"])
def test_impossible_exponential_lengths(name, length):
    with pytest.raises(ValueError, match=f"between 2 and 999, got {length}"):
        SubsequenceDDIMScheduler(subsequence=name).set_timesteps(length)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AncestralDDPMScheduler(variance_type="small"), "Unknown variance_type 'small'"),
        (lambda: AncestralDDPMScheduler(gamma=-1), "gamma must be"),
        (lambda: AncestralDDPMScheduler(prediction_type="noise"), "Unknown prediction_type"),
        (lambda: SubsequenceDDIMScheduler(eta=1.5), "eta must lie between 0 and 1"),
        (lambda: SubsequenceDDIMScheduler(subsequence="log"), "Unknown subsequence 'log'"),
        (lambda: GuidedLangevinScheduler(rule="annealed"), "Unknown rule 'annealed'"),
        (lambda: GuidedLangevinScheduler(inner_steps=0), "inner_steps must be at least 1"),
        (lambda: GuidedLangevinScheduler(snr=0.0), "snr must be above 0"),
        (lambda: ScoreSDEScheduler(sde="vpp"), "Unknown sde 'vpp'"),
        (lambda: ScoreSDEScheduler(predictor="rk4"), "Unknown predictor 'rk4'"),
        (lambda: ScoreSDEScheduler(corrector_steps=-1), "corrector_steps must be at least 0"),
        (lambda: ScoreSDEScheduler(sampling_eps=0.0), "sampling_eps must lie between 0 and 1"),
        (lambda: ScoreSDEScheduler(continuous=True, prediction_type="mean"), "'mean' needs a discrete noise path"),
        (lambda: ScoreSDEScheduler(continuous=True).set_timesteps(timesteps=[0.5, 0.7]), "decrease strictly"),
        (lambda: ScoreSDEScheduler(sde="rectified_flow"), "Unknown sde 'rectified_flow'"),
        (
            lambda: FlowMatchScheduler(predictor="reverse_diffusion"),
            "Unknown predictor 'reverse_diffusion'; choose one of ode_euler, ode_heun, ancestral",
        ),
        (
            lambda: SubsequenceDDIMScheduler.from_config(flow_scheduler().config),
            "'rectified_flow' has no betas; use Flow",
        ),
        (lambda: FlowMatchScheduler(shift=0.0), "shift must be above 0"),
        (lambda: MixScheduler(low=1.0, high=0.0), "low must be below high"),
        (lambda: MixScheduler().set_timesteps(timesteps=[5, 2]), "counts its steps down by one"),
    ],
)
def test_wrong_settings_are_sentences(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_continuous_times_can_be_told_as_sigmas_or_scaled():
    scaled = ScoreSDEScheduler(continuous=True, timestep_scale=999.0)
    scaled.set_timesteps(3)
    assert scaled.timesteps.tolist() == pytest.approx([999.0, 999 * 0.5005, 0.999])
    told = ScoreSDEScheduler(sde="ve", continuous=True, timestep_type="sigma")
    told.set_timesteps(3)
    assert told.timesteps[0].item() == pytest.approx(50.0)
    x0, noise = torch.zeros(3, 2), torch.ones(3, 2)
    torch.testing.assert_close(told.add_noise(x0, noise, told.timesteps)[:, 0], told.timesteps)
    expected = torch.tensor([scaled.path.sigma(t) for t in (1.0, 0.5005, 0.001)])
    torch.testing.assert_close(scaled.add_noise(x0, noise, scaled.timesteps)[:, 0], expected)


def test_paths_and_their_warnings():
    with pytest.warns(UserWarning, match="ends at alphas_cumprod"):
        AncestralDDPMScheduler(beta_schedule="exponential")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, spacing in itertools.product(OURS, ("leading", "trailing", "linspace")):
            ours(timestep_spacing=spacing).set_timesteps(7)


@pytest.mark.parametrize(
    "theirs", ["DDPMScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler", "PNDMScheduler"]
)
def test_zero_terminal_snr_survives_a_swap_to_schedulers_that_ignore_its_key(theirs):
    import diffusers

    ours = SubsequenceDDIMScheduler(
        num_train_timesteps=300, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    swapped = getattr(diffusers, theirs).from_config(ours.config)
    assert torch.allclose(swapped.alphas_cumprod.double(), ours.alphas_cumprod.double(), atol=1e-5)
