"""GuidedLangevinScheduler: Langevin steps at every noise level, for sampling with guidance."""

from __future__ import annotations

import math

import numpy as np
import torch

from .configuration import configured_by, noise_path_fields, prediction_fields
from .noise_path import CLEAN
from .scheduling_base import Generators, check_choice
from .scheduling_repeated import Move, RepeatedStepScheduler

RULES = ("langevin", "reverse_sde", "original")


class GuidedLangevinScheduler(RepeatedStepScheduler):
    """Langevin steps at every noise level, with K network calls at each.

    One Langevin step is x + h * score + sqrt(2 h) * z; it leaves the level's density as it is. The rules:

    - `langevin`: K steps a level with h = 2 * (snr * sigma_t)^2, and at the end one call that takes the sample to
      the data (annealed Langevin dynamics: Song and Ermon 2019, arXiv:1907.05600, algorithm 1). With the guided
      prediction (1 - w) * null + w * conditional it tends, as K grows, to the density p(x)^(1-w) p(x|c)^w.
    - `reverse_sde`: K - 1 such steps, then one step of the reverse-time equation to the next level,
      x + beta/2 * x + beta * score + sqrt(beta) * z (Song et al. 2021, arXiv:2011.13456, eq. 6 and 11), without noise
      on reaching the data. Right at K = 1 for w = 0 and w = 1.
    - `original`: K Langevin steps with h = beta_t / 2 and noise at every level, as the source project had it with
      K = 1. It is no reverse step, and its samples stay noisy; it is kept to reproduce that project's figures.

    A scheduler sees one output a call: the pipeline forms null + w * (conditional - null) in whatever the network
    predicts, which is linear in the score, so the scores combine alike. `self.timesteps` repeats each time
    once per call.

    Args:
        (shared): `configuration.noise_path_fields` and `configuration.prediction_fields`; clip_sample is off by
            default, because a bounded x0 no longer gives the gradient of a density.
        rule: one of `RULES`.
        inner_steps: K, at least 1.
        snr: signal-to-noise ratio r of a Langevin step, above 0.
        measured_norms: take the step size from the norms of score and noise in the batch (Song et al. 2021,
            algorithm 5) instead of their expected values; a sample then depends on the batch it is drawn in.

    Raises:
        ValueError: for an unknown rule, inner_steps below 1, snr not above 0, or a path that does not fit.
    """

    @configured_by(noise_path_fields, prediction_fields)
    def __init__(
        self,
        clip_sample: bool = False,
        rule: str = "reverse_sde",
        inner_steps: int = 1,
        snr: float = 0.16,
        measured_norms: bool = False,
    ):
        check_choice("rule", rule, RULES)
        if inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, got {inner_steps}.")
        if not snr > 0:
            raise ValueError(f"snr must be above 0, got {snr}.")
        self._build_path()

    @property
    def order(self) -> int:  # type: ignore[override]
        """Network calls at each time."""
        return self.config.inner_steps

    def _set_times(self, times: np.ndarray, device: str | torch.device | None) -> None:
        super()._set_times(times, device)
        moves = [move for t, s in zip(self._times, [*self._times[1:], CLEAN]) for move in self._moves_at(t, s)]
        if self.config.rule == "langevin":
            moves.append(Move("denoise", self._times[-1], CLEAN, self._times[-1]))
        self._set_moves(moves, [move.at for move in moves], torch.int64, device)

    def _moves_at(self, t: int, s: int) -> list[Move]:
        kinds = [self.config.rule if self.config.rule == "original" else "langevin"] * self.config.inner_steps
        if self.config.rule == "reverse_sde":
            kinds[-1] = "reverse_sde" if s != CLEAN else "denoise"
        return [Move(kind, t, s, t) for kind in kinds]

    def _moved(self, move: Move, x0: torch.Tensor, sample: torch.Tensor, generator: Generators) -> torch.Tensor:
        if move.kind == "denoise":
            return x0
        if move.kind == "langevin":
            return self._langevin_step_with_snr(self.config.snr, move.t, sample, x0, generator)
        beta = self.path.transition(move.t, move.s)[1]
        if move.kind == "original":
            return self._langevin_step(beta / 2, move.t, sample, x0, generator)
        alpha, variance = self.path.alpha(move.t), self.path.sigma(move.t) ** 2
        weight, x0_weight = 1 + beta / 2 - beta / variance, beta * alpha / variance
        return self._mix(weight, sample, x0_weight, x0, math.sqrt(beta), generator)
