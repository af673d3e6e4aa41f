"""`diffusers-ext compare`: samplers side by side, on a perfect network, on images, or class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..conditions.class_label import chosen_classes
from ..evaluation.class_comparison import ClassRun, compare_classes, draw_classes
from ..evaluation.classifier import ImageClassifier
from ..evaluation.comparison import Run, draw, exact_flow, mixture_pipeline, write_csv
from ..evaluation.comparison import compare as compare_lengths
from ..evaluation.features import FeatureSet, extract
from ..evaluation.metrics import frechet_distance
from ..evaluation.models_alike import draw_models
from ..modalities import modality_of_pipeline
from ..pipelines.batched_generation import starting_noise
from ..schedulers.registry import SamplerChoice, check_options, samplers_with
from ..schedulers.scheduling_subsequence import SUBSEQUENCES
from ..settings import option
from ..training.checkpoint import list_checkpoints
from .real_images import RealDataArguments, check_classifier, real_and_baseline
from .sampler_options import SamplerOptions
from .shared import DTYPE_CHOICES, DTYPE_HELP, ModelCode, load_checkpoint, load_classifier, load_pipeline, progress_bar


@dataclass
class CompareArguments(SamplerOptions, RealDataArguments, ModelCode):
    """Samplers x lengths, or samplers x guidance scales x classes, from one starting noise: a picture and a table."""

    model: str = option(text="Folder or Hub name of a pipeline, or a recipe; or `mixture`: a perfect network.")
    checkpoints: bool = option(
        False, "Compare the checkpoints of the run in `model` instead: a row of samples each, from one starting noise."
    )
    samplers: list[str] = option(
        ["ddim", "dpmsolver++", "ddpm"],
        "NAME, NAME:LENGTH or NAME:LENGTHxK, with K network calls at each step (langevin, predictor-corrector, ...).",
    )
    lengths: list[int] = option(
        [10, 20, 50, 100], "Numbers of steps, where NAME has no LENGTH.", at_least=1, at_most=100_000
    )
    subsequences: list[str] = option(
        ["uniform", "exp"], "For DDIM; class by class it is uniform.", choices=SUBSEQUENCES
    )
    class_labels: list[str] | None = option(
        None, "all, or numbers or names, for a network with classes; all if not given."
    )
    guidance_scales: list[float] = option([1.0], "0 unconditional, 1 conditional, above 1 more so.", at_least=0)
    classifier: str | None = option(None, "Folder of a classifier (`diffusers-ext classifier train`).")
    num_images: int = option(4, "Images a cell; a cell of a class shows up to four.", at_least=1, at_most=10_000_000)
    batch_size: int = option(100, "Images at a time, class by class.", at_least=1, at_most=10_000_000)
    seed: int = option(0, "Seed of the starting noise.", at_least=0)
    output_dir: str = option("comparison", "Where comparison.png and comparison.csv go.", writes="folder")
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPE_CHOICES)


def compare(arguments: CompareArguments) -> None:
    """Write `comparison.png` and `comparison.csv`, and print the table."""
    if arguments.checkpoints:
        _by_checkpoint(arguments)
        return
    choices = _choices(arguments.samplers, arguments.sampler_options())
    perfect = arguments.model == "mixture"
    place = (arguments.model, arguments.device, arguments.dtype, arguments.trust_remote_code)
    pipeline = mixture_pipeline() if perfect else load_pipeline(*place)
    pipeline.set_progress_bar_config(**progress_bar(leave=False))
    classifier = None if arguments.classifier is None else load_classifier(arguments.classifier, arguments.device)
    if classifier is not None:
        check_classifier(classifier, pipeline)
    names = {name: number for number, name in enumerate(classifier.label_names())} if classifier is not None else {}
    classes = chosen_classes(pipeline, arguments.class_labels, names)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    number = arguments.num_images if classes is None else arguments.num_images * len(classes)
    real, baseline = _real_features(arguments, pipeline, classifier, classes, number)
    latents = starting_noise(pipeline, number, torch.Generator().manual_seed(arguments.seed))
    runs: Sequence[Run] | Sequence[ClassRun]
    if classes is None:
        runs = _by_length(arguments, pipeline, choices, latents, classifier, real, perfect)
    else:
        runs = _by_class(arguments, pipeline, choices, latents, classes, classifier, real)
    write_csv([asdict(run) for run in runs], folder / "comparison.csv")
    _print_real(classifier, real, baseline)
    print(f"Picture and table in {folder}")


def _by_checkpoint(arguments: CompareArguments) -> None:
    """Write `checkpoints.png`: a row for each checkpoint of a run, and one for what it saved at its end."""
    folder = Path(arguments.model)
    found = list_checkpoints(folder)
    if not found:
        raise ValueError(f"'{folder}' holds no checkpoint-N folder of a run.")
    models: dict[str, Any] = {
        f"step {path.name.split('-')[1]}": partial(load_checkpoint, str(path), arguments.device, arguments.dtype)
        for path in found
    }
    if (folder / "model_index.json").is_file():
        place = (str(folder), arguments.device, arguments.dtype, arguments.trust_remote_code)
        models["saved"] = partial(load_pipeline, *place)
    target = Path(arguments.output_dir) / "checkpoints.png"
    draw_models(
        models,
        target,
        "Checkpoints of a run, from the same starting noise",
        "checkpoint",
        number=max(arguments.num_images, 8),
        num_inference_steps=arguments.lengths[-1],
        seed=arguments.seed,
        guidance_scale=arguments.guidance_scales[0],
    )
    print(f"{len(models)} rows in {target}")


def _choices(samplers: Sequence[str], options: Mapping[str, Any]) -> list[SamplerChoice]:
    """The samplers, each with those of the options that it takes.

    Raises:
        ValueError: for an unknown name, an option that none of them takes, or a value out of its range.
    """
    choices = [SamplerChoice.parse(text).with_options(options) for text in samplers]
    taken = {key for choice in choices for key, _ in choice.options}
    for key in options:
        if key not in taken:
            raise ValueError(f"{key} has no effect on these samplers; it belongs to {', '.join(samplers_with(key))}.")
    for choice in choices:
        check_options(choice.name, dict(choice.options))
    return choices


def _by_length(
    arguments: CompareArguments,
    pipeline: Any,
    choices: Sequence[SamplerChoice],
    latents: torch.Tensor,
    classifier: ImageClassifier | None,
    real: FeatureSet | None,
    perfect: bool,
) -> list[Run]:
    reference = exact_flow(pipeline, latents.double()) if perfect else None
    runs, samples = compare_lengths(
        pipeline, latents, choices, arguments.lengths, arguments.subsequences, reference, arguments.seed
    )
    if classifier is not None and real is not None:
        for run, images in zip(runs, samples):
            found = extract([images.float().clamp(-1, 1)], classifier)
            run.frechet_distance = frechet_distance(found.features, real.features)
    draw(runs, samples, Path(arguments.output_dir) / "comparison.png", reference)
    steps = pipeline.scheduler.config.num_train_timesteps
    against = "the exact flow" if perfect else f"the network's own {steps}-step flow"
    for run in runs:
        name = f"{run.sampler} {run.subsequence}".strip()
        print(
            f"{name:24} {run.length:5} steps {run.evaluations:5} network calls {run.seconds:8.2f} s "
            f"rms {run.rms_error:.4f} from {against}{_frechet(run)}"
        )
    return runs


def _by_class(
    arguments: CompareArguments,
    pipeline: Any,
    choices: Sequence[SamplerChoice],
    latents: torch.Tensor,
    classes: Sequence[int],
    classifier: ImageClassifier | None,
    real: FeatureSet | None,
) -> list[ClassRun]:
    lengths, scales, count = arguments.lengths, arguments.guidance_scales, arguments.num_images
    labels = torch.tensor(classes).repeat_interleave(count)
    runs, samples = compare_classes(
        pipeline, latents, labels, choices, lengths, scales, classifier, real, arguments.batch_size, arguments.seed
    )
    of_classifier = dict(enumerate(classifier.label_names() if classifier is not None else []))
    known = {**of_classifier, **{int(number): name for number, name in (pipeline.config.id2label or {}).items()}}
    names = [known.get(number, str(number)) for number in classes]
    title = f"The same starting noise through every sampler, {count} image{'s' * (count > 1)} a class"
    draw_classes(runs, samples, names, Path(arguments.output_dir) / "comparison.png", title)
    for run in runs:
        accuracy = "" if run.class_accuracy is None else f" class accuracy {100 * run.class_accuracy:6.2f} %"
        print(
            f"{run.sampler:20} guidance {run.guidance_scale:4g} {run.length:5} steps {run.evaluations:5} network calls "
            f"{run.seconds:8.2f} s{accuracy}{_frechet(run)}, {run.num_images} images"
        )
    return runs


def _frechet(run: Run | ClassRun) -> str:
    return "" if run.frechet_distance is None else f", Frechet {run.frechet_distance:.4f}"


def _real_features(
    arguments: CompareArguments,
    pipeline: Any,
    classifier: ImageClassifier | None,
    classes: Sequence[int] | None,
    number: int,
) -> tuple[FeatureSet | None, FeatureSet | None]:
    """The features of real images and of others for the baseline, when both a classifier and data were named."""
    if classifier is None or (arguments.dataset_name is None and arguments.train_data_dir is None):
        return None, None
    options = modality_of_pipeline(pipeline).data_options(pipeline)
    sets = real_and_baseline(arguments, number, options, classes, equal_counts=True)
    check_classifier(classifier, pipeline, sets[0].data)
    real, baseline = (extract(images.batches(), classifier, classifier, images.labels) for images in sets)
    return real, baseline


def _print_real(classifier: ImageClassifier | None, real: FeatureSet | None, baseline: FeatureSet | None) -> None:
    if classifier is None:
        return
    print(f"classifier: {classifier.description()}")
    if real is not None and baseline is not None:
        accuracy = real.accuracy()
        right = "" if accuracy is None else f", of which the classifier takes {100 * accuracy:.2f} % for their class"
        distance = frechet_distance(baseline.features, real.features)
        print(f"real images: Frechet {distance:.4f} between {len(baseline)} and {len(real)} of them{right}")
