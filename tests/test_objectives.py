"""What is asked of the network at which noise level, and how an error counts."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import StopAt, records_of
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from scipy import stats

from diffusers_ext.objectives.diffusion import DiffusionObjective, ImportanceSampledObjective
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.objectives.randomness import batch_generator_of, rand_shared, randn_shared, shared_of
from diffusers_ext.objectives.timestep_sampling import HISTORY, UNIFORM_SHARE, ImportanceSampler, TimestepSampler
from diffusers_ext.objectives.weighting import WEIGHTINGS, X0_WEIGHTINGS, Weighting
from diffusers_ext.schedulers import PREDICTION_TYPES, NoisePath, RectifiedFlowPath
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.building import make_objective

T = 20
PATH = NoisePath.from_schedule("linear", T, 0.01, 0.4)
SNR = PATH.alphas_cumprod / (1 - PATH.alphas_cumprod)
CPU = torch.device("cpu")

# On the error of epsilon, each in the words of its paper; the options differ from the defaults.
OPTIONS = {"min_snr_gamma": 3.0, "p2_gamma": 0.5, "p2_k": 2.0, "sigmoid_bias": -1.0, "sigma_data": 0.7}
SIGMAS = np.sqrt(1 / SNR)
ON_EPSILON = {
    "snr": np.ones(T),
    "min_snr": np.minimum(SNR, 3.0) / SNR,
    "p2": 1 / (2.0 + SNR) ** 0.5,
    "sigmoid": 1 / (1 + np.exp(-(-1.0 - np.log(SNR)))),
    "edm": (SIGMAS**2 + 0.7**2) / (SIGMAS * 0.7) ** 2 / SNR,
}


class Network(torch.nn.Module):
    """A small network of one prediction type that speaks as one of another."""

    def __init__(self, own: str, spoken: str, path):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2)
        self.own, self.spoken, self.path = own, spoken, path

    def forward(self, x, times):
        output, t = torch.tanh(x @ self.weight) + times[:, None] / T, times if self.path is PATH else times / T
        return SimpleNamespace(sample=self.path.convert(output, x, t, self.own, self.spoken))


def gradient(own: str, spoken: str, weighting: Weighting, path=PATH) -> torch.Tensor:
    network, generator = Network(own, spoken, path), torch.Generator().manual_seed(1)
    x0 = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    objective = DiffusionObjective(path, spoken, weighting=weighting, sampler=TimestepSampler("stratified", T))
    noise = torch.randn(x0.shape, generator=generator).double()
    times = objective.draw_timesteps(len(x0), generator, CPU)
    objective.losses(ConditionedNetwork(network), x0, noise, times).mean().backward()
    return network.weight.grad


# --- weightings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", X0_WEIGHTINGS)
def test_equal_x0_weights_give_equal_gradients_whatever_is_predicted(name):
    """The same network, its output converted exactly, learns the same for every pair of prediction types."""
    weighting = Weighting(name, **OPTIONS)
    for own in ("epsilon", "v_prediction"):
        gradients = {spoken: gradient(own, spoken, weighting) for spoken in PREDICTION_TYPES}
        for first, second in itertools.combinations(PREDICTION_TYPES, 2):
            torch.testing.assert_close(gradients[first], gradients[second], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", X0_WEIGHTINGS)
def test_equal_x0_weights_give_equal_gradients_on_a_rectified_flow(name):
    kinds = ("flow", "sample", "v_prediction")
    gradients = [gradient("flow", spoken, Weighting(name, **OPTIONS), RectifiedFlowPath()) for spoken in kinds]
    for first, second in itertools.combinations(gradients, 2):
        torch.testing.assert_close(first, second, rtol=2e-4, atol=1e-6)


def test_unequal_x0_weights_give_unequal_gradients():
    """What the test above would see if a conversion were left out."""
    plain = [gradient("epsilon", spoken, Weighting("none")) for spoken in PREDICTION_TYPES]
    for first, second in itertools.combinations(plain, 2):
        assert (first - second).norm() > 0.05 * first.norm()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", X0_WEIGHTINGS)
def test_a_weighting_is_its_paper_s_formula_for_every_prediction_type(name, prediction_type):
    objective = DiffusionObjective(PATH, prediction_type, weighting=Weighting(name, **OPTIONS))
    weights = objective.weights(torch.arange(T)).double().numpy()
    b = np.array([PATH.x0_coefficients(prediction_type, t)[1] for t in range(T)])
    np.testing.assert_allclose(weights / b**2, ON_EPSILON[name] * SNR, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_weightings_of_the_output_are_the_same_factor_for_every_prediction_type(prediction_type):
    assert set(WEIGHTINGS) == {*X0_WEIGHTINGS, "none", "snr_over_snr_plus_1"}
    plain, literal = (
        DiffusionObjective(PATH, prediction_type, weighting=Weighting(name)).weights(torch.arange(T)).double().numpy()
        for name in ("none", "snr_over_snr_plus_1")
    )
    np.testing.assert_array_equal(plain, 1)
    np.testing.assert_allclose(literal, SNR / (SNR + 1), rtol=1e-5)


def test_known_equalities_between_weightings():
    def weights(prediction_type, name, **options):
        return DiffusionObjective(PATH, prediction_type, weighting=Weighting(name, **options)).weights(torch.arange(T))

    def same(first, second):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=0)

    same(weights("epsilon", "snr"), torch.ones(T))
    same(weights("v_prediction", "snr"), weights("v_prediction", "snr_over_snr_plus_1"))
    same(weights("epsilon", "p2", p2_gamma=0.0), torch.ones(T))
    # Hang et al., section 3.4: v-prediction's plain loss has the weight snr + 1 on x0, which is EDM's at sigma_data 1.
    same(weights("v_prediction", "edm", sigma_data=1.0), torch.ones(T))
    # sigmoid at bias 0 is 1 / (1 + snr) on epsilon, as is p2 with its defaults.
    same(weights("flow", "sigmoid"), weights("flow", "p2"))


def test_zero_terminal_snr_has_finite_weights():
    path = NoisePath.from_schedule("linear", 50, rescale_betas_zero_snr=True)
    for name, kind in itertools.product(WEIGHTINGS, ("sample", "v_prediction", "flow")):
        weights = DiffusionObjective(path, kind, weighting=Weighting(name)).weights(torch.arange(50))
        assert weights.isfinite().all()
        assert (weights >= 0).all()


def test_sample_has_bounded_weights_near_the_data_unless_others_are_asked_for():
    def weights(**settings):
        objective = make_objective(TrainingArguments(prediction_type="sample", **settings), None)
        return objective.weights(torch.tensor([1e-3, 1.0, 500.0])).tolist()

    flow = {"schedule": "rectified_flow"}
    assert weights(**flow, min_snr_gamma=3.0) == pytest.approx([3, 3, 1])
    assert weights(**flow, loss_weighting="snr")[0] > 1e11
    assert weights()[2] == pytest.approx(weights(loss_weighting="snr")[2])


@pytest.mark.parametrize("options", [{"sigmoid_bias": -800.0}, {"sigmoid_bias": 800.0}, {"sigma_data": 1e-300}])
def test_extreme_options_are_limits_of_a_weighting(options):
    name = "edm" if "sigma_data" in options else "sigmoid"
    snr = torch.tensor([1e-8, 1.0, 1e8])
    limit = {-800.0: 0 * snr, 800.0: snr, 1e-300: torch.full_like(snr, torch.inf)}[next(iter(options.values()))]
    assert torch.equal(Weighting(name, **options).on_x0(snr), limit)


def test_a_wrong_name_is_a_sentence():
    with pytest.raises(ValueError, match="weighting must be one of none, snr, min_snr, p2"):
        Weighting("p3")


# --- samplings --------------------------------------------------------------------------------------------------------


def drawn(sampler: TimestepSampler, count: int) -> torch.Tensor:
    objective = DiffusionObjective(PATH, sampler=sampler)
    return objective.draw_timesteps(count, torch.Generator().manual_seed(0), CPU)


def p_value(times: torch.Tensor, probabilities: np.ndarray) -> float:
    return stats.chisquare(np.bincount(times, minlength=T), probabilities * len(times)).pvalue


def logit_normal_levels(mean: float, std: float) -> np.ndarray:
    edges = np.arange(1, T) / T
    below = stats.norm.cdf((np.log(edges / (1 - edges)) - mean) / std)
    return np.diff(np.concatenate([[0], below, [1]]))


def test_uniform_and_logit_normal_times_follow_their_distributions():
    n, uniform = 40_000, np.full(T, 1 / T)
    assert p_value(drawn(TimestepSampler("uniform", T), n), uniform) > 0.01
    for mean, std in ((0.0, 1.0), (0.8, 0.6)):
        times = drawn(TimestepSampler("logit_normal", T, mean, std), n)
        assert p_value(times, logit_normal_levels(mean, std)) > 0.01
        assert p_value(times, uniform) < 1e-9
    positions = TimestepSampler("logit_normal", 1, 0.8, 0.6).draw(n, torch.Generator().manual_seed(0), CPU)
    normal = (positions / (1 - positions)).log().double().numpy()
    assert stats.kstest(normal, stats.norm(0.8, 0.6).cdf).pvalue > 0.01


def test_times_of_a_continuous_path_are_continuous_and_told_in_steps_of_training():
    objective = DiffusionObjective(RectifiedFlowPath(), "flow", sampler=TimestepSampler("uniform", T))
    times = objective.draw_timesteps(5000, torch.Generator().manual_seed(0), CPU)
    assert stats.kstest(times.double().numpy() / T, "uniform").pvalue > 0.01
    x0, noise = torch.full((1, 1), 2.0), torch.full((1, 1), -1.0)
    told = torch.tensor([T / 4])
    seen = {}

    def network(x, t):
        seen.update(x=x.item(), t=t.item())
        return SimpleNamespace(sample=torch.full((1, 1), -2.5))

    loss = objective.losses(ConditionedNetwork(network), x0, noise, told)
    assert seen == {"x": 0.75 * 2.0 + 0.25 * -1.0, "t": T / 4}
    assert loss.item() == pytest.approx((-2.5 - (-1.0 - 2.0)) ** 2)


def test_stratified_logit_normal_times_follow_the_distribution_and_hold_every_part_once():
    sampler = TimestepSampler("stratified_logit_normal", 1, 0.8, 0.6)
    for count in (32, 5000):
        positions = sampler.draw(count, torch.Generator().manual_seed(0), CPU).double().numpy()
        below = stats.norm.cdf((np.log(positions / (1 - positions)) - 0.8) / 0.6) * count
        assert np.abs(below - np.arange(count) - 0.5).max() < 0.5 + 1e-2  # float32 rounds
    assert stats.kstest(below % 1, "uniform").pvalue > 0.01
    levels = drawn(TimestepSampler("stratified_logit_normal", T), 40_000)
    # Parts of a distribution vary less than draws: nearer to what is expected than chi-square allows those to be.
    assert p_value(levels, logit_normal_levels(0.0, 1.0)) > 0.99
    # Even where a part's end rounds to a certainty.
    ends = TimestepSampler("stratified_logit_normal", 1, 0.0, 9.0).draw(2**22, torch.Generator().manual_seed(0), CPU)
    assert ends.min() >= 0
    assert ends.max() <= 1


def test_stratified_times_hold_every_part_once():
    times = drawn(TimestepSampler("stratified", T), 2 * T)
    assert np.bincount(times).tolist() == [2] * T
    offsets = TimestepSampler("stratified", 1).draw(5000, torch.Generator().manual_seed(0), CPU) * 5000 % 1
    assert stats.kstest(offsets.double().numpy(), "uniform").pvalue > 0.01


# --- importance sampling ----------------------------------------------------------------------------------------------


def losses_at(times: torch.Tensor, seed: int) -> torch.Tensor:
    """Losses that fall steeply from the data's end, each with its own spread."""
    noise = torch.rand(len(times), generator=torch.Generator().manual_seed(seed))
    return torch.exp(-times / 4.0) * (0.5 + noise)


