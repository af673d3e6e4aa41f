"""FlowMapScheduler: a few steps of any length with a network that knows where each step ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .configuration import configured_by, prediction_fields
from .scheduling_flow_match import FlowMatchScheduler


class FlowMapScheduler(FlowMatchScheduler):
    """Steps z_r = z_t - (t - r) * u(z_t, t, t - r) with the average velocity u (Geng et al. 2025, arXiv:2505.13447).

    One step from t = 1 to r = 0 gives a sample. diffusers' `FlowMapEulerDiscreteScheduler` gives the same samples, and
    configurations swap both ways. A network without a second time takes Euler's steps on its velocity.

    Args:
        (shared): `configuration.prediction_fields`; prediction_type is `flow` and clip_sample off by default.
        num_train_timesteps: factor on the network's times t and t - r.
        shift: above 1 spends more steps near the noise; as in `FlowMatchScheduler`.

    Raises:
        ValueError: for a number outside its range, or a prediction type other than `flow`.
    """

    # What a pipeline takes unless told.
    default_num_inference_steps = 4

    @configured_by(prediction_fields)
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        prediction_type: str = "flow",
        clip_sample: bool = False,
    ):
        if prediction_type != "flow":
            raise ValueError(f"FlowMapScheduler takes prediction_type 'flow', got '{prediction_type}'.")
        self._begin(num_train_timesteps, shift, "ode_euler")

    def network_arguments(self, timestep: int | float | torch.Tensor) -> dict[str, float]:
        """Further arguments of a network with a second time: the `duration` t - r of the step from `timestep`.

        Args:
            timestep: a number or a one-element tensor out of `self.timesteps`.

        Raises:
            ValueError: for a timestep that is not in the list.
        """
        move = self._move_from(timestep)
        return {"duration": self._network_time(move.t - move.s)}

    def _continuous_times(self, num_inference_steps: int) -> np.ndarray:
        return np.asarray(self._shifted(np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]))


def network_arguments_of(scheduler: Any, index: int) -> dict[str, float]:
    """What step `index` of any scheduler tells the networks that take it, beside the timestep.

    Without an answer, a network with a second time predicts the velocity itself, that of duration 0, which is what
    other schedulers on its path need.
    """
    if hasattr(scheduler, "network_arguments"):
        arguments: dict[str, float] = scheduler.network_arguments(scheduler.timesteps[index])
        return arguments
    if type(scheduler).__name__ != "FlowMapEulerDiscreteScheduler":
        return {}
    ends = [*scheduler.timesteps[1:], 0.0]
    return {"duration": float(scheduler.timesteps[index] - ends[index])}
