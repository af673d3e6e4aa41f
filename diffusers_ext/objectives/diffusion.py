"""Objectives: what the network is trained to predict at which noise level, and how an error counts.

An objective is a callable `(net, batch, generator) -> loss per sample`. It draws what it needs from the generator,
calls the network, and gives a tensor of shape (batch,). It may have `state_dict` and `load_state_dict`; a checkpoint
keeps that state.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate.utils import gather

from ..schedulers.continuous_path import ContinuousPath
from ..schedulers.noise_path import DiscretePath
from .network import ConditionedNetwork
from .randomness import BatchGenerator, draw_shared, rand_shared, randn_shared, shared_of
from .timestep_sampling import ImportanceSampler, TimestepSampler
from .weighting import Weighting

# Images with values 0 ... 255 are divided by this and moved to [-1, 1], so one level is 1 / 127.5 wide.
HALF_RANGE = 127.5

# Earliest time of a continuous path, in T-ths: at the data themselves there is no signal-to-noise ratio.
_EARLIEST = 1e-3

# How often a network that takes its earlier prediction is given one (Chen et al. 2022, arXiv:2208.04202, section 2.2).
SELF_CONDITIONED = 0.5

# The error of a network's output, by the name of the setting `loss`; the threshold of `huber` is 1.
LOSSES: dict[str, Any] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Objective(Protocol):
    """A loss for a network."""

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """The loss of every sample.

        Args:
            net: the network with its conditions; `net(sample, timestep)` gives a tensor.
            batch: "samples" float32 (batch, channels, *size) in [-1, 1], "index" (batch,), and the data's columns.
            generator: seeded for this batch and this process: each process draws numbers of its own. With the functions
                of `randomness`, several processes draw what one process would draw.

        Returns:
            Shape (batch,), differentiable.
        """


class DiffusionObjective:
    """Regress the network's output onto its target on a noise path.

    Args:
        path: the noise path. In continuous time the network gets t * T as its timestep, a number between 0 and T, with
            the sampler's T.
        prediction_type: one of `schedulers.PREDICTION_TYPES`.
        loss: `l2` (Ho et al. 2020, eq. 14), `l1`, or `huber` (threshold 1).
        weighting: factor on each sample's loss, defined on squared errors: what it says of x0 holds for `l2`.
        sampler: the noise levels to train on; uniform when not given.
        dequantize: add uniform noise of the width of one of 256 levels to the samples, for a density of 8-bit images
            (Theis et al. 2016, arXiv:1511.01844, section 3.1).

    Attributes:
        bounded: whether samples lie in [-1, 1], as images do; set it to False for latents.

    Raises:
        ValueError: for a prediction type that does not determine x0 on this path.
    """

    bounded = True

    def __init__(
        self,
        path: DiscretePath | ContinuousPath,
        prediction_type: str = "epsilon",
        loss: str = "l2",
        weighting: Weighting | None = None,
        sampler: TimestepSampler | None = None,
        dequantize: bool = False,
    ):
        path.check_prediction_type(prediction_type)
        self.path, self.prediction_type, self._loss = path, prediction_type, LOSSES[loss]
        self.weighting, self.dequantize = weighting or Weighting(), dequantize
        self.discrete = isinstance(path, DiscretePath)
        self.sampler = sampler or TimestepSampler("uniform", len(path) if isinstance(path, DiscretePath) else 1000)

    def weights(self, times: torch.Tensor) -> torch.Tensor:
        """Factors on the losses at times of shape (batch,), float32."""
        t, like = self._path_times(times), torch.zeros(len(times), device=times.device)
        alpha, sigma = self.path.coefficients(t, like)
        _, b = self.path.x0_factors(self.prediction_type, t, like)
        return self.weighting.on_output((alpha / sigma) ** 2, b)

    def _path_times(self, times: torch.Tensor) -> torch.Tensor:
        """The path's own times, from the timesteps of the network."""
        return times if self.discrete else times / self.sampler.num_levels

    def draw_timesteps(
        self, count: int, generator: torch.Generator, device: torch.device, sampler: TimestepSampler | None = None
    ) -> torch.Tensor:
        """Timesteps of shape (count,) as in training: integers 0 ... T-1, or numbers up to T in continuous time."""
        positions = draw_shared(count, generator, lambda n, g: (sampler or self.sampler).draw(n, g, device))
        if self.discrete:
            return positions.long().clamp_(max=self.sampler.num_levels - 1)
        return positions.clamp_(min=_EARLIEST)

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Weighted loss of every sample, shape (batch,), float32."""
        samples = batch["samples"]
        if self.dequantize:
            uniform = rand_shared(tuple(samples.shape), generator, samples.device)
            samples = samples + (uniform - 0.5) / HALF_RANGE
        noise = randn_shared(tuple(samples.shape), generator, samples.device)
        times = self._timesteps_for(net, len(samples), generator, samples.device)
        earlier = self._earlier(net, samples, noise, times, generator) if net.self_condition else {}
        losses = self.losses(net, samples, noise, times, **earlier)
        net.report(times, losses)
        return losses

    def _timesteps_for(
        self, net: ConditionedNetwork, count: int, generator: torch.Generator, device: torch.device
    ) -> torch.Tensor:
        return self.draw_timesteps(count, generator, device)

    def losses(
        self, net: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, **extra: torch.Tensor
    ) -> torch.Tensor:
        """Weighted losses, shape (batch,), float32, for given noise of the samples' shape and timesteps (batch,).

        Raises:
            ValueError: for a network that gives another shape than the samples'.
        """
        t = self._path_times(times)
        output = net(self.path.network_input(self.path.add_noise(x0, noise, t), t), times, **extra)
        target = self.path.target(self.prediction_type, x0, noise, t)
        if output.shape != target.shape:  # shapes that broadcast would be trained without a word
            raise ValueError(
                f"The network must give the sample's shape {tuple(target.shape)}, and gave {tuple(output.shape)}."
            )
        error = self._loss(output.float(), target, reduction="none").flatten(1).mean(1)
        return error * self.weights(times)

    def _earlier(
        self, net: Any, x0: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """For half of the batches, the network's own x0, without a gradient, as its further input.

        Chen et al. 2022 (arXiv:2208.04202), algorithm 1.
        """
        # One coin for the global batch: processes that share the network's backward pass must do the same.
        if torch.rand((), generator=shared_of(generator), device=x0.device).item() >= SELF_CONDITIONED:
            return {}
        t = self._path_times(times)
        noisy = self.path.add_noise(x0, noise, t)
        with torch.no_grad():
            output = self._prediction_of(net(self.path.network_input(noisy, t), times)).float()
            predicted, _ = self.path.to_x0_epsilon(self.prediction_type, output, noisy, t)
        predicted = predicted.nan_to_num(0.0)
        return {"self_condition": predicted.clamp(-1, 1) if self.bounded else predicted}

    def _prediction_of(self, output: torch.Tensor) -> torch.Tensor:
        """The part of the network's output that predicts."""
        return output


