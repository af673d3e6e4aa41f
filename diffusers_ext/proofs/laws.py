"""The exact law of a sampler, without Monte Carlo error.

The noise that a step adds is a function of the generator it is given. Reading the generator's state before and after
the step gives the very numbers that were drawn, so the response of a sampler to each of them can be separated.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .mixture import GaussianMixture
from .sampling import arguments_of_call, step, visited_timesteps

COPIES = 8  # of one point, by which the standard deviation of a step's noise is read off


def recorded_step(
    scheduler: Any, network: Any, t: Any, x: torch.Tensor, generator: torch.Generator, **step_arguments: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(next sample, the standard normal tensors that the step drew from the generator, in order).

    Raises:
        ValueError: when the step draws from the generator in another way than tensors of the sample's shape.
    """
    before = generator.get_state()
    moved = step(scheduler, network, t, x, generator, **step_arguments)
    for dtype in (x.dtype, torch.float32):
        drawn = _replayed(before, generator.get_state(), x.shape, dtype)
        if drawn is not None:
            return moved, [noise.to(x.dtype) for noise in drawn]
    raise ValueError(f"{type(scheduler).__name__} draws its noise in a way that can't be replayed.")


def _replayed(
    before: torch.Tensor, after: torch.Tensor, shape: torch.Size, dtype: torch.dtype
) -> list[torch.Tensor] | None:
    """The normal tensors that carry a generator from one state to the other; None if up to four of them don't."""
    generator = torch.Generator()
    drawn: list[torch.Tensor] = []
    generator.set_state(before)
    while not torch.equal(generator.get_state(), after):
        if len(drawn) == 4:
            return None
        drawn.append(torch.randn(shape, dtype=dtype, generator=generator))
    return drawn


def _noise_std(scheduler: Any, moved: torch.Tensor, drawn: list[torch.Tensor]) -> float:
    """Standard deviation of the noise in the last `COPIES` entries, which started from one point."""
    if not drawn:
        return 0.0
    if len(drawn) > 1:
        raise ValueError(f"{type(scheduler).__name__} draws {len(drawn)} noises in one step, expected one.")
    values, noise = moved[-COPIES:].flatten(), drawn[0][-COPIES:].flatten()
    values, noise = values - values.mean(), noise - noise.mean()
    std = ((values @ noise) / (noise @ noise)).item()
    if (values - std * noise).abs().max() > 1e-5 * max(abs(std), 1e-3):
        raise ValueError(f"A step of {type(scheduler).__name__} is not linear in its noise.")
    return std


def moved_without_noise(
    scheduler: Any, network: Any, t: Any, x: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """(next sample without its noise, standard deviation of the noise) of one call at x of shape (n, d).

    Raises:
        ValueError: when the step is not linear in one noise, as with norms that are measured on the batch.
    """
    copies = x[-1:].expand(COPIES, *x.shape[1:])
    moved, drawn = recorded_step(scheduler, network, t, torch.cat([x, copies]), generator)
    std = _noise_std(scheduler, moved, drawn)
    if std:
        moved = moved - std * drawn[0]
    return moved[: len(x)], abs(std)


def gaussian_law(
    scheduler: Any,
    network: Any,
    calls: int | None = None,
    start: tuple[float, float] | None = None,
    **step_arguments: Any,
) -> tuple[float, float]:
    """Exact (mean, standard deviation) of a sampler's samples for one Gaussian on the line.

    For Gaussian data every sampler whose step is linear is an affine function of its start and of all its noises,
    multistep methods included. A batch with more entries than unknowns determines that function.

    Args:
        scheduler: after `set_timesteps`.
        network: the exact network of a mixture with one component.
        calls: number of network calls; all if None.
        start: (mean, standard deviation) of the start; (0, init_noise_sigma) if None.
        step_arguments: further arguments of `scheduler.step`.

    Raises:
        ValueError: when the sampler is not affine in its start and its noises.
    """
    times = visited_timesteps(scheduler)[:calls]
    begin = starting_law(scheduler) if start is None else start
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * len(times) + 32, 1, dtype=torch.float64, generator=generator)
    inputs = [torch.ones_like(x), x]
    x = begin[0] + begin[1] * x
    for call, t in enumerate(times):
        x, drawn = recorded_step(
            scheduler, network, t, x, generator, **arguments_of_call(scheduler, call), **step_arguments
        )
        inputs += drawn
    design = torch.cat(inputs, 1)
    response = _least_squares(design, x.double())
    residual = (design @ response - x).abs().max().item()
    if not residual <= 1e-4 * max(1.0, x.abs().max().item()):
        raise ValueError(f"{type(scheduler).__name__} is not affine in its start and its noise.")
    return response[0].item(), response[1:].norm().item()