def warmed() -> ImportanceSampler:
    sampler = ImportanceSampler(T)
    times = torch.arange(T).repeat(HISTORY)
    sampler.update(times, losses_at(times, 5))
    return sampler


def test_importance_draws_in_proportion_to_the_second_moments_and_stays_unbiased():
    sampler, n = warmed(), 200_000
    kept = losses_at(torch.arange(T).repeat(HISTORY), 5).reshape(HISTORY, T).double().numpy()
    root = np.sqrt((kept**2).mean(0))
    expected = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / T
    np.testing.assert_allclose(sampler.probabilities().numpy(), expected, rtol=1e-6)
    times = drawn(sampler, n)
    assert p_value(times, expected) > 0.01
    exact = np.exp(-np.arange(T) / 4.0).mean()  # of the losses under uniform times
    counted = (losses_at(times, 6) * sampler.factors(times)).double()
    plain = losses_at(drawn(TimestepSampler("uniform", T), n), 6).double()
    assert abs(counted.mean() - exact) < 4 * counted.std() / math.sqrt(n)
    assert counted.std() < plain.std() / 2
    assert abs(losses_at(times, 6).mean() - exact) > 100 * counted.std() / math.sqrt(n)  # without the factors


def test_draws_are_uniform_until_every_level_has_its_losses():
    sampler = ImportanceSampler(T)
    times = torch.arange(T).repeat(HISTORY)[:-1]
    sampler.update(times, losses_at(times, 5))
    assert torch.equal(sampler.factors(torch.arange(T)), torch.ones(T))
    sampler.update(torch.tensor([T - 1]), torch.tensor([0.5]))
    assert sampler.factors(torch.arange(T)).max() > 5


