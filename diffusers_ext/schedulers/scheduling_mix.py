"""MixScheduler: the toy sampler that mixes a sample with the denoiser's prediction, a growing share at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from .configuration import configured_by
from .scheduling_base import Generators, is_of_a_scheduler
from .tensors import carried, check_tensors, rounded, working_dtype
from .timesteps import as_number, position_of_view


class MixScheduler(SchedulerMixin, ConfigMixin):
    """Denoise by x <- (1 - m) * x + m * prediction, m = 1 / (steps left), from uniform noise.

    A network without time predicts the clean image from any mixture (1 - a) * x0 + a * noise, with a, the amount of
    corruption, in [0, 1] and the noise uniform. After n steps the mixture has weight 0 on the start, and the result
    equals the last prediction.

    Args:
        num_train_timesteps: the largest number of steps; a step's `timestep` is the number of steps that follow it.
        low, high: range of the data and of the uniform noise.

    Raises:
        ValueError: unless low < high and num_train_timesteps is at least 1.
    """

    config: Any
    _listed: torch.Tensor
    order = 1
    convergence_order = 1
    init_noise_sigma = 1.0

    @configured_by()
    def __init__(
        self, num_train_timesteps: int = 1000, low: float = 0.0, high: float = 1.0, prediction_type: str = "sample"
    ):
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}.")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}.")
        if prediction_type != "sample":
            raise ValueError(f"MixScheduler needs a network that predicts 'sample', got '{prediction_type}'.")
        self.set_timesteps(num_train_timesteps)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from the configuration of another MixScheduler.

        Raises:
            ValueError: for the configuration of a scheduler on a noise path.
        """
        if isinstance(config, Mapping) and is_of_a_scheduler(config) and "low" not in config:
            raise ValueError(
                f"{cls.__name__} mixes data and uniform noise and can't be made from the configuration of "
                f"{config.get('_class_name', 'a scheduler')}, which follows a noise path."
            )
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def data_range(self) -> tuple[float, float]:
        """(low, high) of the data this scheduler works on."""
        return self.config.low, self.config.high

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose n steps; `self.timesteps` is n-1, ..., 0.

        Raises:
            ValueError: for n outside 1 ... num_train_timesteps, or a list that is not n-1, ..., 0.
        """
        if timesteps is not None and num_inference_steps is None:
            n = len(timesteps)
            if [int(t) for t in timesteps] != list(range(n))[::-1]:
                raise ValueError("MixScheduler counts its steps down by one to 0; other timesteps mean nothing here.")
        elif num_inference_steps is not None and timesteps is None:
            n = num_inference_steps
        else:
            raise ValueError("Give exactly one of num_inference_steps and timesteps.")
        if not isinstance(n, Integral) or not 1 <= n <= self.config.num_train_timesteps:
            raise ValueError(f"num_inference_steps must be between 1 and {self.config.num_train_timesteps}, got {n}.")
        self.num_inference_steps = n
        self.timesteps = self._listed = torch.arange(n - 1, -1, -1, device=device)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The sample itself."""
        return sample

    def sample_prior(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Uniform noise in [low, high) of the given shape."""
        # A normal variable through its distribution function is uniform, and randn_tensor knows lists of generators.
        normal = randn_tensor(
            tuple(shape), generator=generator, device=torch.device(device or "cpu"), dtype=torch.float32
        )
        uniform = torch.special.ndtr(normal)
        return (self.config.low + (self.config.high - self.config.low) * uniform).to(dtype)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """(1 - a) * x0 + a * noise.

        Args:
            original_samples: x0 of shape (batch, ...).
            noise: same shape, uniform in [low, high).
            timesteps: the amounts a, shape (batch,), usually in [0, 1].
        """
        check_tensors(original_samples=original_samples, noise=noise)
        if not isinstance(timesteps, torch.Tensor):
            raise ValueError(f"timesteps must be a tensor of shape (batch,), got {type(timesteps).__name__}.")
        amount = timesteps.to(original_samples).reshape(-1, *(1,) * (original_samples.ndim - 1))
        return torch.lerp(original_samples, noise.to(original_samples), amount)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Mix in the prediction with weight 1 / (timestep + 1).

        Args:
            model_output: predicted clean image, shape (batch, channels, height, width).
            timestep: number of steps that follow this one.
            sample: current mixture, same shape.
            generator: not used; the sampler is deterministic.
            return_dict: give a tuple (mixture, prediction) when False.
        """
        place = position_of_view(timestep, self._listed) if isinstance(timestep, torch.Tensor) else None
        left = int(as_number(timestep)) if place is None else len(self._listed) - 1 - place
        sample, dtype = carried(sample), sample.dtype
        check_tensors(model_output=model_output)
        wide = working_dtype(sample.dtype, model_output.dtype)
        prev_sample = rounded(torch.lerp(sample.to(wide), model_output.to(wide), 1 / (left + 1)), dtype)
        if not return_dict:
            return prev_sample, model_output
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=model_output)
