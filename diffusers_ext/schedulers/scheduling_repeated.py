"""Schedulers that call the network several times at one time: correctors, Langevin steps, second-order methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

from .scheduling_base import Generators, NoisePathScheduler, split_learned_variance, step_output
from .tensors import carried, combine, weighted_sum
from .timesteps import as_number


class Move(NamedTuple):
    """One call of the network: at time `at`, for a move of this kind from time t towards time s."""

    kind: str
    t: Any
    s: Any
    at: Any


class RepeatedStepScheduler(NoisePathScheduler):
    """Base of the schedulers that call the network several times at one time.

    `self.timesteps` then holds repeated entries, one per call, and the scheduler counts the calls. An entry taken from
    `self.timesteps` itself tells which call it is. Any other number is searched for from the counted place on, so that
    sampling may start again, or in the middle, without a new `set_timesteps`.
    """

    def _set_moves(
        self,
        moves: Sequence[Move],
        network_times: Sequence[float],
        dtype: torch.dtype,
        device: str | torch.device | None,
    ) -> None:
        """Keep the moves, and the time that the network receives at each as `self.timesteps`."""
        self._moves = list(moves)
        on_host = torch.tensor(network_times, dtype=dtype)
        self._timestep_values: list[float] = on_host.tolist()
        self.timesteps = self._listed = on_host.to(device)
        self._next_call = 0

    def _next_move(self, timestep: int | float | torch.Tensor) -> Move:
        position = self._position_of_view(timestep) if isinstance(timestep, torch.Tensor) else None
        if position is None:
            position = self._position_of_value(as_number(timestep))
        self._next_call = position + 1
        return self._moves[position]

    @property
    def starts(self) -> list[int]:
        """The places in `self.timesteps` where sampling can begin: the first call at each time of the path."""
        before = [None, *(move.t for move in self._moves)]
        return [place for place, move in enumerate(self._moves) if move.at == move.t != before[place]]

    def _move_from(self, timestep: int | float | torch.Tensor) -> Move:
        """The move that a step from this entry would make; no call is counted."""
        called, move = self._next_call, self._next_move(timestep)
        self._next_call = called
        return move

    def previous_timestep(self, timestep: int | float | torch.Tensor) -> Any:
        """The path's time that a step from this entry of `self.timesteps`, or the last of its repeats, goes to."""
        return self._move_from(timestep).s

    def _position_of_value(self, timestep: float) -> int:
        """The counted place if the value stands there, else the first place where sampling can begin with it.

        Raises:
            ValueError: for a value that is not in the list.
        """
        values, expected = self._timestep_values, self._next_call
        # The list is float32, which carries seven digits of a continuous time.
        if expected < len(values) and math.isclose(values[expected], timestep, rel_tol=1e-6):
            return expected
        for position, (value, move) in enumerate(zip(values, self._moves)):
            # A call at another time than its move's start is a second half: the first must come before it.
            if math.isclose(value, timestep, rel_tol=1e-6) and move.at == move.t:
                return position
        raise ValueError(f"timestep {timestep:g} is not among the scheduler's timesteps; call set_timesteps first.")

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The move of this call, such as one corrector step, or one of K steps at `timestep`.

        Args:
            model_output: network output of shape (batch, channels, ...), guided already; the variance half of a network
                with twice the channels is left unused.
            timestep: a number or a one-element tensor out of `self.timesteps`.
            sample: x of shape (batch, channels, ...).
            generator: source of the noise, one or a list of one per sample.
            return_dict: give a tuple (next sample, x0) when False.

        Returns:
            `prev_sample` and `pred_original_sample` x0, both in the sample's shape and dtype.

        Raises:
            ValueError: for shapes that do not fit, or a timestep that is not in the list.
        """
        sample, dtype = carried(sample), sample.dtype
        move = self._next_move(timestep)
        model_output, _ = split_learned_variance(model_output, sample)
        x0 = self._predict_x0(model_output, move.at, sample)
        return step_output(self._moved(move, x0, sample, generator), x0, dtype, return_dict)

    def _moved(self, move: Move, x0: torch.Tensor, sample: torch.Tensor, generator: Generators) -> torch.Tensor:
        """The sample after a move."""
        raise NotImplementedError

    def _mix(
        self, x: float, sample: torch.Tensor, x0_weight: float, x0: torch.Tensor, std: float, generator: Generators
    ) -> torch.Tensor:
        """x * sample + x0_weight * x0 + std * noise; no noise is drawn where std is 0."""
        if std == 0:
            return combine(x, sample, x0_weight, x0)
        noise = self._noise(x0, sample, generator).mul_(std)
        return weighted_sum(noise, (x, sample), (x0_weight, x0))

    def _langevin_step(
        self, h: float, t: Any, sample: torch.Tensor, x0: torch.Tensor, generator: Generators
    ) -> torch.Tensor:
        """x + h * score + sqrt(2 h) * noise, with score = (alpha_t * x0 - x) / sigma_t^2."""
        alpha, variance = self.path.alpha(t), self.path.sigma(t) ** 2
        return self._mix(1 - h / variance, sample, h * alpha / variance, x0, math.sqrt(2 * h), generator)

    def _langevin_step_with_snr(
        self, snr: float, t: Any, sample: torch.Tensor, x0: torch.Tensor, generator: Generators
    ) -> torch.Tensor:
        """The same with h = 2 * (snr * |noise| / |score|)^2: Song et al. 2021 (arXiv:2011.13456), algorithm 5.

        The ratio of the norms is its expected value sigma_t. With `config.measured_norms` it is that of the batch's
        mean norms; they stay tensors, so that nothing waits for the device.
        """
        alpha, variance = self.path.alpha(t), self.path.sigma(t) ** 2
        if not self.config.measured_norms:
            return self._langevin_step(2 * (snr * self.path.sigma(t)) ** 2, t, sample, x0, generator)
        score = combine(alpha / variance, x0, -1 / variance, sample)
        noise = self._noise(x0, sample, generator)
        root = snr * noise.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
        return score.mul_(2 * root**2).add_(noise.mul_(2 * root)).add_(sample)
