"""How good the samples are while a network trains, from the same noise every time: to a classifier, and by features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..conditions.base import Condition
from ..data.base import TrainingData
from ..data.randomness import permutation
from ..data.signals import as_signals
from ..evaluation.classifier import ImageClassifier, check_names
from ..evaluation.feature_networks import load_feature_network
from ..evaluation.features import FeatureSet, baseline_measures, compare_sets, evenly_spread, extract
from ..evaluation.signal_classifier import classifier_of
from ..objectives.randomness import generator_of, seed_of
from ..pipelines.batched_generation import samples_of
from .bars import bar_options

EVALUATION = "evaluation_samples"  # among the measures of every evaluation
BROKEN = "evaluation_samples_not_finite"
BATCH_SIZE = 50  # samples at a time; a constant, since the noise of a sample depends on it


class SampleEvaluation:
    """Samples beside as many held-out images, and as many other held-out images beside these: the real-data baseline.

    Noise and conditions are the same at every call and on any number of processes, which share the work.

    Args:
        data: held-out images, which the condition has adopted.
        split: what they are called in the records.
        condition: samples are asked for the conditions of these images; None for a network without one.
        options: of the pipeline's call, such as a guidance scale.
        classifier: folder of a classifier, or None.
        features: network whose features are compared; the classifier's if None. One of both must be given.
        size: number of samples, at most half of the images.
        num_inference_steps: of the sampler.
        seed: of the noise.

    Raises:
        ValueError: for a classifier or features that are not there or take other images, a classifier that numbers the
            classes in another way, or data without the condition.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        data: TrainingData,
        split: str,
        condition: Condition | None,
        options: dict[str, Any],
        *,
        classifier: str | None = None,
        features: str | None = None,
        size: int = 500,
        num_inference_steps: int = 1000,
        seed: int = 0,
    ):
        self.accelerator, self.options, self.seed = accelerator, options, seed
        self.steps, self.split = num_inference_steps, split
        self.classifier = None
        if classifier is not None:
            self.classifier = _load(classifier, data).to(accelerator.device)
        network: torch.nn.Module | None = self.classifier
        if features is not None:
            network = load_feature_network(features, accelerator.device)
        assert network is not None
        self.features, self.name = network, getattr(network, "name", "the classifier's")
        order = torch.from_numpy(permutation(0, 0, len(data)))
        if data.labels is not None and condition is not None:
            order = order[evenly_spread(data.labels[order])]
        self.size = min(size, len(data) // 2)
        self.real = self._features_of(data, order[: self.size])
        self.baseline = baseline_measures(self._features_of(data, order[self.size : 2 * self.size]), self.real)
        self.asked: dict[str, Any] = {}
        if condition is not None:
            if condition.name != "class" and self.classifier is not None:  # nothing else ties the data's numbers to it
                check_names(self.classifier.config.id2label, data.label_names or [], "the held-out data")
            generator = generator_of(seed, "evaluation condition")
            self.asked = condition.of_samples(data, order[: self.size].tolist(), generator)
        self.labels = self.real.labels if self.asked else None

    def _features_of(self, data: TrainingData, indices: torch.Tensor) -> FeatureSet:
        labels = None if data.labels is None else data.labels[indices]
        batches = (as_signals(data, data.__getitems__(p.tolist())["samples"]) for p in indices.split(BATCH_SIZE))
        return extract(batches, self.features, self.classifier, labels)

    def __call__(self, pipeline: Any) -> dict[str, float | str]:
        """All measures of `compare_sets`, each with `_real`: what real images get in the samples' place.

        How many samples there are, of which split as many real images, and whose features, stands before them. Every
        process has to call this, and gets the same numbers. Where pixels of some samples are no numbers, how many these
        samples are takes the place of the measures.
        """
        own = list(self._shares(pipeline))
        parts = sorted(gather_object(own) if self.accelerator.num_processes > 1 else own, key=lambda part: part[0])
        features = torch.cat([part[1] for part in parts])
        predicted = None if self.classifier is None else torch.cat([part[2] for part in parts])
        broken = int((~features.isfinite()).any(dim=1).sum())
        measures = {} if broken else compare_sets(FeatureSet(features, predicted, self.labels), self.real)
        taken = {
            EVALUATION: self.size,
            "evaluation_split": self.split,
            "evaluation_features": self.name,
            "evaluation_scheduler": type(pipeline.scheduler).__name__,
            "evaluation_num_inference_steps": self._steps_of(pipeline),
            **{f"evaluation_{name}": value for name, value in self.options.items() if self.asked},
            **({BROKEN: broken} if broken else {}),
        }
        baseline = {f"{name}_real": value for name, value in self.baseline.items() if name in measures}
        return {**taken, **measures, **baseline}

    def _steps_of(self, pipeline: Any) -> int:
        return min(self.steps, pipeline.scheduler.config.num_train_timesteps)

    def _shares(self, pipeline: Any) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """(number, features, classes by the classifier) of the batches that fall to this process."""
        pipeline.set_progress_bar_config(disable=True)
        steps = self._steps_of(pipeline)
        bar = tqdm(range(0, self.size, BATCH_SIZE), **bar_options("Evaluating", self.accelerator.is_local_main_process))
        for number, start in enumerate(bar):
            if number % self.accelerator.num_processes != self.accelerator.process_index:
                continue
            count = min(BATCH_SIZE, self.size - start)
            asked = {name: values[start : start + count] for name, values in self.asked.items()}
            asked |= self.options if asked else {}
            generator = torch.Generator().manual_seed(seed_of(self.seed, "evaluation", number))
            result = pipeline(
                batch_size=count, num_inference_steps=steps, generator=generator, output_type="pt", **asked
            )
            found = extract([samples_of(result)], self.features, self.classifier)
            yield number, found.features, found.predicted
        pipeline.set_progress_bar_config()


def evaluation_network(
    classifier: str | None, features: str | None, data: TrainingData, device: torch.device
) -> torch.nn.Module | None:
    """The network whose features are compared: that of `features`, or else a classifier, or None without either."""
    if features is not None:
        return load_feature_network(features, device)
    if classifier is None:
        return None
    network: torch.nn.Module = _load(classifier, data)
    return network.to(device)


def _load(folder: str, data: TrainingData) -> ImageClassifier:
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"classifier '{folder}' is no folder of a classifier; `diffusers-ext classifier train` makes one."
        )
    classifier = classifier_of(folder)
    if classifier.dims != len(data.size):
        raise ValueError(f"classifier takes {classifier.noun}, and the data are {data.description}.")
    if classifier.config.in_channels != data.channels:
        raise ValueError(
            f"classifier takes {classifier.noun} of {classifier.config.in_channels} channels, and the data have "
            f"{data.channels}."
        )
    return classifier
