"""Real images that samples are compared with: of some classes, in a fixed random order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data.images import ExampleData, load_image_data
from ..data.randomness import permutation
from ..evaluation.classifier import ImageClassifier, check_names
from ..evaluation.features import evenly_spread
from ..modalities import modality_of_pipeline
from ..pipelines.batched_generation import image_shape
from ..settings import CheckedSettings, option


@dataclass
class DataArguments(CheckedSettings):
    """Which data set of images; the base of commands that read one."""

    dataset_name: str | None = option(None, "Hub name, local folder, or `embedded`; embedded if nothing is given.")
    dataset_config_name: str | None = option(None, "Configuration of the data set.")
    train_data_dir: str | None = option(None, "Folder or archive of images or sounds, with a folder for each class.")
    image_column: str | None = option(None, "Column with the images.")
    signal_columns: list[str] = option([], "Column with the signals.")
    label_column: str | None = option(None, "Column with the classes.")
    cache_dir: str | None = option(None, "Where downloads are kept.")

    def load_split(self, split: str, resolution: int | None = None, **options: Any) -> ExampleData:
        """The images of a split, cropped in the centre to `resolution`, or in their own size for None.

        `options` are further ones of `load_image_data`; signals come from the columns that the settings name.
        """
        if "signals" in options:
            columns = tuple(self.signal_columns) or None
            options["signals"] = replace(options["signals"], columns=columns)
        return load_image_data(
            self.dataset_name,
            self.dataset_config_name,
            self.train_data_dir,
            split,
            image_column=self.image_column,
            label_column=self.label_column,
            cache_dir=self.cache_dir,
            resolution=resolution,
            center_crop=resolution is not None,
            **options,
        )


@dataclass
class RealDataArguments(DataArguments):
    """Which real images samples are compared with; the base of commands that evaluate."""

    split: str = option("test", "Split that samples are compared with.")
    baseline_split: str = option(
        "train", "Split for the real-data baseline where `split` has too few images for two sets."
    )


@dataclass
class RealImages:
    """Some images of a data set.

    Attributes:
        data: the data set.
        split: its split.
        indices: which of its images, (number,).
    """

    data: ExampleData
    split: str
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> torch.Tensor | None:
        """Their classes (number,), or None where the data have none."""
        return None if self.data.labels is None else self.data.labels[self.indices]

    def number_of_batches(self, batch_size: int = 256) -> int:
        """How many `batches` there are."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int = 256) -> Iterator[torch.Tensor]:
        """The images (batch, channels, height, width) in [-1, 1], or signals (batch, channels, length)."""
        for part in self.indices.split(batch_size):
            yield self.data.__getitems__(part.tolist())["samples"]


def real_and_baseline(
    arguments: RealDataArguments,
    number: int,
    options: Mapping[str, Any],
    classes: Sequence[int] | None,
    equal_counts: bool = False,
) -> tuple[RealImages, RealImages]:
    """Two disjoint sets of real images: up to `number` to compare with, and up to `number` to compare those with.

    `options` are those of the pipeline's modality, for real images that its samples can be compared with.

    Both come from `split` where that has enough images of the classes, else the second from `baseline_split`. The
    classes stand in their proportions, or with `equal_counts` as often as one another.

    Raises ValueError where there are no images of the classes, too few for two sets, or the data have no classes.
    """
    data = arguments.load_split(arguments.split, **options)
    indices = _of_classes(data, classes, arguments.split, equal_counts)
    real = RealImages(data, arguments.split, indices[:number])
    if len(indices) >= 2 * number:
        return real, RealImages(data, arguments.split, indices[number : 2 * number])
    if arguments.baseline_split.partition("[")[0] == arguments.split.partition("[")[0]:  # parts of one may overlap
        half = len(indices) // 2
        if half == 0:
            raise ValueError(
                f"{arguments.split} has one image for the samples and for the baseline, which need one each; "
                "name another baseline_split."
            )
        return RealImages(data, arguments.split, indices[:half]), RealImages(data, arguments.split, indices[half:])
    other = arguments.load_split(arguments.baseline_split, **options)
    rest = _of_classes(other, classes, arguments.baseline_split, equal_counts)[:number]
    return real, RealImages(other, arguments.baseline_split, rest)


def _of_classes(data: ExampleData, classes: Sequence[int] | None, split: str, equal_counts: bool) -> torch.Tensor:
    """Indices of the images of these classes, in a random order that is always the same.

    With classes, every part of the order holds them in fixed proportions: samples are asked for the classes of the real
    images they are compared with, and the real-data baseline would look too high if its classes came as they fall.
    """
    order = torch.from_numpy(permutation(0, 0, len(data)))
    if classes is None:
        return order
    if data.labels is None:
        raise ValueError(f"class_labels needs data with classes, and {data.description} has none.")
    order = order[torch.isin(data.labels[order], torch.tensor(classes))]
    if len(order) == 0:
        raise ValueError(f"{split} has no images of the classes {', '.join(map(str, classes))}.")
    return order[evenly_spread(data.labels[order], equal_counts)]


def check_classifier(classifier: ImageClassifier, pipeline: Any, data: ExampleData | None = None) -> None:
    """Raises ValueError where classifier, pipeline and data do not speak of the same classes or channels."""
    channels, _, _ = image_shape(pipeline)
    noun = modality_of_pipeline(pipeline).noun
    if classifier.noun != noun:
        raise ValueError(f"The classifier is of {classifier.noun}, and the pipeline makes {noun}.")
    if classifier.config.in_channels != channels:
        raise ValueError(
            f"The classifier takes {classifier.config.in_channels} channels, and the pipeline makes {channels}."
        )
    own = classifier.config.id2label
    check_names(own, getattr(pipeline.config, "id2label", None) or {}, "the pipeline")
    if data is not None and data.label_names is not None:
        check_names(own, data.label_names, "the data")
