"""`prove` and its parts on schedulers of diffusers, of the package, and of a user."""

from __future__ import annotations

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch

import diffusers_ext
from diffusers_ext.cli.program import main
from diffusers_ext.proofs import (
    MIXTURES,
    ExactNetwork,
    GaussianMixture,
    audit,
    gaussian_law,
    prove,
    sample,
    starting_noise,
    view_of,
    wasserstein,
)
from diffusers_ext.proofs.catalogue import NOT_MEASURED, scheduler_classes, usual_cases

COUNTS = (5, 10, 20, 40, 80)


# --- what a timestep means ------------------------------------------------------------------------------------------


def test_noise_levels_are_read_through_the_public_interface():
    flow = view_of(diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.level(250.0) == (0.75, 0.25)
    assert flow.prediction_type == "flow"
    path = diffusers_ext.SubsequenceDDIMScheduler().path
    between = view_of(diffusers.EulerDiscreteScheduler()).level(10.5)
    assert path.sigma(10) < between[1] < path.sigma(11)
    assert math.hypot(*between) == pytest.approx(1)
    edm = diffusers.EDMEulerScheduler(sigma_data=0.5)
    edm.set_timesteps(5)
    alpha, sigma = view_of(edm).level(edm.timesteps[0].item())
    assert sigma / alpha == pytest.approx(80, rel=1e-5)
    own = diffusers_ext.ScoreSDEScheduler(sde="ve", continuous=True)
    assert view_of(own).level(1.0) == pytest.approx((1.0, 50.0))


def test_an_object_without_noise_levels_is_refused_in_a_sentence():
    class Nothing:
        config = {}

    with pytest.raises(ValueError, match="noise levels of Nothing can't be found"):
        view_of(Nothing())


def test_posterior_of_a_linear_measurement_agrees_with_bayes_rule():
    mixture, std = MIXTURES["ellipses"], 0.2
    operator = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    posterior = mixture.posterior(operator, [0.3], std)
    x = mixture.sample(64, torch.Generator().manual_seed(0))
    likelihood = -0.5 * ((x @ operator.T - 0.3) / std).pow(2).sum(1)
    ratio = mixture.log_density(x) + likelihood - posterior.log_density(x)
    torch.testing.assert_close(ratio, ratio[:1].expand(64), rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="noise_std must be above 0"):
        mixture.posterior(operator, [0.3], 0.0)


def test_the_flow_in_the_plane_agrees_with_the_line():
    """Independent coordinates: the differential equation in two dimensions against quantiles in one."""
    line = MIXTURES["two modes"]
    means = torch.cat([line.means, torch.full((2, 1), 0.2)], 1)
    covariances = torch.stack([torch.diag(torch.tensor([v.item(), 0.25])) for v in line.covariances.flatten()])
    plane = GaussianMixture(line.weights, means, covariances)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = plane.flow(x, (0.1, 0.9), (1.0, 0.0))
    torch.testing.assert_close(moved[:, :1], line.flow(x[:, :1], (0.1, 0.9), (1.0, 0.0)), rtol=1e-7, atol=1e-7)


# --- exact laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(clip_sample=False),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        diffusers_ext.ScoreSDEScheduler(corrector_steps=1),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_exact_law_agrees_with_many_draws(scheduler):
    """Multistep samplers, which remember predictions, included."""
    gaussian, n = GaussianMixture([1.0], [[0.4]], [0.09]), 40_000
    network = ExactNetwork(gaussian, scheduler)
    scheduler.set_timesteps(8)
    mean, std = gaussian_law(scheduler, network)
    scheduler.set_timesteps(8)
    x = sample(scheduler, network, starting_noise(scheduler, n, 1), generator=torch.Generator().manual_seed(1))
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / n**0.5)
    assert x.std().item() == pytest.approx(std, abs=4 * std / (2 * n) ** 0.5)


def test_a_law_that_is_not_affine_is_refused():
    scheduler = diffusers.DDPMScheduler(clip_sample=True, clip_sample_range=0.5)
    scheduler.set_timesteps(8)
    with pytest.raises(ValueError, match="not affine"):
        gaussian_law(scheduler, ExactNetwork(GaussianMixture([1.0], [[0.4]], [0.09]), scheduler))


def test_wasserstein_distance_of_a_shift_is_the_shift():
    mixture = MIXTURES["two modes"]
    quantiles = torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)[:, None]
    exact = mixture.flow(quantiles, (0.0, 1.0), (1.0, 0.0))
    assert wasserstein(exact, mixture) < 1e-12
    assert wasserstein(exact + 0.05, mixture) == pytest.approx(0.05)


# --- the audit of noise levels --------------------------------------------------------------------------------------


