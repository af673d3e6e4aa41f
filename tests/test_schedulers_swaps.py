"""A scheduler made from another's configuration is on the same noise path, or refused: never silently on another."""

from __future__ import annotations

import diffusers
import pytest
import torch

from diffusers_ext import (
    AncestralDDPMScheduler,
    FlowMatchScheduler,
    GenerationPipeline,
    GuidedLangevinScheduler,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
)
from diffusers_ext.proofs import MIXTURES, MixtureNetwork

pytestmark = pytest.mark.filterwarnings("ignore:This noise path")

ON_BETAS = (AncestralDDPMScheduler, SubsequenceDDIMScheduler, GuidedLangevinScheduler, ScoreSDEScheduler)
OTHER_PATHS = {
    "flow matching": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    "edm": lambda: diffusers.EDMEulerScheduler(),
    "edm dpm-solver": lambda: diffusers.EDMDPMSolverMultistepScheduler(),
    "score sde of diffusers": lambda: diffusers.ScoreSdeVeScheduler(),
    "our flow": lambda: FlowMatchScheduler(),
    "our ve": lambda: ScoreSDEScheduler(sde="ve"),
    "our continuous vp": lambda: ScoreSDEScheduler(sde="vp", continuous=True),
    "our sub-vp": lambda: ScoreSDEScheduler(sde="sub_vp"),
    "our toy": lambda: MixScheduler(),
}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("source", OTHER_PATHS)
@pytest.mark.parametrize("ours", ON_BETAS[:3])
def test_a_scheduler_on_betas_refuses_the_configuration_of_another_path(ours, source, saved, tmp_path):
    scheduler = OTHER_PATHS[source]()
    config = scheduler.config
    if saved:
        scheduler.save_pretrained(tmp_path)
        config = type(scheduler).load_config(tmp_path)
    with pytest.raises(ValueError, match=r"can't be made from|has no betas|Unknown schedule 'sub_vp"):
        ours.from_config(config)


@pytest.mark.parametrize("source", ["edm", "score sde of diffusers", "our ve", "our continuous vp", "our toy"])
def test_flow_matching_refuses_the_configuration_of_another_path(source):
    with pytest.raises(ValueError, match="follows the rectified flow"):
        FlowMatchScheduler.from_config(OTHER_PATHS[source]().config)
    with pytest.raises(ValueError, match="follows the rectified flow"):
        FlowMatchScheduler.from_config(SubsequenceDDIMScheduler().config)


def test_the_toy_scheduler_refuses_the_configuration_of_a_noise_path():
    with pytest.raises(ValueError, match=r"can't be made from the configuration"):
        MixScheduler.from_config(SubsequenceDDIMScheduler(prediction_type="sample").config)
    assert MixScheduler.from_config(MixScheduler(low=-1.0).config).config.low == -1.0


@pytest.mark.parametrize("source", ["our flow", "our ve", "our continuous vp", "our sub-vp"])
@pytest.mark.parametrize("theirs", [diffusers.DDIMScheduler, diffusers.HeunDiscreteScheduler])
def test_schedulers_of_diffusers_refuse_our_paths_without_betas(theirs, source):
    with pytest.raises(NotImplementedError, match=r"rectified_flow|ve|vp"):
        theirs.from_config(OTHER_PATHS[source]().config)


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"num_train_timesteps": 500, "shift": 1.5}])
def test_flow_matching_swaps_both_ways(settings):
    """Times and steps are equal, in both directions, with a shift too."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    ours = FlowMatchScheduler.from_config(theirs.config)
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in (theirs, ours, back):
        scheduler.set_timesteps(7)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(y) + t / 1000, t, y).prev_sample
        ends.append(y)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-5)


def test_flow_matching_with_times_that_ours_does_not_have_is_refused():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="has no use_dynamic_shifting"):
        FlowMatchScheduler.from_config(theirs.config)


@pytest.mark.parametrize("source", [name for name in OTHER_PATHS if name.startswith("our")])
def test_our_own_paths_survive_saving_and_their_own_from_config(source, tmp_path):
    scheduler = OTHER_PATHS[source]()
    scheduler.save_pretrained(tmp_path)
    for other in (type(scheduler).from_pretrained(tmp_path), type(scheduler).from_config(scheduler.config)):
        for n in (1, 6):
            scheduler.set_timesteps(n)
            other.set_timesteps(n)
            assert torch.equal(scheduler.timesteps, other.timesteps)
        x0, noise = torch.ones(6, 2), torch.full((6, 2), 0.5)
        assert torch.equal(
            scheduler.add_noise(x0, noise, scheduler.timesteps[:6]), other.add_noise(x0, noise, scheduler.timesteps[:6])
        )


@pytest.mark.parametrize("ours", [*ON_BETAS, FlowMatchScheduler, MixScheduler])
def test_a_scheduler_prints_on_one_screen(ours):
    settings = {"beta_schedule": "cosine"} if ours in ON_BETAS else {}
    text = repr(ours(**settings))
    assert len(text.splitlines()) < 45
    assert text.startswith(ours.__name__)


def test_positional_arguments_and_unknown_names_are_as_in_any_class():
    assert SubsequenceDDIMScheduler(500).config.num_train_timesteps == 500
    with pytest.raises(TypeError, match="unexpected keyword argument 'bta_start'"):
        SubsequenceDDIMScheduler(bta_start=0.1)


# --- in a pipeline: what a swap by diffusers' own from_config can't do is refused before the first step ---------------


def pipeline_on(theirs, **path):
    settings = {"beta_schedule": "cosine", "timestep_spacing": "trailing", "clip_sample": False, **path}
    ours = SubsequenceDDIMScheduler(**settings)
    network = MixtureNetwork(MIXTURES["two modes"], ours)
    pipeline = GenerationPipeline(network, theirs.from_config(ours.config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
NOT_AT_ZERO_SNR = ("Heun", "KDPM2", "LMS", "PNDM", "DEISMultistep", "DPMSolverSinglestep")


@pytest.mark.parametrize("name", NOT_AT_ZERO_SNR)
def test_zero_terminal_snr_is_refused_where_it_gives_nan(name):
    theirs = getattr(diffusers, f"{name}Scheduler", None) or getattr(diffusers, f"{name}DiscreteScheduler")
    with pytest.raises(ValueError, match=r"gives NaN on a path with zero terminal SNR|would start at noise level"):
        pipeline_on(theirs, **ZERO)(num_inference_steps=5, output_type="latent")


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"])
def test_zero_terminal_snr_is_sampled_by_schedulers_that_know_it(name):
    pipeline = pipeline_on(getattr(diffusers, f"{name}Scheduler"), **ZERO)
    samples = pipeline(batch_size=64, num_inference_steps=20, output_type="latent").images
    assert samples.std().item() == pytest.approx(0.66, abs=0.2)


DRAW_NOISE = ("HeunDiscrete", "KDPM2Discrete", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "DDIM")


@pytest.mark.parametrize("name", DRAW_NOISE)
def test_solvers_that_would_draw_noise_from_epsilon_on_a_cosine_path_are_refused(name):
    with pytest.raises(ValueError, match=r"would start at noise level 20,291.*build_sampler"):
        pipeline_on(getattr(diffusers, f"{name}Scheduler"))(num_inference_steps=5)


@pytest.mark.parametrize("theirs", [diffusers.EDMEulerScheduler, diffusers.FlowMatchEulerDiscreteScheduler])
def test_schedulers_with_levels_of_their_own_are_refused_on_a_path_of_betas(theirs):
    pipeline = pipeline_on(theirs, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="does not follow the noise path 'cosine'"):
        pipeline(num_inference_steps=5)
