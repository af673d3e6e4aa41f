"""Schedulers that call the network several times at one time: correctors, Langevin steps, second-order methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .scheduling_base import Generators, NoisePathScheduler
from .tensors import combine, weighted_sum
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

    def previous_timestep(self, timestep: int | float | torch.Tensor) -> Any:
        """The path's time that a step from this entry of `self.timesteps`, or the last of its repeats, goes to."""
        called, move = self._next_call, self._next_move(timestep)
        self._next_call = called
        return move.s

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

    def _mix(
        self,
        x: float,
        sample: torch.Tensor,
        x0_weight: float,
        x0: torch.Tensor,
        std: float,
        model_output: torch.Tensor,
        generator: Generators,
    ) -> torch.Tensor:
        """x * sample + x0_weight * x0 + std * noise; no noise is drawn where std is 0."""
        if std == 0:
            return combine(x, sample, x0_weight, x0)
        noise = self._noise(model_output, sample, generator).mul_(std)
        return weighted_sum(noise, (x, sample), (x0_weight, x0))

    def _langevin_step(
        self,
        h: float,
        t: Any,
        sample: torch.Tensor,
        x0: torch.Tensor,
        model_output: torch.Tensor,
        generator: Generators,
    ) -> torch.Tensor:
        """x + h * score + sqrt(2 h) * noise, with score = (alpha_t * x0 - x) / sigma_t^2."""
        alpha, variance = self.path.alpha(t), self.path.sigma(t) ** 2
        return self._mix(1 - h / variance, sample, h * alpha / variance, x0, math.sqrt(2 * h), model_output, generator)

    def _langevin_step_from_norms(
        self,
        snr: float,
        t: Any,
        sample: torch.Tensor,
        x0: torch.Tensor,
        model_output: torch.Tensor,
        generator: Generators,
    ) -> torch.Tensor:
        """The same with h = 2 * (snr * |noise| / |score|)^2, the norms averaged over the batch.

        Song et al. 2021 (arXiv:2011.13456), algorithm 5. The norms stay tensors: nothing waits for the device.
        """
        alpha, variance = self.path.alpha(t), self.path.sigma(t) ** 2
        score = combine(alpha / variance, x0, -1 / variance, sample)
        noise = self._noise(model_output, sample, generator)
        root = snr * noise.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
        return score.mul_(2 * root**2).add_(noise.mul_(2 * root)).add_(sample)