def test_our_samplers_keep_the_noise_level_that_they_tell():
    for scheduler in (
        diffusers_ext.SubsequenceDDIMScheduler(clip_sample=False, timestep_spacing="linspace"),
        diffusers_ext.AncestralDDPMScheduler(clip_sample=False, timestep_spacing="trailing"),
        diffusers_ext.ScoreSDEScheduler(predictor="ode_heun", continuous=True),
    ):
        scheduler.set_timesteps(15)
        found = audit(scheduler, view_of(scheduler))
        assert found.first_mismatch(1e-5) is None
        assert found.end == pytest.approx((1.0, 0.0), abs=1e-9)


def test_the_audit_names_the_call_that_goes_wrong():
    """diffusers' DDIM steps by T // n, which is not the next entry of the list (its issues 11347 and 12633)."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(15)
    found = audit(scheduler, view_of(scheduler))
    assert found.first_mismatch() == 1
    stride = 1 - scheduler.alphas_cumprod[999 - 1000 // 15].item()
    assert found.found[1][1] == pytest.approx(stride**0.5, rel=1e-5)


# --- prove ----------------------------------------------------------------------------------------------------------


def test_three_numbers_of_steps_are_enough_for_an_order():
    report = prove(diffusers.DDIMScheduler(), counts=(5, 10, 20))
    assert report.order == pytest.approx(1, abs=0.2)
    assert not report.faults


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), 1),
        (diffusers.FlowMatchHeunDiscreteScheduler(), 2),
        (diffusers.EDMDPMSolverMultistepScheduler(), 2),
        (diffusers_ext.SubsequenceDDIMScheduler(clip_sample=False), 1),
        (diffusers_ext.AncestralDDPMScheduler(clip_sample=False), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prove_finds_the_declared_order(scheduler, order):
    report = prove(scheduler, COUNTS)
    assert report.declared_order == order
    assert report.order == pytest.approx(order, abs=0.35)
    assert not report.faults, report.faults
    errors = list(report.errors.values())[1:]
    assert errors == sorted(errors, reverse=True)


class _OneTooFar(diffusers.EulerDiscreteScheduler):
    def set_timesteps(self, *arguments, **named):
        super().set_timesteps(*arguments, **named)
        self.timesteps = (self.timesteps + 20).clamp(max=999)


class _Diverges(diffusers.DDIMScheduler):
    def step(self, model_output, timestep, sample, **named):
        output = super().step(model_output, timestep, sample, **named)
        output.prev_sample = output.prev_sample * 1.05
        return output


class OwnDDIM:
    """A scheduler without a base class and a configuration, right or with one planted mistake."""

    def __init__(self, eta=0.0, mistake=None, returns="object"):
        self.eta, self.mistake, self.returns = eta, mistake, returns
        self.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)

    def set_timesteps(self, count, device=None):
        self.timesteps = torch.linspace(999, 0, count + 1, dtype=torch.float64).round().long()[:-1]

    def step(self, model_output, timestep, sample, generator=None):
        later = self.timesteps[self.timesteps < timestep].tolist()
        later.append(-1)
        strides = {"stride": int(timestep) - 1000 // len(self.timesteps), "late": later[0] + 1}
        previous = strides.get(self.mistake, later[0])
        a = self.alphas_cumprod[timestep]
        b = self.alphas_cumprod[previous] if previous >= 0 else torch.ones(())
        variance = self.eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        alpha, sigma = b.sqrt(), (1 - b - variance).clamp(min=0).sqrt()
        if self.mistake == "sigma for alpha":
            alpha, sigma = sigma, alpha
        x = alpha * (sample - (1 - a).sqrt() * model_output) / a.sqrt() + sigma * model_output
        source = None if self.mistake == "global noise" else generator
        noise = torch.randn(sample.shape, generator=source, dtype=sample.dtype)
        std = {"no noise": 0.0, "wide noise": 1.1 * variance.sqrt(), "last noise": self.eta * (1 - a / b).sqrt()}
        x = x + std.get(self.mistake, variance.sqrt()) * noise
        return {"object": SimpleNamespace(prev_sample=x), "tuple": (x,), "tensor": x}[self.returns]


@pytest.mark.parametrize(
    ("returns", "eta", "order"), [("object", 1.0, 0.65), ("tuple", 0.0, 1.0), ("tensor", 0.0, 1.0)]
)
def test_a_scheduler_without_a_base_class_is_proved(returns, eta, order):
    report = prove(OwnDDIM(eta, returns=returns), COUNTS, options={"eta": eta})
    assert report.order == pytest.approx(order, abs=0.1)
    assert not report.faults


@pytest.mark.parametrize(
    ("mistake", "eta", "message"),
    [
        ("stride", 0.0, "another noise level"),
        ("stride", 1.0, "another noise level"),
        ("late", 0.0, "another noise level"),
        ("late", 1.0, "another noise level"),
        ("sigma for alpha", 0.0, "another noise level"),
        ("wide noise", 1.0, "another noise level"),
        ("last noise", 1.0, "Ends at noise level sigma = 0.226"),
        ("no noise", 1.0, "Ignores eta = 1.0"),
        ("global noise", 1.0, "does not come from the generator"),
    ],
)
def test_planted_mistakes_are_named(mistake, eta, message):
    faults = prove(OwnDDIM(eta, mistake), COUNTS[:4], options={"eta": eta}).faults
    assert any(message in fault for fault in faults), faults


def test_two_numbers_of_steps_say_nothing_of_convergence():
    report = prove(OwnDDIM(), (5, 10))
    assert report.order is None
    assert not report.faults


def test_an_object_that_is_no_scheduler_is_refused():
    with pytest.raises(ValueError, match="object is no scheduler: it has no set_timesteps and no step"):
        prove(object())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (diffusers_ext.AncestralDDPMScheduler(clip_sample=False, gamma=2**0.5), "another noise level"),
        (diffusers_ext.AncestralDDPMScheduler(clip_sample=False, gamma=0.5), "another noise level"),
        (_OneTooFar(), "another noise level"),
        (_Diverges(clip_sample=False), "more steps make it worse|wrongly"),
        (diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), "another noise level"),
        (diffusers.IPNDMScheduler(), "Loses the signal"),
        (diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True), "Rounds timesteps"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_prove_says_what_is_wrong(wrong, message):
    faults = " ".join(prove(wrong, COUNTS).faults)
    assert any(part.lower() in faults.lower() for part in message.split("|")), faults


def test_a_sampler_that_does_not_run_is_a_fault_and_not_a_crash():
    """diffusers' issue 12771: the cosine schedule with Karras sigmas repeats timesteps."""
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    report = prove(scheduler, (10, 20, 40))
    assert "Does not run with" in report.faults[0]


