"""The configuration fields that schedulers share, each declared once."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config

from ..value_types import check_types


def noise_path_fields(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    beta_schedule: str = "linear",
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
    schedule_options: Mapping[str, Any] | None = None,
    timestep_spacing: str = "leading",
    steps_offset: int = 0,
) -> None:
    """A discrete noise path, and the times that a number of steps visits.

    Args:
        num_train_timesteps: T, at least 2.
        beta_start, beta_end: ends of the schedules between two betas.
        beta_schedule: a name in `schedules.SCHEDULES`.
        trained_betas: T betas in (0, 1] that take the place of `beta_schedule`.
        rescale_betas_zero_snr: end the path at alphas_cumprod = 0.
        schedule_options: options of the schedule, such as {"s": 0.008, "clip": [1e-4, 0.9999]} for `cosine`.
        timestep_spacing: `leading`, `trailing` or `linspace`.
        steps_offset: added to `leading` times.
    """


def prediction_fields(
    prediction_type: str = "epsilon",
    clip_sample: bool = True,
    clip_sample_range: float = 1.0,
    thresholding: bool = False,
    dynamic_thresholding_ratio: float = 0.995,
    sample_max_value: float = 1.0,
) -> None:
    """What the network predicts, and the bounds on the x0 that follows from it.

    Args:
        prediction_type: one of `prediction.PREDICTION_TYPES`.
        clip_sample: clamp the predicted x0 to +-clip_sample_range. Without it, x0 is bounded only where it would
            multiply the output's error more than tenfold, to twice that range (`NoisePathScheduler._bound`).
        clip_sample_range: largest value of the data.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x0 instead of clamping.
    """


def configured_by(*groups: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a scheduler's `__init__`: its configuration holds the fields of `groups` beside its own.

    `__init__` itself receives only its own parameters; one with the name of a shared field gives it another default.
    Signature, configuration and loading are as if every field stood in the class, as diffusers expects. A value that
    does not fit its field's annotation is refused with a ValueError.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        receiver, *own = inspect.signature(init).parameters.values()
        fields = {p.name: p for group in groups for p in inspect.signature(group).parameters.values()}
        fields |= {p.name: p for p in own}
        hints = {name: hint for each in (*groups, init) for name, hint in typing.get_type_hints(each).items()}
        signature = inspect.Signature([receiver, *fields.values()])

        def with_shared_fields(self: Any, *args: Any, **kwargs: Any) -> None:
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            check_types(hints, given.arguments)
            init(self, **{p.name: given.arguments[p.name] for p in own})

        with_shared_fields.__name__ = init.__name__
        with_shared_fields.__qualname__ = init.__qualname__
        with_shared_fields.__doc__ = init.__doc__
        with_shared_fields.__signature__ = signature  # type: ignore[attr-defined]
        return register_to_config(with_shared_fields)

    return decorate
