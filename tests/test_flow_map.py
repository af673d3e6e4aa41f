"""Flow maps: the objective and the scheduler against the exact flow of a mixture, the networks, and whole runs."""

from pathlib import Path

import diffusers
import pytest
import torch
from conftest import StopAt
from diffusers import DiffusionPipeline
from local_processes import run_processes
from safetensors.torch import load_file

from diffusers_ext import FlowMapScheduler, FlowMatchScheduler, GenerationPipeline, build_model, build_sampler
from diffusers_ext.objectives.flow_map import FlowMapObjective
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.objectives.randomness import batch_generator_of
from diffusers_ext.proofs import ExactFlowMap, GaussianMixture
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.arguments import parse_arguments

MIXTURE = GaussianMixture([0.3, 0.7], [[-0.8], [0.6]], [0.04, 0.09])
GAUSSIAN = GaussianMixture([1.0], [[0.3]], [0.2])
NUMBERS = 4  # in a sample
COUNT = 600


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(mixture, count):
    return mixture.sample(count * NUMBERS, generator(1)).reshape(count, 1, NUMBERS)


# --- the objective at the exact flow map ------------------------------------------------------------------------------


class WrongSign(FlowMapObjective):
    def derivative(self, net, z, t, duration, velocity):
        return -super().derivative(net, z, t, duration, velocity)


class EndMovesAlong(FlowMapObjective):
    """The duration stays while t grows."""

    def derivative(self, net, z, t, duration, velocity):
        levels = self.sampler.num_levels

        def fixed(z, time, duration):
            return net.module(z, time, where.repeat(2) * levels)

        where = duration
        return super().derivative(ConditionedNetwork(fixed), z, t, duration, velocity)


class ConditionalTangent(FlowMapObjective):
    """epsilon - x0 in place of the velocity in the tangent, as in the first MeanFlow."""

    def errors(self, net, x0, noise, t, r):
        self.tangent = (noise - x0)[t > r]
        return super().errors(net, x0, noise, t, r)

    def derivative(self, net, z, t, duration, velocity):
        return super().derivative(net, z, t, duration, self.tangent)


class EndForDuration(FlowMapObjective):
    """r is passed where the network takes t - r."""

    def errors(self, net, x0, noise, t, r):
        confused = ConditionedNetwork(
            lambda z, time, duration: net.module(z, time, torch.where(duration > 0, time - duration, duration))
        )
        return super().errors(confused, x0, noise, t, r)


def error_of_the_velocity(objective, mixture):
    """Root mean square of V - v at the exact u, where v is the exact velocity at z_t."""
    x0, noise = data(mixture, COUNT), torch.randn(COUNT, 1, NUMBERS, generator=generator(2), dtype=torch.float64)
    first, second = torch.rand(2, COUNT, generator=generator(3), dtype=torch.float64) * 0.96 + 0.02
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    exact = ExactFlowMap(mixture)
    velocity = objective.errors(ConditionedNetwork(exact), x0, noise, t, r) + noise - x0
    z = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
    return (velocity - exact(z, t * 1000).sample).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("mixture", "options"),
    [
        (MIXTURE, {"flow_map_step": 1e-3}),
        (GAUSSIAN, {"flow_map_step": 1e-3}),
        (GAUSSIAN, {"flow_map_derivative": "jvp"}),
    ],
    ids=["mixture", "gaussian", "gaussian, jvp"],
)
def test_the_exact_flow_map_gives_the_velocity(mixture, options):
    bound = 1e-6 if "flow_map_derivative" in options else 1e-3
    assert error_of_the_velocity(FlowMapObjective(**options), mixture) < bound


