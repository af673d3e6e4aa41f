"""`diffusers-ext classifier train`: train a classifier that measures samples of a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.images import ExampleData
from ..data.schedule import BatchSchedule
from ..data.signals import SignalData, SignalOptions
from ..data.sounds import MAX_RATE
from ..evaluation.classifier import ImageClassifier
from ..evaluation.classifier_training import RandomAffine, accuracy, fit
from ..evaluation.signal_classifier import RandomShift, SignalClassifier
from ..settings import option
from .real_images import DataArguments
from .shared import best_device


@dataclass
class ClassifierTrainArguments(DataArguments):
    """Train a classifier: a small classifier of a data set's classes, for measuring samples."""

    train_split: str = option("train", "Split to train on.")
    test_split: str = option("test", "Split to test on; never trained on.")
    modality: str | None = option(
        None, "What the data are: image or signal; found out from files and columns.", choices=("image", "signal")
    )
    length: int | None = option(
        None, "Frames that signals are cropped or padded to; their own length if not given.", at_least=16, at_most=2**24
    )
    sample_rate: int | None = option(
        None,
        "Frames per second that recordings are resampled to; that of the first one if not given.",
        at_least=1,
        at_most=MAX_RATE,
    )
    resolution: int | None = option(None, "Side of the images; their own if not given.", at_least=1, at_most=16_384)
    random_flip: bool = option(False, "Mirror every other training image; not for digits.")
    block_channels: list[int] = option([32, 64, 128], "Channels a level.", at_least=1, at_most=16_384)
    blocks_per_level: int = option(1, "Residual blocks a level.", at_least=1, at_most=1024)
    dropout: float = option(0.0, "Share of features dropped in training.", at_least=0, below=1)
    train_batch_size: int = option(128, "Images a step.", at_least=1, at_most=10_000_000)
    num_epochs: int = option(12, "Passes over the training split.", at_least=1)
    max_train_seconds: float = option(
        150.0, "End earlier, after this time; the result then depends on the machine's speed.", above=0
    )
    learning_rate: float = option(0.005, "Highest learning rate.", above=0)
    weight_decay: float = option(0.05, "Of AdamW.", at_least=0)
    label_smoothing: float = option(0.1, "Share of every target given to all classes.", at_least=0, below=1)
    shift: float = option(0.08, "Largest random shift, as a share of the side or length.", at_least=0)
    rotation: float = option(8.0, "Largest random rotation of images, in degrees.", at_least=0)
    zoom: float = option(0.1, "Largest random change of scale of images, as a share.", at_least=0, below=1)
    noise: float = option(-20.0, "Loudest noise added to signals, in decibels relative to them; not for images.")
    mixed_precision: str = option("auto", "auto, no or bf16.", choices=("auto", "no", "bf16"))
    seed: int = option(0, "Seed of weights, order and augmentation.", at_least=0)
    output_dir: str = option("classifier", "Where the classifier goes.", writes="folder")
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")


def classifier_train(arguments: ClassifierTrainArguments) -> None:
    """Train on the training split, test on the test split, save the classifier with its accuracy."""
    train = _labelled_images(arguments, arguments.train_split, random_flip=arguments.random_flip)
    test = _labelled_images(arguments, arguments.test_split, channels=train.channels, like=train)
    names = [data.label_names or [] for data in (train, test)]
    if not set(names[1]) <= set(names[0]):
        unknown = sorted(set(names[1]) - set(names[0]))
        raise ValueError(f"{arguments.test_split} has classes that {arguments.train_split} has not: {unknown}.")
    classifier = new_classifier(train, arguments)
    print(train.description, flush=True)
    began = time.monotonic()
    steps = train_classifier(classifier, train, arguments)
    seconds = time.monotonic() - began
    speed = steps * arguments.train_batch_size / seconds
    print(f"{steps} steps in {seconds:.0f} s, {speed:,.0f} {classifier.noun}/s; testing on {len(test):,}", flush=True)
    numbers = torch.tensor([names[0].index(name) for name in names[1]])
    share, count = accuracy(classifier, ((images, numbers[labels]) for images, labels in in_order(test)))
    classifier.register_to_config(test_split=arguments.test_split, num_test_images=count, test_accuracy=share)
    classifier.save_pretrained(arguments.output_dir)
    print(f"{classifier.description()}; {classifier.num_parameters():,} parameters in {arguments.output_dir}")


