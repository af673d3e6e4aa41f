"""What a scheduler means by a timestep: the noise level of the network's input, and what the network must output.

A network is trained on a noise path. A scheduler calls it with a scaled sample and a timestep, and the network knows
nothing else. So the exact network must use the noise level that *training* gives to that timestep, whatever the
scheduler believes. `view_of` finds it through public attributes only:

- a flow-matching scheduler: sigma = t / num_train_timesteps, alpha = 1 - sigma (Lipman et al. 2023, arXiv:2210.02747);
- a scheduler with `sigma_data`: the preconditioned network of Karras et al. 2022 (arXiv:2206.00364), table 1;
- a scheduler with `alphas_cumprod`: the variance-preserving path of its configuration, in float64;
- any other scheduler: its `add_noise`, applied to zeros and ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..schedulers.noise_path import NoisePath
from ..schedulers.schedules import SCHEDULES
from .mixture import GaussianMixture, Level, network_output

# diffusers' name for what the package calls `flow`.
FLOW_PREDICTION = "flow_prediction"


@dataclass(frozen=True)
class NetworkView:
    """How a network sees a scheduler's calls.

    Attributes:
        level: timestep -> (alpha, sigma) of the network's input.
        prediction_type: what the network outputs.
        preconditioning: None, or sigma -> (c_in, c_skip, c_out): the input is c_in * (x0 + sigma * epsilon) and the
            output is (x0 - c_skip * x) / c_out.
        noise_level: with preconditioning, timestep -> sigma.
    """

    level: Callable[[Any], Level]
    prediction_type: str
    preconditioning: Callable[[float], tuple[float, float, float]] | None = None
    noise_level: Callable[[Any], float] | None = None

    def output(self, mixture: GaussianMixture, x: torch.Tensor, t: Any) -> torch.Tensor:
        """What the exact network of `mixture` outputs for input x at timestep t."""
        return self._combined(*mixture.predict(x, self.level(t)), x, t)

    def output_at_point(self, x0: torch.Tensor, x: torch.Tensor, t: Any) -> torch.Tensor:
        """What the exact network outputs for input x at timestep t when the data are the point x0, of x's shape."""
        alpha, sigma = self.level(t)
        return self._combined(x0, (x - alpha * x0) / sigma, x, t)

    def _combined(self, x0: torch.Tensor, epsilon: torch.Tensor, x: torch.Tensor, t: Any) -> torch.Tensor:
        if self.preconditioning is not None and self.noise_level is not None:
            c_in, c_skip, c_out = self.preconditioning(self.noise_level(t))
            return (x0 - c_skip / c_in * x) / c_out
        previous = self.level(t - 1) if self.prediction_type == "mean" else None
        return network_output(self.prediction_type, x0, epsilon, x, self.level(t), previous)


def view_of(source: Any, prediction_type: str | None = None, time: Callable[[Any], Any] | None = None) -> NetworkView:
    """The view of a scheduler, of a noise path with `alpha(t)` and `sigma(t)`, or of a `NetworkView` itself.

    Args:
        source: see above.
        prediction_type: overrides the scheduler's own; `epsilon` for a path if not given.
        time: from the timestep to the path's time, for a path.

    Raises:
        ValueError: for an object whose noise levels can't be found.
    """
    if isinstance(source, NetworkView):
        return source
    if hasattr(source, "alpha") and hasattr(source, "sigma"):
        # Euler's timesteps are floats, and a table has whole ones.
        to_path = time or (lambda t: int(t) if hasattr(source, "__len__") else t)
        return NetworkView(lambda t: (source.alpha(to_path(t)), source.sigma(to_path(t))), prediction_type or "epsilon")
    return _view_of_scheduler(source, prediction_type)


def config_of(scheduler: Any) -> Any:
    """Its configuration; empty for an object without one."""
    return getattr(scheduler, "config", None) or {}


def _view_of_scheduler(scheduler: Any, prediction_type: str | None) -> NetworkView:
    config = config_of(scheduler)
    own = prediction_type or config.get("prediction_type") or "epsilon"
    kind = type(scheduler).__name__
    if kind in _SPECIAL_VIEWS:
        return _SPECIAL_VIEWS[kind](scheduler)
    if is_flow_matching(scheduler):
        steps = config["num_train_timesteps"]
        return NetworkView(lambda t: (1 - t / steps, t / steps), "flow" if own in ("epsilon", FLOW_PREDICTION) else own)
    if "sigma_data" in config:
        return _edm_view(config["sigma_data"], config.get("prediction_type", "epsilon"))
    if hasattr(scheduler, "alphas_cumprod"):
        return NetworkView(variance_preserving_levels(training_alphas_cumprod(scheduler)), own)
    if hasattr(scheduler, "add_noise"):
        return NetworkView(lambda t: probed_level(scheduler, t), own)
    raise ValueError(
        f"The noise levels of {kind} can't be found: it has no alphas_cumprod, no sigma_data and no add_noise. "
        "Set alphas_cumprod, or give a NetworkView that says what its timesteps mean."
    )


