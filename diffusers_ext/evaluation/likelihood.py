"""Bits per dimension of 8-bit images under a diffusion model.

Two numbers, both upper bounds of what a lossless code of the images needs:

- `likelihood`: the density that the probability flow gives to uniformly dequantised images (Song et al. 2021,
  arXiv:2011.13456, section 4.3 and appendix D.2; Theis et al. 2016, arXiv:1511.01844, section 3.1);
- `variational_bound`: the bound of Ho et al. 2020 (arXiv:2006.11239), eq. 5, term by term, on a discrete path.

A pixel value k = 0 ... 255 is x = k / 127.5 - 1 for the network. A density of x is therefore 127.5 times a density of k
in each dimension, which adds log2(127.5) = 6.994 bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from ..proofs.levels import NetworkView, view_of
from ..proofs.mixture import Level
from ..schedulers.prediction import Prediction
from ..schedulers.tensors import working_dtype
from .ode import solve_adaptive, solve_fixed

HALF_RANGE = 127.5
SCALE_BITS = math.log2(HALF_RANGE)
TRACES = ("hutchinson", "exact")


@dataclass
class Likelihood:
    """Bits per dimension of some images.

    Attributes:
        bits_per_dimension: mean over the images.
        standard_error: of that mean.
        per_image: (images,), float64.
        evaluations: network evaluations for each image, Jacobian products not counted.
        eps: noise level sigma / alpha at which the flow ends: the density is that of data with this much noise.
        tolerance: of the adaptive solver; None with fixed steps.
        steps: fixed steps; None with the adaptive solver.
        trace: `hutchinson` or `exact`.
    """

    bits_per_dimension: float
    standard_error: float
    per_image: torch.Tensor
    evaluations: int
    eps: float
    tolerance: float | None
    steps: int | None
    trace: str

    def __str__(self) -> str:
        solver = f"tolerance {self.tolerance:g}" if self.steps is None else f"{self.steps} steps of Runge-Kutta"
        return (
            f"{self.bits_per_dimension:.4f} +- {self.standard_error:.4f} bits per dimension ({len(self.per_image)} "
            f"images, {self.evaluations} evaluations each, {solver}, {self.trace} trace, eps {self.eps:.2g})"
        )


class FlowDensity:
    """The density of data under a model's probability flow.

    The flow is followed in y = x / sqrt(alpha^2 + sigma^2) against s = log(sigma / alpha), where it reads
    dy/ds = sin * cos * v with (cos, sin) = (alpha, sigma) / sqrt(alpha^2 + sigma^2) and v = cos * epsilon - sin * x0.

    Args:
        network: called as `network(sample, timestep)`, giving a tensor or an object with `.sample`.
        scheduler: says what timesteps mean and where sampling starts; see `proofs.levels.view_of`.
        tolerance: of the adaptive solver.
        steps: number of fixed steps instead.
        trace: `hutchinson` (one random projection for each image, unbiased) or `exact` (as many Jacobian products as
            dimensions).
        eps: smallest sigma / alpha; the lowest of the model's noise path if None.

    Raises:
        ValueError: for an unknown trace, or an eps outside the noise path.
    """

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        tolerance: float = 1e-4,
        steps: int | None = None,
        trace: str = "hutchinson",
        eps: float | None = None,
    ):
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got '{trace}'.")
        if tolerance <= 0 or (steps is not None and steps < 1):
            raise ValueError(f"tolerance must be above 0 and steps at least 1, got {tolerance} and {steps}.")
        self.network, self.view = network, view_of(scheduler)
        self.tolerance, self.steps, self.trace = tolerance, steps, trace
        self.times = _time_range(scheduler, self.view)
        low, high = (_log_ratio(self.view.level(t)) for t in self.times)
        self.start = low if eps is None else math.log(eps)
        if not low - 1e-6 <= self.start < high:
            raise ValueError(f"eps must lie between {math.exp(low):.3g} and {math.exp(high):.3g}, got {eps}.")
        self.end = high
        self.prior_std = _prior_std(self.view, self.times[1])
        self.evaluations = 0

    def log_density(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """log p(x) in nats, shape (batch,), float64, for data x of shape (batch, ...)."""
        self.evaluations = 0
        probe = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        dimensions, ratio = x[0].numel(), math.exp(self.start)
        cosine = 1 / math.hypot(1, ratio)

        def velocity(s: float, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._velocity(s, y, probe)

        if self.steps is None:
            y, change = solve_adaptive(velocity, self.start, self.end, cosine * x, self.tolerance)
        else:
            y, change = solve_fixed(velocity, self.start, self.end, cosine * x, self.steps)
        z = y.double().flatten(1) / self.prior_std
        prior = -0.5 * (z.pow(2).sum(1) + dimensions * math.log(2 * math.pi * self.prior_std**2))
        return prior + change + dimensions * math.log(cosine)

    def _velocity(self, s: float, y: torch.Tensor, probe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(dy/ds, its divergence) at s."""
        self.evaluations += 1
        ratio = math.exp(s)
        rate = ratio / (1 + ratio**2)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            velocity = rate * self._v(s, y)
            divergence = _exact_trace(velocity, y) if self.trace == "exact" else _projected(velocity, y, probe)
        return velocity.detach(), divergence.double()

    def _v(self, s: float, y: torch.Tensor) -> torch.Tensor:
        ratio = math.exp(s)
        cosine, sine = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        t = _time_of(self.view, s, *self.times)
        level = self.view.level(t)
        x = y * math.hypot(*level)
        timestep = torch.full((len(y),), t, dtype=working_dtype(y.dtype), device=y.device)
        output = self.network(x, timestep)
        output = output if isinstance(output, torch.Tensor) else output.sample
        x0, epsilon = _x0_and_epsilon(self.view.prediction_type, level, x, output.to(x.dtype))
        return cosine * epsilon - sine * x0