def _labelled_images(
    arguments: ClassifierTrainArguments, split: str, like: ExampleData | None = None, **options: Any
) -> ExampleData:
    signals = SignalOptions(
        length=arguments.length,
        sample_rate=arguments.sample_rate,
        normalization="none",
        center_crop=like is not None,
        seed=arguments.seed,
    )
    options["signals"] = signals.like(like) if isinstance(like, SignalData) else signals
    options["modality"] = arguments.modality
    data = arguments.load_split(split, arguments.resolution, seed=arguments.seed, **options)
    if data.labels is None:
        raise ValueError(f"A classifier needs labels, and {data.description} has none.")
    return data


def in_order(data: ExampleData, batch_size: int = 256) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All images once, (images, labels) a batch."""
    for start in range(0, len(data), batch_size):
        batch = data.__getitems__(range(start, min(start + batch_size, len(data))))
        yield batch["samples"], batch["labels"]


def new_classifier(train: ExampleData, arguments: ClassifierTrainArguments) -> ImageClassifier:
    """An untrained classifier for the data, on its device; the seed decides its weights."""
    names = train.label_names or []
    torch.manual_seed(arguments.seed)
    kind = SignalClassifier if len(train.size) == 1 else ImageClassifier
    classifier = kind(
        in_channels=train.channels,
        num_classes=len(names),
        block_channels=arguments.block_channels,
        blocks_per_level=arguments.blocks_per_level,
        dropout=arguments.dropout,
        sample_size=train.size[0] if len(set(train.size)) == 1 else train.size,
        id2label={str(number): name for number, name in enumerate(names)},
        dataset=_data_name(arguments),
        train_split=arguments.train_split,
        num_train_images=len(train),
    )
    return classifier.to(best_device(arguments.device))


def _data_name(arguments: ClassifierTrainArguments) -> str:
    """The data set's name; of a local folder or archive its last part, since the rest means nothing elsewhere."""
    name = arguments.train_data_dir or arguments.dataset_name or "embedded"
    return Path(name).resolve().name if Path(name).exists() else name


def train_classifier(classifier: ImageClassifier, train: ExampleData, arguments: ClassifierTrainArguments) -> int:
    """Fit the classifier to the training data; the number of steps taken."""
    augmentation: Any = RandomAffine(arguments.shift, arguments.rotation, arguments.zoom)
    if classifier.dims == 1:
        augmentation = RandomShift(arguments.shift, arguments.noise)
    schedule = BatchSchedule(len(train), arguments.train_batch_size, seed=arguments.seed)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for keys in schedule:
            batch = train.__getitems__(keys)
            yield batch["samples"], batch["labels"]

    return fit(
        classifier,
        batches(),
        arguments.num_epochs * schedule.batches_per_epoch,
        arguments.max_train_seconds,
        arguments.learning_rate,
        arguments.weight_decay,
        arguments.label_smoothing,
        augmentation,
        _autocast_dtype(arguments.mixed_precision),
        arguments.seed,
        lambda step, loss, left: print(f"step {step}: loss {loss:.4f}, {left:.0f} s left", flush=True),
    )


def _autocast_dtype(mixed_precision: str) -> torch.dtype:
    from ..training.precision import resolve_mixed_precision

    # A GPU without bfloat16 would get float16, whose gradients need scaling; the network is small enough for float32.
    return torch.bfloat16 if resolve_mixed_precision(mixed_precision) == "bf16" else torch.float32
