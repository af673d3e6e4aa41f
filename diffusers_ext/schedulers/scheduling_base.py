"""What all schedulers on a discrete noise path share: configuration, timesteps, noising, bounds on x0."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor

from .noise_path import CLEAN, DIFFUSERS_SCHEDULES, NoisePath
from .tensors import combine, weighted_sum, working_dtype

Generators = torch.Generator | list[torch.Generator] | None

# What says which path a configuration means: never left to a default, for the defaults differ between schedulers.
PATH_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


def spaced_timesteps(spacing: str, num_inference_steps: int, num_train_timesteps: int, offset: int = 0) -> np.ndarray:
    """Evenly spaced times, increasing: Lin et al. 2023 (arXiv:2305.08891), table 2.

    Args:
        spacing: `leading` (starts at 0 + offset), `trailing` (ends at T-1) or `linspace` (both ends).
        num_inference_steps: n in 1 ... T.
        num_train_timesteps: T.
        offset: added to `leading` times.

    Returns:
        int64 array of shape (n,), strictly increasing.

    Raises:
        ValueError: for an unknown spacing or n outside 1 ... T.
    """
    n, total = num_inference_steps, num_train_timesteps
    if not 1 <= n <= total:
        raise ValueError(f"num_inference_steps must be between 1 and {total} (num_train_timesteps), got {n}.")
    if spacing == "leading":
        return np.arange(n, dtype=np.int64) * (total // n) + offset
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / n))[:n].astype(np.int64)[::-1] - 1
    if spacing == "linspace":
        # One step must still start from noise: the largest time, where np.linspace would give the smallest.
        times = np.linspace(0, total - 1, n) if n > 1 else np.array([total - 1.0])
        return times.round().astype(np.int64)
    raise ValueError(f"Unknown timestep_spacing '{spacing}'; choose one of {', '.join(TIMESTEP_SPACINGS)}.")


def checked_timesteps(timesteps: Sequence[int] | torch.Tensor | np.ndarray, num_train_timesteps: int) -> np.ndarray:
    """User-given times as an int64 array, after checking that they decrease strictly within 0 ... T-1."""
    times = np.asarray(timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps)
    if times.ndim != 1 or len(times) == 0 or not np.array_equal(times, times.astype(np.int64)):
        raise ValueError(f"timesteps must be a non-empty list of integers, got {timesteps!r}.")
    if (np.diff(times) >= 0).any():
        raise ValueError(f"timesteps must be in strictly descending order, got {times.tolist()}.")
    if times[0] >= num_train_timesteps or times[-1] < 0:
        raise ValueError(f"timesteps must lie between 0 and {num_train_timesteps - 1}, got {times[-1]} to {times[0]}.")
    return times.astype(np.int64)


def position_of_view(timestep: torch.Tensor, listed: torch.Tensor) -> int | None:
    """Where in `listed`, a whole tensor of times, a one-element view of it lies; None for any other tensor.

    `for t in scheduler.timesteps`, or in a part of it, gives views: their place in memory names the entry, where
    reading the value would make the host wait for the device at every step.
    """
    if timestep.device != listed.device or timestep.dtype != listed.dtype:
        return None
    if timestep.untyped_storage().data_ptr() != listed.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset())


class NoisePathScheduler(SchedulerMixin, ConfigMixin):
    """Base of the schedulers that walk a discrete `NoisePath` along any strictly decreasing list of timesteps.

    `step` is a pure function of its arguments and the list: the time it goes to is the list's next entry below the
    given one (never a stride), and after the smallest entry come the clean data.
    """

    config: Any
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1
    init_noise_sigma = 1.0

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler of this class from another's configuration, on the same path.

        A key that the other scheduler left at its default is dropped on a swap; the path's are kept, because defaults
        differ (those of diffusers' HeunDiscreteScheduler are other betas).
        """
        if isinstance(config, Mapping) and "_use_default_values" in config:
            defaults = [key for key in config["_use_default_values"] if key not in PATH_KEYS]
            config = {**config, "_use_default_values": defaults}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def _build_path(self) -> None:
        """Make the path from the configuration; call at the end of a subclass's `__init__`."""
        self.path = self._make_path()
        if isinstance(self.path, NoisePath):
            self._register_for_swaps()
            self.path.warn_if_not_noise()
            self.betas = torch.from_numpy(self.path.betas).float()
            self.alphas_cumprod = torch.from_numpy(self.path.alphas_cumprod).float()
        self.num_inference_steps: int | None = None
        self._set_default_times()

    def _make_path(self) -> Any:
        config = self.config
        return NoisePath.from_schedule(
            config.beta_schedule,
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.schedule_options,
            config.trained_betas,
            config.rescale_betas_zero_snr,
        )

    def _set_default_times(self) -> None:
        """All training times, so that the scheduler is usable before `set_timesteps`."""
        self.path.x0_coefficients(self.config.prediction_type, 0)
        self._set_times(np.arange(len(self.path))[::-1], device=None)

    def _register_for_swaps(self) -> None:
        """Leave a configuration from which diffusers' own schedulers build the same path.

        A schedule they do not know is written out as `trained_betas`. Keys in `_use_default_values` are dropped on a
        swap, so those that were derived here are taken out of that list.
        """
        config = self.config
        derived: dict[str, Any] = {key: config[key] for key in (*PATH_KEYS, "clip_sample")}
        derived["num_train_timesteps"] = len(self.path)
        if (
            config.trained_betas is not None
            or config.beta_schedule not in DIFFUSERS_SCHEDULES
            or config.schedule_options
            or config.rescale_betas_zero_snr  # some of diffusers' schedulers ignore that key; twice changes nothing
        ):
            derived["trained_betas"] = self.path.betas.tolist()
        self._register_derived(**derived)

    def _register_derived(self, **derived: Any) -> None:
        """Put values into the configuration as if they had been given."""
        if "_use_default_values" in self.config:
            derived["_use_default_values"] = sorted(set(self.config["_use_default_values"]) - set(derived))
        self.register_to_config(**derived)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # the list of timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the times to visit.

        Args:
            num_inference_steps: number of evenly spaced times (`config.timestep_spacing`), 1 ... T.
            device: where `self.timesteps` lives.
            timesteps: a strictly decreasing list within 0 ... T-1, instead of `num_inference_steps`.

        Raises:
            ValueError: unless exactly one of the two is given, and valid.
        """
        self._set_times(self._choose_times(num_inference_steps, timesteps), device)

    def _choose_times(self, num_inference_steps: int | None, timesteps: Sequence[int] | None) -> np.ndarray:
        if timesteps is not None and num_inference_steps is None:
            times = checked_timesteps(timesteps, len(self.path))
        elif num_inference_steps is not None and timesteps is None:
            times = self._spaced(num_inference_steps)[::-1]
        else:
            raise ValueError("Give exactly one of num_inference_steps and timesteps.")
        # Raises now, not at the first step, when the walk starts where alpha is 0 and the output says nothing of x0.
        self.path.x0_coefficients(self.config.prediction_type, int(times[0]))
        return times

    def _spaced(self, num_inference_steps: int) -> np.ndarray:
        config = self.config
        times = spaced_timesteps(config.timestep_spacing, num_inference_steps, len(self.path), config.steps_offset)
        return times[times < len(self.path)]

    def _set_times(self, times: np.ndarray, device: str | torch.device | None) -> None:
        self._times: list[int] = [int(t) for t in times]
        self._ascending = sorted(self._times)
        self.num_inference_steps = len(self._times)
        self.timesteps = self._listed = torch.tensor(self._times, dtype=torch.int64, device=device)

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """The time that a step from `timestep` goes to: the next entry below it, or `CLEAN` (-1) after the last."""
        below = bisect_left(self._ascending, self._time(timestep))
        return self._ascending[below - 1] if below else CLEAN

    def _time(self, timestep: int | float | torch.Tensor) -> int:
        if isinstance(timestep, torch.Tensor) and timestep.device.type != "cpu":
            position = self._position_of_view(timestep)
            if position is not None:
                return self._times[position]
        t = int(_number(timestep))
        if not 0 <= t < len(self.path):
            raise ValueError(f"timestep must lie between 0 and {len(self.path) - 1}, got {t}.")
        return t

    def _position_of_view(self, timestep: torch.Tensor) -> int | None:
        """Where in the list of times this view of it lies; None for any other tensor."""
        _check_one_time(timestep)
        return position_of_view(timestep, self._listed)

    # noising

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The network's input at `timestep`: the sample itself on a variance-preserving path."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t from x0; `timesteps` of shape (batch,). Computed in float32 or better, returned in the samples' dtype."""
        return self.path.add_noise(original_samples, noise, timesteps)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = alpha_t * epsilon - sigma_t * x0 (Salimans and Ho 2022), shapes as `add_noise`."""
        return self.path.target("v_prediction", sample, noise, timesteps).to(sample.dtype)

    # x0

    def _predict_x0(self, model_output: torch.Tensor, t: int, sample: torch.Tensor) -> torch.Tensor:
        """x0 as a new tensor in working precision, bounded as the configuration says."""
        a, b = self.path.x0_coefficients(self.config.prediction_type, t)
        return self._bound(combine(a, sample, b, model_output))

    def _bound(self, x0: torch.Tensor) -> torch.Tensor:
        """Apply `thresholding` or `clip_sample`; x0 is the step's own tensor and may be changed in place."""
        if self.config.thresholding:
            return self._threshold(x0)
        if self.config.clip_sample:
            return x0.clamp_(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x0

    def _threshold(self, x0: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding: Saharia et al. 2022 (arXiv:2205.11487), section 2.3."""
        magnitudes = x0.abs().flatten(1)
        bound = torch.quantile(magnitudes, self.config.dynamic_thresholding_ratio, dim=1)
        bound = bound.clamp(1.0, self.config.sample_max_value).reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp_(-bound, bound).div_(bound)

    # noise

    def _noise(
        self,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        generator: Generators,
    ) -> torch.Tensor:
        """Standard normal noise of the sample's shape, in working precision: the step's own tensor.

        In float32 and float64 a generator gives the numbers that it gives to diffusers' schedulers.
        """
        dtype = working_dtype(sample.dtype, model_output.dtype)
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)


class Move(NamedTuple):
    """One call of the network: at time `at`, for a move of this kind from time t towards time s."""

    kind: str
    t: Any
    s: Any
    at: Any


class RepeatedWalkScheduler(NoisePathScheduler):
    """Base of the schedulers that call the network several times at one time.

    `self.timesteps` then holds repeated entries, one a call, and the scheduler counts the calls. An entry taken from
    `self.timesteps` itself says which call it is; any other number is looked for from the counted place on, so a
    walk may be started again, or in its middle, without a new `set_timesteps`.
    """

    def _set_moves(
        self, moves: Sequence[Move], told: Sequence[float], dtype: torch.dtype, device: str | torch.device | None
    ) -> None:
        """Keep the moves, and what the network is told at each as `self.timesteps`."""
        self._moves = list(moves)
        on_host = torch.tensor(told, dtype=dtype)
        self._timestep_values: list[float] = on_host.tolist()
        self.timesteps = self._listed = on_host.to(device)
        self._next_call = 0

    def _next_move(self, timestep: int | float | torch.Tensor) -> Move:
        position = self._position_of_view(timestep) if isinstance(timestep, torch.Tensor) else None
        if position is None:
            position = self._position_of_value(_number(timestep))
        self._next_call = position + 1
        return self._moves[position]

    def previous_timestep(self, timestep: int | float | torch.Tensor) -> Any:
        """The path's time that a step from this entry of `self.timesteps` goes to, or would go to after its repeats."""
        called, move = self._next_call, self._next_move(timestep)
        self._next_call = called
        return move.s

    def _position_of_value(self, timestep: float) -> int:
        """The counted place if the value stands there, else the first place where a walk can begin with it.

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


def _check_one_time(timestep: torch.Tensor) -> None:
    if timestep.numel() != 1:
        raise ValueError(f"step takes one timestep for the whole batch, got shape {tuple(timestep.shape)}.")


def _number(timestep: int | float | torch.Tensor) -> float:
    if not isinstance(timestep, torch.Tensor):
        return timestep
    _check_one_time(timestep)
    return timestep.item()


def split_learned_variance(
    model_output: torch.Tensor, sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(prediction, variance values or None): a network with learned variance has twice the sample's channels."""
    channels = sample.shape[1] if sample.ndim > 1 else 0
    if channels and model_output.shape[1] == 2 * channels:
        prediction, variance = model_output.split(channels, dim=1)
        return prediction, variance
    if model_output.shape != sample.shape:
        raise ValueError(
            f"model_output of shape {tuple(model_output.shape)} does not fit a sample of shape {tuple(sample.shape)}."
        )
    return model_output, None
