"""The Inception network of the Frechet Inception Distance, whose weights come from a file of the user's.

Szegedy et al. 2016 (arXiv:1512.00567) in the release of 2015-12-05, as TensorFlow 1 computes it: a mean over neighbours
does not count the border, and images are resized without regard to pixel centres. Modules are named as in the files
`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid and `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008


class Conv(NamedTuple):
    """Output channels, sides of the kernel, stride; without stride the sides of the images stay."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Step = Conv | tuple[Conv, Conv]  # two are applied side by side


class ConvNormReLU(nn.Module):
    """relu(norm(conv(x)))."""

    def __init__(self, in_channels: int, settings: Conv, padding: tuple[int, int] | None = None):
        super().__init__()
        channels, (height, width), stride = settings
        if padding is None:
            padding = (height // 2, width // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(in_channels, channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches of convolutions side by side, and a pooled one; their channels one after the other.

    Args:
        in_channels: of the input.
        branches: name -> steps; the modules are `name`, or `name_1`, `name_2a`, `name_2b`, ... where there are several.
        pool: `mean` or `max` over 3x3 neighbours.
        pool_channels: of a convolution after it; without one it has stride 2, as the branches have.
    """

    def __init__(self, in_channels: int, branches: Mapping[str, Sequence[Step]], pool: str, pool_channels: int = 0):
        super().__init__()
        self.pool, self.stride = pool, 1 if pool_channels else 2
        self.branches = [self._add(in_channels, name, steps) for name, steps in branches.items()]
        self.pooled = self._add(in_channels, "branch_pool", [Conv(pool_channels)] if pool_channels else [])

    def _add(self, in_channels: int, branch: str, steps: Sequence[Step]) -> list[list[str]]:
        """Make the modules of a branch; their names, a list a step."""
        names = []
        for number, step in enumerate(steps, start=1):
            settings = [step] if isinstance(step, Conv) else list(step)
            name = branch if len(steps) == 1 else f"{branch}_{number}"
            names.append([name] if len(settings) == 1 else [f"{name}{letter}" for letter in "ab"])
            for part, setting in zip(names[-1], settings):
                self.add_module(part, ConvNormReLU(in_channels, setting))
            in_channels = sum(setting.channels for setting in settings)
        return names

    def _run(self, x: torch.Tensor, names: list[list[str]]) -> torch.Tensor:
        for step in names:
            x = torch.cat([self.get_submodule(name)(x) for name in step], dim=1)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool == "mean":
            pooled = F.avg_pool2d(x, 3, self.stride, padding=1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, self.stride, padding=1 if self.stride == 1 else 0)
        return torch.cat([*(self._run(x, names) for names in self.branches), self._run(pooled, self.pooled)], dim=1)


ROW, COLUMN, SQUARE = (1, 7), (7, 1), (3, 3)


def _block_a(in_channels: int, pool_channels: int) -> Mixed:
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [Conv(64)],
        "branch5x5": [Conv(48), Conv(64, (5, 5))],
        "branch3x3dbl": [Conv(64), Conv(96, SQUARE), Conv(96, SQUARE)],
    }
    return Mixed(in_channels, branches, "mean", pool_channels)


def _block_b(in_channels: int) -> Mixed:
    branches: dict[str, Sequence[Step]] = {
        "branch3x3": [Conv(384, SQUARE, 2)],
        "branch3x3dbl": [Conv(64), Conv(96, SQUARE), Conv(96, SQUARE, 2)],
    }
    return Mixed(in_channels, branches, "max")


def _block_c(in_channels: int, c: int) -> Mixed:
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [Conv(192)],
        "branch7x7": [Conv(c), Conv(c, ROW), Conv(192, COLUMN)],
        "branch7x7dbl": [Conv(c), Conv(c, COLUMN), Conv(c, ROW), Conv(c, COLUMN), Conv(192, ROW)],
    }
    return Mixed(in_channels, branches, "mean", 192)


def _block_d(in_channels: int) -> Mixed:
    branches: dict[str, Sequence[Step]] = {
        "branch3x3": [Conv(192), Conv(320, SQUARE, 2)],
        "branch7x7x3": [Conv(192), Conv(192, ROW), Conv(192, COLUMN), Conv(192, SQUARE, 2)],
    }
    return Mixed(in_channels, branches, "max")


def _block_e(in_channels: int, pool: str) -> Mixed:
    both = Conv(384, (1, 3)), Conv(384, (3, 1))
    branches: dict[str, Sequence[Step]] = {
        "branch1x1": [Conv(320)],
        "branch3x3": [Conv(384), both],
        "branch3x3dbl": [Conv(448), Conv(384, SQUARE), both],
    }
    return Mixed(in_channels, branches, pool, 192)


class Inception(nn.Module):
    """Inception-v3 up to its mean over places: images -> 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, Conv(32, SQUARE, 2))
        self.Conv2d_2a_3x3 = ConvNormReLU(32, Conv(32, SQUARE), padding=(0, 0))
        self.Conv2d_2b_3x3 = ConvNormReLU(32, Conv(64, SQUARE))
        self.Conv2d_3b_1x1 = ConvNormReLU(64, Conv(80))
        self.Conv2d_4a_3x3 = ConvNormReLU(80, Conv(192, SQUARE), padding=(0, 0))
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "mean")
        self.Mixed_7c = _block_e(2048, "max")  # so in the release

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (batch, 2048) of pixels (batch, 3, height, width) between 0 and 255."""
        x = (resize_as_tensorflow_1(pixels.to(self.Conv2d_1a_3x3.conv.weight), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))

    @classmethod
    def from_weights(cls, weights: Mapping[str, torch.Tensor]) -> Inception:
        """The network of a state dict, whose classes, `fc`, are not needed.

        Raises:
            ValueError: for weights of another network, one trained on ImageNet's 1,000 classes among them.
        """
        network = cls()
        classes = weights["fc.weight"].shape[0] if "fc.weight" in weights else NUM_CLASSES
        if classes != NUM_CLASSES:
            raise ValueError(f"These are weights for {classes:,} classes, and FID's Inception has {NUM_CLASSES:,}.")
        own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
        given = {k: v for k, v in weights.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
        for name in sorted(own.keys() ^ given.keys()):
            where = "missing" if name in own else "unknown"
            raise ValueError(f"These are not the weights of FID's Inception: {name} is {where}.")
        for name, value in given.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"These are not the weights of FID's Inception: {name} has shape {tuple(value.shape)} instead of "
                    f"{tuple(own[name].shape)}."
                )
        network.load_state_dict(given, strict=False)
        return network.eval()


def resize_as_tensorflow_1(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (batch, channels, height, width) at `side` x `side`, linearly between neighbours, as TensorFlow 1 does it.

    Pixel i of n comes from place i * height / side, whose neighbours are not averaged over when images become smaller:
    tf.image.resize_bilinear of TensorFlow 1 with align_corners=False.
    """
    for dimension in (3, 2):
        places = torch.arange(side, dtype=torch.float32, device=images.device) * (images.shape[dimension] / side)
        low = places.long()
        high = (low + 1).clamp(max=images.shape[dimension] - 1)
        share = (places - low).to(images.dtype).reshape((-1,) if dimension == 3 else (-1, 1))
        below = images.index_select(dimension, low)
        images = below + (images.index_select(dimension, high) - below) * share
    return images
