"""Fitting a classifier: batches of images and labels in, a trained network out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
WARM_UP = 0.2  # share of the run in which the learning rate rises


@dataclass(frozen=True)
class RandomAffine:
    """Small random shifts, turns and zooms; what comes in from outside repeats the border.

    Attributes:
        shift: largest shift, as a share of the side.
        degrees: largest rotation either way.
        zoom: largest change of scale, as a share.
    """

    shift: float = 0.08
    degrees: float = 8.0
    zoom: float = 0.1

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Each image (batch, channels, height, width) in a place of its own."""
        draws = 2 * torch.rand(4, len(images), generator=generator) - 1
        angle, scale = math.radians(self.degrees) * draws[0], 1 + self.zoom * draws[1]
        cosine, sine = scale * angle.cos(), scale * angle.sin()
        height, width = images.shape[-2:]
        rows = [cosine, -sine * height / width, 2 * self.shift * draws[2]]
        rows += [sine * width / height, cosine, 2 * self.shift * draws[3]]
        theta = torch.stack(rows, dim=1).reshape(-1, 2, 3).to(images)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def fit(
    classifier: torch.nn.Module,
    batches: Batches,
    num_steps: int,
    max_seconds: float = math.inf,
    learning_rate: float = 0.005,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    augmentation: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    report: Callable[[int, float, float], None] | None = None,
) -> int:
    """Minimise the cross-entropy with AdamW and a learning rate that rises, then falls to 0 as the run ends.

    Args:
        classifier: images -> logits (batch, classes); trained in place, and left in evaluation mode.
        batches: (images (batch, channels, height, width) in [-1, 1] or signals (batch, channels, length), labels int64
            (batch,)), at least `num_steps`.
        num_steps: batches to train on.
        max_seconds: end earlier, after this wall time; the learning rate then follows the clock.
        learning_rate: the highest.
        weight_decay, label_smoothing: as torch has them.
        augmentation: applied to every batch, such as a `RandomAffine` or, for signals, a `RandomShift`.
        dtype: of autocast; float32 for none.
        seed: of the augmentation.
        report: called with (steps, mean loss since the last call, seconds left) every fiftieth step, and after ten
            seconds without a call.

    Returns:
        The number of steps taken.
    """
    device = next(classifier.parameters()).device
    optimizer = torch.optim.AdamW(classifier.parameters(), learning_rate, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    losses: list[torch.Tensor] = []
    began, step = time.monotonic(), 0
    reported = began
    classifier.train()
    for images, labels in itertools.islice(batches, num_steps):
        progress = max(step / num_steps, (time.monotonic() - began) / max_seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(progress)
        images, labels = images.to(device), labels.to(device)
        if augmentation is not None:
            images = augmentation(images, generator)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = classifier(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        losses.append(loss.detach())
        now = time.monotonic()
        if report is not None and (step % 50 == 0 or now - reported > 10):
            progress = max(step / num_steps, (now - began) / max_seconds)
            report(step, float(torch.stack(losses).mean()), max(0.0, (now - began) * (1 / progress - 1)))
            losses.clear()
            reported = now
    classifier.eval()
    return step


def one_cycle(progress: float) -> float:
    """Share of the highest learning rate at `progress` in [0, 1]: up in a line, down in a line (Smith and Topin 2018,
    arXiv:1708.07120)."""
    return min(progress / WARM_UP + 0.02, (1 - progress) / (1 - WARM_UP))


@torch.no_grad()
def accuracy(classifier: torch.nn.Module, batches: Batches) -> tuple[float, int]:
    """(share of images whose largest logit is their label, number of images); the classifier in evaluation mode.

    Raises ValueError when there are no images.
    """
    device = next(classifier.parameters()).device
    classifier.eval()
    right = count = 0
    for images, labels in batches:
        right += int((classifier(images.to(device)).argmax(dim=1).cpu() == labels).sum())
        count += len(labels)
    if count == 0:
        raise ValueError("batches must hold at least one image, got none.")
    return right / count, count