def test_the_error_of_the_finite_difference_falls_with_the_square_of_the_step():
    errors = [error_of_the_velocity(FlowMapObjective(flow_map_step=step), GAUSSIAN) for step in (0.01, 0.005)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("mistake", [WrongSign, EndMovesAlong, ConditionalTangent, EndForDuration])
def test_a_planted_mistake_is_caught(mistake):
    assert error_of_the_velocity(mistake(flow_map_step=1e-3), MIXTURE) > 0.05


class Nearby(torch.nn.Module):
    """The exact flow map plus a combination of a few functions of (z, t, t - r), at its zero."""

    def __init__(self, mixture):
        super().__init__()
        self.exact, self.weights = ExactFlowMap(mixture), torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, sample, timestep, duration):
        t, d = (x.reshape(-1, 1, 1) / 1000 for x in (timestep, duration))
        functions = torch.stack(torch.broadcast_tensors(torch.ones_like(sample), sample, t * sample, d * sample))
        return self.exact(sample, timestep, duration).sample + torch.einsum("k,k...->...", self.weights, functions)


@pytest.mark.parametrize(
    ("mixture", "options", "is_zero"),
    [
        (MIXTURE, {"power": 0.0}, True),
        # The adaptive weight leaves the expectation where the error's distribution is symmetric.
        (GAUSSIAN, {}, True),
        (GAUSSIAN, {"flow_map_derivative": "jvp"}, True),
        (MIXTURE, {"power": 0.0, "mistake": WrongSign}, False),
        (MIXTURE, {"power": 0.0, "mistake": EndMovesAlong}, False),
    ],
)
def test_the_expected_gradient_vanishes_at_the_exact_flow_map(mixture, options, is_zero):
    options = dict(options)
    objective, network = options.pop("mistake", FlowMapObjective)(**options), Nearby(mixture)
    batches = data(mixture, 20 * 100).split(100)
    gradients = []
    for number, samples in enumerate(batches):
        losses = objective(ConditionedNetwork(network), {"samples": samples}, generator(number))
        gradients.append(torch.autograd.grad(losses.mean(), network.weights)[0])
    gradients = torch.stack(gradients)
    standard_error = gradients.std(0) / len(gradients) ** 0.5
    deviation = (gradients.mean(0) / standard_error).abs().max().item()
    assert deviation < 4 if is_zero else deviation > 10


# --- guidance as an input ---------------------------------------------------------------------------------------------

CLASS_MEANS, CLASS_VARIANCES = torch.tensor([-0.8, 0.6], dtype=torch.float64), torch.tensor([0.3, 0.4])


