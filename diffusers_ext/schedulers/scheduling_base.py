"""What all schedulers on a noise path share: timesteps, noising, bounds on x0, configurations that swap."""

from __future__ import annotations

import json
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor

from .noise_path import CLEAN, TERMINAL_ALPHAS_CUMPROD, DiscretePath, NoisePath
from .schedules import DIFFUSERS_SCHEDULES
from .tensors import check_tensors, combine, rounded, working_dtype
from .timesteps import as_number, check_one_time, checked_timesteps, position_of_view, spaced_timesteps

Generators = torch.Generator | list[torch.Generator] | None

# These keys say which path a configuration means. They are never left to a default: defaults differ.
PATH_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")

# x0's error over the output's: above this, x0 is bounded in any case.
LARGEST_AMPLIFICATION = 10.0

LONGEST_LIST_SHOWN = 8


def is_of_a_scheduler(config: Mapping[str, Any]) -> bool:
    """Whether this is a scheduler's configuration, in memory or saved, and not a dictionary of a user's settings."""
    return isinstance(config, FrozenDict) or "_class_name" in config


class NoisePathScheduler(SchedulerMixin, ConfigMixin):
    """Base of the schedulers that follow a noise path along any strictly decreasing list of timesteps.

    `step` is a pure function of its arguments and the list: the time it goes to is the list's next entry below the
    given one (never a stride), and after the smallest entry come the clean data.

    Attributes:
        path: the noise path, `GaussianPath`.
        timesteps: the times to visit, decreasing, as the network receives them.
        order: network calls at each time, as in diffusers.
        convergence_order: p, where the error falls as 1 / steps^p; weak order for samplers that draw noise.
    """

    config: Any
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1
    convergence_order = 1
    init_noise_sigma = 1.0

    def __repr__(self) -> str:
        """The configuration without the long lists, which the saved one holds."""
        return f"{type(self).__name__} {json.dumps(_abbreviated(self.config), indent=2, sort_keys=True)}"

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler of this class from another's configuration, on the same noise path.

        A key that the other scheduler left at its default is dropped on a swap. The path's keys are kept, because
        defaults differ: diffusers' HeunDiscreteScheduler has other betas.

        Raises:
            ValueError: for the configuration of a scheduler on another kind of path.
        """
        if isinstance(config, Mapping):
            cls._check_same_path(config)
        if isinstance(config, Mapping) and "_use_default_values" in config:
            defaults = [key for key in config["_use_default_values"] if key not in PATH_KEYS]
            config = {**config, "_use_default_values": defaults}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _check_same_path(cls, config: Mapping[str, Any]) -> None:
        """Raise ValueError for another scheduler's configuration that means another path."""
        if not is_of_a_scheduler(config):
            return
        if "beta_schedule" not in config:
            raise ValueError(
                f"{cls.__name__} can't be made from the configuration of {config.get('_class_name', 'a scheduler')}, "
                "which has noise levels of its own and no beta_schedule; a network trained on those needs a scheduler "
                "of that family."
            )
        # This package writes the betas of this schedule into the configuration.
        if config["beta_schedule"] == "laplace" and config.get("trained_betas") is None:
            raise ValueError(
                "beta_schedule 'laplace' of diffusers is another path than this package's: its formula differs; pass "
                "its betas as trained_betas."
            )

    def _build_path(self) -> None:
        """Make the path from the configuration; call at the end of a subclass's `__init__`."""
        self._check_bounds()
        self.path = self._make_path()
        if isinstance(self.path, NoisePath):
            self._register_for_swaps()
            self.path.warn_about_ends()
            self.betas = torch.from_numpy(self.path.betas).float()
            self.alphas_cumprod = torch.from_numpy(self.path.alphas_cumprod).float()
        self.num_inference_steps: int | None = None
        self._set_default_times()

    def _check_bounds(self) -> None:
        """Raise ValueError for bounds on x0 that leave nothing of it."""
        for name in ("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"):
            value = self.config.get(name, 1.0)
            if value <= 0 or (name == "dynamic_thresholding_ratio" and value > 1):
                allowed = "in (0, 1]" if name == "dynamic_thresholding_ratio" else "above 0"
                raise ValueError(f"{name} must be {allowed}, got {value}.")

    def _make_path(self) -> Any:
        return NoisePath.from_config({**self.config, "beta_schedule": self._schedule()})

    def _schedule(self) -> str:
        """The name of the betas' schedule."""
        return self.config.beta_schedule

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
        if (timesteps is None) == (num_inference_steps is None):
            raise ValueError("Give exactly one of num_inference_steps and timesteps.")
        times = self._even_times(num_inference_steps) if timesteps is None else self._checked_times(timesteps)
        # Raises now, not at the first step, where alpha is 0 at the start and the output does not determine x0.
        self.path.x0_coefficients(self.config.prediction_type, times[0].item())
        return times

    def _checked_times(self, timesteps: Sequence[Any]) -> np.ndarray:
        return checked_timesteps(timesteps, len(self.path))

    def _even_times(self, num_inference_steps: Any) -> np.ndarray:
        times = self._spaced(num_inference_steps)[::-1]
        self._warn_of_a_low_start(num_inference_steps, int(times[0]))
        return times

    def _spaced(self, num_inference_steps: int) -> np.ndarray:
        config = self.config
        times = spaced_timesteps(config.timestep_spacing, num_inference_steps, len(self.path), config.steps_offset)
        return times[times < len(self.path)]

    def _warn_of_a_low_start(self, num_inference_steps: int, first: int) -> None:
        """Warn when the times begin far below the path's end: sampling starts from noise all the same."""
        path = self.path
        if not isinstance(path, NoisePath) or path.alphas_cumprod[first] <= TERMINAL_ALPHAS_CUMPROD:
            return
        if path.alphas_cumprod[first] > 1.5 * path.alphas_cumprod[-1]:
            warnings.warn(
                f"With timestep_spacing '{self.config.timestep_spacing}', {num_inference_steps} steps begin at "
                f"timestep {first} of {len(path) - 1}, where {path.alpha(first):.0%} of the signal's amplitude is "
                "left, while sampling starts from pure noise; use timestep_spacing='trailing'.",
                stacklevel=5,
            )

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
        t = int(as_number(timestep))
        if not 0 <= t < len(self.path):
            raise ValueError(f"timestep must lie between 0 and {len(self.path) - 1}, got {t}.")
        return t

    def _position_of_view(self, timestep: torch.Tensor) -> int | None:
        """Where in the list of times this view of it lies; None for any other tensor."""
        check_one_time(timestep)
        return position_of_view(timestep, self._listed)

    # noising

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The network's input at `timestep`: the sample itself, unless the path scales it."""
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t from x0; `timesteps` of shape (batch,) on the scale of `self.timesteps`.

        Computed in float32 or better, returned in the samples' dtype.

        Raises:
            ValueError: for what are no tensors, shapes that do not fit, or timesteps that the path does not have.
        """
        times = self._noising_times(timesteps, original_samples=original_samples, noise=noise)
        return self.path.add_noise(original_samples, noise, times)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The `v_prediction` of `schedulers.Prediction`; shapes and errors as `add_noise`."""
        times = self._noising_times(timesteps, sample=sample, noise=noise)
        return self.path.target("v_prediction", sample, noise, times).to(sample.dtype)

    def _path_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Times of the path from times on the scale of `self.timesteps`."""
        return timesteps

    def _noising_times(self, timesteps: Any, **samples: Any) -> torch.Tensor:
        """The path's times; raises ValueError as `add_noise` does."""
        check_tensors(**samples)
        shape, *others = [tensor.shape for tensor in samples.values()]
        if any(other != shape for other in others):
            raise ValueError(f"{' and '.join(samples)} must have one shape, got {tuple(shape)} and {tuple(others[0])}.")
        if not isinstance(timesteps, torch.Tensor) or timesteps.is_complex():
            raise ValueError(f"timesteps must be a tensor of shape (batch,), got {type(timesteps).__name__}.")
        if timesteps.numel() not in (1, *shape[:1]):
            raise ValueError(
                f"timesteps must be one for each sample, got {timesteps.numel()} for shape {tuple(shape)}."
            )
        times = self._path_times(timesteps)
        # A negative index would count from the end. Reading values on another device would make the host wait.
        if isinstance(self.path, DiscretePath) and times.device.type == "cpu" and times.numel() > 0:
            low, high = times.min().item(), times.max().item()
            if not 0 <= low <= high < len(self.path):
                raise ValueError(f"timesteps must lie between 0 and {len(self.path) - 1}, got {low:g} to {high:g}.")
        return times

    # x0

    def _predict_x0(self, model_output: torch.Tensor, t: int, sample: torch.Tensor) -> torch.Tensor:
        """x0 as a new tensor in working precision, bounded as the configuration says."""
        a, b = self.path.x0_coefficients(self.config.prediction_type, t)
        return self._bound(combine(a, sample, b, model_output), b)

    def _bound(self, x0: torch.Tensor, amplification: float) -> torch.Tensor:
        """Apply `thresholding` or `clip_sample`; x0 is the step's own tensor and may be changed in place.

        `amplification` times the output's error is x0's error. Near pure noise it is so large for `epsilon` that x0
        would be far outside the data; there the exact x0 is nearly the data's mean, so that a bound of twice
        `clip_sample_range` changes nothing but errors.
        """
        bound = self.config.clip_sample_range
        if self.config.thresholding:
            return self._threshold(x0)
        if self.config.clip_sample:
            return x0.clamp_(-bound, bound)
        if abs(amplification) > LARGEST_AMPLIFICATION:
            return x0.clamp_(-2 * bound, 2 * bound)
        return x0

    def _threshold(self, x0: torch.Tensor) -> torch.Tensor:
        """Dynamic thresholding: Saharia et al. 2022 (arXiv:2205.11487), section 2.3."""
        magnitudes = x0.abs().flatten(1)
        bound = torch.quantile(magnitudes, self.config.dynamic_thresholding_ratio, dim=1)
        bound = bound.clamp(1.0, self.config.sample_max_value).reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp_(-bound, bound).div_(bound)

    # noise

    def _noise(self, x0: torch.Tensor, sample: torch.Tensor, generator: Generators) -> torch.Tensor:
        """Standard normal noise of the sample's shape, in working precision: the step's own tensor.

        In float32 and float64 a generator gives the numbers that it gives to diffusers' schedulers.
        """
        _check_generators(generator, len(sample))
        dtype = working_dtype(sample.dtype, x0.dtype)
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)


