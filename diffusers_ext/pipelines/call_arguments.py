"""The arguments of a pipeline's call: checked before anything is computed, each problem one sentence."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

Generators = torch.Generator | list[torch.Generator] | None

DEFAULT_STEPS = 50
LARGEST_INTEGER = 2**53  # larger ones are no counts, and not all of them are floats


def check_components(networks: Mapping[str, Any], scheduler: Any) -> None:
    """Raise ValueError for a network that is no `nn.Module`, or a scheduler without a scheduler's methods."""
    for name, network in networks.items():
        if network is not None and not isinstance(network, torch.nn.Module):
            raise ValueError(f"{name} must be a torch.nn.Module, got {type(network).__name__}.")
    is_one = all(callable(getattr(scheduler, name, None)) for name in ("set_timesteps", "step"))
    if scheduler is not None and (not is_one or isinstance(scheduler, type)):
        raise ValueError(
            "scheduler must be a scheduler of this package or of diffusers, with set_timesteps and step, got "
            f"{f'the class {scheduler.__name__}' if isinstance(scheduler, type) else type(scheduler).__name__}."
        )


def check_call(batch_size: Any, repeats: Any, eta: Any, callback: Any) -> None:
    """Raise ValueError for a count or eta of the wrong type or range, or a callback that can't be called."""
    if not _is_integer(batch_size):
        raise ValueError(f"batch_size must be an integer, got {batch_size!r}; conditions are given by name.")
    _check_at_least_one("batch_size", batch_size)
    _check_at_least_one("num_images_per_prompt", repeats)
    if eta is not None and not (is_number(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta must be a number from 0 to 1, got {eta!r}.")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end must be a function, got {type(callback).__name__}.")


def check_sizes(**sizes: Any) -> None:
    """Raise ValueError for a size that is neither None nor an integer of at least 1."""
    for name, value in sizes.items():
        if value is not None:
            _check_at_least_one(name, value)


def check_output_type(output_type: Any, known: Sequence[str]) -> None:
    """Raise ValueError for an unknown output type."""
    if output_type not in known:
        raise ValueError(f"output_type must be one of {', '.join(known)}, got {output_type!r}.")


def check_callback_tensors(callback_tensors: Any, known_tensors: Sequence[str]) -> None:
    """Raise ValueError for tensors that a callback can't receive."""
    if not isinstance(callback_tensors, list | tuple) or not set(callback_tensors) <= set(known_tensors):
        raise ValueError(
            f"callback_on_step_end_tensor_inputs may name {list(known_tensors)}, got {callback_tensors!r}."
        )


def check_latents(latents: Any, channels: int, sizes: Sequence[str]) -> None:
    """Raise ValueError unless latents are None or finite numbers (batch, channels, *sizes)."""
    if latents is None:
        return
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        found = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor of floating-point numbers, got {found}.")
    if latents.ndim != 2 + len(sizes) or latents.shape[1] != channels or 0 in latents.shape:
        wanted = ", ".join(["batch", str(channels), *sizes])
        raise ValueError(f"latents must have shape ({wanted}), got {tuple(latents.shape)}.")
    if latents.device.type != "meta" and not latents.isfinite().all():
        raise ValueError("latents must be finite numbers, got NaN or infinity.")


def check_generators(generator: Any, count: int) -> None:
    """Raise ValueError unless this is None, one torch.Generator, or a list of one for each of `count` images."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, got {type(generator).__name__}; "
            "for a seed pass torch.Generator().manual_seed(seed)."
        )
    if len(generator) != count:
        raise ValueError(f"A list of generators needs one per image: got {len(generator)} for {count} images.")


def default_steps(scheduler: Any, otherwise: int = DEFAULT_STEPS) -> int:
    """The steps a scheduler takes unless told: its `default_num_inference_steps`; else `otherwise`, at most all."""
    own = getattr(scheduler, "default_num_inference_steps", None)
    config = getattr(scheduler, "config", None)  # a scheduler of the user's may have none
    return own or min(otherwise, getattr(config, "num_train_timesteps", 1000))


def checked_steps(num_inference_steps: Any, scheduler: Any) -> int:
    """The number of steps; if None, that of `default_steps`. Raises ValueError for anything but a count."""
    if num_inference_steps is None:
        return default_steps(scheduler)
    _check_at_least_one("num_inference_steps", num_inference_steps)
    return int(num_inference_steps)


def checked_list(timesteps: Any) -> list[Any]:
    """The list of times as Python numbers. Raises ValueError for anything else."""
    try:
        values = timesteps.tolist() if isinstance(timesteps, torch.Tensor | np.ndarray) else list(timesteps)
    except TypeError:
        values = None
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise ValueError(f"timesteps must be a list of numbers, got {timesteps!r}.")
    return values


def own_scheduler(scheduler: Any) -> Any:
    """A copy for one call: a scheduler counts its steps and keeps earlier outputs, which calls must not share.

    Networks and generators that a scheduler may hold are shared with the copy.
    """
    shared = [value for value in vars(scheduler).values() if isinstance(value, torch.nn.Module | torch.Generator)]
    return copy.deepcopy(scheduler, {id(value): value for value in shared})


def accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """The arguments that are not None and that `function` takes: schedulers differ in what their steps accept."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if value is not None and name in parameters}


def changed_latents(returned: Any, sample: torch.Tensor) -> torch.Tensor:
    """The sample after a callback: the `latents` that it returned, or as before.

    Raises ValueError for anything but a dictionary or None, and for latents of another shape.
    """
    if returned is None:
        return sample
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end must return a dictionary or None, got {type(returned).__name__}.")
    latents = returned.get("latents", sample)
    if not isinstance(latents, torch.Tensor) or latents.shape != sample.shape:
        found = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"callback_on_step_end must return latents of shape {tuple(sample.shape)}, got {found}.")
    return latents


def predicted_x0(step: Any, scheduler: Any) -> torch.Tensor:
    """The x0 that a scheduler's step predicted. Raises ValueError for a scheduler that does not return it."""
    x0 = getattr(step, "pred_original_sample", None)
    if x0 is None:
        raise ValueError(
            f"The network takes its last prediction of x0 (self_condition), but {type(scheduler).__name__} does not "
            "return it; use a scheduler that returns pred_original_sample, such as SubsequenceDDIMScheduler."
        )
    return x0


def _check_at_least_one(name: str, value: Any) -> None:
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < LARGEST_INTEGER


def is_number(value: Any) -> bool:
    """Whether this is a finite real number."""
    if isinstance(value, Integral):
        return _is_integer(value)
    return isinstance(value, Real) and math.isfinite(value)
