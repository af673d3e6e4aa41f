"""Distances between sets of features: closed forms, definitions written out, and torchmetrics."""

import contextlib
import math

import numpy as np
import peers
import pytest
import scipy.linalg
import torch

from diffusers_ext.evaluation import metrics

# torchmetrics imports it where it is installed, and it torchvision.
with contextlib.suppress(ModuleNotFoundError):
    peers.load("torch_fidelity")

from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


def gaussian(number, dimensions, seed, mean=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(number, dimensions, dtype=torch.float64, generator=generator)


def covariance(dimensions, seed):
    factor = gaussian(2 * dimensions, dimensions, seed)
    return factor.T @ factor / dimensions


@pytest.fixture
def two_sets():
    mixing = covariance(6, 1)
    return gaussian(180, 6, 2) @ mixing, gaussian(150, 6, 3, mean=0.4, scale=1.3)


# Frechet distance


def test_frechet_distance_of_diagonal_gaussians():
    first, second = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 1.0, 2.0])
    means = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 1.0, 0.0])
    exact = 13 + ((first.sqrt() - second.sqrt()) ** 2).sum()
    found = metrics.frechet_distance_of_moments(means[0], first.diag(), means[1], second.diag())
    assert found == pytest.approx(exact.item(), abs=1e-6)


def test_frechet_distance_where_the_covariances_do_not_commute():
    first, second, zero = covariance(5, 1), covariance(5, 2), torch.zeros(5)
    root = scipy.linalg.sqrtm((first @ second).numpy())
    exact = (first.trace() + second.trace()).item() - 2 * np.trace(root).real
    assert metrics.frechet_distance_of_moments(zero, first, zero, second) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_of_a_set_moved_and_stretched(two_sets):
    features, _ = two_sets
    move = torch.arange(6.0)
    assert metrics.frechet_distance(features, features + move) == pytest.approx(55, rel=1e-9)
    stretched = features.mean(0) + 1.5 * (features - features.mean(0))
    spread = features.T.cov().trace().item()
    assert metrics.frechet_distance(features, stretched) == pytest.approx(0.25 * spread, rel=1e-9)
    assert metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


class Flattened(torch.nn.Module):
    """Pixels as features, for torchmetrics, which wants a network."""

    num_features = 6

    def forward(self, images):
        return images.flatten(1)


def as_images(features):
    return features.reshape(len(features), 1, 2, 3)


def test_frechet_distance_is_torchmetrics(two_sets):
    theirs = FrechetInceptionDistance(Flattened(), normalize=True).set_dtype(torch.float64)
    for features, real in zip(two_sets, (True, False)):
        theirs.update(as_images(features), real=real)
    assert metrics.frechet_distance(*two_sets) == pytest.approx(theirs.compute().item(), rel=1e-6)


# kernel distance


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")  # of 300 rows
def test_kernel_distance_is_torchmetrics(two_sets):
    first, second = two_sets[0][:150], two_sets[1]
    theirs = KernelInceptionDistance(Flattened(), subsets=1, subset_size=150, normalize=True).set_dtype(torch.float64)
    for features, real in ((first, True), (second, False)):
        theirs.update(as_images(features), real=real)
    assert metrics.kernel_distance(first, second) == pytest.approx(theirs.compute()[0].item(), rel=1e-6)


def test_kernel_distance_of_two_points():
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    kernel = lambda a, b: (float(a @ b) / 2 + 1) ** 3  # noqa: E731
    exact = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert metrics.kernel_distance(x.repeat(3, 1), y.repeat(5, 1)) == pytest.approx(exact)


def test_kernel_distance_of_degree_one_is_that_of_the_means_without_bias():
    values = [metrics.kernel_distance(gaussian(8, 4, k), gaussian(5, 4, k + 1000, mean=0.5), 1) for k in range(400)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - 0.25) < 4 * error < 0.1


