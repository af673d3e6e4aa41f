"""Editing and inverse problems, against mixtures whose posteriors and probability flows are known exactly."""

import math

import diffusers
import numpy as np
import pytest
import torch

from diffusers_ext import (
    AncestralDDPMScheduler,
    EditingPipeline,
    FlowMatchScheduler,
    GenerationPipeline,
    ScoreSDEScheduler,
    SubsequenceDDIMScheduler,
    build_model,
)
from diffusers_ext.cli import main
from diffusers_ext.data.normalization import Normalization
from diffusers_ext.editing import LinearOperator, blur, down_sampling, grey, masking, of_matrix, random_projection
from diffusers_ext.editing.inpaint import RepaintScheduler
from diffusers_ext.editing.levels import ListedPath
from diffusers_ext.editing.space import space_of
from diffusers_ext.pipelines import SignalPipeline
from diffusers_ext.proofs import MIXTURES, GaussianMixture, MixtureNetwork, fitted_order, posterior_bias, rms

LINE = MIXTURES["two modes"]
PLANE = GaussianMixture([0.4, 0.6], [[-0.5, 0.3], [0.5, -0.2]], [0.04, 0.02])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ddim(**settings):
    return SubsequenceDDIMScheduler(clip_sample=False, timestep_spacing="linspace", **settings)


def ddpm():
    return AncestralDDPMScheduler(clip_sample=False, timestep_spacing="linspace")


def editor_of(mixture, scheduler):
    """An editor of signals (1, d) that come from the mixture."""
    network = MixtureNetwork(mixture, scheduler, shape=(1, mixture.means.shape[1]))
    editor = EditingPipeline(SignalPipeline(network, scheduler))
    editor.pipeline.set_progress_bar_config(disable=True)
    return editor


def drawn(mixture, n=32):
    return mixture.sample(n, seeded()).reshape(n, 1, -1)


# inversion


# A scheduler, and the numbers of steps at which the order shows: the first step from the data is of first order.
PATHS = {
    "vp": (ddim, (40, 80, 160)),
    "flow": (FlowMatchScheduler, (20, 40, 80)),
    "ve": (lambda: ScoreSDEScheduler(sde="ve", continuous=True), (10, 20, 40)),
    "diffusers' euler": (lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="linspace"), (40, 80, 160)),
    "diffusers' flow": (diffusers.FlowMatchEulerDiscreteScheduler, (20, 40, 80)),
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_inversion_converges_to_the_probability_flow_with_its_order(name, solver, order):
    x, (scheduler, counts), errors = drawn(LINE), PATHS[name], []
    editor = editor_of(LINE, scheduler())
    for count in counts:
        path = ListedPath(editor.pipeline.prepared_scheduler(count))
        level = path.alpha(0), path.sigma(0)
        noise = editor.invert(x, solver, num_inference_steps=count)
        errors.append(rms(noise, LINE.flow(x, (1.0, 0.0), level) / math.hypot(*level)))
    assert errors[-1] < (0.1 if solver == "ddim" else 0.02)
    assert fitted_order(counts, errors) > order - 0.35


def round_trip(name, solver, count):
    x, editor = drawn(LINE), editor_of(LINE, PATHS[name][0]())
    return rms(editor.reconstruct(x, solver, num_inference_steps=count, output_type="pt").audios, x)