def test_the_scheduler_is_not_changed_and_the_global_generator_neither():
    scheduler = diffusers_ext.SubsequenceDDIMScheduler(clip_sample=False)
    before, times = torch.get_rng_state(), scheduler.timesteps.tolist()
    prove(scheduler, (5, 10))
    assert torch.equal(torch.get_rng_state(), before)
    assert scheduler.timesteps.tolist() == times


def test_report_as_markdown_and_figure(tmp_path):
    report = prove(diffusers.EulerDiscreteScheduler(), COUNTS, name="Euler", options={"timestep_spacing": "linspace"})
    text = report.to_markdown()
    assert "## Euler (timestep_spacing=linspace)" in text
    assert f"diffusers {diffusers.__version__}" in text
    assert "order 1.0" in text
    report.plot(tmp_path / "euler.png")
    assert (tmp_path / "euler.png").stat().st_size > 10_000


# --- the catalogue and the command ----------------------------------------------------------------------------------


def test_every_scheduler_is_measured_or_has_a_reason():
    classes = scheduler_classes()
    assert {"DDIMScheduler", "EDMEulerScheduler", "SubsequenceDDIMScheduler"} <= set(classes)
    for name, kind in classes.items():
        assert name in NOT_MEASURED or next(usual_cases(name, kind)).name == name


def test_command_for_one_scheduler_of_a_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("import diffusers\nclass Mine(diffusers.DDIMScheduler):\n    pass\n")
    flags = ["--counts", "5", "10", "20", "40", "--options", '{"timestep_spacing": "linspace"}']
    assert main(["prove", f"{file}:Mine", *flags, "--output", str(tmp_path / "report")]) == 0
    assert "another noise level" in capsys.readouterr().out
    assert (tmp_path / "report.md").read_text().startswith("## Mine (timestep_spacing=linspace)")
    assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DDIMSheduler"], "Did you mean DDIMScheduler"),
        (["LCMScheduler"], "distilled consistency function"),
        (["DDIMScheduler", "--options", "eta"], "options must be a JSON object, got 'eta'"),
        (["DDIMScheduler", "--options", '{"etta": 1}'], "no option etta"),
        (["DDIMScheduler", "--counts", "10", "5"], "counts must be increasing"),
        (["DDIMScheduler", "--schedule", "nothing"], "Unknown schedule 'nothing'"),
        (["all", "--options", "{}"], "options belong to one scheduler"),
        (["all", "--counts", "5", "10"], "counts belong to one scheduler"),
        (["math:Missing"], "'math' has no 'Missing'"),
        (["math:sin"], "'math:sin' is no scheduler"),
        (["DDIMScheduler", "--options", '{"beta_schedule": "nothing"}'], "DDIMScheduler can't be made"),
        (["DDIMScheduler", "--options", '{"sample": 1}'], "no option sample"),
    ],
)
def test_wrong_words_are_sentences(words, message, capsys):
    assert main(["prove", *words]) == 1
    assert message in capsys.readouterr().err