def _x0_and_epsilon(
    prediction_type: str, level: Level, x: torch.Tensor, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    prediction, (alpha, sigma) = Prediction(prediction_type), level
    a, b = prediction.x0(alpha, sigma)
    c, d = prediction.epsilon(alpha, sigma)
    return a * x + b * output, c * x + d * output


def _exact_trace(velocity: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    flat = velocity.flatten(1)
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for column in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, column].sum(), y, retain_graph=True)
        total = total + gradient.flatten(1)[:, column]
    return total


def _projected(velocity: torch.Tensor, y: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    """Hutchinson's estimate of the trace of the Jacobian: probe^T J probe."""
    (gradient,) = torch.autograd.grad((velocity * probe).sum(), y)
    return (gradient * probe).flatten(1).sum(1)


def _log_ratio(level: Level) -> float:
    return math.log(level[1] / max(level[0], 1e-12))


def _time_range(scheduler: Any, view: NetworkView) -> tuple[float, float]:
    """(time of the lowest noise level, time of the highest that has signal left)."""
    config = scheduler.config
    steps = config.get("num_train_timesteps", 1000)
    if config.get("continuous"):
        scale = config.get("timestep_scale", 1.0)
        return config["sampling_eps"] * scale, scale
    if hasattr(scheduler, "alphas_cumprod"):
        last = steps - 1
        return 0.0, float(last if view.level(last)[0] > 1e-6 else last - 1)
    return 1e-5 * steps, (1 - 1e-5) * steps


def _time_of(view: NetworkView, s: float, low: float, high: float) -> float:
    """The time where log(sigma / alpha) is s, by the Illinois method: about ten evaluations of the level."""
    below, above = _log_ratio(view.level(low)) - s, _log_ratio(view.level(high)) - s
    if below >= 0 or above <= 0:
        return low if below >= 0 else high
    for _ in range(60):
        middle = (low * above - high * below) / (above - below)
        found = _log_ratio(view.level(middle)) - s
        if abs(found) < 1e-11 or high - low < 1e-13 * max(1.0, high):
            return middle
        if found < 0:
            low, below, above = middle, found, above / 2
        else:
            high, above, below = middle, found, below / 2
    return (low + high) / 2


def _prior_std(view: NetworkView, t: float) -> float:
    """Standard deviation of y where sampling starts."""
    level = view.level(t)
    if level[0] > 0.999:  # variance exploding: the start has the level's own sigma
        return level[1] / math.hypot(*level)
    return 1.0 / math.hypot(*level) if abs(math.hypot(*level) - 1) > 0.01 else 1.0


# --- images ---------------------------------------------------------------------------------------------------------


def dequantized(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Images in [-1, 1] plus uniform noise of the width of one of 256 levels.

    Raises:
        ValueError: for images whose values are not on the 256 levels, because their likelihood would mean nothing.
    """
    levels = (images.double() + 1) * HALF_RANGE
    if (levels - levels.round()).abs().max() > 1e-2 or levels.min() < -0.5 or levels.max() > 255.5:
        raise ValueError(
            "Likelihood takes 8-bit images as they are: values k / 127.5 - 1 with k = 0 ... 255. These have been "
            "resized or cropped to other values; use the resolution of the data."
        )
    uniform = torch.rand(images.shape, generator=generator, dtype=torch.float64).to(images.device)
    return ((levels.round() + uniform - 0.5) / HALF_RANGE - 1).to(images.dtype)


def bits_per_dimension(log_density: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Bits per dimension of pixel values 0 ... 255, from log densities of x in [-1, 1] in nats; same shape."""
    return SCALE_BITS - log_density / (dimensions * math.log(2))


def likelihood(
    network: Any,
    scheduler: Any,
    images: torch.Tensor,
    tolerance: float = 1e-4,
    steps: int | None = None,
    trace: str = "hutchinson",
    eps: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    report_progress: Callable[[int], None] = lambda _: None,
) -> Likelihood:
    """Bits per dimension by the probability flow.

    Args:
        network, scheduler, tolerance, steps, trace, eps: as in `FlowDensity`.
        images: (number, channels, height, width) in [-1, 1], 8-bit values.
        batch_size: images at a time; they share the solver's steps.
        seed: of dequantisation and of Hutchinson's projections.
        report_progress: is given the number of images done.

    Raises:
        ValueError: as `FlowDensity` and `dequantized`.
    """
    density = FlowDensity(network, scheduler, tolerance, steps, trace, eps)
    generator = torch.Generator().manual_seed(seed)
    found, evaluations = [], 0
    for part in images.split(batch_size):
        log_density = density.log_density(dequantized(part, generator), generator)
        found.append(bits_per_dimension(log_density, part[0].numel()))
        evaluations += density.evaluations * len(part)
        report_progress(sum(len(bits) for bits in found))
    bits = torch.cat(found).cpu()
    return Likelihood(
        bits_per_dimension=bits.mean().item(),
        standard_error=_standard_error(bits),
        per_image=bits,
        evaluations=round(evaluations / len(images)),
        eps=math.exp(density.start),
        tolerance=tolerance if steps is None else None,
        steps=steps,
        trace=trace,
    )


def _standard_error(values: torch.Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan


# --- the variational bound --------------------------------------------------------------------------------------------


@dataclass
class VariationalBound:
    """The variational bound in bits per dimension, term by term.

    Attributes:
        total: mean over the images; with fewer timesteps than the path has, an unbiased estimate.
        standard_error: of that mean.
        prior: KL divergence of the noised image from N(0, I).
        diffusion: timestep -> its term, means over the images, before scaling to the whole path.
        decoder: -log2 p(image | x_0), with a discretised Gaussian.
    """

    total: float
    standard_error: float
    prior: float
    diffusion: dict[int, float]
    decoder: float


def variational_bound(
    network: Any,
    scheduler: Any,
    images: torch.Tensor,
    num_timesteps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> VariationalBound:
    """Ho et al. 2020, eq. 5, with the posterior's variance in the reverse steps.

    The bound is on the images as they are. It is loose for a model of dequantised images with little noise at its first
    level, because such a model spreads each pixel's mass over its whole level: use `likelihood` there.

    Args:
        network, scheduler: as in `FlowDensity`; the scheduler has a discrete variance-preserving path.
        images: (number, channels, height, width) in [-1, 1], 8-bit values.
        num_timesteps: random timesteps for the sum over the path, one in each of as many equal parts; all if None.
        batch_size: images at a time.
        seed: of the noise and the timesteps.

    Raises:
        ValueError: for a scheduler without a discrete path, or more timesteps than it has.
    """
    view = view_of(scheduler)
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas"):
        raise ValueError(f"The variational bound needs a discrete noise path; {type(scheduler).__name__} has none.")
    last = scheduler.config["num_train_timesteps"] - 1
    count = last if num_timesteps is None else num_timesteps
    if not 1 <= count <= last:
        raise ValueError(f"num_timesteps must be between 1 and {last}, got {num_timesteps}.")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    times = sorted({1 + int((i + u) * last / count) for i, u in enumerate(uniform.tolist())})
    terms = _BoundTerms(network, view, generator)
    rows = [
        torch.stack(
            [
                terms.prior(part, last),
                *(terms.step(part, t) for t in tqdm(times, "Bound", leave=False, disable=None)),
                terms.decoder(part),
            ]
        )
        for part in images.split(batch_size)
    ]
    found = torch.cat(rows, 1) / (images[0].numel() * math.log(2))
    totals = found[0] + found[1:-1].sum(0) * (last / len(times)) + found[-1]
    means = found.mean(1).tolist()
    return VariationalBound(
        totals.mean().item(), _standard_error(totals), means[0], dict(zip(times, means[1:-1])), means[-1]
    )


class _BoundTerms:
    """The terms in nats, each (batch,), float64."""

    def __init__(self, network: Any, view: NetworkView, generator: torch.Generator):
        self.network, self.view, self.generator = network, view, generator

    def prior(self, x0: torch.Tensor, last: int) -> torch.Tensor:
        alpha, sigma = self.view.level(last)
        squares = (alpha * x0.double()).pow(2).flatten(1).sum(1)
        return 0.5 * (squares + x0[0].numel() * (sigma**2 - 1 - math.log(sigma**2)))

    @torch.no_grad()
    def _predicted(self, x0: torch.Tensor, t: int) -> torch.Tensor:
        alpha, sigma = level = self.view.level(t)
        noise = torch.randn(x0.shape, generator=self.generator).to(x0)
        x = alpha * x0 + sigma * noise
        output = self.network(x, torch.full((len(x),), t, device=x.device))
        output = output if isinstance(output, torch.Tensor) else output.sample
        return _x0_and_epsilon(self.view.prediction_type, level, x, output.to(x.dtype))[0].double()

    def step(self, x0: torch.Tensor, t: int) -> torch.Tensor:
        """KL of the posterior of x_{t-1} from the model's: (SNR_{t-1} - SNR_t) / 2 * |x0 - prediction|^2."""
        snr, before = (math.exp(-2 * _log_ratio(self.view.level(time))) for time in (t, t - 1))
        error = (x0.double() - self._predicted(x0, t)).pow(2).flatten(1).sum(1)
        return 0.5 * (before - snr) * error

    def decoder(self, x0: torch.Tensor) -> torch.Tensor:
        """-log of the mass that a Gaussian about the prediction, of std sigma_0 / alpha_0, gives to the level."""
        std = math.exp(_log_ratio(self.view.level(0)))
        centre, half = self._predicted(x0, 0), 0.5 / HALF_RANGE
        x0 = x0.double()
        upper = torch.where(x0 > 1 - half, torch.inf, (x0 + half - centre) / std)
        lower = torch.where(x0 < -1 + half, -torch.inf, (x0 - half - centre) / std)
        # The difference of two distribution functions, in the tail where it keeps its digits.
        flip = (lower + upper) > 0
        lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        mass = high + torch.log1p(-torch.exp((low - high).clamp(max=-1e-12)))
        return -mass.flatten(1).sum(1)


# --- pipelines --------------------------------------------------------------------------------------------------------


def check_likelihood(pipeline: Any) -> None:
    """Refuse a pipeline whose images have no density under its network.

    Raises:
        ValueError: for latent diffusion, conditional networks, and data that are not images.
    """
    name = type(pipeline).__name__
    if getattr(pipeline, "vae", None) is not None or getattr(pipeline, "autoencoder", None) is not None:
        raise ValueError(
            f"{name} is a latent diffusion model: its decoder has no density of images, so there is no likelihood."
        )
    config = pipeline.unet.config
    needs = [key for key in ("num_class_embeds", "num_classes", "cross_attention_dim") if config.get(key)]
    if needs:
        raise ValueError(f"Likelihood takes unconditional models; this network has a condition ({needs[0]}).")
    if getattr(pipeline.unet, "dims", 2) == 1:
        raise ValueError("Likelihood takes models of 8-bit images; this one makes one-dimensional signals.")
