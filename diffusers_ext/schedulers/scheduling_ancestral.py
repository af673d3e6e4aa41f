"""AncestralDDPMScheduler: the reverse Markov chain of DDPM along any list of timesteps."""

from __future__ import annotations

import math

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

from .configuration import configured_by, noise_path_fields, prediction_fields
from .noise_path import CLEAN
from .scheduling_base import Generators, NoisePathScheduler, check_choice, split_learned_variance, step_output
from .tensors import carried, weighted_sum, working_dtype

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
GAMMAS = ("exponential_decay", "sigmoid_decay")


class AncestralDDPMScheduler(NoisePathScheduler):
    """Ancestral sampling: x_s ~ N(posterior mean of (x_t, x0), gamma_t^2 * variance).

    Ho et al. 2020 (arXiv:2006.11239), eq. 6-7 and algorithm 2, for any s < t. No noise is added on reaching the data.

    Args:
        (shared): `configuration.noise_path_fields` and `configuration.prediction_fields`.
        variance_type: `fixed_small` (beta_tilde), `fixed_large` (beta), or `learned`, `learned_range` from a network
            with twice the channels (Nichol and Dhariwal 2021, eq. 15). The `_log` names mean the same variances.
        gamma: factor on the standard deviation of the added noise: a number of at least 0, `exponential_decay`
            exp(-5 (1 - t/T)), or `sigmoid_decay` 1 / (1 + exp(-10 (t/T - 1/2))). 1 is right; less collapses the
            samples towards a few alike, more leaves noise.

    Raises:
        ValueError: for an unknown name, or betas outside (0, 1].
    """

    @configured_by(noise_path_fields, prediction_fields)
    def __init__(self, variance_type: str = "fixed_small", gamma: float | str = 1.0):
        check_choice("variance_type", variance_type, VARIANCE_TYPES)
        if gamma not in GAMMAS and not (isinstance(gamma, (int, float)) and gamma >= 0):
            raise ValueError(f"gamma must be a number of at least 0 or one of {', '.join(GAMMAS)}, got {gamma!r}.")
        self._build_path()

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One draw from p(x_s | x_t), s the next entry of the list below `timestep`.

        Args:
            model_output: network output of shape (batch, channels, ...), or (batch, 2 * channels, ...) with learned
                variance.
            timestep: t, a number or a one-element tensor.
            sample: x_t of shape (batch, channels, ...).
            generator: source of the noise, one or a list of one per sample.
            return_dict: give a tuple (x_s, x0) when False.

        Returns:
            `prev_sample` x_s and `pred_original_sample` x0, both in the sample's shape and dtype.

        Raises:
            ValueError: for shapes that do not fit, or learned variance without the channels for it.
        """
        sample, dtype = carried(sample), sample.dtype
        t = self._time(timestep)
        s = self.previous_timestep(t)
        model_output, values = split_learned_variance(model_output, sample)
        x0 = self._predict_x0(model_output, t, sample)
        prev_sample = x0
        if s != CLEAN:
            c0, ct, _ = self.path.posterior(t, s)
            noise = self._noise(x0, sample, generator).mul_(self._standard_deviation(t, s, values))
            prev_sample = weighted_sum(noise, (c0, x0), (ct, sample))
        return step_output(prev_sample, x0, dtype, return_dict)

    def _standard_deviation(self, t: int, s: int, values: torch.Tensor | None) -> float | torch.Tensor:
        """gamma_t times the standard deviation of x_s given x_t; a tensor when the network gave variance values."""
        kind = self.config.variance_type
        beta = self.path.transition(t, s)[1]
        beta_tilde = self.path.posterior(t, s)[2]
        if not kind.startswith("learned"):
            return self._gamma(t) * math.sqrt(beta if kind.startswith("fixed_large") else beta_tilde)
        if values is None:
            raise ValueError(f"variance_type '{kind}' needs a network output with twice the sample's channels.")
        values = values.to(working_dtype(values.dtype))
        if kind == "learned":
            return self._gamma(t) * values.clamp(min=0).sqrt()
        fraction = (values + 1) / 2
        return self._gamma(t) * torch.exp(0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(beta_tilde)))

    def _gamma(self, t: int) -> float:
        progress = t / len(self.path)
        if self.config.gamma == "exponential_decay":
            return math.exp(-5 * (1 - progress))
        if self.config.gamma == "sigmoid_decay":
            return 1 / (1 + math.exp(-10 * (progress - 0.5)))
        return float(self.config.gamma)