def test_the_history_holds_the_last_losses_of_each_level():
    """Against a queue a level; a batch may hold more losses of one level than are kept."""
    sampler, queues = ImportanceSampler(3), defaultdict(lambda: deque(maxlen=HISTORY))
    generator = torch.Generator().manual_seed(0)
    for count in (1, 7, 40, 64, 5):
        times, losses = torch.randint(3, (count,), generator=generator), torch.rand(count, generator=generator)
        sampler.update(times, losses)
        for t, loss in zip(times.tolist(), losses.tolist(), strict=True):
            queues[t].append(loss)
    assert sampler.state_dict()["losses"].sort(1).values.tolist() == [sorted(queues[t]) for t in range(3)]


def test_losses_that_vanish_leave_the_draws_uniform():
    sampler = ImportanceSampler(T)
    sampler.update(torch.arange(T).repeat(HISTORY), torch.zeros(T * HISTORY))
    torch.testing.assert_close(sampler.factors(torch.arange(T)), torch.ones(T))


def test_a_history_of_another_path_is_refused():
    with pytest.raises(ValueError, match="of 20 levels, not of 30"):
        ImportanceSampler(30).load_state_dict(warmed().state_dict())


class Still(torch.nn.Module):
    """Predicts zeros, and keeps the timesteps that it was called with."""

    def forward(self, sample, timestep):
        self.timestep = timestep
        return torch.zeros_like(sample, requires_grad=True)


