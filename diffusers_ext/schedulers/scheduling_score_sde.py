"""ScoreSDEScheduler: the reverse-time equation of a diffusion, and its probability flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .configuration import configured_by, noise_path_fields, prediction_fields
from .continuous_path import SubVariancePreservingPath, VarianceExplodingPath, VariancePreservingPath
from .noise_path import DiscretePath
from .schedules import PATHS_WITHOUT_BETAS
from .scheduling_base import check_choice
from .scheduling_predictor_corrector import PREDICTORS, PredictorCorrectorScheduler

SDES = ("vp", "sub_vp", "ve")
TIMESTEP_TYPES = ("time", "sigma")


class ScoreSDEScheduler(PredictorCorrectorScheduler):
    """Score-based generative modelling through stochastic differential equations: Song et al. 2021 (arXiv:2011.13456).

    Predictors and the corrector are described in `PredictorCorrectorScheduler`. In discrete time with sde = "vp" the
    configuration means the same to diffusers' schedulers. Otherwise its `beta_schedule` is the path's name, which
    schedulers of other paths refuse.

    Args:
        (shared): `configuration.noise_path_fields` and `configuration.prediction_fields`; clip_sample is off by
            default. In continuous time only num_train_timesteps is used: the number of default steps.
        sde: `vp`, `sub_vp` or `ve`. In discrete time vp and sub_vp take alpha from the betas; ve has T sigmas in a
            geometric sequence.
        continuous: times are numbers in (0, 1], evenly spaced from 1 to `sampling_eps`; else 0 ... T-1.
        beta_min, beta_max: of vp and sub_vp in continuous time.
        sigma_min, sigma_max: of ve.
        sampling_eps: last continuous time, before the step to the data.
        predictor: one of `PREDICTORS`.
        corrector_steps: Langevin steps before each predictor step, at least 0.
        snr: signal-to-noise ratio of the corrector, above 0.
        measured_norms: take the ratio of the norms of z and of the score from the batch, as the paper does, instead of
            its expected value sigma_t; a sample then depends on the batch it is drawn in.
        timestep_type: the network's time in `self.timesteps`: `time`, multiplied by `timestep_scale`, or `sigma`.
        timestep_scale: 1, or 999 for networks trained on continuous vp with times 0 ... 999.
        scale_input: with continuous ve, divide the network's input by sqrt(1 + sigma^2).

    Raises:
        ValueError: for an unknown name or a number outside its range.
    """

    @configured_by(noise_path_fields, prediction_fields)
    def __init__(
        self,
        clip_sample: bool = False,
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
        scale_input: bool = False,
    ):
        check_choice("sde", sde, SDES)
        check_choice("predictor", predictor, PREDICTORS)
        check_choice("timestep_type", timestep_type, TIMESTEP_TYPES)
        if corrector_steps < 0:
            raise ValueError(f"corrector_steps must be at least 0, got {corrector_steps}.")
        if not snr > 0:
            raise ValueError(f"snr must be above 0, got {snr}.")
        if not 0 < sampling_eps < 1:
            raise ValueError(f"sampling_eps must lie between 0 and 1, got {sampling_eps}.")
        if scale_input and not (sde == "ve" and continuous):
            raise ValueError("scale_input needs sde 've' in continuous time.")
        self._predictor, self._corrector_steps, self._continuous = predictor, corrector_steps, continuous
        self._name_the_path()
        self._build_path()

    def _name_the_path(self) -> None:
        """Put the name of a path without betas in the place of the schedule's, and refuse the name of another path."""
        config = self.config
        schedule, own = config.beta_schedule, config.sde
        if schedule in PATHS_WITHOUT_BETAS and schedule != own:
            raise ValueError(
                f"This configuration is of the noise path '{schedule}', not of '{own}'; "
                f"use {PATHS_WITHOUT_BETAS[schedule]} with the settings it was saved with."
            )
        if config.continuous or own == "ve":
            self._register_derived(beta_schedule=own)
        elif own == "sub_vp" and config.trained_betas is None and not schedule.startswith("sub_vp("):
            self._register_derived(beta_schedule=f"sub_vp({schedule})")

    def _make_path(self) -> Any:
        config = self.config
        if config.continuous:
            if config.sde == "ve":
                return VarianceExplodingPath(config.sigma_min, config.sigma_max, config.scale_input)
            kind = VariancePreservingPath if config.sde == "vp" else SubVariancePreservingPath
            return kind(config.beta_min, config.beta_max)
        if config.sde == "ve":
            return DiscretePath.variance_exploding(config.sigma_min, config.sigma_max, config.num_train_timesteps)
        path = super()._make_path()
        return path if config.sde == "vp" else DiscretePath.sub_variance_preserving(path.alphas)

    def _schedule(self) -> str:
        return self.config.beta_schedule.removeprefix("sub_vp(").removesuffix(")")

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        """Standard deviation of the start: with ve, sigma at the first time; 1 otherwise."""
        return float(self.path.sigma(self._times[0])) if self.config.sde == "ve" else 1.0

    # the times

    def _continuous_times(self, num_inference_steps: int) -> np.ndarray:
        return np.linspace(1.0, self.config.sampling_eps, num_inference_steps)

    def _times_dtype(self) -> torch.dtype:
        config = self.config
        whole = not config.continuous and config.timestep_type == "time" and config.timestep_scale == 1
        return torch.int64 if whole else torch.float32

    def _network_time(self, t: float) -> float:
        return self.path.sigma(t) if self.config.timestep_type == "sigma" else t * self.config.timestep_scale

    def _path_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """The path's times; with sigmas, those of the nearest entries of the list."""
        if self.config.timestep_type == "sigma":
            distances = (timesteps.reshape(-1, 1) - self.timesteps.to(timesteps)).abs()
            times = torch.tensor([move.at for move in self._moves], device=timesteps.device)
            return times[distances.argmin(dim=1)]
        times = timesteps / self.config.timestep_scale
        return times if self.config.continuous else times.round()
