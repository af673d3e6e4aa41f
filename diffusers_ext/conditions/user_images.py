"""Images as a user gives them: PIL images, arrays, tensors or lists of these, as tensors of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

Size = tuple[int, ...]  # (height, width) of images, (length,) of signals

_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_tensor(argument: str, image: Any, channels: tuple[int, ...], size: Size) -> torch.Tensor:
    """Images as a user gives them, as a float tensor (n, c, height, width) in [0, 1] with c among `channels`.

    Args:
        argument: what a message calls them.
        image: a PIL image of any mode; an array (height, width[, c]) or (n, height, width, c); a tensor
            (c, height, width) or (n, c, height, width); or a list of these. Whole numbers count 0 to 255, others lie
            in [0, 1].
        channels: numbers of channels that will do.
        size: (height, width) that the images must have.

    Raises:
        ValueError: in one sentence, for anything else.
    """
    parts = [_one_image(argument, part, channels) for part in _listed(argument, image)]
    for part in parts:
        if tuple(part.shape[2:]) != tuple(size):
            raise ValueError(
                f"{argument} is {size_text(part.shape[2:])} pixels (height x width); it must be {size_text(size)}."
            )
        if part.shape[1] not in channels or part.shape[1] != parts[0].shape[1]:
            takes = " or ".join(map(str, channels))
            raise ValueError(f"{argument} has {part.shape[1]} channels; it must have {takes}, all images alike.")
    return torch.cat([part.to(parts[0].device) for part in parts])


def mask_tensor(argument: str, mask: Any, size: Size) -> torch.Tensor:
    """Masks as a user gives them, as (n, 1, height, width) of 1 from the middle grey up and 0 below.

    Takes what `image_tensor` takes, and arrays and tensors without the axis of channels.
    """
    return (image_tensor(argument, [_with_channel(m) for m in _listed(argument, mask)], (1,), size) >= 0.5).float()


def _listed(argument: str, images: Any) -> list[Any]:
    entries = list(images) if isinstance(images, list | tuple) else [images]
    if not entries:
        raise ValueError(f"{argument} is an empty list.")
    return entries


def _with_channel(mask: Any) -> Any:
    """A mask of shape ([n,] height, width) with its one channel; integers 0 and 1 mean what they say."""
    if not isinstance(mask, np.ndarray | torch.Tensor):
        return mask
    if mask.max() <= 1:
        mask = mask * 1.0
    if isinstance(mask, np.ndarray):
        return mask if mask.ndim == 4 or mask.shape[-1:] == (1,) else mask[..., None]
    return mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask


def _one_image(argument: str, image: Any, channels: tuple[int, ...]) -> torch.Tensor:
    """One entry of a list as a float tensor (n, c, height, width) in [0, 1]."""
    if isinstance(image, Image.Image):
        image = np.array(image.convert(_pil_mode(argument, image, channels)))
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        image = torch.from_numpy(np.array(image)).movedim(-1, image.ndim - 3)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"{argument} must be a PIL image, an array, a tensor or a list of them, got {image!r:.60}.")
    if image.ndim not in (3, 4):
        raise ValueError(f"{argument} has shape {tuple(image.shape)}; a tensor takes ([n,] channels, height, width).")
    image = image if image.ndim == 4 else image[None]
    if image.dtype == torch.bool:
        return image.float()
    values = image.float() if image.is_floating_point() else image / 255
    low, high = values.aminmax() if values.numel() else (torch.tensor(-1.0),) * 2
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{argument} has values from {low.item():.3g} to {high.item():.3g}; floats take 0 to 1, integers 0 to 255."
        )
    return values


def _pil_mode(argument: str, image: Image.Image, channels: tuple[int, ...]) -> str:
    """The mode to convert a PIL image to: a grey image stays grey where one channel will do."""
    modes = {c: _PIL_MODES[c] for c in channels if c in _PIL_MODES}
    if not modes:
        raise ValueError(f"{argument} can't be a PIL image, because {channels[0]} channels are needed; give a tensor.")
    return "L" if 1 in modes and (len(modes) == 1 or image.mode in ("L", "1", "I;16")) else modes[max(modes)]


def size_text(size: Sequence[int]) -> str:
    """(height, width) as messages write it."""
    return f"{size[0]}x{size[1]}"
