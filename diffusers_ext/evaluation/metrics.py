"""How far a set of samples is from a set of real images, in a space of features. Takes tensors; knows no model.

Features are (number, dimensions) of any real dtype; everything is computed in float64. Most measures depend on how many
samples they see, so a value means something only beside its count and beside the same measure between two sets of real
images of that count.
"""

from __future__ import annotations

import math

import torch

BLOCK = 1024  # rows of a matrix of pairs held at a time
PEAK = 2.0  # width of the range of images


# --- distances between distributions ---------------------------------------------------------------------------------


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Frechet distance of the Gaussians with the sets' means and covariances, at least 0.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``: Dowson and Landau 1982; as a measure of image generators
    Heusel et al. 2017 (arXiv:1706.08500), eq. 6. Covariances are the unbiased ones. The value is biased upwards by
    about as much as two sets of real images of these sizes are apart.

    Raises ValueError for sets of other shapes than (number, dimensions), of fewer than two, or not finite.
    """
    first, second = _two_sets(first, second, least=2)
    return frechet_distance_of_moments(*_moments(first), *_moments(second))


def frechet_distance_of_moments(
    first_mean: torch.Tensor, first_covariance: torch.Tensor, second_mean: torch.Tensor, second_covariance: torch.Tensor
) -> float:
    """Frechet distance of two Gaussians by their means (dimensions,) and covariances (dimensions, dimensions)."""
    root = _symmetric_root(first_covariance.double())
    # C1 C2 has the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: real roots without a general matrix root.
    cross = torch.linalg.eigvalsh(root @ second_covariance.double() @ root).clamp(min=0).sqrt().sum()
    mean_part = (first_mean.double() - second_mean.double()).square().sum()
    spread_part = first_covariance.double().trace() + second_covariance.double().trace() - 2 * cross
    return max(0.0, (mean_part + spread_part).item())


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    centred = features - features.mean(dim=0)
    return features.mean(dim=0), centred.T @ centred / (len(features) - 1)


def _symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return (eigenvectors * eigenvalues.clamp(min=0).sqrt()) @ eigenvectors.T


def kernel_distance(first: torch.Tensor, second: torch.Tensor, degree: int = 3) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy; about 0, on either side of it, for equal laws.

    sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_{i, j} k(x_i, y_j) / (n m)
    with k(x, y) = (x.y / dimensions + 1)^degree: Gretton et al. 2012 (JMLR 13), eq. 3, with the kernel of the Kernel
    Inception Distance, Binkowski et al. 2018 (arXiv:1801.01401). All pairs are taken instead of the mean over random
    subsets, which has the same expectation and more noise.

    Raises ValueError for sets of other shapes than (number, dimensions), of fewer than two, or not finite.
    """
    first, second = _two_sets(first, second, least=2)
    n, m = len(first), len(second)
    within_first = (_kernel_sum(first, first, degree) - _kernel_diagonal(first, degree)) / (n * (n - 1))
    within_second = (_kernel_sum(second, second, degree) - _kernel_diagonal(second, degree)) / (m * (m - 1))
    return within_first + within_second - 2 * _kernel_sum(first, second, degree) / (n * m)


def _kernel_sum(first: torch.Tensor, second: torch.Tensor, degree: int) -> float:
    dimensions = first.shape[1]
    return sum(((rows @ second.T / dimensions + 1) ** degree).sum().item() for rows in first.split(BLOCK))


def _kernel_diagonal(features: torch.Tensor, degree: int) -> float:
    return ((features.square().mean(dim=1) + 1) ** degree).sum().item()


# --- fidelity and coverage, by nearest neighbours --------------------------------------------------------------------


