"""Learned variances of the reverse steps (Nichol and Dhariwal 2021, arXiv:2102.09672): the hybrid objective."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..schedulers.noise_path import CLEAN, DiscretePath
from .diffusion import DiffusionObjective

# Factor of the variational bound beside the simple loss, eq. 16; the bound is a sum over all T timesteps.
BOUND_WEIGHT = 0.001
# Half the distance of two values of an 8-bit image in [-1, 1].
HALF_BIN = 1 / 255


class LearnedVarianceObjective(DiffusionObjective):
    """L_simple + 0.001 * L_vlb (eq. 16) for networks with twice the sample's channels.

    The first half of the output is the prediction and is trained by the simple loss alone. The second half, v between
    -1 and 1, gives the variance of the step from t to t-1 by interpolating between the logarithms of beta and
    beta_tilde (eq. 15, as `AncestralDDPMScheduler` with `learned_range`), and is trained by the bound alone. The bound
    is in bits per dimension; at t = 0 it is the likelihood of values in 256 bins, as of an 8-bit image.

    Args:
        path: the noise path, in discrete time.
        simple, options: the other arguments of `DiffusionObjective`. Its prediction type, loss and weighting are those
            of the simple loss; the bound is unbiased for a sampler of uniform noise levels.

    Raises:
        ValueError: for a path in continuous time, or of a single timestep.
    """

    def __init__(self, path: Any, *simple: Any, **options: Any):
        super().__init__(path, *simple, **options)
        if not isinstance(path, DiscretePath) or len(path) < 2:
            raise ValueError("A learned variance needs a noise path of at least two discrete timesteps.")
        steps = [(*path.posterior(t, t - 1 if t else CLEAN), path.transition(t, t - 1 if t else CLEAN)[1])
                 for t in range(len(path))]  # fmt: skip
        # beta_tilde is 0 at t = 0, and its logarithm is taken from t = 1, as the authors' code does.
        tilde = [steps[1][2], *(step[2] for step in steps[1:])]
        columns = [[step[0] for step in steps], [step[1] for step in steps]]
        logs = [[math.log(value) for value in values] for values in (tilde, [step[3] for step in steps])]
        self._table = torch.tensor([*columns, *logs], dtype=torch.float32)  # c0, ct, log beta_tilde, log beta

    def losses(
        self, net: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **extra: torch.Tensor
    ) -> torch.Tensor:
        """Hybrid losses, shape (batch,), float32, for given noise of the samples' shape and timesteps (batch,).

        Raises:
            ValueError: for a network without twice the sample's channels.
        """
        noisy = self.path.add_noise(x0, noise, times)
        output = net(self.path.network_input(noisy, times), times, **extra).float()
        if output.shape[1] != 2 * x0.shape[1]:
            raise ValueError(
                f"A learned variance needs a network with {2 * x0.shape[1]} output channels, twice the sample's, "
                f"got {output.shape[1]}; build it with out_channels={2 * x0.shape[1]}."
            )
        prediction, values = output.chunk(2, dim=1)
        target = self.path.target(self.prediction_type, x0, noise, times)
        simple = self._loss(prediction, target, reduction="none").flatten(1).mean(1) * self.weights(times)
        bound = self.bound(prediction.detach(), values, x0.float(), noisy.float(), times)
        return simple + BOUND_WEIGHT * len(self._table[0]) * bound

    def bound(
        self, prediction: torch.Tensor, values: torch.Tensor, x0: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor
    ) -> torch.Tensor:
        """The term of L_vlb at each sample's timestep, in bits per dimension (Ho et al. 2020, eq. 5).

        Args:
            prediction: the network's prediction, shaped as `x0`.
            values: its variance values v, shaped as `x0`.
            x0: data in [-1, 1], float32 (batch, channels, ...).
            noisy: x_t.
            times: t, (batch,).
        """
        rows = self._table.to(times.device)[:, times].reshape(4, -1, *[1] * (x0.ndim - 1))
        c0, ct, log_tilde, log_beta = rows
        predicted_x0, _ = self.path.to_x0_epsilon(self.prediction_type, prediction, noisy, times)
        mean = c0 * predicted_x0.float() + ct * noisy
        fraction = (values + 1) / 2
        log_variance = fraction * log_beta + (1 - fraction) * log_tilde
        divergence = gaussian_divergence(c0 * x0 + ct * noisy, log_tilde, mean, log_variance)
        last = (times == 0).reshape(-1, *[1] * (x0.ndim - 1))
        nats = torch.where(last, -binned_log_likelihood(x0, mean, log_variance), divergence)
        return nats.flatten(1).mean(1) / math.log(2)

    def _prediction_of(self, output: torch.Tensor) -> torch.Tensor:
        return output.chunk(2, dim=1)[0]


def gaussian_divergence(
    mean: torch.Tensor, log_variance: torch.Tensor, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) entry by entry, in nats."""
    difference = log_variance - other_log_variance
    squared = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (difference.exp() - 1 - difference + squared)


def binned_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability of each entry's bin, of width 2/255, under a normal distribution, in nats.

    The first and the last of the 256 bins of [-1, 1] reach to infinity (Ho et al. 2020, eq. 13).
    """
    inverse = torch.exp(-0.5 * log_variance)
    upper = torch.special.ndtr((x + HALF_BIN - mean) * inverse)
    lower = torch.special.ndtr((x - HALF_BIN - mean) * inverse)
    upper = torch.where(x > 1 - HALF_BIN, torch.ones_like(upper), upper)
    lower = torch.where(x < -1 + HALF_BIN, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
