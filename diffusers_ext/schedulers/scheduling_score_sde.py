"""ScoreSDEScheduler: predictor-corrector sampling of a diffusion's reverse-time equation, and its probability flow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

from .noise_path import (
    RECTIFIED_FLOW,
    DiscretePath,
    RectifiedFlowPath,
    SubVariancePreservingPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from .scheduling_base import Generators, Move, RepeatedWalkScheduler, split_learned_variance
from .tensors import carried, combine, rounded

SDES = ("vp", "sub-vp", "ve", RECTIFIED_FLOW)
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral", "ode_euler", "ode_heun")
# Those that never ask for the drift, which is infinite at the noise's end of a rectified flow.
FLOW_PREDICTORS = ("ancestral", "ode_euler", "ode_heun")
TIMESTEP_TYPES = ("time", "sigma")


class ScoreSDEScheduler(RepeatedWalkScheduler):
    """Song et al. 2021 (arXiv:2011.13456): at each time, corrector steps and then a predictor step to the next.

    Predictors from t to s, with alpha_{t|s} and sigma^2_{t|s} of `GaussianPath.transition`:

    - `euler_maruyama`: x - f * x + g2 * score + sqrt(g2) * z, (f, g2) of `GaussianPath.sde_increment` (eq. 6);
    - `reverse_diffusion`: (2 - alpha_{t|s}) * x + sigma^2_{t|s} * (score + z / sigma_{t|s}) (eq. 46);
    - `ancestral`: a draw from q(x_s | x_t, x0) (eq. 4 and 47);
    - `ode_euler`, `ode_heun`: the probability flow (eq. 13) in the variable x / alpha against sigma / alpha, in which
      its linear part is solved exactly, by steps of first and second order. On a discrete VP path `ode_euler` is DDIM.

    The walk ends at the data: the last step gives the predicted x0, without noise. The corrector is one Langevin step,
    x + h * score + sqrt(2 h) * z with h = 2 * alpha^2_{t|s} * (snr * |z| / |score|)^2 (algorithms 4 and 5).

    `self.timesteps` repeats a time once for each corrector step, and for the second evaluation of `ode_heun`.
    In discrete time with sde = "vp" the configuration means the same to diffusers' schedulers; otherwise it does not,
    except that with `rectified_flow` and the prediction type `flow`, `ode_euler` is Euler's method on the velocity, and
    with timestep_scale = num_train_timesteps and sampling_eps = 1 / num_train_timesteps it is what diffusers'
    `FlowMatchEulerDiscreteScheduler.from_config` makes of the configuration.

    Args:
        num_train_timesteps: T levels of a discrete path; ignored in continuous time.
        beta_start, beta_end, beta_schedule, trained_betas, clip_sample, prediction_type, thresholding,
        dynamic_thresholding_ratio, clip_sample_range, sample_max_value, timestep_spacing, steps_offset,
        rescale_betas_zero_snr, schedule_options: as in `AncestralDDPMScheduler`, except that clip_sample is off.
        sde: `vp`, `sub-vp`, `ve` or `rectified_flow`. In discrete time vp and sub-vp take alpha from the betas; ve has
            T sigmas in a geometric sequence. rectified_flow (`RectifiedFlowPath`) is continuous only, takes one of
            `FLOW_PREDICTORS`, and sets beta_schedule to its name.
        continuous: times are numbers in (0, 1], evenly spaced from 1 to `sampling_eps`; else 0 ... T-1.
        beta_min, beta_max: of vp and sub-vp in continuous time.
        sigma_min, sigma_max: of ve.
        sampling_eps: last time of a continuous walk, before the step to the data.
        predictor: one of `PREDICTORS`.
        corrector_steps: Langevin steps before each predictor step, at least 0.
        snr: signal-to-noise ratio of the corrector, above 0.
        measured_norms: take |z| / |score| from the batch, as the paper does, instead of its expected value sigma_t; a
            sample then depends on the batch it is drawn in.
        timestep_type: what the network is told in `self.timesteps`: `time`, multiplied by `timestep_scale`, or `sigma`.
        timestep_scale: 1, or 999 for networks trained on continuous vp with times 0 ... 999.

    Raises:
        ValueError: for an unknown name or a number outside its range.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = False,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        schedule_options: Mapping[str, Any] | None = None,
        sde: str = "vp",
        continuous: bool = False,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        sampling_eps: float = 1e-3,
        predictor: str = "reverse_diffusion",
        corrector_steps: int = 0,
        snr: float = 0.16,
        measured_norms: bool = False,
        timestep_type: str = "time",
        timestep_scale: float = 1.0,
    ):
        _check_name("sde", sde, SDES)
        _check_name("predictor", predictor, PREDICTORS)
        _check_name("timestep_type", timestep_type, TIMESTEP_TYPES)
        if sde == RECTIFIED_FLOW:
            _check_flow(continuous, predictor)
            # Schedulers of other paths refuse this name, where "linear" would mean another path to them.
            self._register_derived(beta_schedule=RECTIFIED_FLOW)
        if corrector_steps < 0:
            raise ValueError(f"corrector_steps must be at least 0, got {corrector_steps}.")
        if not snr > 0:
            raise ValueError(f"snr must be above 0, got {snr}.")
        if not 0 < sampling_eps < 1:
            raise ValueError(f"sampling_eps must lie between 0 and 1, got {sampling_eps}.")
        self._build_path()

    def _make_path(self) -> Any:
        config = self.config
        if config.continuous:
            if config.sde == "ve":
                return VarianceExplodingPath(config.sigma_min, config.sigma_max)
            if config.sde == RECTIFIED_FLOW:
                return RectifiedFlowPath()
            kind = VariancePreservingPath if config.sde == "vp" else SubVariancePreservingPath
            return kind(config.beta_min, config.beta_max)
        if config.sde == "ve":
            return DiscretePath.variance_exploding(config.sigma_min, config.sigma_max, config.num_train_timesteps)
        path = super()._make_path()
        return path if config.sde == "vp" else DiscretePath.sub_variance_preserving(path.alphas)

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        """Standard deviation of the start: sigma_max with ve, 1 otherwise."""
        return float(self.config.sigma_max) if self.config.sde == "ve" else 1.0

    @property
    def order(self) -> int:  # type: ignore[override]
        """Network calls at each time."""
        return self.config.corrector_steps + (2 if self.config.predictor == "ode_heun" else 1)

    # the walk

    def _set_default_times(self) -> None:
        if not self.config.continuous:
            super()._set_default_times()
        else:
            self._set_times(self._choose_times(self.config.num_train_timesteps, None), None)

    def _choose_times(self, num_inference_steps: int | None, timesteps: Sequence[Any] | None) -> np.ndarray:
        if not self.config.continuous:
            return super()._choose_times(num_inference_steps, timesteps)
        if timesteps is not None and num_inference_steps is None:
            times = _checked_continuous_times(timesteps)
        elif num_inference_steps is not None and timesteps is None:
            if num_inference_steps < 1:
                raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}.")
            times = np.linspace(1.0, self.config.sampling_eps, num_inference_steps)
        else:
            raise ValueError("Give exactly one of num_inference_steps and timesteps.")
        self.path.x0_coefficients(self.config.prediction_type, float(times[0]))
        return times

    def _set_times(self, times: np.ndarray, device: str | torch.device | None) -> None:
        self._times = times.tolist()
        self._ascending = sorted(self._times)
        self.num_inference_steps = len(self._times)
        moves = [
            move for t, s in zip(self._times, [*self._times[1:], self.path.clean]) for move in self._moves_at(t, s)
        ]
        told = [self._told(move.at) for move in moves]
        integers = (
            not self.config.continuous and self.config.timestep_type == "time" and self.config.timestep_scale == 1
        )
        dtype = torch.int64 if integers else torch.float32
        self._set_moves(moves, told, dtype, device)

    def _moves_at(self, t: float, s: float) -> list[Move]:
        moves = [Move("correct", t, s, t)] * self.config.corrector_steps
        if s == self.path.clean:
            return [*moves, Move("denoise", t, s, t)]
        moves.append(Move(self.config.predictor.replace("ode_heun", "ode_euler"), t, s, t))
        # sigma / alpha is infinite where alpha is 0: the step from there stays a first-order one.
        if self.config.predictor == "ode_heun" and self.path.alpha(t) > 0:
            moves.append(Move("ode_heun", t, s, s))
        return moves

    def _told(self, t: float) -> float:
        """What the network is told at path time t."""
        return self.path.sigma(t) if self.config.timestep_type == "sigma" else t * self.config.timestep_scale

    # noising, at times as the network is told them

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t from x0; `timesteps` of shape (batch,) on the scale of `self.timesteps`."""
        return super().add_noise(original_samples, noise, self._path_times(timesteps))

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t * epsilon - sigma_t * x0; `timesteps` as in `add_noise`."""
        return super().get_velocity(sample, noise, self._path_times(timesteps))

    def _path_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The path's times; with sigmas, those of the nearest entries of the list."""
        if self.config.timestep_type == "sigma":
            distances = (timesteps.reshape(-1, 1) - self.timesteps.to(timesteps)).abs()
            times = torch.tensor([move.at for move in self._moves], device=timesteps.device)
            return times[distances.argmin(dim=1)]
        times = timesteps / self.config.timestep_scale
        return times if self.config.continuous else times.round()

    # one step

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The step of this call: a corrector's, a predictor's, or the second half of Heun's.

        Args:
            model_output: network output of shape (batch, channels, ...); the variance half of a network with twice the
                channels is left unused.
            timestep: a number or a one-element tensor out of `self.timesteps`.
            sample: x of shape (batch, channels, ...).
            generator: source of the noise, one or a list of one per sample.
            return_dict: give a tuple (next sample, x0) when False.

        Returns:
            `prev_sample` and `pred_original_sample` x0, both in the sample's shape and dtype.

        Raises:
            ValueError: for shapes that do not fit, or a timestep that is not in the list.
        """
        dtype, sample = sample.dtype, carried(sample)
        move = self._next_move(timestep)
        model_output, _ = split_learned_variance(model_output, sample)
        x0 = self._predict_x0(model_output, move.at, sample)
        if move.kind == "denoise":
            prev_sample = x0
        elif move.kind == "correct":
            prev_sample = self._correct(move, x0, sample, model_output, generator)
        elif move.kind == "ode_heun":
            prev_sample = self._heun(move, x0, sample)
        else:
            if self.config.predictor == "ode_heun":
                self._epsilon = self._epsilon_from(x0, move.t, sample)
            weight, x0_weight, std = self._predictor(move)
            prev_sample = self._mix(weight, sample, x0_weight, x0, std, model_output, generator)
        prev_sample, x0 = rounded(prev_sample, dtype), x0.to(dtype)
        if not return_dict:
            return prev_sample, x0
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)

    def _predictor(self, move: Move) -> tuple[float, float, float]:
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

    def _correct(
        self,
        move: Move,
        x0: torch.Tensor,
        sample: torch.Tensor,
        model_output: torch.Tensor,
        generator: Generators,
    ) -> torch.Tensor:
        snr = self.config.snr * self.path.transition(move.t, move.s)[0]
        if self.config.measured_norms:
            return self._langevin_step_from_norms(snr, move.t, sample, x0, model_output, generator)
        h = 2 * (snr * self.path.sigma(move.t)) ** 2
        return self._langevin_step(h, move.t, sample, x0, model_output, generator)

    def _epsilon_from(self, x0: torch.Tensor, t: float, sample: torch.Tensor) -> torch.Tensor:
        sigma = self.path.sigma(t)
        return combine(1 / sigma, sample, -self.path.alpha(t) / sigma, x0)

    def _heun(self, move: Move, x0: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Replace epsilon at t by the mean of epsilon at t and at s in the Euler step that gave this sample."""
        t, s = move.t, move.s
        width = self.path.sigma(s) - self.path.alpha(s) / self.path.alpha(t) * self.path.sigma(t)
        change = self._epsilon_from(x0, s, sample).sub_(self._epsilon)
        return change.mul_(width / 2).add_(sample)


def _check_name(argument: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"Unknown {argument} '{name}'; choose one of {', '.join(names)}.")


def _check_flow(continuous: bool, predictor: str) -> None:
    if not continuous:
        raise ValueError(f"sde '{RECTIFIED_FLOW}' takes continuous=True, got {continuous}.")
    if predictor not in FLOW_PREDICTORS:
        raise ValueError(
            f"sde '{RECTIFIED_FLOW}' takes a predictor among {', '.join(FLOW_PREDICTORS)}, got '{predictor}'."
        )


def _checked_continuous_times(timesteps: Sequence[float]) -> np.ndarray:
    times = np.asarray(timesteps, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0 or not (times[0] <= 1 and times[-1] > 0 and (np.diff(times) < 0).all()):
        raise ValueError(f"timesteps must decrease strictly within 0 < t <= 1, got {timesteps!r}.")
    return times