class ImportanceSampledObjective(DiffusionObjective):
    """A `DiffusionObjective` that trains more often where losses are large, and counts them less there.

    See `ImportanceSampler`, whose losses are the state of this objective. A network in evaluation mode is measured at
    uniform timesteps, and nothing is learned from its losses.
    """

    sampler: ImportanceSampler

    def _timesteps_for(
        self, net: ConditionedNetwork, count: int, generator: torch.Generator, device: torch.device
    ) -> torch.Tensor:
        uniform = None if net.training else TimestepSampler("uniform", self.sampler.num_levels)
        return self.draw_timesteps(count, generator, device, uniform)

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Weighted loss of every sample, shape (batch,), float32; as a mean, what uniform timesteps would give."""
        seen: list[torch.Tensor] = []
        reported = ConditionedNetwork(net.module, net.conditions, report=lambda *pair: seen.extend(pair))
        losses = super().__call__(reported, batch, generator)
        times = seen[0]
        net.report(times, losses)
        if not net.training:
            return losses
        factors = self.sampler.factors(times)
        # Only a batch that all processes share: a probe's steps are each process's own.
        together = gather if isinstance(generator, BatchGenerator) else lambda tensor: tensor
        self.sampler.update(together(times), together(losses.detach()))
        return losses * factors

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The losses kept of each level."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave. Raises ValueError when it is of another number of levels."""
        self.sampler.load_state_dict(state)


class MixObjective:
    """Diffusion Playground's toy: predict the clean image from (1 - a) * x0 + a * noise, without the time.

    The noise is uniform. Images are moved to [0, 1], the range of the noise.

    Args:
        loss: `l2`, `l1` or `huber`.
        amounts: distribution of a: `uniform` on [0, 1), or `normal`, as the source project's code draws it.
    """

    def __init__(self, loss: str = "l2", amounts: str = "uniform"):
        if amounts not in ("uniform", "normal"):
            raise ValueError(f"amounts must be 'uniform' or 'normal', got '{amounts}'.")
        self._loss, self.amounts = LOSSES[loss], amounts

    def draw_timesteps(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Amounts of corruption, shape (count,)."""
        sample = rand_shared if self.amounts == "uniform" else randn_shared
        return sample((count,), generator, device)

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Loss of every sample against the clean image, shape (batch,)."""
        x0 = (batch["samples"] + 1) * 0.5
        noise = rand_shared(tuple(x0.shape), generator, x0.device)
        amounts = self.draw_timesteps(len(x0), generator, x0.device)
        corrupted = torch.lerp(x0, noise, amounts.reshape(-1, *[1] * (x0.ndim - 1)))
        output = net(corrupted, amounts)
        losses = self._loss(output.float(), x0.float(), reduction="none").flatten(1).mean(1)
        net.report(amounts, losses)
        return losses
