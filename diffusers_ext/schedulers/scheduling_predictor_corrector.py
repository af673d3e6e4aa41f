"""Predictor-corrector sampling on any noise path: Song et al. 2021 (arXiv:2011.13456), algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .scheduling_base import Generators
from .scheduling_repeated import Move, RepeatedStepScheduler
from .tensors import carried, combine

# Steps that change alpha or sigma by a larger factor are of first order.
LARGEST_ALPHA_RATIO, LARGEST_SIGMA_RATIO = 5.0, 60.0

PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral", "ode_euler", "ode_heun")


class PredictorCorrectorScheduler(RepeatedStepScheduler):
    """Base of the schedulers that take, at each time, corrector steps and then a predictor step to the next time.

    Predictors from t to s, with alpha_{t|s} and sigma^2_{t|s} of `GaussianPath.transition`:

    - `euler_maruyama`: x - f * x + g2 * score + sqrt(g2) * z, (f, g2) of `GaussianPath.sde_increment` (eq. 6);
    - `reverse_diffusion`: (2 - alpha_{t|s}) * x + sigma^2_{t|s} * (score + z / sigma_{t|s}) (eq. 46);
    - `ancestral`: a draw from q(x_s | x_t, x0) (eq. 4 and 47);
    - `ode_euler`, `ode_heun`: the probability flow (eq. 13) in the variable x / alpha against sigma / alpha, in which
      its linear part is solved exactly, by steps of first and second order. On a discrete VP path `ode_euler` is DDIM.

    The last step gives the predicted x0, without noise. The corrector is one Langevin step,
    x + h * score + sqrt(2 h) * z with h = 2 * alpha^2_{t|s} * (snr * |z| / |score|)^2 (algorithms 4 and 5).

    `self.timesteps` repeats a time once for each corrector step, and for the second evaluation of `ode_heun`. A child
    says what its times are: `_continuous`, `_continuous_times`, `_network_time` and `_path_times`.
    """

    _predictor: str
    _corrector_steps: int = 0
    _continuous: bool = True

    @property
    def order(self) -> int:  # type: ignore[override]
        """Network calls at each time."""
        return self._corrector_steps + (2 if self._predictor == "ode_heun" else 1)

    @property
    def convergence_order(self) -> int:  # type: ignore[override]
        """2 for `ode_heun`, 1 otherwise."""
        return 2 if self._predictor == "ode_heun" else 1

    # the times

    def _continuous_times(self, num_inference_steps: int) -> np.ndarray:
        """Times of a continuous path, float64 and decreasing from 1."""
        raise NotImplementedError

    def _network_time(self, t: float) -> float:
        """The network's time at path time t."""
        raise NotImplementedError

    def _path_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The path's times for the network's times, shape (batch,)."""
        raise NotImplementedError

    def _set_default_times(self) -> None:
        if not self._continuous:
            super()._set_default_times()
        else:
            self._set_times(self._choose_times(self.config.num_train_timesteps, None), None)

    def _checked_times(self, timesteps: Sequence[Any]) -> np.ndarray:
        return checked_continuous_times(timesteps) if self._continuous else super()._checked_times(timesteps)

    def _even_times(self, num_inference_steps: Any) -> np.ndarray:
        if not self._continuous:
            return super()._even_times(num_inference_steps)
        if not isinstance(num_inference_steps, Integral) or num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be an integer of at least 1, got {num_inference_steps!r}.")
        return self._continuous_times(int(num_inference_steps))

    def _set_times(self, times: np.ndarray, device: str | torch.device | None) -> None:
        self._times = times.tolist()
        self._ascending = sorted(self._times)
        self.num_inference_steps = len(self._times)
        ends = [*self._times[1:], self.path.clean]
        moves = [move for t, s in zip(self._times, ends) for move in self._moves_at(t, s)]
        self._set_moves(moves, [self._network_time(move.at) for move in moves], self._times_dtype(), device)

    def _times_dtype(self) -> torch.dtype:
        return torch.float32

    def _moves_at(self, t: float, s: float) -> list[Move]:
        moves = [Move("correct", t, s, t)] * self._corrector_steps
        if s == self.path.clean:
            return [*moves, Move("denoise", t, s, t)]
        moves.append(Move(self._predictor.replace("ode_heun", "ode_euler"), t, s, t))
        if self._predictor == "ode_heun" and self._is_small(t, s):
            moves.append(Move("ode_heun", t, s, s))
        return moves

    def _is_small(self, t: float, s: float) -> bool:
        """Whether a second-order step from t to s is better than a first-order one.

        Heun's correction multiplies an error of x0 by about alpha_s / alpha_t near the noise, and by sigma_t / sigma_s
        near the data. Where the step is long in these, it would draw noise.
        """
        path = self.path
        slow = path.alpha(s) <= LARGEST_ALPHA_RATIO * path.alpha(t)
        return slow and path.sigma(t) <= LARGEST_SIGMA_RATIO * path.sigma(s)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: int | float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """The network's input: the sample, scaled where the path says so (`GaussianPath.network_input`)."""
        if not getattr(self.path, "scale_input", False):
            return sample
        if timestep is None:
            raise ValueError("scale_model_input needs the timestep: this scheduler scales the network's input.")
        return self.path.network_input(carried(sample), self._move_from(timestep).at).to(sample.dtype)

    # one step

    def _moved(self, move: Move, x0: torch.Tensor, sample: torch.Tensor, generator: Generators) -> torch.Tensor:
        if move.kind == "denoise":
            return x0
        if move.kind == "correct":
            snr = self.config.snr * self.path.transition(move.t, move.s)[0]
            return self._langevin_step_with_snr(snr, move.t, sample, x0, generator)
        if move.kind == "ode_heun":
            return self._heun(move, x0, sample)
        if self._predictor == "ode_heun":
            self._epsilon = self._epsilon_from(x0, move.t, sample)
        weight, x0_weight, std = self._predictor_weights(move)
        return self._mix(weight, sample, x0_weight, x0, std, generator)

    def _predictor_weights(self, move: Move) -> tuple[float, float, float]:
        """(weight of x, weight of x0, standard deviation of the noise) of the step from t to s."""
        kind, t, s, _ = move
        alpha, variance = self.path.alpha(t), self.path.sigma(t) ** 2
        if kind == "ancestral":
            x0_weight, weight, noise_variance = self.path.posterior(t, s)
            return weight, x0_weight, math.sqrt(noise_variance)
        if kind == "ode_euler":
            ratio = self.path.sigma(s) / self.path.sigma(t)
            return ratio, self.path.alpha(s) - ratio * alpha, 0.0
        if kind == "euler_maruyama":
            drift, noise_variance = self.path.sde_increment(t, s)
        else:
            ratio, noise_variance = self.path.transition(t, s)
            drift = ratio - 1
        # score = (alpha * x0 - x) / sigma^2
        gain = noise_variance / variance
        return 1 - drift - gain, gain * alpha, math.sqrt(noise_variance)

    def _epsilon_from(self, x0: torch.Tensor, t: float, sample: torch.Tensor) -> torch.Tensor:
        sigma = self.path.sigma(t)
        return combine(1 / sigma, sample, -self.path.alpha(t) / sigma, x0)

    def _heun(self, move: Move, x0: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Replace epsilon at t by the mean of epsilon at t and at s in the Euler step that gave this sample."""
        t, s = move.t, move.s
        width = self.path.sigma(s) - self.path.alpha(s) / self.path.alpha(t) * self.path.sigma(t)
        change = self._epsilon_from(x0, s, sample).sub_(self._epsilon)
        return change.mul_(width / 2).add_(sample)


def checked_continuous_times(timesteps: Sequence[float]) -> np.ndarray:
    """A user's times as a float64 array. Raises ValueError unless they decrease strictly within 0 < t <= 1."""
    times = np.asarray(timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0 or not (times[0] <= 1 and times[-1] > 0 and (np.diff(times) < 0).all()):
        raise ValueError(f"timesteps must decrease strictly within 0 < t <= 1, got {timesteps!r}.")
    return times
