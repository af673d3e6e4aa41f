"""Guidance in GenerationPipeline: exact laws through every kind of sampler, formulas by hand, calls of the network."""

import copy
import inspect
import json
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_MODEL
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from diffusers_ext import (
    AncestralDDPMScheduler,
    GenerationPipeline,
    GuidedLangevinScheduler,
    MixScheduler,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
    build_model,
)
from diffusers_ext.pipelines.guidance import GuidedNetwork, rescaled
from diffusers_ext.proofs import MIXTURES, GaussianMixture
from diffusers_ext.schedulers import PREDICTION_TYPES

DIGITS = {str(i): f"digit {i}" for i in range(10)}
PATH = {"beta_schedule": "cosine", "prediction_type": "v_prediction", "clip_sample": False}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_pipeline(preset="small", scheduler=None, id2label=DIGITS, weak_unet=None, **options):
    """A network of ten classes whose class matters: an embedding as large as the time's."""
    torch.manual_seed(0)
    options = {"num_class_embeds": 10, **options}
    if preset == "small":
        options = {**TINY_MODEL, "zero_init_output": False, "sample_size": 8, **options}
    unet = build_model(preset, **options)
    scheduler = scheduler or SubsequenceDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return quiet(GenerationPipeline(unet, scheduler, id2label=id2label, weak_unet=weak_unet))


def call(pipeline, seed=0, **arguments):
    arguments = {"num_inference_steps": 4, "output_type": "latent", **arguments}
    return pipeline(generator=generator(seed), **arguments).images


class Counted:
    """The batch sizes of a network's calls, kept while in the `with` block."""

    def __init__(self, network):
        self.network, self.batches = network, []

    def __enter__(self):
        self.hook = self.network.register_forward_pre_hook(lambda _, inputs: self.batches.append(len(inputs[0])))
        return self.batches

    def __exit__(self, *_):
        self.hook.remove()


# --- exact laws -------------------------------------------------------------------------------------------------------


