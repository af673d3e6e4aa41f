"""FlowMatchScheduler: sampling on straight lines from noise to data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .configuration import configured_by, prediction_fields
from .continuous_path import RectifiedFlowPath
from .schedules import RECTIFIED_FLOW
from .scheduling_base import check_choice, is_of_a_scheduler
from .scheduling_predictor_corrector import PredictorCorrectorScheduler

# The other predictors need the drift, which is infinite at the noise's end.
FLOW_PREDICTORS = ("ode_euler", "ode_heun", "ancestral")

# Settings of diffusers' FlowMatchEulerDiscreteScheduler that change its path or times, and the values that leave both.
_LEFT_OUT = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}


class FlowMatchScheduler(PredictorCorrectorScheduler):
    """The rectified flow x_t = (1 - t) * x0 + t * epsilon, t from 1 to 0: Liu et al. 2023 (arXiv:2209.03003).

    The predictors are those of `PredictorCorrectorScheduler`. With the prediction type `flow`, `ode_euler` is Euler's
    method on the velocity, and diffusers' `FlowMatchEulerDiscreteScheduler` gives the same samples: configurations
    swap both ways. The network's time is t * num_train_timesteps.

    Args:
        (shared): `configuration.prediction_fields`; prediction_type is `flow` and clip_sample off by default.
        num_train_timesteps: factor on the network's time; the last time before the data is 1 / num_train_timesteps.
        shift: above 1 spends more steps near the noise, t -> shift * t / (1 + (shift - 1) * t) (Esser et al. 2024,
            arXiv:2403.03206, eq. 23).
        predictor: `ode_euler`, `ode_heun` or `ancestral`, a draw from the posterior of x0.

    Raises:
        ValueError: for an unknown name or a number outside its range.
    """

    @configured_by(prediction_fields)
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        predictor: str = "ode_euler",
        prediction_type: str = "flow",
        clip_sample: bool = False,
    ):
        check_choice("predictor", predictor, FLOW_PREDICTORS)
        self._begin(num_train_timesteps, shift, predictor)

    def _begin(self, num_train_timesteps: int, shift: float, predictor: str) -> None:
        """Check the numbers and make the path and its times."""
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}.")
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}.")
        self._predictor = predictor
        # Schedulers of other paths refuse this name, where "linear" would mean another path to them.
        self._register_derived(beta_schedule=RECTIFIED_FLOW)
        self._build_path()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from the configuration of another one on the rectified flow.

        Raises:
            ValueError: for the configuration of another path, or of times that this class does not have.
        """
        if isinstance(config, Mapping) and config.get("prediction_type") == "flow_prediction":
            config = {**config, "prediction_type": "flow"}  # the name of diffusers' multistep schedulers
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _check_same_path(cls, config: Mapping[str, Any]) -> None:
        if not is_of_a_scheduler(config):
            return
        name = config.get("_class_name", "a scheduler")
        is_flow = config.get("beta_schedule") == RECTIFIED_FLOW or config.get("use_flow_sigmas")
        if not is_flow and ("beta_schedule" in config or "shift" not in config):
            raise ValueError(
                f"{cls.__name__} follows the rectified flow, and the configuration of {name} is of another noise path; "
                "a network trained there needs a scheduler of that path."
            )
        wrong = [key for key, value in _LEFT_OUT.items() if config.get(key, value) != value]
        if wrong and "predictor" not in config:
            raise ValueError(f"{cls.__name__} has no {', '.join(wrong)}, which the configuration of {name} sets.")

    def _make_path(self) -> RectifiedFlowPath:
        return RectifiedFlowPath()

    # the times

    def _continuous_times(self, num_inference_steps: int) -> np.ndarray:
        # As diffusers' scheduler does: the last time is shifted twice.
        last = self._shifted(1 / self.config.num_train_timesteps)
        return self._shifted(np.linspace(1.0, last, num_inference_steps))

    def _shifted(self, t: Any) -> Any:
        shift = self.config.shift
        return shift * t / (1 + (shift - 1) * t)

    def _network_time(self, t: float) -> float:
        return t * self.config.num_train_timesteps

    def _path_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps / self.config.num_train_timesteps
