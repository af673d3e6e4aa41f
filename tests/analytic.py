"""The tests' exact answers: mixtures, perfect networks for them, and a sampler's law without drawing a number."""

from __future__ import annotations

import math
from typing import Any

import torch

from diffusers_ext.proofs.mixture import GaussianMixture


class ExactModel:
    """A perfect network: `model(x, t)` for times of a path.

    Args:
        mixture: the data.
        path: gives `alpha(t)` and `sigma(t)`.
        prediction_type: what it outputs.
        guidance: None, or (label, scale) for null + scale * (conditional - null), formed in what it outputs, as a
            pipeline does.
        time: from what the scheduler says to the path's time.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        path: Any,
        prediction_type: str = "epsilon",
        guidance: tuple[int, float] | None = None,
        time: Any = lambda t: t,
    ):
        self.mixture, self.path, self.prediction_type, self.time = mixture, path, prediction_type, time
        self.guidance = (mixture.conditional(guidance[0]), guidance[1]) if guidance else None
        self.calls = 0

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        self.calls += 1
        t = self.time(t.item() if isinstance(t, torch.Tensor) else t)
        level = (self.path.alpha(t), self.path.sigma(t))
        previous = (self.path.alpha(t - 1), self.path.sigma(t - 1)) if self.prediction_type == "mean" else None
        output = self.mixture.output(self.prediction_type, x, level, previous)
        if self.guidance is None:
            return output.to(x.dtype)
        mixture, scale = self.guidance
        conditional = mixture.output(self.prediction_type, x, level, previous)
        return (output + scale * (conditional - output)).to(x.dtype)


def walk(scheduler: Any, model: Any, x: torch.Tensor, calls: int | None = None, **step_arguments: Any) -> torch.Tensor:
    """The loop of any diffusers pipeline: the sample after all (or the first `calls`) network calls."""
    for t in scheduler.timesteps[:calls]:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **step_arguments).prev_sample
    return x


# --- exact laws of a sampler, without drawing a number ----------------------------------------------------------------


def affine_step(scheduler: Any, model: Any, t: Any, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(next sample without noise, standard deviation of the noise) of one call; every step is linear in its noise."""
    output, call = model(x, t), getattr(scheduler, "_next_call", None)
    results = []
    for value in (0.0, 1.0):
        scheduler._noise = lambda _, sample, __, value=value: torch.full_like(sample, value)
        if call is not None:
            scheduler._next_call = call
        results.append(scheduler.step(output, t, x).prev_sample)
    del scheduler._noise
    spread = results[1] - results[0]
    assert (spread - spread.flatten()[0]).abs().max() < 1e-9
    return results[0], spread.flatten()[0].item()


def gaussian_law(scheduler: Any, model: Any, calls: int | None = None) -> tuple[float, float]:
    """Exact (mean, standard deviation) of samples of one Gaussian on the line, where every step is affine in x."""
    mean, variance = 0.0, float(scheduler.init_noise_sigma) ** 2
    for t in scheduler.timesteps[:calls]:
        moved, std = affine_step(scheduler, model, t, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        at_zero, slope = moved[0].item(), (moved[1] - moved[0]).item()
        mean, variance = at_zero + slope * mean, slope**2 * variance + std**2
    return mean, math.sqrt(variance)


def line_law(scheduler: Any, model: Any, calls: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions, probabilities) of a sampler's law on the line, by the trapezoidal rule on a grid that follows it.

    The rule's error on a Gaussian is exp(-2 pi^2 (std / spacing)^2): nothing once the spacing is below the std. A grid
    is spaced for the next step's noise, which is seldom less than half of this one's.
    """
    reach = 6 * float(scheduler.init_noise_sigma)
    x = torch.linspace(-reach, reach, 400, dtype=torch.float64)
    mass = torch.softmax(-0.5 * (x / scheduler.init_noise_sigma) ** 2, 0)
    for t in scheduler.timesteps[:calls]:
        moved, std = affine_step(scheduler, model, t, x[:, None])
        moved = moved[:, 0]
        if std == 0:
            x = moved
            continue
        occupied = moved[mass > 1e-12]
        low, high = occupied.min().item() - 6 * std, occupied.max().item() + 6 * std
        x = torch.linspace(low, high, min(max(int((high - low) / (0.6 * std)), 100), 4000), dtype=torch.float64)
        # The kernel alone in float32: seven digits of a probability are enough, and it is most of the work.
        kernel = ((x[:, None] - moved) / std).float().square_().mul_(-0.5).exp_()
        mass = (kernel @ mass.float()).double()
        mass = mass / mass.sum()
    return x, mass


def rotated(angle: float, first: float, second: float) -> torch.Tensor:
    """2 x 2 covariance with these standard deviations along axes turned by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([first, second], dtype=torch.float64) ** 2) @ turn.T


# Three mixtures that ask different things: uneven modes on a line; tilted ellipses in a plane, two of them one class; a
# wide and a narrow ball in three dimensions.
MIXTURES = {
    "two modes": GaussianMixture([0.3, 0.7], [[-0.8], [0.6]], [0.04, 0.01]),
    "ellipses": GaussianMixture(
        [0.5, 0.2, 0.3],
        [[0.7, 0.0], [-0.5, 0.6], [-0.4, -0.6]],
        torch.stack([rotated(0.5, 0.3, 0.1), rotated(-0.4, 0.2, 0.1), rotated(1.0, 0.15, 0.25)]),
        labels=[0, 1, 1],
    ),
    "balls": GaussianMixture([0.6, 0.4], [[0.4, -0.2, 0.5], [-0.5, 0.3, -0.4]], [0.09, 0.0225]),
}

# On the line, for laws computed by quadrature.
LINE_MIXTURES = {
    "two modes": MIXTURES["two modes"],
    "three modes": GaussianMixture([0.2, 0.5, 0.3], [[-1.0], [0.3], [0.9]], [0.02, 0.05, 0.01]),
    "overlapping": GaussianMixture([0.5, 0.5], [[-0.3], [0.4]], [0.16, 0.04]),
}