class MixtureOfClasses(torch.nn.Module):
    """A perfect network for a mixture with labels, in the shape of an image network: d channels, one pixel.

    A label of `num_class_embeds`, or none, gives the prediction for the whole mixture.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, mixture, path, prediction_type):
        super().__init__()
        self.parts = [mixture.conditional(c) for c in sorted(set(mixture.labels))] + [mixture]
        self.path, self.prediction_type = path, prediction_type
        self.config = SimpleNamespace(
            in_channels=mixture.means.shape[1], sample_size=1, num_class_embeds=len(self.parts) - 1
        )

    def forward(self, sample, timestep, class_labels=None):
        level, previous = ((self.path.alpha(t), self.path.sigma(t)) for t in (int(timestep), int(timestep) - 1))
        if class_labels is None:
            class_labels = torch.full((len(sample),), len(self.parts) - 1)
        output = torch.empty_like(sample)
        for label in class_labels.unique().tolist():
            mine = class_labels == label
            output[mine] = self.parts[label].output(self.prediction_type, sample[mine], level, previous)
        return SimpleNamespace(sample=output)


SAMPLERS = {
    "ddim-tau": (lambda c: SubsequenceDDIMScheduler.from_config(c, subsequence="exp"), 200),
    "ddpm": (AncestralDDPMScheduler.from_config, 250),
    "reverse-sde": (lambda c: GuidedLangevinScheduler.from_config(c, rule="reverse_sde"), 400),
    "langevin": (lambda c: GuidedLangevinScheduler.from_config(c, rule="langevin", inner_steps=4, snr=0.3), 60),
    "score-sde": (ScoreSDEScheduler.from_config, 200),
    "dpm-solver++": (DPMSolverMultistepScheduler.from_config, 40),
}
SAMPLES = 4000


@pytest.fixture(scope="module")
def config():
    return SubsequenceDDIMScheduler(timestep_spacing="trailing", **PATH).config


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_0_samples_the_whole_and_scale_1_the_class(sampler, scale, config):
    make, steps = SAMPLERS[sampler]
    scheduler, mixture = make(config), MIXTURES["ellipses"]
    path = SubsequenceDDIMScheduler.from_config(config).path
    pipeline = quiet(GenerationPipeline(MixtureOfClasses(mixture, path, "v_prediction"), scheduler))
    with Counted(pipeline.unet) as batches:
        x = call(pipeline, batch_size=SAMPLES, class_labels=1, guidance_scale=scale, num_inference_steps=steps)
    assert batches == [SAMPLES] * pipeline.num_timesteps
    mean, covariance = (mixture if scale == 0 else mixture.conditional(1)).moments()
    x = x.flatten(1)
    # Four standard errors, and a little for the steps' own error.
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / SAMPLES).sqrt() + 0.01).all()
    assert (torch.cov(x.T) - covariance).abs().max() < 0.03


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_guided_langevin_reaches_the_guided_density(scale):
    """K-step Langevin tends to p(x)^(1-w) p(x|c)^w, which is a Gaussian again where both are."""
    narrow, wide = (0.5, 0.04), (0.0, 0.25)  # mean, variance
    path = SubsequenceDDIMScheduler(**PATH).path
    network = MixtureOfClasses(GaussianMixture([1.0], [[narrow[0]]], [narrow[1]]), path, "epsilon")
    network.parts[-1] = GaussianMixture([1.0], [[wide[0]]], [wide[1]])
    scheduler = GuidedLangevinScheduler(
        **{**PATH, "prediction_type": "epsilon"}, rule="langevin", inner_steps=40, snr=0.3
    )
    x = call(
        quiet(GenerationPipeline(network, scheduler)),
        latents=torch.randn(4000, 1, 1, 1, generator=generator()),
        class_labels=0,
        guidance_scale=scale,
        num_inference_steps=None,
        timesteps=sorted({999 * i * i // 1600 for i in range(41)}, reverse=True),
    )
    precision = scale / narrow[1] + (1 - scale) / wide[1]
    mean = (scale * narrow[0] / narrow[1] + (1 - scale) * wide[0] / wide[1]) / precision
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.std().item() == pytest.approx(math.sqrt(1 / precision), rel=0.05)


@pytest.mark.parametrize("scale", [0, 1, 3.0])
def test_guidance_is_the_same_in_every_prediction_type(scale):
    """Formed in epsilon, x0, v, the score or the posterior mean, it is one and the same walk."""
    results = []
    for prediction_type in PREDICTION_TYPES:
        scheduler = AncestralDDPMScheduler(**{**PATH, "prediction_type": prediction_type, "beta_schedule": "linear"})
        network = MixtureOfClasses(MIXTURES["ellipses"], scheduler.path, prediction_type)
        pipeline = quiet(GenerationPipeline(network, scheduler))
        results.append(call(pipeline, batch_size=8, class_labels=1, guidance_scale=scale, num_inference_steps=30))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-6, atol=1e-6)


# --- formulas by hand -------------------------------------------------------------------------------------------------

ALL_SCHEDULERS = [
    AncestralDDPMScheduler,
    SubsequenceDDIMScheduler,
    GuidedLangevinScheduler,
    ScoreSDEScheduler,
    MixScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
]


def by_hand(pipeline, labels, scale, seed=0, interval=(0.0, 1.0), rescale=0.0, steps=4):
    """The walk with two calls of the network a step and the formula written out."""
    scheduler, unet, noise = pipeline.scheduler, pipeline.unet.eval(), generator(seed)
    scheduler.set_timesteps(steps)
    labels = torch.as_tensor(labels)
    shape = (len(labels), unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    if hasattr(scheduler, "sample_prior"):
        x = scheduler.sample_prior(shape, generator=noise)
    else:
        x = torch.randn(shape, generator=noise) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            scaled = scheduler.scale_model_input(x, t)
            null, conditional = unet(scaled, t).sample, unet(scaled, t, class_labels=labels).sample
        output = conditional
        if interval[0] <= i / len(scheduler.timesteps) < interval[1]:
            output = null + scale * (conditional - null)
            deviation = conditional.std(dim=(1, 2, 3), keepdim=True) / output.std(dim=(1, 2, 3), keepdim=True)
            output = rescale * (output * deviation) + (1 - rescale) * output
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        x = scheduler.step(output, t, x, **({"generator": noise} if takes_generator else {})).prev_sample
    return x


@pytest.mark.parametrize("scheduler_class", ALL_SCHEDULERS)
def test_every_scheduler_takes_the_same_guidance(scheduler_class):
    pipeline = make_pipeline()
    config = {} if scheduler_class is MixScheduler else pipeline.scheduler.config
    check_guided(pipeline, scheduler_class.from_config(config))


@pytest.mark.parametrize("options", [{"rule": "langevin", "inner_steps": 3}, {"rule": "original"}, {"inner_steps": 2}])
def test_every_langevin_rule_takes_the_same_guidance(options):
    pipeline = make_pipeline()
    check_guided(pipeline, GuidedLangevinScheduler.from_config(pipeline.scheduler.config, **options))


def check_guided(pipeline, scheduler):
    pipeline.scheduler = scheduler
    got = call(pipeline, class_labels=[3, 7], guidance_scale=3.0)
    expected = by_hand(pipeline, [3, 7], 3.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    plain = by_hand(pipeline, [3, 7], 1.0)
    assert (got - plain).abs().max() > 0.01 * plain.abs().max()


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.7, 0.7)])
def test_outside_the_interval_the_prediction_is_the_conditional(interval):
    pipeline = make_pipeline()
    with Counted(pipeline.unet) as batches:
        got = call(pipeline, class_labels=[3, 7], guidance_scale=3.0, guidance_interval=interval)
    assert batches == [4 if interval[0] <= i / 4 < interval[1] else 2 for i in range(4)]
    torch.testing.assert_close(got, by_hand(pipeline, [3, 7], 3.0, interval=interval), rtol=1e-4, atol=1e-4)


def test_interval_bounds_are_the_decimals_they_look_like():
    """0.7 * 10 is above 7 in binary: bounds are compared as shares."""
    pipeline = make_pipeline()
    with Counted(pipeline.unet) as batches:
        call(pipeline, class_labels=[3], guidance_scale=3.0, guidance_interval=(0.3, 0.7), num_inference_steps=10)
    assert batches == [2 if 3 <= i < 7 else 1 for i in range(10)]


@pytest.mark.parametrize("phi", [0.4, 1.0])
def test_rescale_is_the_formula(phi):
    pipeline = make_pipeline()
    got = call(pipeline, class_labels=[3, 7], guidance_scale=5.0, guidance_rescale=phi)
    torch.testing.assert_close(got, by_hand(pipeline, [3, 7], 5.0, rescale=phi), rtol=1e-4, atol=1e-4)


def test_full_rescale_gives_the_conditional_deviation_and_leaves_constants_alone():
    guided, conditional = torch.randn(2, 3, 1, 4, 4, generator=generator()) * torch.tensor([5.0, 2.0]).view(
        2, 1, 1, 1, 1
    )
    result = rescaled(guided, conditional, 1.0)
    torch.testing.assert_close(result.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    zeros = torch.zeros(3, 1, 4, 4)
    assert torch.equal(rescaled(zeros, zeros, 1.0), zeros)


def test_negative_labels_take_the_place_of_the_null_class():
    pipeline = make_pipeline()
    as_null = call(pipeline, class_labels=[3, 7], guidance_scale=3.0, negative_class_labels=10)
    assert torch.equal(as_null, call(pipeline, class_labels=[3, 7], guidance_scale=3.0))
    same = call(pipeline, class_labels=[3, 7], guidance_scale=3.0, negative_class_labels=[3, 7])
    torch.testing.assert_close(same, call(pipeline, class_labels=[3, 7]), rtol=1e-4, atol=1e-4)
    other = call(pipeline, class_labels=[3, 7], guidance_scale=0, negative_class_labels="digit 5")
    assert torch.equal(other, call(pipeline, class_labels=[5, 5]))


# --- calls of the network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["small", "usurf-guided-unet"])
def test_scales_0_and_1_are_one_forward_bit_for_bit(preset):
    size = {} if preset == "small" else {"sample_size": 8, "base_channels": 8, "channel_multipliers": (1, 2)}
    pipeline = make_pipeline(preset, **size)
    walk = {"num_inference_steps": 3, "output_type": "latent"}
    latents = torch.randn(2, 1, 8, 8, generator=generator())

    def alone(**arguments):
        x, scheduler = latents, pipeline.scheduler
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            with torch.no_grad():
                x = scheduler.step(pipeline.unet.eval()(x, t, **arguments).sample, t, x).prev_sample
        return x

    labels = torch.tensor([3, 7])
    for scale, expected in ((0, alone()), (1, alone(class_labels=labels))):
        with Counted(pipeline.unet) as batches:
            got = pipeline(latents=latents, class_labels=labels, guidance_scale=scale, **walk).images
        assert torch.equal(got, expected)
        assert batches == [2] * 3
    assert not torch.equal(alone(), alone(class_labels=labels))


def allocation_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        allocation_error(),
    ],
)
@pytest.mark.parametrize(
    ("scale", "most", "calls"),
    [(3.0, 2, [4] + [2, 2] * 4), (3.0, 1, [4, 2] + [1] * 16), (1.0, 1, [2] + [1] * 8)],
)
def test_a_batch_without_memory_goes_through_in_parts_with_the_same_images(error, scale, most, calls, monkeypatch):
    pipeline = make_pipeline()
    expected = call(pipeline, class_labels=[3, 7], guidance_scale=scale)
    forward = pipeline.unet.forward

    def small(sample, *args, **kwargs):
        if len(sample) > most:
            raise error
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", small)
    with Counted(pipeline.unet) as batches:
        got = call(pipeline, class_labels=[3, 7], guidance_scale=scale)
    assert batches == calls
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_one_image_without_memory_is_an_error(monkeypatch):
    pipeline = make_pipeline()

    def never(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(pipeline.unet, "forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        call(pipeline, class_labels=[3, 7], guidance_scale=3.0)


def test_other_errors_of_the_network_are_not_taken_for_lack_of_memory(monkeypatch):
    pipeline = make_pipeline()

    def broken(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(pipeline.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        call(pipeline, class_labels=[3, 7], guidance_scale=3.0)


def test_learned_variance_stays_the_conditional_one():
    def network(sample, timestep, class_labels):
        shift = class_labels.double().view(-1, 1, 1, 1)
        return SimpleNamespace(sample=torch.cat([sample + shift, sample * 0 + 10 * shift], dim=1))

    network.dtype = torch.float64
    sample, labels = torch.randn(2, 1, 4, 4).double(), torch.tensor([1, 2])
    guided = GuidedNetwork(network, {"class_labels": labels}, {"class_labels": torch.tensor([5, 5])}, 3.0)
    prediction, variance = guided(sample, 0, 0.0).chunk(2, dim=1)
    shift = labels.view(-1, 1, 1, 1)
    torch.testing.assert_close(prediction, sample + 5 + 3.0 * (shift - 5))
    assert torch.equal(variance, 10.0 * shift.double().expand_as(sample))


# --- autoguidance -----------------------------------------------------------------------------------------------------


def make_weak(seed=1, **options):
    torch.manual_seed(seed)
    options = {"num_class_embeds": 10, **TINY_MODEL, "base_channels": 4, "zero_init_output": False, **options}
    return build_model("small", **options, sample_size=8)


def test_autoguidance_leads_away_from_the_weak_network_under_the_same_condition():
    pipeline = make_pipeline(weak_unet=make_weak())
    x, t, labels = torch.randn(2, 1, 8, 8, generator=generator()), torch.tensor(500), torch.tensor([3, 7])
    pipeline.scheduler.set_timesteps(timesteps=[500])
    with Counted(pipeline.unet) as batches, Counted(pipeline.weak_unet) as weak_batches:
        got = pipeline(latents=x, class_labels=labels, guidance_scale=2.5, timesteps=[500], output_type="latent").images
    assert batches == weak_batches == [2]
    with torch.no_grad():
        strong, weak = (n(x, t, class_labels=labels).sample for n in (pipeline.unet, pipeline.weak_unet))
    expected = pipeline.scheduler.step(weak + 2.5 * (strong - weak), t, x).prev_sample
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_autoguidance_at_0_and_1_calls_one_network():
    pipeline = make_pipeline(weak_unet=make_weak())
    for scale, calls in ((0, (0, 4)), (1, (4, 0))):
        with Counted(pipeline.unet) as strong, Counted(pipeline.weak_unet) as weak:
            call(pipeline, class_labels=3, guidance_scale=scale)
        assert (len(strong), len(weak)) == calls


def test_autoguidance_needs_no_classes():
    pipeline = make_pipeline(num_class_embeds=None, id2label=None, weak_unet=make_weak(num_class_embeds=None))
    assert not torch.equal(call(pipeline, guidance_scale=2.0), call(pipeline))
    pipeline = make_pipeline(weak_unet=make_weak(num_class_embeds=None))
    assert call(pipeline, class_labels=[1, 2], guidance_scale=2.0).isfinite().all()


def test_without_its_weak_network_a_pipeline_is_guided_by_the_null_class():
    pipeline, plain = make_pipeline(weak_unet=make_weak()), make_pipeline()
    pipeline.weak_unet = None
    arguments = {"class_labels": 3, "guidance_scale": 2.0}
    assert torch.equal(call(pipeline, **arguments), call(plain, **arguments))
    assert pipeline.do_classifier_free_guidance
    assert pipeline.guidance_scale == 2.0


# --- classes ----------------------------------------------------------------------------------------------------------


def test_labels_in_every_form_are_the_same_images():
    pipeline = make_pipeline()
    expected = call(pipeline, class_labels=torch.tensor([3, 7]))
    for labels in (
        [3, 7],
        ["digit 3", "digit 7"],
        (3, "digit 7"),
        torch.tensor([3, 7]).numpy(),
        torch.tensor([3, 7]).int(),
    ):
        assert torch.equal(call(pipeline, class_labels=labels), expected)


def test_one_label_is_repeated():
    pipeline = make_pipeline()
    expected = call(pipeline, class_labels=[4, 4, 4])
    for label in (4, "digit 4", [4], torch.tensor(4)):
        assert torch.equal(call(pipeline, batch_size=3, class_labels=label), expected)
    assert len(call(pipeline, class_labels=4)) == 1
    assert len(call(pipeline, class_labels=4, latents=torch.randn(2, 1, 8, 8))) == 2


def test_no_label_is_the_null_class():
    pipeline = make_pipeline()
    expected = call(pipeline, batch_size=2)
    assert torch.equal(call(pipeline, class_labels=[10, 10]), expected)
    assert not torch.equal(call(pipeline, class_labels=[3, 7]), expected)


def make_unet2d(num_class_embeds, id2label):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=num_class_embeds,
    )
    return quiet(GenerationPipeline(unet, SubsequenceDDIMScheduler(), id2label=id2label))


def test_the_last_class_of_a_network_of_diffusers_is_null_where_the_names_leave_it_over():
    pipeline = make_unet2d(11, DIGITS)
    assert torch.equal(call(pipeline, class_labels=3, guidance_scale=0), call(pipeline))
    assert torch.equal(call(pipeline, class_labels=10), call(pipeline))
    assert not torch.equal(call(pipeline, class_labels=3, guidance_scale=2.0), call(pipeline, class_labels=3))


def test_a_network_of_diffusers_without_a_class_to_spare_still_draws_its_classes():
    pipeline = make_unet2d(10, DIGITS)
    assert call(pipeline, class_labels=[3, 7]).shape == (2, 1, 8, 8)
    guided = call(pipeline, class_labels=[3, 7], guidance_scale=2.0, negative_class_labels=0)
    assert not torch.equal(guided, call(pipeline, class_labels=[3, 7]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"class_labels": 11}, "class_labels hold 11; this network knows the classes 0 to 9, and 10 for none"),
        ({"class_labels": [3, -1]}, "class_labels hold -1"),
        ({"class_labels": "cat"}, "unknown class 'cat'; the names are digit 0"),
        ({"class_labels": 2.0}, "integers or names of classes, got 2.0"),
        ({"class_labels": [True]}, "integers or names of classes, got True"),
        ({"class_labels": []}, "empty list"),
        ({"class_labels": torch.zeros(2, 2).long()}, r"got shape \(2, 2\)"),
        ({"class_labels": [1, 2], "batch_size": 3}, "batch_size 3, class_labels 2"),
        ({"class_labels": [1, 2], "latents": torch.zeros(1, 1, 8, 8)}, "latents 1, class_labels 2"),
        ({"class_labels": [1, 2], "negative_class_labels": [1, 2, 3]}, "class_labels 2, negative_class_labels 3"),
        ({"negative_class_labels": 3}, "negative_class_labels goes with class_labels, which is missing"),
        ({"class_labels": [1, 2], "generator": [torch.Generator()]}, "got 1 for 2 images"),
        ({"guidance_scale": 2.0}, "guidance_scale 2.0 needs a condition"),
        ({"class_labels": 1, "guidance_scale": -1}, "guidance_scale must be a number of at least 0, got -1"),
        ({"class_labels": 1, "guidance_scale": math.nan}, "guidance_scale must be"),
        ({"class_labels": 1, "guidance_interval": (0.6, 0.2)}, "0 <= start <= stop <= 1"),
        ({"class_labels": 1, "guidance_interval": (0.0, 1.5)}, "0 <= start <= stop <= 1"),
        ({"class_labels": 1, "guidance_interval": 0.5}, "0 <= start <= stop <= 1"),
        ({"class_labels": 1, "guidance_rescale": 2}, "guidance_rescale must be a number from 0 to 1"),
        ({"batch_size": "a cat"}, "batch_size must be an integer, got 'a cat'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make_pipeline()(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (lambda: make_pipeline(num_class_embeds=None), {"class_labels": 1}, "knows no classes"),
        (
            lambda: make_pipeline(id2label=None),
            {"class_labels": "cat"},
            "no names of classes .id2label., so give integers",
        ),
        (lambda: make_unet2d(10, DIGITS), {}, "class_labels are missing, and this UNet2DModel has no null class"),
        (
            lambda: make_unet2d(10, DIGITS),
            {"class_labels": 1, "guidance_scale": 2},
            "needs a null class, and this UNet2DModel has none",
        ),
        (lambda: make_unet2d(10, None), {"class_labels": 1, "guidance_scale": 0}, "needs a null class"),
        (lambda: make_unet2d(10, DIGITS), {"class_labels": 10}, "knows the classes 0 to 9\\."),
        (
            lambda: make_pipeline(weak_unet=make_weak()),
            {"class_labels": 1, "negative_class_labels": 2, "guidance_scale": 2},
            "leads away from its weak_unet",
        ),
        (lambda: make_pipeline(id2label=["a", "b"]), {}, "id2label must be a dictionary"),
        (lambda: make_pipeline(id2label={"a": 0}), {}, "id2label must be a dictionary"),
    ],
)
def test_what_a_network_can_not_do_is_one_sentence(make, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()(**arguments)
    assert "\n" not in str(caught.value)


# --- saving, copying --------------------------------------------------------------------------------------------------


def test_saved_and_loaded_gives_the_same_guided_images(tmp_path):
    for name, weak in (("plain", None), ("weak", make_weak())):
        pipeline = make_pipeline(weak_unet=weak)
        pipeline.save_pretrained(tmp_path / name)
        loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path / name))
        arguments = {"class_labels": ["digit 3", "digit 7"], "guidance_scale": 2.0}
        assert torch.equal(call(loaded, **arguments), call(pipeline, **arguments))
        assert (loaded.weak_unet is None) == (weak is None)


def test_weights_that_lie_unaligned_in_memory_are_put_right():
    pipeline = make_pipeline()
    expected = call(pipeline, class_labels=[3])
    for weight in pipeline.unet.parameters():
        room = torch.empty(weight.numel() + 1)[1:]
        weight.data = room.view_as(weight).copy_(weight.data)
        assert weight.data_ptr() % 64
    moved = quiet(GenerationPipeline(pipeline.unet, pipeline.scheduler, id2label=pipeline.config.id2label))
    assert all(weight.data_ptr() % 64 == 0 for weight in moved.unet.parameters())
    assert torch.equal(call(moved, class_labels=[3]), expected)


def test_a_pipeline_saved_before_there_were_conditions_still_loads(tmp_path):
    pipeline = make_pipeline(num_class_embeds=None, id2label=None)
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({key: index[key] for key in ("_class_name", "_diffusers_version", "scheduler", "unet")}))
    assert torch.equal(call(quiet(DiffusionPipeline.from_pretrained(tmp_path))), call(pipeline))


def test_copies_and_pickles_give_the_same_images():
    pipeline = make_pipeline(weak_unet=make_weak())
    expected = call(pipeline, class_labels=3, guidance_scale=2.0)
    for twin in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert torch.equal(call(quiet(twin), class_labels=3, guidance_scale=2.0), expected)


def test_bfloat16_guidance():
    pipeline = make_pipeline()
    reference = call(pipeline, class_labels=[3, 7], guidance_scale=2.0)
    got = call(pipeline.to(torch.bfloat16), class_labels=[3, 7], guidance_scale=2.0, guidance_rescale=0.2)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    assert reference.dtype == torch.float32
