"""SubsequenceDDIMScheduler: DDIM on any subsequence of the training times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from .configuration import configured_by, noise_path_fields, prediction_fields
from .noise_path import CLEAN
from .scheduling_base import Generators, NoisePathScheduler, check_choice, split_learned_variance, step_output
from .tensors import carried, combine, weighted_sum

SUBSEQUENCES = ("uniform", "quadratic", "exp", "comp exp")


def exponential_subsequence(length: int, num_train_timesteps: int, drop_duplicates: bool = False) -> np.ndarray:
    """exp(linspace(-6, 6, length)) min-max scaled to [1, T-1] and rounded: dense near the data, sparse in the noise.

    Args:
        length: L in 2 ... T-1.
        num_train_timesteps: T.
        drop_duplicates: False (`exp`) lifts a value that does not exceed its predecessor to predecessor + 1, which
            gives exactly L entries; True (`comp exp`) drops it.

    Returns:
        int64 array, strictly increasing from 1 to T-1.

    Raises:
        ValueError: for a length outside 2 ... T-1.
    """
    _check_length("An exponential", length, num_train_timesteps, num_train_timesteps - 1)
    curve = np.exp(np.linspace(-6, 6, length))
    times = np.round(1 + (num_train_timesteps - 2) * (curve - curve[0]) / (curve[-1] - curve[0])).astype(np.int64)
    return np.unique(times) if drop_duplicates else _increasing(times)


def quadratic_subsequence(length: int, num_train_timesteps: int) -> np.ndarray:
    """Squares of evenly spaced roots from 0 to T-1: Song et al. 2021 (arXiv:2010.02502), appendix D.2.

    The paper's constant is free; here the last of the L entries is T-1, so that sampling starts from the path's end.

    Raises:
        ValueError: for a length outside 2 ... T.
    """
    _check_length("A quadratic", length, num_train_timesteps, num_train_timesteps)
    return _increasing(np.round(np.linspace(0, math.sqrt(num_train_timesteps - 1), length) ** 2).astype(np.int64))


def _check_length(kind: str, length: int, num_train_timesteps: int, longest: int) -> None:
    if not 2 <= length <= longest:
        raise ValueError(
            f"{kind} subsequence of {num_train_timesteps} timesteps has a length between 2 and {longest}, got {length}."
        )


def _increasing(times: np.ndarray) -> np.ndarray:
    """The times, each at least one more than the time before it."""
    for i in range(1, len(times)):
        times[i] = max(times[i], times[i - 1] + 1)
    return times


class SubsequenceDDIMScheduler(NoisePathScheduler):
    """DDIM from t to the next entry s of any strictly decreasing list: Song et al. 2021 (arXiv:2010.02502), eq. 12.

        x_s = alpha_s * x0 + sqrt(sigma_s^2 - std^2) * epsilon + std * z,    std = eta * sqrt(beta_tilde),    (eq. 16)

    Args:
        (shared): `configuration.noise_path_fields` and `configuration.prediction_fields`.
        set_alpha_to_one: the last step ends at the data (alpha = 1); False ends at the path's first level, as
            diffusers' option of that name does.
        subsequence: how `num_inference_steps` = L becomes a list: `uniform` (by `timestep_spacing`), `quadratic`, or
            `exp` and `comp exp` (`exponential_subsequence`, followed by an explicit step at t = 0, so that
            the network is called L + 1 times with `exp`).
        eta: 0 is deterministic, 1 has DDPM's posterior variance.
        sigma_hat: add noise of the larger variance beta_{t|s} instead (the paper's sigma-hat, section 4.1), with the
            mean of eta = 1.
        original_targets: step to t-1 instead of the list's next entry: the mistake of the source project, kept so
            that its figures can be reproduced.
        use_clipped_model_output: derive epsilon from the bounded x0 again, as denoising-diffusion-pytorch does; `step`
            takes the same name, as diffusers' does.

    Raises:
        ValueError: for an unknown name, eta outside 0 ... 1, or betas outside (0, 1].
    """

    @configured_by(noise_path_fields, prediction_fields)
    def __init__(
        self,
        set_alpha_to_one: bool = True,
        subsequence: str = "uniform",
        eta: float = 0.0,
        sigma_hat: bool = False,
        original_targets: bool = False,
        use_clipped_model_output: bool = False,
    ):
        check_choice("subsequence", subsequence, SUBSEQUENCES)
        _check_eta(eta)
        self._subsequence = subsequence
        self.inverse = False
        self._build_path()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        inverse: bool = False,
        subsequence: str | None = None,
    ) -> None:
        """Choose the times to visit.

        Args:
            num_inference_steps: L, turned into a list by `subsequence`.
            device: where `self.timesteps` lives.
            timesteps: a strictly decreasing list within 0 ... T-1, instead of `num_inference_steps`.
            inverse: follow the same list from the data to the noise; `self.timesteps` then increases, and a step at t
                takes a sample at the list's next entry below t (the data at first) up to t.
            subsequence: overrides `config.subsequence` for this call.

        Raises:
            ValueError: unless exactly one of num_inference_steps and timesteps is given, and valid.
        """
        self._subsequence = subsequence or self.config.subsequence
        check_choice("subsequence", self._subsequence, SUBSEQUENCES)
        times = self._choose_times(num_inference_steps, timesteps)
        self.inverse = inverse
        self._set_times(times[::-1] if inverse else times, device)

    def _spaced(self, num_inference_steps: int) -> np.ndarray:
        if self._subsequence == "uniform":
            return super()._spaced(num_inference_steps)
        if self._subsequence == "quadratic":
            return quadratic_subsequence(num_inference_steps, len(self.path))
        times = exponential_subsequence(num_inference_steps, len(self.path), self._subsequence == "comp exp")
        return np.concatenate([[0], times])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """From x_t to x_s, s the list's next entry below `timestep` (or upwards, after `inverse=True`).

        Args:
            model_output: network output of shape (batch, channels, ...); the variance half of a network with twice the
                channels is left unused.
            timestep: t, a number or a one-element tensor.
            sample: x_t of shape (batch, channels, ...); when inverting, x at the next entry below t.
            eta: overrides `config.eta`.
            use_clipped_model_output: overrides `config.use_clipped_model_output`.
            generator: source of the noise when eta > 0, one or a list of one per sample.
            variance_noise: the noise itself, instead of `generator`.
            return_dict: give a tuple (x_s, x0) when False.

        Returns:
            `prev_sample` x_s and `pred_original_sample` x0, both in the sample's shape and dtype.

        Raises:
            ValueError: for shapes that do not fit, eta outside 0 ... 1, or both generator and variance_noise.
        """
        eta = self.config.eta if eta is None else _check_eta(eta)
        if generator is not None and variance_noise is not None:
            raise ValueError("Give either generator or variance_noise, not both.")
        model_output, _ = split_learned_variance(model_output, sample)
        if use_clipped_model_output is None:
            use_clipped_model_output = self.config.use_clipped_model_output
        sample, dtype = carried(sample), sample.dtype
        t = self._time(timestep)
        s = self.previous_timestep(t)
        if self.inverse:
            return step_output(*self._invert(model_output, t, s, sample), dtype, return_dict, DDIMSchedulerOutput)
        if s == CLEAN and not self.config.set_alpha_to_one:
            s = 0
        elif self.config.original_targets:
            s = t - 1
        x0 = self._predict_x0(model_output, t, sample)
        std, noise_std = self._standard_deviations(t, s, eta)
        noise = None
        if noise_std > 0 and variance_noise is not None:
            noise = noise_std * variance_noise
        elif noise_std > 0:
            noise = self._noise(x0, sample, generator).mul_(noise_std)
        prev_sample = self._towards(s, std, x0, t, sample, model_output, use_clipped_model_output, noise)
        return step_output(prev_sample, x0, dtype, return_dict, DDIMSchedulerOutput)

    def _standard_deviations(self, t: int, s: int, eta: float) -> tuple[float, float]:
        """(std that the direction makes room for, std of the noise added); they differ under sigma_hat only."""
        beta_tilde = self.path.posterior(t, s)[2]
        if self.config.sigma_hat and s != CLEAN:
            return math.sqrt(beta_tilde), math.sqrt(self.path.transition(t, s)[1])
        return eta * math.sqrt(beta_tilde), eta * math.sqrt(beta_tilde)

    def _towards(
        self,
        s: int,
        std: float,
        x0: torch.Tensor,
        t: int,
        sample: torch.Tensor,
        model_output: torch.Tensor,
        use_clipped_model_output: bool,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """alpha_s * x0 + sqrt(sigma_s^2 - std^2) * epsilon + noise, epsilon written out in the tensors at hand."""
        alpha, direction = self.path.alpha(s), math.sqrt(max(self.path.sigma(s) ** 2 - std**2, 0.0))
        if direction == 0:
            return weighted_sum(noise, (alpha, x0))
        if use_clipped_model_output:
            ratio = direction / self.path.sigma(t)
            return weighted_sum(noise, (alpha - ratio * self.path.alpha(t), x0), (ratio, sample))
        a, b = self.path.epsilon_coefficients(self.config.prediction_type, t)
        terms = [(alpha, x0), (direction * b, model_output), (direction * a, sample)]
        return weighted_sum(noise, *(term for term in terms if term[0]))

    def _invert(
        self, model_output: torch.Tensor, t: int, s: int, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, x0) from a sample at s < t: the DDIM step read upwards, with epsilon as the network said it at t."""
        a, b = self.path.epsilon_coefficients(self.config.prediction_type, t)
        epsilon = combine(a, sample, b, model_output)
        x0 = combine(1 / self.path.alpha(s), sample, -self.path.sigma(s) / self.path.alpha(s), epsilon)
        return combine(self.path.alpha(t), x0, self.path.sigma(t), epsilon), x0


def _check_eta(eta: float) -> float:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}.")
    return eta
