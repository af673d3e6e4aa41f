"""Samplers and guidance scales side by side, class by class: does a sampler draw what it is asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import figures
from ..schedulers.registry import SamplerChoice
from .comparison import progress_over, timed_samples
from .features import FeatureSet, extract
from .metrics import frechet_distance

SHOWN = 4  # images of a class that a picture shows


@dataclass
class ClassRun:
    """One sampler at one length and guidance scale, on one starting noise.

    Attributes:
        sampler: name in `samplers.SAMPLERS`, with a number of inner steps where one was given.
        length: number of steps asked for.
        guidance_scale: w of null + w * (conditional - null).
        evaluations: of the network, for each image.
        seconds: wall time of all images.
        num_images: number of images, all classes together.
        class_accuracy: share of them that the classifier takes for the class asked for, or None without a classifier.
        frechet_distance: of their features from those of as many real images, or None without these.
    """

    sampler: str
    length: int
    guidance_scale: float
    evaluations: int
    seconds: float
    num_images: int
    class_accuracy: float | None = None
    frechet_distance: float | None = None


@dataclass
class ClassSamples:
    """The images of one run, class after class.

    Attributes:
        images: (classes * images a class, channels, height, width) in [-1, 1].
        right: for each whether the classifier takes it for its class, or None without a classifier.
    """

    images: torch.Tensor
    right: torch.Tensor | None


def compare_classes(
    pipeline: Any,
    latents: torch.Tensor,
    labels: torch.Tensor,
    samplers: Sequence[SamplerChoice],
    lengths: Sequence[int],
    guidance_scales: Sequence[float],
    classifier: torch.nn.Module | None = None,
    real: FeatureSet | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> tuple[list[ClassRun], list[ClassSamples]]:
    """Sample `latents` under `labels` with every sampler at every length and guidance scale.

    Args:
        pipeline: a `GenerationPipeline`; its scheduler gives the noise path and comes back untouched.
        latents: starting noise of variance 1, shape (number, channels, height, width).
        labels: the classes asked for (number,).
        samplers: see `SamplerChoice`.
        lengths: numbers of steps, for samplers that bring none of their own.
        guidance_scales: 0 unconditional, 1 conditional, above 1 more so.
        classifier: an `ImageClassifier`, for class accuracy.
        real: the classifier's features of real images, for the Frechet distance.
        batch_size: images at a time.
        seed: of the noise that stochastic samplers add.

    Returns:
        The runs, and the images of each.

    Raises ValueError for a length that a sampler can't have, and what the pipeline raises.
    """
    cells = [
        (choice, length, scale)
        for choice in samplers
        for length in (lengths if choice.length is None else [choice.length])
        for scale in guidance_scales
    ]
    runs, samples = [], []
    with progress_over([length * (choice.inner_steps or 1) for choice, length, _ in cells]) as done:
        for choice, length, scale in cells:
            scheduler = choice.build(pipeline.scheduler.config)
            options = {"class_labels": labels, "guidance_scale": scale, "num_inference_steps": length}
            result, evaluations, seconds = timed_samples(pipeline, scheduler, latents, seed, batch_size, **options)
            images = result.float().clamp(-1, 1)
            run = ClassRun(choice.label, length, scale, evaluations, seconds, len(images))
            right: torch.Tensor | None = None
            if classifier is not None:
                found = extract(images.split(batch_size), classifier, classifier, labels)
                assert found.predicted is not None
                right, run.class_accuracy = found.predicted == labels, found.accuracy()
                if real is not None:
                    run.frechet_distance = frechet_distance(found.features, real.features)
            runs.append(run)
            samples.append(ClassSamples(images, right))
            done()
    return runs, samples


def draw_classes(
    runs: Sequence[ClassRun], samples: Sequence[ClassSamples], class_names: Sequence[str], path: Path, title: str
) -> None:
    """One picture: a row per run, a column per class, up to four images per cell, and the class accuracy below.

    Args:
        runs, samples: of `compare_classes`, with as many images of every class, class after class.
        class_names: of the classes, in their order.
        path: of the file; its suffix says which kind.
        title: above the picture.
    """
    count = len(class_names)
    cells = [[part[:SHOWN] for part in sample.images.chunk(count)] for sample in samples]
    captions = [
        [""] * count
        if sample.right is None
        else [f"{int(part.sum())} of {len(part)}" for part in sample.right.chunk(count)]
        for sample in samples
    ]
    figures.comparison_grid(
        [row_label(run) for run in runs],
        list(class_names),
        cells,
        path,
        captions=captions if any(any(line) for line in captions) else None,
        title=title,
        column_title="class asked for",
    )


def row_label(run: ClassRun) -> str:
    """What a run was, and how it did, in a few lines."""
    lines = [run.sampler, f"guidance {run.guidance_scale:g}", f"{run.length} steps, {run.evaluations} network calls"]
    if run.class_accuracy is not None:
        lines.append(f"classifier {100 * run.class_accuracy:.1f} %")
    if run.frechet_distance is not None:
        lines.append(f"Frechet {run.frechet_distance:.2f}")
    return "\n".join(lines)
