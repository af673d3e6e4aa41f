"""The oracle itself, against autograd, quadrature and closed forms: what classifiers the schedulers is judged first."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from diffusers_ext.proofs import MIXTURES, GaussianMixture

LEVELS = [(1.0, 0.0), (0.9, math.sqrt(0.19)), (0.3, 0.8), (1.0, 20.0), (0.0, 1.0)]


def points(mixture: GaussianMixture, level, n: int = 16) -> torch.Tensor:
    return mixture.marginal(level).sample(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("name", MIXTURES)
def test_score_is_the_gradient_of_the_log_density(name, level):
    mixture = MIXTURES[name]
    x = points(mixture, level).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), level), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("level", LEVELS)
def test_x0_and_epsilon_are_posterior_means(level):
    """By quadrature over x0 on the line."""
    mixture, (alpha, sigma) = MIXTURES["two modes"], level
    x = points(mixture, level, 4)
    if sigma == 0:
        torch.testing.assert_close(mixture.predict(x, level)[0], x)
        return
    grid = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    weight = mixture.log_density(grid[:, None]).exp() * torch.exp(-0.5 * ((x - alpha * grid) / sigma) ** 2)
    mean = (weight * grid).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    x0, epsilon = mixture.predict(x, level)
    torch.testing.assert_close(x0, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(epsilon, (x - alpha * mean) / sigma, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MIXTURES)
def test_draws_have_the_exact_moments(name):
    mixture, n = MIXTURES[name], 200_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    mean, covariance = mixture.moments()
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    assert torch.allclose(torch.cov(x.T), covariance, atol=0.01)


def test_density_integrates_to_one_and_has_known_values():
    mixture, grid = MIXTURES["two modes"], torch.linspace(-6, 6, 6001, dtype=torch.float64)[:, None]
    for level in LEVELS:
        wide = grid * math.hypot(*level) * 1.5
        total = torch.trapezoid(mixture.log_density(wide, level).exp(), wide[:, 0])
        assert total.item() == pytest.approx(1, abs=1e-6)
    one = torch.tensor([[0.5]], dtype=torch.float64)
    expected = math.log(0.3 * norm.pdf(0.5, -0.8, 0.2) + 0.7 * norm.pdf(0.5, 0.6, 0.1))
    assert mixture.log_density(one).item() == pytest.approx(expected, rel=1e-12)


def test_class_posterior_is_bayes_rule():
    mixture, level = MIXTURES["ellipses"], (0.7, 0.5)
    x = points(mixture, level)
    own = [mixture.weights[0], mixture.weights[1] + mixture.weights[2]]
    joint = [math.log(own[c]) + mixture.conditional(c).log_density(x, level) for c in (0, 1)]
    expected = torch.stack(joint, 1).sub(mixture.log_density(x, level)[:, None]).exp()
    torch.testing.assert_close(mixture.class_posterior(x, level), expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(len(x), dtype=torch.float64))


def test_marginal_is_the_noised_mixture():
    mixture, level = MIXTURES["ellipses"], (0.7, 0.5)
    x = points(mixture, level)
    torch.testing.assert_close(mixture.marginal(level).log_density(x), mixture.log_density(x, level))


@pytest.mark.parametrize("end", [(1.0, 0.0), (0.6, 0.8), (1.0, 3.0)])
def test_flow_of_one_gaussian_is_linear(end):
    """The flow keeps (x - mean) / std along each principal axis."""
    mean, std = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.1, 0.5], dtype=torch.float64)
    mixture, start = GaussianMixture([1.0], mean[None], torch.diag(std**2)[None]), (0.1, 0.9)
    x = points(mixture, start)

    def std_at(level):
        return (level[0] ** 2 * std**2 + level[1] ** 2).sqrt()

    expected = end[0] * mean + (x - start[0] * mean) / std_at(start) * std_at(end)
    torch.testing.assert_close(mixture.flow(x, start, end), expected, rtol=1e-8, atol=1e-8)


def test_flow_on_the_line_keeps_quantiles():
    """In one dimension the flow is the increasing map between the marginals."""
    mixture, start, end = MIXTURES["two modes"], (0.0, 1.0), (1.0, 0.0)
    x = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]
    y = mixture.flow(x, start, end)
    reached = 0.3 * norm.cdf(y.numpy(), -0.8, 0.2) + 0.7 * norm.cdf(y.numpy(), 0.6, 0.1)
    torch.testing.assert_close(torch.from_numpy(reached), torch.from_numpy(norm.cdf(x.numpy())), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(mixture.flow(y, end, start), x, rtol=1e-6, atol=1e-6)


def test_guided_classes_make_up_the_whole():
    """sum_c p(c | x) * score_c = score: what makes guidance scale 0 the marginal."""
    mixture, level = MIXTURES["ellipses"], (0.7, 0.5)
    x = points(mixture, level)
    shares = mixture.class_posterior(x, level)
    scores = sum(shares[:, c : c + 1] * mixture.conditional(c).score(x, level) for c in (0, 1))
    torch.testing.assert_close(scores, mixture.score(x, level))