def _least_squares(design: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The solution of `design @ solution = values` in the least squares, by conjugate gradients.

    A matrix of normal numbers with twice as many rows as columns has a condition number of 6. Some 80 iterations
    then replace a factorization, whose work grows with the cube of the columns.
    """
    solution = torch.zeros(design.shape[1], 1, dtype=design.dtype)
    gradient = direction = design.mT @ values
    first = left = gradient.square().sum()
    for _ in range(10 * len(solution)):
        if not left > 1e-26 * first:
            break
        moved = design @ direction
        length = left / moved.square().sum()
        solution = solution + length * direction
        gradient = gradient - length * (design.mT @ moved)
        before, left = left, gradient.square().sum()
        direction = gradient + left / before * direction
    return solution


def starting_law(scheduler: Any) -> tuple[float, float]:
    """(mean, standard deviation) of the noise that a pipeline starts from."""
    return 0.0, float(getattr(scheduler, "init_noise_sigma", 1.0))


def line_law(scheduler: Any, network: Any, calls: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions, probabilities) of a sampler's law on the line, by the trapezoidal rule on a grid that follows it.

    For samplers whose step depends on the last sample only. The rule's error on a Gaussian is
    exp(-2 pi^2 (std / spacing)^2): nothing once the spacing is below the standard deviation. A grid is spaced for the
    next step's noise, which is seldom less than half of this step's.
    """
    sigma, generator = starting_law(scheduler)[1], torch.Generator().manual_seed(0)
    x = torch.linspace(-6 * sigma, 6 * sigma, 400, dtype=torch.float64)
    mass = torch.softmax(-0.5 * (x / sigma) ** 2, 0)
    for t in visited_timesteps(scheduler)[:calls]:
        moved, std = moved_without_noise(scheduler, network, t, x[:, None], generator)
        x, mass = _spread(moved[:, 0], mass, std) if std else (moved[:, 0], mass)
    return x, mass


def _spread(moved: torch.Tensor, mass: torch.Tensor, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The law of `moved` plus noise of this standard deviation, on a new grid."""
    occupied = moved[mass > 1e-12]
    low, high = occupied.min().item() - 6 * std, occupied.max().item() + 6 * std
    x = torch.linspace(low, high, min(max(int((high - low) / (0.6 * std)), 100), 4000), dtype=torch.float64)
    # The kernel alone in float32: seven digits of a probability are enough, and it is most of the work.
    kernel = ((x[:, None] - moved) / std).float().square_().mul_(-0.5).exp_()
    spread = (kernel @ mass.float()).double()
    return x, spread / spread.sum()


def line_statistics(x: torch.Tensor, mass: torch.Tensor, mixture: GaussianMixture) -> torch.Tensor:
    """Mean, standard deviation and mode weights (mean responsibilities) of a law on the line, as one vector."""
    mean = (mass * x).sum()
    std = (mass * (x - mean) ** 2).sum().sqrt()
    return torch.cat([mean[None], std[None], mass @ mixture.responsibilities(x[:, None], (1.0, 0.0))])


def exact_line_statistics(mixture: GaussianMixture) -> torch.Tensor:
    """What `line_statistics` gives for the mixture itself."""
    mean, covariance = mixture.moments()
    return torch.cat([mean, covariance[0].sqrt(), mixture.weights])


def gaussian_distance(law: tuple[float, float], exact: tuple[float, float]) -> float:
    """Wasserstein-2 distance between two Gaussians on the line, each (mean, standard deviation)."""
    return math.hypot(law[0] - exact[0], law[1] - exact[1])


def wasserstein(x: torch.Tensor, mixture: GaussianMixture) -> float:
    """Wasserstein-1 distance on the line between the samples x of shape (n,) or (n, 1) and the mixture."""
    n = x.numel()
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    standard = torch.special.ndtri(levels)[:, None]
    quantiles = mixture.flow(standard, (0.0, 1.0), (1.0, 0.0))[:, 0]
    return (x.double().flatten().sort().values - quantiles).abs().mean().item()