def test_measuring_in_evaluation_mode_neither_follows_importance_sampling_nor_teaches_it():
    times, batch = [], {"samples": torch.zeros(500, 1)}
    for sampler in (warmed(), ImportanceSampler(T)):
        before = sampler.state_dict()
        objective, network = ImportanceSampledObjective(PATH, sampler=sampler), Still().eval()
        objective(ConditionedNetwork(network), batch, torch.Generator().manual_seed(0))
        times.append(network.timestep)
        assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert torch.equal(*times)
    assert p_value(times[0], np.full(T, 1 / T)) > 0.01


def test_an_importance_sampled_objective_learns_from_training_and_stays_unbiased():
    network, batch = Still(), {"samples": torch.ones(20_000, 1)}
    losses = {}
    for name, objective in (
        ("importance", ImportanceSampledObjective(PATH, "sample", sampler=warmed())),
        ("uniform", DiffusionObjective(PATH, "sample")),
    ):
        losses[name] = objective(ConditionedNetwork(network), batch, torch.Generator().manual_seed(0)).double()
    assert (losses["uniform"] == 1).all()  # the target is 1, the prediction 0
    assert losses["importance"].std() > 0.1
    assert losses["importance"].mean().item() == pytest.approx(1, abs=0.05)


def test_parts_of_a_shared_batch_are_drawn_as_the_whole():
    def drawn_for(count, **share):
        generator = batch_generator_of("a batch", **share)
        return randn_shared((count, 3), generator, CPU), rand_shared((count,), generator, CPU)

    whole = drawn_for(6)
    parts = [drawn_for(2, num_processes=3, process_index=index) for index in range(3)]
    assert all(torch.equal(torch.cat(part), all_) for part, all_ in zip(zip(*parts), whole, strict=True))


def test_an_objective_that_draws_by_itself_gets_other_numbers_on_every_process():
    def drawn(index, of=lambda generator: generator):
        return torch.randn(4, generator=of(batch_generator_of("a batch", num_processes=2, process_index=index)))

    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(1), drawn(1))
    assert torch.equal(drawn(0, shared_of), drawn(1, shared_of))


class TakesItsPrediction(torch.nn.Module):
    """A network that notes what it was given of its earlier prediction."""

    def __init__(self):
        super().__init__()
        self.config, self.given = SimpleNamespace(self_condition=True), []
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, sample, timestep, self_condition=None):
        self.given.append(None if self_condition is None else self_condition.clone())
        return sample * self.weight