@pytest.mark.parametrize("name", ["vp", "flow", "ve"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_inversion_and_sampling_return_to_the_start_with_the_order(name, solver, order):
    counts = PATHS[name][1]
    errors = [round_trip(name, solver, count) for count in counts]
    assert errors[-1] < (0.2 if solver == "ddim" else 0.02)
    assert fitted_order(counts, errors) > order - 0.35


def test_a_pipeline_samples_the_image_from_its_latents():
    x, editor = drawn(LINE), editor_of(LINE, ddim())
    latents = editor.invert(x, "ddim", num_inference_steps=100)
    again = editor.pipeline(latents=latents, num_inference_steps=100, output_type="pt").audios
    assert rms(again, x) < 0.03


def test_interpolation_begins_and_ends_at_the_images():
    x, editor = drawn(LINE, 2), editor_of(LINE, FlowMatchScheduler())
    between = editor.interpolate(x[:1], x[1:], 5, num_inference_steps=50, output_type="pt").audios
    assert between.shape == (5, 1, 1)
    torch.testing.assert_close(between[[0, -1]], x, atol=2e-3, rtol=0)


# inverse problems


MATRIX = torch.tensor([[1.0, 0.5]], dtype=torch.float64)


def restored(mixture, scheduler, measurement, noise_std, method, n=1500, steps=40, operator=None, **options):
    editor = editor_of(mixture, scheduler)
    operator = of_matrix(MATRIX, (1, 2)) if operator is None else operator
    y = torch.full((n, 1), measurement, dtype=torch.float64)
    found = editor.restore(
        y, operator, noise_std, method, options=options, num_inference_steps=steps, generator=seeded(), output_type="pt"
    )
    return found.audios.reshape(n, -1)


def moment_errors(x, posterior):
    """(largest error of the mean, largest error of the covariance)."""
    mean, covariance = posterior.moments()
    return (x.mean(0) - mean).abs().max().item(), (torch.cov(x.T) - covariance).abs().max().item()


GAUSSIAN = GaussianMixture([1.0], [[0.4, -0.3]], [0.09])


@pytest.mark.parametrize("noise_std", [0.2, 0.0])
def test_pigdm_is_exact_for_one_gaussian_in_the_limit_of_many_steps(noise_std):
    posterior = GAUSSIAN.posterior(MATRIX, [0.9], max(noise_std, 1e-4))
    errors = [
        moment_errors(restored(GAUSSIAN, ddim(), 0.9, noise_std, "pigdm", steps=steps, data_variance=0.09), posterior)
        for steps in (20, 80)
    ]
    assert errors[1][0] < 0.02
    assert errors[1][1] < 0.012 < 0.02 < errors[0][1]


def test_pigdm_needs_the_right_sign_and_the_right_inverse():
    posterior = GAUSSIAN.posterior(MATRIX, [0.9], 1e-4)
    right = of_matrix(0.3 * MATRIX, (1, 2))
    wrong_sign = LinearOperator(right.forward, right.transpose, lambda y: -right.pseudo_inverse(y))
    transposed = LinearOperator(right.forward, right.transpose, right.transpose)
    errors = [
        moment_errors(restored(GAUSSIAN, ddim(), 0.27, 0.0, "pigdm", 300, operator=each, data_variance=0.09), posterior)
        for each in (right, wrong_sign, transposed)
    ]
    assert errors[0][0] < 0.05
    assert not min(error[0] for error in errors[1:]) < 0.1


@pytest.mark.parametrize("data_variance", [0.001, 10.0])
def test_pigdm_corrects_a_wrong_data_variance(data_variance):
    posterior = GAUSSIAN.posterior(MATRIX, [0.9], 1e-4)
    found = restored(GAUSSIAN, ddim(), 0.9, 0.0, "pigdm", 500, steps=80, data_variance=data_variance)
    assert max(moment_errors(found, posterior)) < 0.03


@pytest.mark.parametrize("noise_std", [0.2, 0.0])
def test_one_iteration_is_enough_for_one_gaussian(noise_std):
    few = restored(GAUSSIAN, ddim(), 0.9, noise_std, "pigdm", 8)
    torch.testing.assert_close(restored(GAUSSIAN, ddim(), 0.9, noise_std, "pigdm", 8, iterations=3), few)


def test_pigdm_without_an_inverse_solves_the_equation():
    y, scheduler = 0.9, ddim()
    by_inverse = restored(GAUSSIAN, scheduler, y, 0.0, "pigdm", 8)
    solved = LinearOperator(lambda x: x.flatten(1) @ MATRIX.T)
    torch.testing.assert_close(restored(GAUSSIAN, scheduler, y, 0.0, "pigdm", 8, operator=solved), by_inverse)


def test_dps_fits_the_measurement_and_varies_too_little():
    posterior = PLANE.posterior(MATRIX, [0.1], 0.2)
    spread = (MATRIX @ posterior.moments()[1] @ MATRIX.T).sqrt().item()
    before, found = (
        (restored(PLANE, ddpm(), 0.1, 0.2, "dps", 600, step_size=size) @ MATRIX.T).squeeze(1) for size in (0.0, 0.1)
    )
    assert (found - 0.1).abs().mean() < 0.5 * (before - 0.1).abs().mean()
    assert found.std() < spread


# inpainting


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_repaint_meets_the_known_part_at_the_level_of_the_step_s_end(name):
    path = ListedPath(editor_of(LINE, PATHS[name][0]()).pipeline.prepared_scheduler(12))
    known = torch.full((20_000, 1, 1), 0.7, dtype=torch.float64)
    scheduler = RepaintScheduler(path, known, torch.zeros(1, 1, 1), resamplings=3, jump_length=2)
    generator, sample = seeded(), scheduler.start(seeded())
    for call, t in zip(scheduler.calls, scheduler.timesteps):
        sample = scheduler.step(torch.zeros_like(sample), t, sample, generator).prev_sample
        at = call.s if call.back_to is None else call.back_to
        assert sample.mean().item() == pytest.approx(0.7 * path.alpha(at), abs=0.03)
        assert sample.std().item() == pytest.approx(path.sigma(at), abs=0.03)
    assert (sample == known).all()
    assert len(scheduler.calls) == 3 * len(path)


def test_repaint_approaches_the_posterior_with_steps():
    exact = PLANE.posterior([[1.0, 0.0]], [0.1], 1e-3)
    exact = GaussianMixture(exact.weights, exact.means[:, 1:], exact.covariances[:, 1:, 1:])
    editor = editor_of(PLANE, ddpm())
    x = torch.tensor([[[0.1, 0.0]]], dtype=torch.float64).repeat(1000, 1, 1)
    few, many = (
        posterior_bias(
            editor.inpaint(
                x, torch.tensor([0, 1]), 4, num_inference_steps=steps, generator=seeded(), output_type="pt"
            ).audios[..., 1],
            exact,
        )
        for steps in (20, 160)
    )
    assert many.mean < 0.25
    assert many.weights < 0.12
    assert abs(many.covariance) < 0.6 * abs(few.covariance)


def test_exact_samples_have_no_bias():
    exact = PLANE.posterior(MATRIX, [0.1], 0.2)
    bias = posterior_bias(exact.sample(4000, seeded()), exact)
    assert bias.mean < 4 * bias.mean_chance
    assert abs(bias.covariance) < 0.1
    assert bias.weights < 4 * bias.weights_chance
    moved = posterior_bias(exact.sample(4000, seeded()) * 0.5, exact)
    assert moved.mean > 0.1
    assert moved.covariance < -0.5


def test_inpainting_keeps_what_is_known_exactly_and_draws_the_rest():
    editor = editor_of(PLANE, ddpm())
    x = torch.tensor([[[0.1, 7.0]]], dtype=torch.float64).repeat(1500, 1, 1)
    found = editor.inpaint(
        x, torch.tensor([0, 1]), 5, num_inference_steps=40, generator=seeded(), output_type="pt"
    ).audios
    assert (found[..., 0] == x[..., 0]).all()
    posterior = PLANE.posterior([[1.0, 0.0]], [0.1], 1e-3)
    mean, covariance = posterior.moments()
    assert found[..., 1].mean().item() == pytest.approx(mean[1].item(), abs=0.06)
    assert found[..., 1].var().item() == pytest.approx(covariance[1, 1].item(), abs=0.04)


# operators


OPERATORS = {
    "mask": (masking((torch.arange(64).reshape(8, 8) % 3 > 0).double()), (2, 8, 8)),
    "down_sampling": (down_sampling(4), (2, 8, 8)),
    "blur": (blur(0.6), (2, 8, 8)),
    "blur of signals": (blur(0.6), (2, 16)),
    "grey": (grey(), (3, 8, 8)),
    "random_projection": (random_projection(10, (2, 4, 4)), (2, 4, 4)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_its_transpose_and_pseudo_inverse(name):
    operator, shape = OPERATORS[name]
    x = torch.randn(3, *shape, dtype=torch.float64, generator=seeded())
    y = operator(x)
    z = torch.randn(y.shape, dtype=torch.float64, generator=seeded(1))
    torch.testing.assert_close((y * z).sum(), (x * operator.transpose(z)).sum())
    torch.testing.assert_close(operator(operator.pseudo_inverse(y)), y)
    projection = operator.pseudo_inverse(y)  # orthogonal: what is left of x is at right angles to it
    assert ((x - projection) * projection).sum().abs() < 1e-9
    torch.testing.assert_close(LinearOperator(operator.forward).pulled_back(x, z), operator.transpose(z))


# images


@pytest.fixture(scope="module")
def digits():
    """A small class-conditional pipeline that has learnt nothing, without a progress bar."""
    torch.manual_seed(0)
    unet = build_model(
        "small-adm", base_channels=8, norm_num_groups=4, channel_multipliers=(1,), attention_resolutions=(),
        in_channels=1, sample_size=8, num_class_embeds=10,
    )  # fmt: skip
    pipeline = GenerationPipeline(unet, ddim(prediction_type="v_prediction"), id2label={i: str(i) for i in range(10)})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def image():
    return torch.rand(1, 1, 8, 8, generator=seeded())


def test_images_take_conditions_and_guidance(digits, image):
    editor = EditingPipeline(digits)
    call = {"num_inference_steps": 4, "output_type": "pt"}
    plain = editor.reconstruct(image, **call).images
    assert plain.shape == image.shape
    assert 0 <= plain.min() <= plain.max() <= 1
    guided = editor.vary(image, 0.5, class_labels="3", guidance_scale=2.0, generator=seeded(), **call).images
    assert not torch.equal(guided, editor.vary(image, 0.5, generator=seeded(), **call).images)
    assert editor.interpolate(image, image, 3, num_inference_steps=2).images[0].size == (8, 8)


def test_inpainted_images_keep_their_pixels(digits, image):
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    found = EditingPipeline(digits).inpaint(image, mask, 2, num_inference_steps=3, output_type="pt").images
    assert torch.equal(found[..., mask == 0], image[..., mask == 0])
    assert not torch.equal(found, image)


@pytest.mark.parametrize("method", ["pigdm", "dps"])
def test_images_are_restored(digits, image, method):
    operator = down_sampling(2)
    found = EditingPipeline(digits).restore(operator(image), operator, method=method, num_inference_steps=3)
    assert found.images[0].size == (8, 8)


def test_little_strength_changes_little(digits, image):
    editor = EditingPipeline(digits)
    call = {"num_inference_steps": 100, "output_type": "pt"}
    changes = [
        (editor.vary(image, strength, generator=seeded(), **call).images - image).abs().mean()
        for strength in (0.01, 0.6)
    ]
    assert changes[0] < 0.1 < changes[1]


class PlainNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, sample, timestep):
        return self.layer(sample)


def test_a_plain_network_with_a_scheduler_is_enough(image):
    editor = EditingPipeline(PlainNetwork(), FlowMatchScheduler())
    editor.pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "output_type": "pt"}
    assert editor.invert(image, num_inference_steps=3).shape == image.shape
    assert editor.vary(image, **call).images.shape == image.shape
    assert editor.inpaint(image, torch.ones(8, 8), 1, **call).images.shape == image.shape
    assert editor.restore(image, masking(torch.ones(8, 8)), shape=(1, 8, 8), **call).images.shape == image.shape
    with pytest.raises(ValueError, match="give shape="):
        editor.restore(image, masking(torch.ones(8, 8)), **call)


def test_pipelines_of_diffusers_can_be_edited(image):
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    for scheduler in (diffusers.DDPMScheduler(), diffusers.DPMSolverMultistepScheduler()):
        editor = EditingPipeline(diffusers.DDPMPipeline(unet, scheduler))
        editor.pipeline.set_progress_bar_config(disable=True)
        assert editor.reconstruct(image, num_inference_steps=10, output_type="pt").images.shape == image.shape
        assert editor.vary(image, 0.5, num_inference_steps=4, output_type="pt").images.shape == image.shape
        operator = down_sampling(2)
        assert len(editor.restore(operator(image), operator, num_inference_steps=3).images) == 1


# what can't be done


def test_what_does_not_fit_is_one_sentence(digits, image):
    editor = EditingPipeline(digits)
    few = {"num_inference_steps": 3}
    with pytest.raises(ValueError, match="image is 9x9 pixels"):
        editor.invert(torch.rand(1, 1, 9, 9))
    with pytest.raises(ValueError, match="mask_image is 4x4 pixels"):
        editor.inpaint(image, torch.ones(4, 4), **few)
    with pytest.raises(ValueError, match="mask_image marks nothing"):
        editor.inpaint(image, torch.zeros(8, 8), **few)
    with pytest.raises(ValueError, match="image has 3 channels; it must have 1"):
        editor.vary(torch.rand(3, 8, 8), **few)
    with pytest.raises(ValueError, match=r"measurement has shape \(1, 1, 8, 8\), but 'down_sampling' gives"):
        editor.restore(image, down_sampling(2), **few)
    with pytest.raises(ValueError, match="has no transpose, and PyTorch can't differentiate it"):
        editor.restore(image, lambda x: x.detach(), **few)
    with pytest.raises(ValueError, match="'step_size' is no option of pigdm; it has data_variance"):
        editor.restore(down_sampling(2)(image), down_sampling(2), options={"step_size": 1.0}, **few)
    with pytest.raises(ValueError, match="strength must be above 0"):
        editor.vary(image, 0.0, **few)
    with pytest.raises(ValueError, match="prompt was given, but the network takes no text"):
        editor.vary(image, prompt="a seven", **few)
    with pytest.raises(ValueError, match="There is no argument colour"):
        editor.vary(image, colour=1, **few)
    with pytest.raises(ValueError, match="give EditingPipeline its scheduler"):
        EditingPipeline(digits.unet)


def test_a_path_that_does_not_end_at_noise_can_not_be_inverted(image):
    with pytest.warns(UserWarning, match="still carries"):
        short = ddim(num_train_timesteps=100)
    with pytest.raises(ValueError, match="does not end at noise"):
        EditingPipeline(PlainNetwork(), short).invert(image, num_inference_steps=10)


# the command line


@pytest.mark.parametrize(
    "words",
    [
        ["invert", "--latents", "noise.safetensors"],
        ["interpolate", "--num_between", "3"],
        ["vary", "--strengths", "0.5", "1", "--class_labels", "3", "--guidance_scale", "2"],
        ["inpaint", "--mask", "left", "--resamplings", "2", "--gif", "edit.gif"],
        ["restore", "--operator", "down_sampling", "--factor", "2", "--noise_std", "0.05"],
    ],
    ids=lambda words: words[0],
)
def test_edit_writes_pictures(words, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits.save_pretrained("model")
    few = ["--num_images", "2", "--num_inference_steps", "2", "--device", "cpu"]
    assert main(["edit", words[0], "model", *few, *words[1:]]) == 0, capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} >= {"edit.png", *(w for w in words if "." in w and len(w) > 4)}
    assert "s each" in capsys.readouterr().out


# signals


@pytest.fixture(scope="module", params=["standardize", "spectral"])
def signals(request):
    """A small pipeline of signals that has learnt nothing, and three signals."""
    torch.manual_seed(0)
    unet = build_model("series", in_channels=1, sample_size=512, base_channels=16)
    data = 3 + torch.randn(3, 1, 512, generator=seeded())
    scaling = Normalization.measured(request.param, [data.numpy()]).config()
    pipeline = SignalPipeline(unet, FlowMatchScheduler(), signal={"sample_rate": 8000, **scaling})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, data


def test_a_space_of_signals_returns_what_it_encodes(signals):
    pipeline, data = signals
    space = space_of(pipeline)
    torch.testing.assert_close(space.decode(space.encode(data)), data, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(space.encode(data), data)


def test_what_a_mask_of_signals_leaves_is_known_to_the_network(signals):
    pipeline, data = signals
    space = space_of(pipeline)
    mask = torch.zeros(1, 1, 512)
    mask[..., 10:20] = 1
    changed = space.encode(data + 2 * mask) - space.encode(data)
    assert changed[space.sample_mask(mask).expand_as(data) == 0].abs().max() < 1e-4


def test_signals_are_inpainted_and_restored(signals):
    pipeline, data = signals
    editor, mask = EditingPipeline(pipeline), torch.arange(512) < 100
    call = {"num_inference_steps": 2, "output_type": "pt"}
    found = editor.inpaint(data, mask, 1, **call).audios
    assert torch.equal(found[..., ~mask], data[..., ~mask])
    assert not torch.allclose(found[..., mask], data[..., mask])
    small = down_sampling(4)(data)
    if pipeline.config.signal["normalization"] == "spectral":
        with pytest.raises(ValueError, match="use dps"):
            editor.restore(small, down_sampling(4), **call)
    assert editor.restore(small, down_sampling(4), method="dps", **call).audios.shape == data.shape


@pytest.mark.parametrize(
    "words",
    [
        ["invert"],
        ["interpolate", "--num_between", "2"],
        ["vary"],
        ["inpaint", "--resamplings", "1"],
        ["restore", "--method", "dps"],
    ],
    ids=lambda words: words[0],
)
def test_edit_writes_signals(words, signals, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline, data = signals
    pipeline.save_pretrained("model")
    for number in range(2):
        np.save(f"{number}.npy", data[number].numpy())
    few = ["--images", "0.npy", "1.npy", "--num_inference_steps", "2", "--device", "cpu", "--images_dir", "sounds"]
    assert main(["edit", words[0], "model", *few, *words[1:]]) == 0, capsys.readouterr().err
    assert "2 signals (files)" in capsys.readouterr().out
    assert (tmp_path / "edit.png").is_file()
    assert len(list((tmp_path / "sounds").glob("*.wav"))) == {"vary": 8}.get(words[0], 2)


def test_edit_of_signals_needs_data(signals, tmp_path, capsys):
    signals[0].save_pretrained(tmp_path / "model")
    assert main(["edit", "invert", str(tmp_path / "model"), "--device", "cpu"]) == 1
    assert "the embedded data are grey digits" in capsys.readouterr().err