def precision_recall(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    """(share of generated within the manifold of the real, share of real within that of the generated).

    The manifold of a set is the union of balls around its points that reach to their k-th nearest neighbour in the
    set: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.

    Raises ValueError for sets of other shapes than (number, dimensions), of no more than k, or not finite.
    """
    real, generated = _two_sets(real, generated, least=neighbours + 1, neighbours=neighbours)
    real_radii, generated_radii = _radii(real, neighbours), _radii(generated, neighbours)
    precise, recalled = [], []
    for rows in generated.split(BLOCK):
        precise.append((torch.cdist(rows, real) <= real_radii).any(dim=1))
    for rows in real.split(BLOCK):
        recalled.append((torch.cdist(rows, generated) <= generated_radii).any(dim=1))
    return torch.cat(precise).double().mean().item(), torch.cat(recalled).double().mean().item()


def density_coverage(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 5) -> tuple[float, float]:
    """(mean number of real balls that a generated point lies in, over k; share of real balls with a generated point).

    With B_i the ball around real point x_i that reaches to its k-th nearest real neighbour, density is
    sum_j sum_i [y_j in B_i] / (k M) and coverage sum_i [some y_j in B_i] / N: Naeem et al. 2020 (arXiv:2002.09797),
    section 3. For equal laws the expected density is 1, and the expected coverage near 1 - 2^-k for sets of one size.

    Raises ValueError for sets of other shapes than (number, dimensions), of no more than k, or not finite.
    """
    real, generated = _two_sets(real, generated, least=neighbours + 1, neighbours=neighbours)
    radii = _radii(real, neighbours)
    inside, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in generated.split(BLOCK):
        hits = torch.cdist(rows, real) <= radii
        inside += int(hits.sum())
        covered |= hits.any(dim=0)
    return inside / (neighbours * len(generated)), covered.double().mean().item()


def _radii(features: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Distance of every point to its k-th nearest neighbour among the others, (number,)."""
    radii = []
    for start, rows in zip(range(0, len(features), BLOCK), features.split(BLOCK)):
        distances = torch.cdist(rows, features)
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = math.inf
        radii.append(distances.kthvalue(neighbours, dim=1).values)
    return torch.cat(radii)


# --- with labels -----------------------------------------------------------------------------------------------------


def class_accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the predicted classes (number,) that are the labels (number,). Raises ValueError for other shapes."""
    if predicted.shape != labels.shape or predicted.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"predicted and labels must have one shape (number,), got {tuple(predicted.shape)} and "
            f"{tuple(labels.shape)}."
        )
    return (predicted.to(labels.device) == labels).double().mean().item()


def diversity(features: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, real_labels: torch.Tensor) -> float:
    """Mean distance between samples of one class, as a share of that between real images of the class.

    For every class with at least two samples and two real images, the mean Euclidean distance over all pairs of
    samples is divided by that over all pairs of real images; the result is the mean over classes. 1 is as diverse as
    the real images, 0 is one sample a class. Being a mean over pairs, its expectation does not depend on the counts.
    This is the pairwise-distance diversity of conditional generators (Zhu et al. 2017, arXiv:1711.11586, there with
    LPIPS), put in relation to the data.

    Raises ValueError for features that are no sets, labels that don't match them, or no class with two of each.
    """
    features, real = _two_sets(features, real, least=2)
    for name, values, count in (("labels", labels, len(features)), ("real_labels", real_labels, len(real))):
        if values.shape != (count,):
            raise ValueError(f"{name} must have shape ({count},), as there are features, got {tuple(values.shape)}.")
    shares = []
    for label in labels.unique().tolist():
        own, theirs = features[labels == label], real[real_labels == label]
        spread = mean_pairwise_distance(theirs) if len(own) > 1 and len(theirs) > 1 else 0.0
        if spread > 0:
            shares.append(mean_pairwise_distance(own) / spread)
    if not shares:
        raise ValueError(
            "labels and real_labels must share a class with at least two samples and two different real images."
        )
    return sum(shares) / len(shares)


def mean_pairwise_distance(features: torch.Tensor) -> float:
    """Mean Euclidean distance over all pairs of different rows of (number, dimensions), number at least 2."""
    features = features.double()
    # Not by matrix products, whose rounding gives equal points a distance.
    exactly = "donot_use_mm_for_euclid_dist"
    total = sum(torch.cdist(rows, features, compute_mode=exactly).sum().item() for rows in features.split(BLOCK))
    return total / (len(features) * (len(features) - 1))


def _two_sets(
    first: torch.Tensor, second: torch.Tensor, least: int, neighbours: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}.")
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features must be two sets of shape (number, dimensions), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if min(len(first), len(second)) < least:
        raise ValueError(f"features must be at least {least} a set, got {len(first)} and {len(second)}.")
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinite values.")
    return first.detach().double(), second.detach().to(first.device).double()


# --- distance of images from the images they should be ---------------------------------------------------------------


def peak_signal_to_noise_ratio(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """10 log10(2^2 / mean squared error) of each image, in decibels, (number,); infinite for equal images.

    Args:
        images, targets: (number, channels, height, width) in [-1, 1], whose width is the 2.

    Raises ValueError for shapes that differ.
    """
    _check_pairs(images, targets)
    error = (images.double() - targets.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(PEAK**2 / error)


def structural_similarity(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """SSIM of each image, (number,); 1 for equal images. Wang et al. 2004, eq. 13, with its Gaussian window.

    Args:
        images, targets: (number, channels, height, width) in [-1, 1]; SSIM is the mean over channels and windows.

    Raises ValueError for shapes that differ.
    """
    _check_pairs(images, targets)
    x, y = images.double().flatten(0, 1)[:, None], targets.double().flatten(0, 1)[:, None]
    side = min(11, *(length - 1 + length % 2 for length in images.shape[2:]))
    line = torch.exp(-((torch.arange(side, dtype=torch.float64, device=x.device) - side // 2) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line[None] / line.sum() ** 2)[None, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, window)

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.flatten(1).mean(1).reshape(images.shape[:2]).mean(1)


def _check_pairs(images: torch.Tensor, targets: torch.Tensor) -> None:
    if images.shape != targets.shape:
        raise ValueError(f"images {tuple(images.shape)} and targets {tuple(targets.shape)} must have one shape.")