def test_kernel_distance_of_equal_laws_is_nothing_on_average_and_takes_both_signs():
    values = np.array([metrics.kernel_distance(gaussian(20, 3, k), gaussian(30, 3, k + 1000)) for k in range(300)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    assert values.min() < 0 < values.max()


# nearest neighbours


def written_out(real, generated, k):
    """Precision, recall, density, coverage, by their definitions, point by point."""

    def radius(points, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def share_inside(points, manifold):
        radii = [radius(manifold, i) for i in range(len(manifold))]
        return sum(any(math.dist(p, q) <= r for q, r in zip(manifold, radii)) for p in points) / len(points)

    real, generated = real.tolist(), generated.tolist()
    radii = [radius(real, i) for i in range(len(real))]
    inside = [[math.dist(y, x) <= r for x, r in zip(real, radii)] for y in generated]
    density = sum(map(sum, inside)) / (k * len(generated))
    coverage = sum(map(any, zip(*inside))) / len(real)
    return share_inside(generated, real), share_inside(real, generated), density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbour_measures_are_their_definitions(k):
    real, generated = gaussian(60, 2, 1), gaussian(45, 2, 2, mean=0.6, scale=0.7)
    precision, recall, density, coverage = written_out(real, generated, k)
    assert metrics.precision_recall(real, generated, k) == pytest.approx((precision, recall))
    assert metrics.density_coverage(real, generated, k) == pytest.approx((density, coverage))
    assert 0.2 < recall < precision <= 1
    assert recall < 0.95
    assert coverage < 0.95


def test_equal_laws_have_density_1_and_coverage_near_1_minus_2_to_the_minus_k():
    pairs = [(gaussian(100, 3, seed), gaussian(100, 3, seed + 500)) for seed in range(60)]
    values = torch.tensor([metrics.density_coverage(*pair, 3) for pair in pairs])
    density, coverage = values.mean(dim=0).tolist()
    errors = values.std(dim=0) / math.sqrt(len(pairs))
    # Uncovered is a point whose 3 nearest among 99 real and 100 generated ones are all real.
    exact = 1 - math.comb(99, 3) / math.comb(199, 3)
    assert abs(density - 1) < 4 * errors[0] < 0.1
    assert abs(coverage - exact) < 4 * errors[1] < 0.03
    assert exact == pytest.approx(1 - 2**-3, abs=0.01)


def test_what_is_lost_shows_where_it_should():
    real = torch.cat([gaussian(100, 2, 1), gaussian(100, 2, 2, mean=50)])
    one_mode = gaussian(200, 2, 3)
    precision, recall = metrics.precision_recall(real, one_mode)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    assert metrics.density_coverage(real, one_mode)[1] == pytest.approx(0.5, abs=0.05)
    elsewhere = gaussian(50, 2, 4, mean=-200)
    assert metrics.precision_recall(real, elsewhere) == (0, 0)
    assert metrics.density_coverage(real, elsewhere) == (0, 0)


# classes


def test_class_accuracy():
    assert metrics.class_accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75
    with pytest.raises(ValueError, match=r"one shape \(number,\), got \(2,\) and \(3,\)"):
        metrics.class_accuracy(torch.zeros(2), torch.zeros(3))


def test_diversity_is_a_share_of_that_of_real_images():
    real, labels = gaussian(120, 4, 1), torch.arange(120) % 3
    assert metrics.diversity(real, labels, real, labels) == pytest.approx(1)
    assert metrics.diversity(0.3 * real + 7, labels, real, labels) == pytest.approx(0.3)
    collapsed = real[:3].repeat(20, 1)
    assert metrics.diversity(collapsed, torch.arange(60) % 3, real, labels) == 0
    few = [metrics.diversity(gaussian(12, 4, s), torch.arange(12) % 3, real, labels) for s in range(2, 60)]
    assert np.mean(few) == pytest.approx(1, abs=0.08)  # no matter how few samples there are


def test_diversity_looks_within_classes():
    labels = torch.arange(40) % 2
    real = gaussian(40, 3, 1) + 100 * labels[:, None]
    one_a_class = torch.tensor([0.0, 100.0]).repeat(10)[:, None].repeat(1, 3)
    assert metrics.diversity(one_a_class, torch.arange(20) % 2, real, labels) == 0


# all of them


def measure_all(first, second):
    labels = torch.arange(len(first)) % 4, torch.arange(len(second)) % 4
    return [
        metrics.frechet_distance(first, second),
        metrics.kernel_distance(first, second),
        *metrics.precision_recall(first, second),
        *metrics.density_coverage(first, second),
        metrics.diversity(first, labels[0], second, labels[1]),
    ]


def test_blocks_change_nothing(two_sets, monkeypatch):
    whole = measure_all(*two_sets)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert measure_all(*two_sets) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), r"two sets of shape \(number, dimensions\), got \(5, 3\) and \(5, 4\)"),
        (torch.zeros(5, 3), torch.zeros(1, 3), "at least [0-9] a set, got 5 and 1"),
        (torch.zeros(9, 3), torch.full((9, 3), math.nan), "must be finite"),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall, metrics.density_coverage],
)
def test_sets_that_cannot_be_compared_are_one_sentence(measure, first, second, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure(first, second)


def test_diversity_needs_real_images_that_differ():
    labels = torch.arange(8) % 2
    alike = torch.zeros(8, 3)
    with pytest.raises(ValueError, match="two different real images"):
        metrics.diversity(gaussian(8, 3, 0), labels, alike, labels)
