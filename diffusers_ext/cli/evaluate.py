"""`diffusers-ext evaluate`: how good the samples of a pipeline are, beside as many real images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..conditions.base import Condition
from ..conditions.class_label import chosen_classes
from ..conditions.registry import conditions_of
from ..evaluation.classifier import ImageClassifier
from ..evaluation.feature_networks import load_feature_network
from ..evaluation.features import FeatureSet, baseline_measures, compare_sets, extract
from ..hub.averages import weights_of
from ..hub.model_card import guidance_of, sampler_of
from ..hub.provenance import versions
from ..modalities import Modality, modality_of_pipeline
from ..objectives.randomness import generator_of
from ..pipelines.batched_generation import generate_images, seconds_of_choosing
from ..pipelines.call_arguments import default_steps
from ..schedulers.registry import SamplerChoice, check_options
from ..settings import option
from .real_images import RealDataArguments, RealImages, check_classifier, real_and_baseline
from .sampler_options import OneSampler
from .shared import (
    DTYPE_CHOICES,
    DTYPE_HELP,
    GuidedSteps,
    ModelCode,
    bar,
    best_device,
    load_classifier,
    load_pipeline,
    progress_bar,
)

# What is printed, and whether as a percentage.
MEASURES = {
    "class_accuracy": True,
    "frechet_distance": False,
    "kernel_distance": False,
    "precision": True,
    "recall": True,
    "density": False,
    "coverage": True,
    "diversity": False,
    "log_spectral_distance": False,
    "autocorrelation_distance": False,
}


@dataclass
class SamplingArguments(OneSampler, RealDataArguments, GuidedSteps, ModelCode):
    """How samples are drawn and measured; the base of commands that evaluate."""

    model: str = option(text="Folder or Hub name of a pipeline, or the name of a recipe: what was trained by it.")
    classifier: str | None = option(None, "Folder of a classifier (`diffusers-ext classifier train`).")
    features: str | None = option(
        None,
        "Network whose features are compared; default: the classifier. Folder of a classifier, folder or "
        "Hub name of a vision model of transformers, or file of FID's Inception, weights or TorchScript archive.",
    )
    caption_column: str | None = option(None, "Column with the texts; `text` or `caption` when not given.")
    num_images: int = option(1000, "Number of samples.", at_least=1, at_most=10_000_000)
    class_labels: list[str] | None = option(
        None, "all, or numbers or names: each as often as among the real images; all if not given."
    )
    num_inference_steps: int | None = option(
        None, "Sampling steps; if not given 25, or 4 with FlowMapScheduler.", at_least=1, at_most=100_000
    )
    batch_size: int = option(100, "Samples at a time.", at_least=1, at_most=10_000_000)
    seed: int = option(0, "Seed of all randomness of sampling.", at_least=0)
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPE_CHOICES)


@dataclass
class EvaluateArguments(SamplingArguments):
    """Evaluate samples: class accuracy, Frechet and kernel distance, precision, recall, coverage, diversity."""

    guidance_scale: float = option(1.0, "0 unconditional, 1 conditional, above 1 more so.", at_least=0)
    output: str = option("evaluation.json", "The file to write.", writes=".json")


def evaluate(arguments: EvaluateArguments) -> None:
    """Print the measures of samples and of real images side by side, and write them as JSON."""
    arguments.check_interval(arguments.guidance_scale)
    bench = prepare(arguments)
    report = bench.report(arguments.guidance_scale)
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_report(report)
    print(f"Written to {path}")


@dataclass
class Bench:
    """A pipeline and all that its samples are measured with.

    Attributes:
        pipeline: what is measured, with the scheduler to measure it with.
        classifier: names the classes; None leaves class accuracy out.
        features: a module whose features are compared; see `evaluation.features.extract`.
        real: real images that samples are compared with.
        baseline: other real images, which are compared with `real` as the samples are.
        labels: the class of each real image whose condition a sample is asked for; None without conditions or classes.
        asked: arguments of the pipeline's call with an entry for each sample: the conditions of the real images.
        num_images: number of samples.
        batch_size, seed: of sampling.
        options: of the pipeline's call.
        settings: what a report says of all this.
        modality: of the samples.
        real_images, baseline_images: the two sets of real images themselves.
    """

    pipeline: Any
    classifier: ImageClassifier | None
    features: torch.nn.Module
    real: FeatureSet
    baseline: FeatureSet
    labels: torch.Tensor | None
    asked: dict[str, Any]
    num_images: int
    batch_size: int
    seed: int
    options: dict[str, Any]
    settings: dict[str, Any]
    modality: Modality
    real_images: RealImages
    baseline_images: RealImages

    def measures(self, guidance_scale: float) -> tuple[dict[str, float], float]:
        """(all measures of samples at this scale, seconds of sampling, without those in which --dtype auto chose)."""
        options = {**self.options, "guidance_scale": guidance_scale} if self.asked else self.options
        began = time.perf_counter() - seconds_of_choosing(self.pipeline)
        images = generate_images(
            self.pipeline,
            self.num_images,
            batch_size=self.batch_size,
            seed=self.seed,
            show_progress=True,
            each=self.asked,
            **options,
        )
        seconds = time.perf_counter() - began - seconds_of_choosing(self.pipeline)
        batches = bar(images.split(self.batch_size), "Features")
        found = extract(batches, self.features, self.classifier, self.labels)
        return {**compare_sets(found, self.real), **self._own_measures([images])}, seconds

    def baseline_measures(self) -> dict[str, float]:
        """What real images get where samples stand."""
        own = self._own_measures(self.baseline_images.batches())
        return {**baseline_measures(self.baseline, self.real), **own}

    def _own_measures(self, samples: Iterable[torch.Tensor]) -> dict[str, float]:
        return self.modality.measures(samples, self.real_images.batches())

    def report(self, guidance_scale: float) -> dict[str, Any]:
        """The measures of samples and of real images, with all that is needed to reproduce them."""
        measures, seconds = self.measures(guidance_scale)
        scale = {"guidance_scale": guidance_scale} if self.asked else {}
        dtype = str(self.pipeline.unet.dtype).removeprefix("torch.")  # known after sampling with --dtype auto
        return {
            **self.settings,
            "samples": {**self.settings["samples"], **scale, "dtype": dtype, "seconds": round(seconds, 2)},
            "measures": {"samples": measures, "real_images": self.baseline_measures()},
        }


def prepare(arguments: SamplingArguments) -> Bench:
    """Load pipeline, classifier and real images. Raises ValueError, in one sentence, for what does not fit together."""
    interval = arguments.interval()
    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype, arguments.trust_remote_code)
    pipeline.set_progress_bar_config(**progress_bar(leave=False))
    classifier = None if arguments.classifier is None else load_classifier(arguments.classifier, arguments.device)
    features = _feature_network(arguments, classifier)
    steps = choose_sampler(pipeline, arguments)
    names = {name: number for number, name in enumerate(classifier.label_names())} if classifier is not None else {}
    classes = chosen_classes(pipeline, arguments.class_labels, names)
    modality = modality_of_pipeline(pipeline)
    conditions = conditions_of(pipeline)
    columns = {name: value for c in conditions for name, value in c.column_arguments().items() if value is not None}
    data_options = {"caption_column": arguments.caption_column, **columns, **modality.data_options(pipeline)}
    real, baseline = real_and_baseline(arguments, arguments.num_images, data_options, classes)
    if classifier is not None:
        check_classifier(classifier, pipeline, real.data)
    indices = cycled(real.indices, arguments.num_images)
    asked = asked_of(conditions, real.data, indices.tolist(), arguments.seed)
    if interval and not asked:
        raise ValueError("guidance_interval has no effect without a condition of the model.")
    real_set, baseline_set = (
        extract(bar(s.batches(), "Features of real images", s.number_of_batches()), features, classifier, s.labels)
        for s in (real, baseline)
    )
    return Bench(
        pipeline,
        classifier,
        features,
        real_set,
        baseline_set,
        real.data.labels[indices] if asked and real.data.labels is not None else None,
        asked,
        arguments.num_images,
        arguments.batch_size,
        arguments.seed,
        {"num_inference_steps": steps, **interval},
        {
            "noun": modality.noun,
            **_settings(arguments, pipeline, steps, classes, classifier, real, baseline),
            "features": {
                "name": getattr(features, "name", "the classifier's"),
                "dimensions": real_set.features.shape[1],
            },
        },
        modality,
        real,
        baseline,
    )


def _feature_network(arguments: SamplingArguments, classifier: torch.nn.Module | None) -> torch.nn.Module:
    """The named network, or else the classifier. Raises ValueError where there is neither."""
    if arguments.features is not None:
        return load_feature_network(arguments.features, best_device(arguments.device))
    if classifier is None:
        raise ValueError("classifier or features must name a network whose features are compared, got neither.")
    return classifier


def choose_sampler(pipeline: Any, arguments: SamplingArguments) -> int:
    """Put the named sampler into the pipeline; the number of steps to take."""
    if arguments.sampler is None:
        arguments.check_sampler(arguments.model)
    if arguments.sampler is None:
        return arguments.num_inference_steps or default_steps(pipeline.scheduler, 25)
    choice = SamplerChoice.parse(arguments.sampler)
    check_options(choice.name, arguments.sampler_options())
    pipeline.scheduler = choice.build(pipeline.scheduler.config, **arguments.sampler_options())
    return choice.length or arguments.num_inference_steps or default_steps(pipeline.scheduler, 25)


def asked_of(conditions: Sequence[Condition], data: Any, indices: list[int], seed: int) -> dict[str, Any]:
    """Arguments of a pipeline's call for samples with the conditions of these real ones. Raises what `adopt` raises."""
    asked: dict[str, Any] = {}
    for condition in conditions:
        if condition.name != "class":  # chosen by number, and checked with the classifier's names
            condition.adopt(data)
        asked |= condition.of_samples(data, indices, generator_of(seed, f"{condition.name} condition"))
    return asked