def is_flow_matching(scheduler: Any) -> bool:
    """Whether the scheduler follows x_t = (1 - s) * x0 + s * epsilon with s = t / num_train_timesteps."""
    config = config_of(scheduler)
    if config.get("use_flow_sigmas") or config.get("prediction_type") == FLOW_PREDICTION:
        return True
    return hasattr(scheduler, "scale_noise") and "alphas_cumprod" not in vars(scheduler)


def training_alphas_cumprod(scheduler: Any) -> np.ndarray:
    """alphas_cumprod of shape (T,), float64, from the configuration; the scheduler's own where that isn't possible."""
    config = config_of(scheduler)
    schedule, betas = config.get("beta_schedule"), config.get("trained_betas")
    if "snr_shift_scale" in config or (betas is None and schedule not in SCHEDULES):
        return scheduler.alphas_cumprod.double().cpu().numpy()
    return NoisePath.from_config(config).alphas_cumprod


def variance_preserving_levels(alphas_cumprod: np.ndarray) -> Callable[[Any], Level]:
    """Timestep -> (alpha, sigma); between two whole timesteps log(sigma / alpha) is linear, as in k-diffusion."""
    alphas, sigmas = np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod)

    def level(t: Any) -> Level:
        below = min(max(math.floor(t), 0), len(alphas) - 1)
        if t == below or t < 0 or below == len(alphas) - 1 or alphas[below + 1] == 0:
            return float(alphas[below]), float(sigmas[below])
        ratios = np.log(sigmas[below : below + 2] / alphas[below : below + 2])
        ratio = math.exp(ratios[0] + (t - below) * (ratios[1] - ratios[0]))
        return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)

    return level


def probed_level(scheduler: Any, t: Any) -> Level:
    """(alpha, sigma) from the scheduler's own `add_noise`, on data and noise of zeros and ones."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    times = torch.tensor([t], dtype=torch.float64 if isinstance(t, float) else None)
    alpha, sigma = scheduler.add_noise(one, zero, times), scheduler.add_noise(zero, one, times)
    return float(alpha), float(sigma)


def _edm_view(sigma_data: float, prediction_type: str) -> NetworkView:
    """Karras et al. 2022, table 1; the timestep is c_noise = log(sigma) / 4."""
    sign = {"epsilon": 1.0, "v_prediction": -1.0}[prediction_type]

    def preconditioning(sigma: float) -> tuple[float, float, float]:
        norm = math.hypot(sigma, sigma_data)
        return 1 / norm, (sigma_data / norm) ** 2, sign * sigma * sigma_data / norm

    def noise_level(t: Any) -> float:
        return math.exp(4 * t)

    def level(t: Any) -> Level:
        norm = math.hypot(noise_level(t), sigma_data)
        return 1 / norm, noise_level(t) / norm

    return NetworkView(level, prediction_type, preconditioning, noise_level)


def _angle_view(scheduler: Any) -> NetworkView:
    """IPNDMScheduler: timesteps are angles as shares of a right angle; the network predicts v."""
    return NetworkView(lambda t: (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)), "v_prediction")


def _flow_view(scheduler: Any) -> NetworkView:
    """Straight paths, timesteps on a scale of `num_train_timesteps` (1 without it); the network predicts flow."""
    steps = scheduler.config.get("num_train_timesteps", 1)
    return NetworkView(lambda t: (1 - t / steps, t / steps), "flow")


def _wuerstchen_view(scheduler: Any) -> NetworkView:
    """DDPMWuerstchenScheduler: a cosine path in t from 0 to 1 (Nichol and Dhariwal 2021, eq. 17)."""
    s = scheduler.config.s

    def level(t: Any) -> Level:
        ratio = math.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)
        alphas_cumprod = min(max(ratio**2, 1e-4), 0.9999)
        return math.sqrt(alphas_cumprod), math.sqrt(1 - alphas_cumprod)

    return NetworkView(level, "epsilon")


def _reversed_flow_view(scheduler: Any) -> NetworkView:
    """MiniMaxH3Scheduler: straight paths with t = 1 at the data; the network predicts the velocity to the data."""
    return NetworkView(lambda t: (t, 1 - t), "flow_to_data")


_SPECIAL_VIEWS: dict[str, Callable[[Any], NetworkView]] = {
    "IPNDMScheduler": _angle_view,
    "LTXEulerAncestralRFScheduler": _flow_view,
    "DDPMWuerstchenScheduler": _wuerstchen_view,
    "MiniMaxH3Scheduler": _reversed_flow_view,
}