def _check_generators(generator: Any, count: int) -> None:
    """Raise ValueError unless this is None, one torch.Generator, or a list of one, or of one for each sample."""
    generators = generator if isinstance(generator, list) else [generator]
    if not all(each is None or isinstance(each, torch.Generator) for each in generators):
        raise ValueError(f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}.")
    if len(generators) not in (1, count):
        raise ValueError(f"A list of generators needs one per sample: got {len(generators)} for {count} samples.")


def _abbreviated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The public entries of a configuration, long lists by their ends and length."""
    shown = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in shown.items():
        if isinstance(value, list | tuple) and len(value) > LONGEST_LIST_SHOWN:
            shown[key] = f"[{value[0]:.6g}, ..., {value[-1]:.6g}], {len(value)} values"
    return shown


def step_output(
    prev_sample: torch.Tensor, x0: torch.Tensor, dtype: torch.dtype, return_dict: bool, kind: Any = DDPMSchedulerOutput
) -> Any:
    """What a step returns, in the sample's dtype: an object of `kind`, or the tuple (next sample, x0)."""
    prev_sample, x0 = rounded(prev_sample, dtype), x0.to(dtype)
    return kind(prev_sample=prev_sample, pred_original_sample=x0) if return_dict else (prev_sample, x0)


def check_choice(argument: str, name: str, names: Sequence[str]) -> None:
    """Raise ValueError unless `name` is one of `names`."""
    if name not in names:
        raise ValueError(f"Unknown {argument} '{name}'; choose one of {', '.join(names)}.")


def split_learned_variance(
    model_output: torch.Tensor, sample: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(prediction, variance values or None): a network with learned variance has twice the sample's channels.

    Raises ValueError for what are no tensors, and for shapes that do not fit.
    """
    check_tensors(model_output=model_output, sample=sample)
    channels = sample.shape[1] if sample.ndim > 1 else 0
    if channels and model_output.ndim > 1 and model_output.shape[1] == 2 * channels:
        prediction, variance = model_output.split(channels, dim=1)
        return prediction, variance
    if model_output.shape != sample.shape:
        raise ValueError(
            f"model_output of shape {tuple(model_output.shape)} does not fit a sample of shape {tuple(sample.shape)}."
        )
    return model_output, None