def cycled(numbers: torch.Tensor, number: int) -> torch.Tensor:
    """The numbers over and over, (number,)."""
    return numbers.repeat(-(-number // len(numbers)))[:number]


def _settings(
    arguments: SamplingArguments,
    pipeline: Any,
    steps: int,
    classes: Sequence[int] | None,
    classifier: ImageClassifier | None,
    real: RealImages,
    baseline: RealImages,
) -> dict[str, Any]:
    data = arguments.train_data_dir or arguments.dataset_name or "embedded"
    return {
        "versions": versions(),
        "samples": {
            "model": arguments.model,
            "weights": weights_of(arguments.model),
            "num_images": arguments.num_images,
            "class_labels": classes,
            "sampler": arguments.sampler or "the pipeline's own",
            "scheduler": type(pipeline.scheduler).__name__,
            "subsequence": pipeline.scheduler.config.get("subsequence"),
            "sampler_options": arguments.sampler_options(),
            "num_inference_steps": steps,
            **arguments.interval(),
            "seed": arguments.seed,
            "batch_size": arguments.batch_size,
        },
        "real_images": {"data": data, "split": real.split, "num_images": len(real)},
        "baseline": {"data": data, "split": baseline.split, "num_images": len(baseline)},
        "classifier": None
        if classifier is None
        else {"folder": arguments.classifier, "description": classifier.description()},
    }


def print_report(report: dict[str, Any]) -> None:
    """The measures as a table, between what they were taken of and what they were taken with."""
    samples, real, baseline, noun = report["samples"], report["real_images"], report["baseline"], report["noun"]
    print(
        f"{samples['num_images']:,} samples of {samples['model']} (weights: {samples['weights']}), "
        f"{sampler_of(samples)}, {samples['num_inference_steps']} steps{guidance_of(samples)}, seed {samples['seed']}, "
        f"in {samples['seconds']:.1f} s"
    )
    print(f"against {real['num_images']:,} real {noun} ({real['split']})")
    print(f"real-data baseline: {baseline['num_images']:,} real {noun} ({baseline['split']}) against the same")
    if baseline["split"] != real["split"]:
        print(
            f"The real-data baseline is of another split, for {real['split']} has too few such {noun} for two sets. "
            "Features that were learned on one of the splits can tell the two apart."
        )
    if report["classifier"] is not None:
        print(f"classifier: {report['classifier']['description']}")
    print(f"features: {report['features']['name']}")
    if min(samples["num_images"], real["num_images"]) <= report["features"]["dimensions"]:
        print(
            f"There are no more {noun} than the features have dimensions, {report['features']['dimensions']:,}. The "
            f"Frechet distance then depends mostly on their number: compare it only with that of the real {noun}."
        )
    print(f"{'':24} {'samples':>10} {'real':>10}")
    columns = report["measures"]["samples"], report["measures"]["real_images"]
    for name, percent in MEASURES.items():
        if any(name in column for column in columns):
            print(f"{name:24} " + " ".join(f"{_shown(column.get(name), percent):>10}" for column in columns))


def _shown(value: float | None, percent: bool) -> str:
    return "-" if value is None else f"{100 * value:.2f} %" if percent else f"{value:.4f}"
