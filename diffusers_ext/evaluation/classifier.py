"""ImageClassifier: the classifier of a data set, a small network that says which class an image shows.

It is trained on the training split of real images and measures samples: whether a sample shows the class that was asked
for, and how far the features of samples are from those of real images. It is never used to sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class PreactivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), halving the sides when `stride` is 2 (He et al. 2016,
    arXiv:1603.05027, figure 4e)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(hidden)
        return residual + self.conv2(F.relu(self.norm2(self.conv1(hidden))))


class ImageClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A residual network for images in [-1, 1] of any size; its config says what trained it and how well it does.

    A convolution of stride 2, then a level of residual blocks for every entry of `block_channels`, each at half the
    sides of the one before, then the mean over places (the features), dropout and a linear layer (the logits).

    Args:
        in_channels: of the images, 1 or 3.
        num_classes: at least 2.
        block_channels: of the levels; the last is the number of features.
        blocks_per_level: residual blocks a level.
        dropout: share of features dropped in training.
        sample_size: side of the training images, or (height, width); for information only, any size is taken.
        id2label: names of the classes, class number as a string -> name; the numbers themselves when None.
        dataset: what it was trained on.
        train_split, num_train_images: of the training images.
        test_split, num_test_images: of the images that it was tested on.
        test_accuracy: share of the test images that it names right, in [0, 1].

    Raises:
        ValueError: for numbers that make no classifier.
    """

    # diffusers types its configuration as a bare dict, and torch's modules may be tensors
    config: Any
    classifier: Any

    dims, noun = 2, "images"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        block_channels: Sequence[int] = (32, 64, 128),
        blocks_per_level: int = 1,
        dropout: float = 0.0,
        sample_size: int | Sequence[int] | None = None,
        id2label: dict[str, str] | None = None,
        dataset: str | None = None,
        train_split: str | None = None,
        num_train_images: int | None = None,
        test_split: str | None = None,
        num_test_images: int | None = None,
        test_accuracy: float | None = None,
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        if not block_channels or blocks_per_level < 1:
            raise ValueError(
                f"block_channels and blocks_per_level must give at least one block, got {block_channels} and "
                f"{blocks_per_level}."
            )
        self.conv_in = nn.Conv2d(in_channels, block_channels[0], 5, stride=2, padding=2, bias=False)
        blocks: list[nn.Module] = []
        previous = block_channels[0]
        for level, channels in enumerate(block_channels):
            for number in range(blocks_per_level):
                blocks.append(PreactivationBlock(previous, channels, 2 if level > 0 and number == 0 else 1))
                previous = channels
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.BatchNorm2d(previous)
        self.classifier = nn.Linear(previous, num_classes)

    @property
    def num_features(self) -> int:
        """Number of features of an image."""
        return self.classifier.in_features

    def features(self, sample: torch.Tensor) -> torch.Tensor:
        """Penultimate features (batch, num_features) of images (batch, channels, height, width) in [-1, 1].

        Raises ValueError for another shape.
        """
        channels = self.config.in_channels
        if sample.ndim != 2 + self.dims or sample.shape[1] != channels:
            sizes = "height, width" if self.dims == 2 else "length"
            raise ValueError(f"sample must have shape (batch, {channels}, {sizes}), got {tuple(sample.shape)}.")
        hidden = self.conv_in(self.as_images(sample))
        for block in self.blocks:
            hidden = block(hidden)
        return F.relu(self.norm_out(hidden)).mean(dim=(2, 3))

    def as_images(self, sample: torch.Tensor) -> torch.Tensor:
        """The sample as the first convolution takes it, (batch, in_channels, height, width)."""
        return sample

    def logits_of_features(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_classes) of `features(sample)`, so that both cost one forward pass."""
        return self.classifier(F.dropout(features, self.config.dropout, self.training))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_classes) of images (batch, channels, height, width) in [-1, 1]."""
        return self.logits_of_features(self.features(sample))

    def label_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        names = self.config.id2label or {}
        return [names.get(str(number), str(number)) for number in range(self.config.num_classes)]

    def description(self) -> str:
        """One line: what it was trained on, and how well it does on real test images."""
        config = self.config
        if config.test_accuracy is None:
            return f"classifier of {config.num_classes} classes, its accuracy not measured"
        return (
            f"classifier of {config.num_classes} classes, trained on {config.num_train_images:,} {self.noun} of "
            f"{config.dataset} ({config.train_split}), {100 * config.test_accuracy:.2f} % right on "
            f"{config.num_test_images:,} ({config.test_split})"
        )


def check_names(first: dict[str, str] | None, second: Any, what: str) -> None:
    """Raises ValueError where two lists of class names contradict each other: numbers would mean different things."""
    names = dict(enumerate(second)) if isinstance(second, (list, tuple)) else {int(k): v for k, v in second.items()}
    wrong = [k for k, v in (first or {}).items() if names.get(int(k), v) != v]
    if wrong:
        number = wrong[0]
        raise ValueError(
            f"Class {number} is '{(first or {})[number]}' for the classifier and '{names[int(number)]}' for {what}."
        )
