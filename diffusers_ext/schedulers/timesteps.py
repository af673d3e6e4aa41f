"""Lists of timesteps: evenly spaced, a user's own, and where in a list a step's time stands."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
LARGEST_TIME = 1e12


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
    if not isinstance(n, Integral) or not 1 <= n <= total:
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
    """A user's times as an int64 array. Raises ValueError unless they decrease strictly within 0 ... T-1."""
    times = np.asarray(timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps)
    numbers = times.ndim == 1 and len(times) > 0 and times.dtype.kind in "iuf" and np.isfinite(times).all()
    if not numbers or not np.array_equal(times, times.astype(np.int64)):
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


def check_one_time(timestep: torch.Tensor) -> None:
    """Raise ValueError unless the tensor holds one time."""
    if timestep.numel() != 1:
        raise ValueError(f"step takes one timestep for the whole batch, got shape {tuple(timestep.shape)}.")


def as_number(timestep: int | float | torch.Tensor) -> float:
    """A time as a Python number; reads a tensor's value, for which the host waits.

    Raises ValueError for anything but one finite number.
    """
    if isinstance(timestep, torch.Tensor):
        check_one_time(timestep)
        timestep = timestep.item()
    if not isinstance(timestep, Real) or isinstance(timestep, bool) or not -LARGEST_TIME < timestep < LARGEST_TIME:
        raise ValueError(f"timestep must be a number or a one-element tensor, got {str(timestep)[:40]!r}.")
    return timestep  # type: ignore[return-value]
