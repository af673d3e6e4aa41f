"""Sets of features of images, and measures between two sets. Any network can give the features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation import metrics


@dataclass
class FeatureSet:
    """What networks say of a set of images.

    Attributes:
        features: (number, dimensions).
        predicted: the classifier's classes (number,), or None without a classifier.
        labels: the classes that the images were asked for, or have (number,), or None.
    """

    features: torch.Tensor
    predicted: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def accuracy(self) -> float | None:
        """Share of the images that the classifier takes for what they should be; None without classifier or labels."""
        if self.predicted is None or self.labels is None:
            return None
        return metrics.class_accuracy(self.predicted, self.labels)


@torch.no_grad()
def extract(
    batches: Iterable[torch.Tensor],
    features: torch.nn.Module,
    classifier: torch.nn.Module | None = None,
    labels: torch.Tensor | None = None,
) -> FeatureSet:
    """Features and classes of images.

    Args:
        batches: images (batch, channels, height, width) in [-1, 1].
        features: any module. Its `features(images)` where it has one, else its output, one row an image.
        classifier: images -> logits; forms its classes from its own features where it is `features` too.
        labels: the classes that the images should have (number,).

    Returns:
        The set, on the CPU.

    Raises ValueError when there are no images, or labels of another number.
    """
    for network in (features, classifier):
        if network is not None:
            network.eval()
    rows, classes = [], []
    for images in batches:
        found, logits = _features_and_logits(images, features, classifier)
        rows.append(found.flatten(1).float().cpu())
        if logits is not None:
            classes.append(logits.argmax(dim=1).cpu())
    if not rows:
        raise ValueError("batches must hold at least one image, got none.")
    number = sum(map(len, rows))
    if labels is not None and labels.shape != (number,):
        raise ValueError(f"labels must have shape ({number},), one an image, got {tuple(labels.shape)}.")
    return FeatureSet(torch.cat(rows), torch.cat(classes) if classes else None, labels)


def _features_and_logits(
    images: torch.Tensor, features: torch.nn.Module, classifier: torch.nn.Module | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = _call(features, getattr(features, "features", features), images)
    if classifier is None:
        return found, None
    if classifier is features and hasattr(classifier, "logits_of_features"):
        shared: Any = classifier
        return found, shared.logits_of_features(found)
    return found, _call(classifier, classifier, images)


def _call(network: torch.nn.Module, function: Any, images: torch.Tensor) -> torch.Tensor:
    """`function` of the images, on the network's device and in its dtype where it has weights."""
    weights = (w for w in itertools.chain(network.parameters(), network.buffers()) if w.is_floating_point())
    like = next(weights, None)
    return function(images if like is None else images.to(device=like.device, dtype=like.dtype))


def compare_sets(generated: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """Every measure of `metrics` that the two sets allow, by name.

    With real images in place of `generated` they are the real-data baseline.

    Neighbour measures need more than five images a set, class measures a classifier and labels. Where both sets have
    the very same number of images of each class, the kernel distance comes out a little below 0 for equal laws, since
    its estimate takes images for independent: one more reason to read it beside the real-data baseline.
    """
    result: dict[str, float] = {}
    accuracy = generated.accuracy()
    if accuracy is not None:
        result["class_accuracy"] = accuracy
        result["class_accuracy_standard_error"] = math.sqrt(accuracy * (1 - accuracy) / len(generated))
    first, second = generated.features, real.features
    result["frechet_distance"] = metrics.frechet_distance(first, second)
    result["kernel_distance"] = metrics.kernel_distance(first, second)
    if min(len(generated), len(real)) > 5:
        result["precision"], result["recall"] = metrics.precision_recall(second, first)
        result["density"], result["coverage"] = metrics.density_coverage(second, first)
    if generated.labels is not None and real.labels is not None and _share_a_class(generated.labels, real.labels):
        result["diversity"] = metrics.diversity(first, generated.labels, second, real.labels)
    return result


def baseline_measures(baseline: FeatureSet, real: FeatureSet) -> dict[str, float]:
    """What real images get where samples stand; the accuracy is that on the images samples are compared with."""
    accuracy = real.accuracy()
    return {
        **({} if accuracy is None else {"class_accuracy": accuracy}),
        **{k: v for k, v in compare_sets(baseline, real).items() if not k.startswith("class_accuracy")},
    }


def _share_a_class(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether some class has two images in both sets, so that distances within it can be compared."""
    several = [{int(c) for c, n in zip(*labels.unique(return_counts=True)) if n > 1} for labels in (first, second)]
    return bool(several[0] & several[1])


def evenly_spread(labels: torch.Tensor, equal_counts: bool = False) -> torch.Tensor:
    """An order of the labels (number,) in which each class comes at even distances, and within it as before.

    With `equal_counts` the classes take turns, and the larger ones come last alone.
    """
    places = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        own = labels == label
        count = int(own.sum())
        places[own] = (torch.arange(count, dtype=torch.float64) + 0.5) / (1 if equal_counts else count)
    return places.argsort(stable=True)
