"""How the error of a deterministic sampler falls with the number of network calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .mixture import GaussianMixture
from .network import ExactNetwork
from .sampling import sample


def fitted_order(counts: Sequence[float], errors: Sequence[float]) -> float:
    """p of errors ~ counts^-p, by least squares in the logarithms."""
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def rms(x: torch.Tensor, y: torch.Tensor) -> float:
    """Root mean square difference."""
    return (x - y).double().pow(2).mean().sqrt().item()


def inversion_errors(scheduler: Any, mixture: GaussianMixture, counts: Sequence[int], n: int = 32) -> list[float]:
    """rms difference between data and what inversion followed by sampling makes of them, for each number of steps.

    The scheduler's `set_timesteps` must take `inverse=True`, as that of `SubsequenceDDIMScheduler` does.
    """
    network = ExactNetwork(mixture, scheduler)
    x0 = mixture.sample(n, torch.Generator().manual_seed(3))
    errors = []
    for count in counts:
        scheduler.set_timesteps(count, inverse=True)
        noise = sample(scheduler, network, x0)
        scheduler.set_timesteps(count)
        errors.append(rms(sample(scheduler, network, noise), x0))
    return errors