class GuidedFlowMap(torch.nn.Module):
    """The exact flow maps of the guided velocities, by Runge-Kutta steps; class 2 is no class, a mixture of both."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def velocity(self, z, t, labels, guidance):
        variances = (1 - t) ** 2 * CLASS_VARIANCES + t**2
        away = z - (1 - t) * CLASS_MEANS
        each = (t - (1 - t) * CLASS_VARIANCES) / variances * away - CLASS_MEANS
        shares = (-(away**2) / variances / 2 - variances.log() / 2).softmax(-1)
        null = (shares * each).sum(-1, keepdim=True)
        given = torch.cat([each, null], -1).gather(-1, labels[:, None, None])
        return null + guidance * (given - null)

    def forward(self, sample, timestep, class_labels, duration, guidance=1.0):
        t, d = (x.double().reshape(-1, 1, 1) / 1000 for x in (timestep, duration))
        w, h, z = torch.as_tensor(guidance).reshape(-1, 1, 1), -d / 16, sample
        for k in range(16):
            s = t + k * h
            k1 = self.velocity(z, s, class_labels, w)
            k2 = self.velocity(z + h / 2 * k1, s + h / 2, class_labels, w)
            k3 = self.velocity(z + h / 2 * k2, s + h / 2, class_labels, w)
            k4 = self.velocity(z + h * k3, s + h, class_labels, w)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        still = self.velocity(sample, t, class_labels, w)
        exact = torch.where(d == 0, still, (sample - z) / torch.where(d == 0, 1.0, d))
        functions = torch.stack(torch.broadcast_tensors(torch.ones_like(sample), sample, w * d))
        return exact + torch.einsum("k,k...->...", self.weights, functions)


class UnguidedTangent(FlowMapObjective):
    """The derivative follows the velocity without guidance."""

    def derivative(self, net, z, t, duration, velocity):
        own = net.module.velocity(z, t[:, None, None], net.conditions["class_labels"], torch.ones(1))
        return super().derivative(net, z, t, duration, own)


class UnguidedTarget(FlowMapObjective):
    def errors(self, net, x0, noise, t, r, scales=None):
        x0, noise = x0.double(), noise.double()
        guided = net.module.velocity(*self.at(x0, noise, t), net.conditions["class_labels"], 1.0)
        own = net.module.velocity(*self.at(x0, noise, t), net.conditions["class_labels"], scales.reshape(-1, 1, 1))
        return super().errors(net, x0, noise, t, r, scales) + torch.where((t > r)[:, None, None], own - guided, 0.0)

    def at(self, x0, noise, t):
        return self.path.add_noise(x0, noise, t), t[:, None, None]


@pytest.mark.parametrize(
    ("kind", "is_zero"), [(FlowMapObjective, True), (UnguidedTangent, False), (UnguidedTarget, False)]
)
def test_the_expected_gradient_vanishes_at_the_exact_guided_flow_map(kind, is_zero):
    network, gradients = GuidedFlowMap(), []
    for number in range(12):
        labels = torch.ones(200, dtype=torch.long)  # of one class, as the mistakes of two cancel each other
        samples = torch.randn(200, generator=generator(number + 50), dtype=torch.float64)
        samples = (CLASS_MEANS[labels] + CLASS_VARIANCES[labels].sqrt() * samples).reshape(200, 1, 1)
        null = {"class_labels": torch.full_like(labels, 2)}
        net = ConditionedNetwork(network, {"class_labels": labels}, lambda null=null: null)
        objective = kind(flow_map_guidance=4.0, power=0.0, flow_map_step=1e-3)
        losses = objective(net, {"samples": samples}, generator(number))
        gradients.append(torch.autograd.grad(losses.mean(), network.weights)[0])
    gradients = torch.stack(gradients)
    standard_error = gradients.std(0) / len(gradients) ** 0.5
    deviation = (gradients.mean(0) / standard_error).abs().max().item()
    assert deviation < 5 if is_zero else deviation > 8


def test_processes_together_draw_what_one_draws():
    objective = FlowMapObjective()
    whole = objective.draw_timesteps(6, batch_generator_of(0), torch.device("cpu"))
    parts = [
        objective.draw_timesteps(3, batch_generator_of(0, num_processes=2, process_index=i), torch.device("cpu"))
        for i in range(2)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_batches_of_one_sample_learn_steps_of_both_kinds_by_equally_many_calls():
    durations, calls = [], []

    class Recorder(torch.nn.Module):
        def forward(self, sample, timestep, duration):
            durations.append(float(duration[0]))
            return 0 * sample

    objective, batch = FlowMapObjective(), {"samples": torch.zeros(1, 1, 2, 2)}
    moves = []
    for seed in range(32):
        durations.clear()
        loss = objective(ConditionedNetwork(Recorder()), batch, batch_generator_of(seed))
        assert loss.isfinite().all()
        moves.append(durations[-1] > 0)
        calls.append(len(durations))
    assert 6 < sum(moves) < 26
    assert len(set(calls)) == 1


# --- sampling ---------------------------------------------------------------------------------------------------------


def samples_of(scheduler, steps, mixture=MIXTURE, **options):
    """(starting noise, samples) of a pipeline with the exact flow map."""
    pipeline = GenerationPipeline(ExactFlowMap(mixture, sample_size=2), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(50, 1, 2, 2, generator=generator(5), dtype=torch.float64)
    images = pipeline(latents=latents, num_inference_steps=steps, output_type="latent", **options).images
    return latents, images, pipeline.unet.calls


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_any_number_of_steps_is_the_exact_flow(steps, shift):
    latents, images, calls = samples_of(FlowMapScheduler(shift=shift), steps)
    expected = MIXTURE.flow(latents.reshape(-1, 1), (0.0, 1.0), (1.0, 0.0)).reshape(latents.shape)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert calls == steps


def test_a_pipeline_takes_four_steps_unless_told():
    assert samples_of(FlowMapScheduler(), None)[2] == 4
    assert samples_of(FlowMatchScheduler(), None)[2] == 50
    assert samples_of(FlowMatchScheduler(num_train_timesteps=20), None)[2] == 20


def test_the_steps_may_be_a_list():
    latents, images, _ = samples_of(FlowMapScheduler(), None, timesteps=[1.0, 0.83, 0.1])
    expected = MIXTURE.flow(latents.reshape(-1, 1), (0.0, 1.0), (1.0, 0.0)).reshape(latents.shape)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_without_the_duration_one_step_misses():
    class Untold(FlowMapScheduler):
        def network_arguments(self, timestep):
            return {}

    latents, images, _ = samples_of(Untold(), 1)
    expected = MIXTURE.flow(latents.reshape(-1, 1), (0.0, 1.0), (1.0, 0.0)).reshape(latents.shape)
    assert (images - expected).abs().mean() > 0.1


def test_other_samplers_follow_the_velocity_of_a_flow_map():
    scheduler = build_sampler("ode-heun", FlowMapScheduler().config)
    assert type(scheduler) is FlowMatchScheduler
    latents, images, _ = samples_of(scheduler, 20)
    expected = MIXTURE.flow(latents.reshape(-1, 1), (0.0, 1.0), (1.0, 0.0)).reshape(latents.shape)
    assert (images - expected).abs().mean() < 0.05


@pytest.mark.skipif(not hasattr(diffusers, "FlowMapEulerDiscreteScheduler"), reason="diffusers 0.39 brought it")
@pytest.mark.parametrize("steps", [1, 3])
def test_it_interchanges_with_the_scheduler_of_diffusers(steps):
    ours = FlowMapScheduler(shift=2.0)
    theirs = diffusers.FlowMapEulerDiscreteScheduler.from_config(ours.config)
    back = FlowMapScheduler.from_config(theirs.config)
    assert (back.config.shift, back.config.num_train_timesteps) == (2.0, 1000)
    results = [samples_of(scheduler, steps)[1] for scheduler in (ours, theirs, back)]
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)
    assert torch.equal(results[2], results[0])


def test_a_prediction_that_is_no_velocity_is_refused():
    with pytest.raises(ValueError, match="FlowMapScheduler takes prediction_type 'flow', got 'epsilon'"):
        FlowMapScheduler(prediction_type="epsilon")


# --- networks ---------------------------------------------------------------------------------------------------------

SMALL = {"in_channels": 1, "sample_size": 8}
NARROW = {
    "small": {**SMALL, "base_channels": 8, "norm_num_groups": 4},
    "small-adm": {**SMALL, "base_channels": 8, "norm_num_groups": 4},
}


def network_with_a_second_time(name):
    torch.manual_seed(0)
    network = build_model(name, **NARROW[name], second_time=True)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return network.double()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_the_forward_derivative_is_the_limit_of_finite_differences(name, channels_last):
    network = network_with_a_second_time(name)
    shape = (2, 1, 8, 8)
    x0, noise = (torch.randn(shape, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    if channels_last:
        network.to(memory_format=torch.channels_last)
        x0, noise = (x.contiguous(memory_format=torch.channels_last) for x in (x0, noise))
    t, r = torch.tensor([[0.5, 0.9], [0.1, 0.3]], dtype=torch.float64)
    exact, near = (
        FlowMapObjective(**options).errors(ConditionedNetwork(network), x0, noise, t, r).detach()
        for options in ({"flow_map_derivative": "jvp"}, {"flow_map_step": 1e-4})
    )
    assert (near - exact).std() < 0.02 * exact.std()


@pytest.mark.parametrize("name", NARROW)
def test_a_second_time_and_guidance_change_nothing_until_they_are_learned(name):
    torch.manual_seed(0)
    plain, mapped = (
        build_model(name, **NARROW[name]),
        build_model(name, **NARROW[name], second_time=True, max_guidance=3.0),
    )
    assert set(mapped.state_dict()) - set(plain.state_dict()) == {
        f"{of}_embedding.{layer}.{part}"
        for of in ("duration", "guidance")
        for layer in ("linear1", "linear2")
        for part in ("weight", "bias")
    }
    for parameter in plain.parameters():
        if not parameter.any():  # it begins at zero
            torch.nn.init.normal_(parameter, std=0.1)
    mapped.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(mapped(x, 400, duration=300, guidance=2.0).sample, plain(x, 400).sample)
    with pytest.raises(ValueError, match="duration was given to a model without it; build it with second_time=True"):
        plain(x, 400, duration=300)
    with pytest.raises(ValueError, match="guidance was given to a model without it; build it with max_guidance"):
        plain(x, 400, guidance=2.0)
    with pytest.raises(ValueError, match=r"duration has shape \(3,\); it takes a number or 2 entries"):
        mapped(x, 400, duration=torch.zeros(3))


@pytest.mark.parametrize("name", NARROW)
def test_a_network_that_is_smooth_in_time_hardly_changes_within_a_thousandth(name):
    changes = []
    for smooth in (False, True):
        torch.manual_seed(0)
        network = build_model(name, **NARROW[name], smooth_time=smooth)
        for parameter in network.parameters():
            if not parameter.any():  # it begins at zero
                torch.nn.init.normal_(parameter, std=0.1)
        x = torch.randn(2, 1, 8, 8)
        changes.append((network(x, 501.0).sample - network(x, 500.0).sample).abs().mean().item())
    assert changes[1] < changes[0] / 20


def calls_of(guidance_scale, scheduler=None, **options):
    """(batch size, guidance) of every network call for two guided images in two steps."""
    torch.manual_seed(0)
    network, calls = build_model("small", **NARROW["small"], num_class_embeds=3, second_time=True, max_guidance=3.0), []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((len(args[0]), kwargs.get("guidance"))), with_kwargs=True
    )
    pipeline = GenerationPipeline(network, scheduler or FlowMapScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline(class_labels=[0, 1], guidance_scale=guidance_scale, num_inference_steps=2, output_type="pt", **options)
    return calls


def test_a_guided_step_is_one_call_for_as_many_images():
    assert calls_of(3.0) == [(2, 3.0)] * 2
    assert calls_of(3.0, guidance_interval=(0.0, 0.5)) == [(2, 3.0), (2, None)]


def test_a_scale_above_the_learned_ones_is_a_warning(caplog):
    calls_of(3.25)
    assert "guidance_scale 3.25 is above 3, the largest that the network was trained with" in caplog.text


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (3.5, {}),
        (2.0, {"guidance_rescale": 0.5}),
        (2.0, {"negative_class_labels": 2}),
        (2.0, {"scheduler": FlowMatchScheduler()}),
    ],
)
def test_guidance_that_was_not_learned_takes_the_null_condition_as_well(scale, options):
    assert calls_of(scale, **options) == [(4, None)] * 2


# --- runs -------------------------------------------------------------------------------------------------------------


GUIDED = {"flow_map_guidance": 3.0, "guidance_scale": 2.0}


def flow_map_run(tiny_run, **overrides):
    given = tiny_run().__dict__
    paths = ("schedule", "ddpm_beta_schedule", "prediction_type", "sampler", "ddpm_num_inference_steps")
    kept = {name: value for name, value in given.items() if name not in paths}
    return TrainingArguments(**{**kept, "objective": "flow_map", **overrides})


@pytest.mark.parametrize(("derivative", "guidance"), [("finite_difference", 3.0), ("jvp", None)])
def test_a_run_learns_a_flow_map_and_its_pipeline_samples_in_any_number_of_steps(tiny_run, derivative, guidance):
    arguments = flow_map_run(
        tiny_run, condition="class", flow_map_derivative=derivative, flow_map_guidance=guidance, guidance_scale=2.0
    )
    pipeline = train(arguments)
    assert type(pipeline.scheduler) is FlowMapScheduler
    assert (pipeline.unet.config.second_time, pipeline.unet.config.max_guidance) == (True, guidance)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    card = Path(arguments.output_dir, "README.md").read_text(encoding="utf-8")
    assert "A class-conditional flow map of" in card
    assert "num_inference_steps=4)" in card
    assert ("scales up to 3.0 take no second call" in card) == (guidance is not None)
    assert "validation loss (flow map, mean squared error of the velocity)" in card
    for steps in (1, 4):
        images = []
        for one in (pipeline, loaded):
            one.set_progress_bar_config(disable=True)
            call = {"num_inference_steps": steps, "generator": generator(), "output_type": "pt"}
            images.append(one(class_labels=[3, 4], guidance_scale=2.0, **call).images)
        assert images[0].shape == (2, 1, 28, 28)
        assert torch.equal(*images)


def test_a_run_implies_its_path_and_says_it_in_its_recipe(tiny_run, tmp_path):
    arguments = flow_map_run(tiny_run)
    assert (arguments.schedule, arguments.prediction_type, arguments.sampler) == ("rectified_flow", "flow", "flow-map")
    assert arguments.ddpm_num_inference_steps == 4
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(arguments.to_yaml())
    assert vars(TrainingArguments.from_recipe(recipe)) == vars(arguments)


def test_a_flag_that_contradicts_the_objective_is_refused_even_at_its_default_and_a_recipe_gives_way(tmp_path):
    for flag, value, needed in (("prediction_type", "epsilon", "flow"), ("sampler", "ddpm", "flow-map")):
        with pytest.raises(ValueError, match=f"objective flow_map needs {flag} {needed}, got {value}"):
            parse_arguments(["--objective", "flow_map", f"--{flag}", value])
    arguments = parse_arguments(["--recipe", "mnist", "--objective", "flow_map"])
    assert (arguments.schedule, arguments.prediction_type, arguments.sampler) == ("rectified_flow", "flow", "flow-map")
    assert arguments.ddpm_num_inference_steps == 4
    given = parse_arguments(["--objective", "flow_map", "--ddpm_num_inference_steps", "1000"])
    assert given.ddpm_num_inference_steps == 1000
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(given.to_yaml())
    assert TrainingArguments.from_recipe(recipe).ddpm_num_inference_steps == 1000
    with pytest.raises(ValueError, match="objective must be one of diffusion, flow_map, got 'flowmap'"):
        parse_arguments(["--recipe", "mnist", "--objective", "flowmap"])


def test_guidance_as_an_input_without_a_condition_is_a_warning(tiny_run, caplog):
    Trainer(flow_map_run(tiny_run, flow_map_guidance=3.0))
    assert "flow_map_guidance has no effect: there is no condition." in caplog.text


@pytest.mark.parametrize("derivative", ["finite_difference", "jvp"])
def test_a_resumed_run_ends_with_the_same_weights(tiny_run, tmp_path, derivative):
    settings = {
        "condition": "class",
        "flow_map_derivative": derivative,
        "mixed_precision": "bf16",
        "channels_last": True,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 4,
        **GUIDED,
    }
    train(flow_map_run(tiny_run, **settings))
    half = flow_map_run(tiny_run, **settings, output_dir=str(tmp_path / "half"))
    train(half, callbacks=[StopAt(2)])
    half.resume_from_checkpoint = "latest"
    train(half)
    for name in ("ema.safetensors", "model.safetensors"):
        whole, resumed = (load_file(tmp_path / run / "checkpoint-4" / name) for run in ("run", "half"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    fresh = Trainer(flow_map_run(tiny_run, condition="class", output_dir=str(tmp_path / "fresh"), **GUIDED)).network
    learned = [key for key, value in fresh.state_dict().items() if not torch.equal(value, whole[key])]
    assert {"duration_embedding.linear2.weight", "guidance_embedding.linear2.weight", "stem.weight"} <= set(learned)


def train_alone(rank, arguments):
    torch.set_num_threads(1)
    train(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["finite_difference", "jvp"])
def test_two_processes_follow_one_of_the_same_global_batch(tiny_run, tmp_path, derivative):
    settings = {"condition": "class", "flow_map_derivative": derivative, "logging_steps": 1, **GUIDED}
    train(one := flow_map_run(tiny_run, train_batch_size=16, **settings))
    two = flow_map_run(tiny_run, train_batch_size=8, **settings, output_dir=str(tmp_path / "two"))
    assert run_processes(2, train_alone, two) == 0
    first, second = (load_file(Path(a.output_dir, "checkpoint-6", "model.safetensors")) for a in (one, two))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-3)


def test_a_run_starts_from_a_network_trained_by_flow_matching(tiny_run, tmp_path):
    flow = {"schedule": "rectified_flow", "prediction_type": "flow", "sampler": "ode-euler", "condition": "class"}
    trained = train(tiny_run(**flow, output_dir=str(tmp_path / "flow")))
    start = Trainer(
        flow_map_run(tiny_run, init_from=str(tmp_path / "flow"), model_options=None, condition="class", **GUIDED)
    ).network
    assert (start.config.second_time, start.config.max_guidance, start.config.smooth_time) == (True, 3.0, False)
    x = torch.randn(2, 1, 28, 28, generator=generator())
    labels = {"class_labels": torch.tensor([3, 10])}
    expected = trained.unet(x, 300.0, **labels).sample
    torch.testing.assert_close(start(x, 300.0, duration=200.0, guidance=2.0, **labels).sample, expected)


def test_a_start_from_a_network_with_another_prediction_is_a_warning(tiny_run, tmp_path, caplog):
    train(tiny_run(prediction_type="epsilon", output_dir=str(tmp_path / "other")))
    Trainer(flow_map_run(tiny_run, init_from=str(tmp_path / "other"), model_options=None))
    assert f"init_from '{tmp_path / 'other'}' predicts epsilon, and this run trains flow." in caplog.text


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"init_from": "nowhere"}, "init_from 'nowhere' is neither a folder nor a name on the Hub"),
        ({"schedule": "cosine"}, "objective flow_map needs schedule rectified_flow, got cosine"),
        ({"sampler": "ddim"}, "objective flow_map needs sampler flow-map, got ddim"),
        ({"timestep_sampling": "importance"}, "timestep_sampling importance belongs to the objective diffusion"),
        (
            {"condition": "class", "flow_map_guidance": 3.0, "condition_dropout": 0.0},
            "flow_map_guidance needs a null condition that is trained; set condition_dropout above 0",
        ),
        ({"flow_map_guidance": 1.0}, "flow_map_guidance must be greater than 1, got 1"),
        ({"flow_map_step": 0.5}, "flow_map_step must be .*0.1, got 0.5"),
        ({"model": "ict1022-simple", "model_options": None}, "can't be conditioned on a second time; choose a model"),
    ],
)
def test_what_does_not_fit_a_flow_map_is_one_sentence(tiny_run, overrides, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
        Trainer(flow_map_run(tiny_run, **overrides))
    assert "\n" not in str(caught.value)