def test_self_conditioning_gives_the_network_its_own_x0_in_half_of_the_batches():
    objective, batch = DiffusionObjective(PATH, "sample"), {"samples": torch.randn(4, 1, 2, 2)}
    calls = []
    for seed in range(60):
        network = TakesItsPrediction()
        objective(ConditionedNetwork(network), batch, torch.Generator().manual_seed(seed)).mean().backward()
        calls.append(network.given)
    fed = [given for given in calls if len(given) == 2]
    assert all(given == [None] for given in calls if len(given) == 1)
    assert 18 <= len(fed) <= 42
    assert all(given[0] is None and given[1].abs().max() <= 1 and given[1].abs().max() > 0 for given in fed)


def test_an_earlier_prediction_is_clamped_for_images_and_not_for_latents():
    batch, largest = {"samples": 4 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}, {}
    for bounded in (True, False):
        objective, given = DiffusionObjective(PATH, "sample"), []
        objective.bounded = bounded
        for seed in range(6):
            network = TakesItsPrediction()
            objective(ConditionedNetwork(network), batch, torch.Generator().manual_seed(seed))
            given += network.given[1:]
        largest[bounded] = max(earlier.abs().max().item() for earlier in given[::2])
    assert largest[True] == 1
    assert largest[False] > 2


def test_importance_sampling_resumes_bit_for_bit(tiny_run, tmp_path):
    settings = {"timestep_sampling": "importance", "ddpm_num_steps": 3, "train_batch_size": 16, "max_train_steps": 6}
    train(whole := tiny_run(**settings))
    half = tiny_run(**settings, output_dir=str(tmp_path / "half"))
    trainer = Trainer(half, callbacks=[StopAt(4)])
    trainer.train()
    # The draws had left the uniform ones before the run was broken off, so the history matters to what follows.
    assert not torch.allclose(trainer.objective.sampler.factors(torch.arange(3)), torch.ones(3), rtol=0.01)
    half.resume_from_checkpoint = "latest"
    train(half)
    for name in ("objective.safetensors", "model.safetensors", "ema.safetensors"):
        first, second = (load_file(os.path.join(a.output_dir, "checkpoint-6", name)) for a in (whole, half))
        assert all(torch.equal(first[key], second[key]) for key in first), name


# --- flow matching, end to end ----------------------------------------------------------------------------------------


BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
TINY_UNET2D = json.dumps({"block_out_channels": [8, 8], "norm_num_groups": 4, **BLOCKS})


def flow_images(pipeline, generator=7):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(generator)
    return pipeline(batch_size=2, num_inference_steps=5, generator=generator, output_type="pt").images


def test_flow_matching_trains_and_is_sampled_by_diffusers_alike(tiny_run):
    flow = {"schedule": "rectified_flow", "prediction_type": "flow", "timestep_sampling": "logit_normal"}
    pipeline = train(
        arguments := tiny_run(**flow, max_train_steps=40, learning_rate=5e-3, logging_steps=5, save_figures=True)
    )
    losses = [record["loss"] for record in records_of(arguments.output_dir) if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert os.path.exists(os.path.join(arguments.output_dir, "figures", "reverse.gif"))
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    expected = flow_images(pipeline)
    assert torch.equal(flow_images(loaded), expected)
    loaded.scheduler = FlowMatchEulerDiscreteScheduler.from_config(loaded.scheduler.config)
    torch.testing.assert_close(flow_images(loaded), expected, rtol=1e-4, atol=1e-4)


def test_flow_matching_of_a_diffusers_network_loads_with_its_flow_scheduler(tiny_run):
    flow = {"schedule": "rectified_flow", "prediction_type": "flow", "model": "unet2d", "model_options": TINY_UNET2D}
    pipeline = train(arguments := tiny_run(**flow, max_train_steps=2))
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler
    pipeline.set_progress_bar_config(disable=True)
    images = [
        p(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
        for p in (pipeline, loaded)
    ]
    np.testing.assert_allclose(*images, atol=1e-5)  # weights lie elsewhere in memory: other roundings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prediction_type": "epsilon"}, "'epsilon' does not determine x0 at timestep 1"),
        ({"prediction_type": "flow", "rescale_betas_zero_snr": True}, "takes no schedule_options"),
        ({"prediction_type": "v_prediction", "model": "unet2d", "model_options": TINY_UNET2D}, "choose flow"),
    ],
)
def test_what_a_rectified_flow_cannot_be_is_a_sentence(tiny_run, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(tiny_run(schedule="rectified_flow", **settings))
