"""`prove`: one scheduler against exact answers, with what is wrong in plain words.

A deterministic sampler is compared with the exact probability flow of a mixture of two Gaussians on the line, from the
same starting noise. A stochastic sampler is compared in law: its exact mean and standard deviation on one Gaussian,
which are known without drawing samples. Both use the noise level that training gives to a timestep, not the one that
the scheduler believes in, and both come with an audit of the noise levels that the samples go through.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch

from .audit import Audit, audit
from .convergence import fitted_order, rms
from .examples import PROVING_GAUSSIAN, PROVING_MIXTURE
from .laws import gaussian_distance, gaussian_law, wasserstein
from .levels import NetworkView, config_of, view_of
from .mixture import GaussianMixture
from .network import ExactNetwork
from .report import Measurement, Report
from .sampling import network_input, sample, visited_timesteps
from .verdicts import verdicts_of

COUNTS = (5, 10, 20, 40, 80, 160)
AUDITED_COUNTS = (15, 60)  # neither divides 1000, and both are small
POINTS, DRAWS = 128, 4000
ROUNDING = 2e-4  # errors below this are those of float32 tables, and say nothing about an order

# The order that the papers of diffusers' samplers give. A number of network calls per step is no order of convergence.
_DECLARED: dict[str, Any] = {
    "HeunDiscreteScheduler": 2,
    "KDPM2DiscreteScheduler": 2,
    "FlowMatchHeunDiscreteScheduler": 2,
    "LMSDiscreteScheduler": 4,
    "PNDMScheduler": 4,
    "IPNDMScheduler": 4,
    "UniPCMultistepScheduler": lambda config: config["solver_order"] + 1,
}


def declared_order(scheduler: Any) -> float:
    """`convergence_order`, or `solver_order` of the configuration, or what the method's paper says; 1 otherwise."""
    if getattr(scheduler, "convergence_order", None) is not None:
        return float(scheduler.convergence_order)
    known, config = _DECLARED.get(type(scheduler).__name__), config_of(scheduler)
    if known is not None:
        return float(known(config) if callable(known) else known)
    if config.get("predictor") == "ode_heun":
        return 2.0
    if "sde" in str(config.get("algorithm_type", "")):
        return 1.0  # in law; the papers claim no weak order above it
    return float(config.get("solver_order", 1))


def prove(
    scheduler: Any,
    counts: Sequence[int] = COUNTS,
    mixture: GaussianMixture = PROVING_MIXTURE,
    view: NetworkView | None = None,
    name: str | None = None,
    declared: float | None = None,
    options: Mapping[str, Any] | None = None,
    set_timesteps_arguments: Mapping[str, Any] | None = None,
    **step_arguments: Any,
) -> Report:
    """Check a scheduler against exact answers. Takes about a second.

    Args:
        scheduler: any object with diffusers' scheduler interface; it is copied, not changed.
        counts: increasing numbers of inference steps.
        mixture: the data, on the line.
        view: what its timesteps and network outputs mean; found by `view_of` if not given.
        name: title of the report; the class's name if not given.
        declared: order of convergence to compare with; `declared_order` if not given.
        options: settings to show in the report; `step_arguments` if not given.
        set_timesteps_arguments: further arguments of `set_timesteps`, such as {"mu": 1.0}.
        step_arguments: further arguments of `step`, such as eta=1.0.

    Raises:
        ValueError: when the object is no scheduler, its noise levels can't be found, or the mixture is not on the line.
    """
    missing = [name for name in ("set_timesteps", "step") if not callable(getattr(scheduler, name, None))]
    if missing:
        raise ValueError(f"{type(scheduler).__name__} is no scheduler: it has no {' and no '.join(missing)}.")
    if mixture.means.shape[1] != 1:
        raise ValueError(f"prove takes a mixture on the line, got one in {mixture.means.shape[1]} dimensions.")
    run = _Run(copy.deepcopy(scheduler), view or view_of(scheduler), mixture, dict(step_arguments))
    run.set_timesteps_arguments = dict(set_timesteps_arguments or {})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        stochastic, repeatable = run.is_stochastic(counts)
        measurements = [run.measured(count, stochastic) for count in counts]
        audits = {count: found for count in AUDITED_COUNTS if (found := run.audited(count)) is not None}
    report = Report(
        name=name or type(scheduler).__name__,
        options=dict(options if options is not None else step_arguments),
        version=diffusers.__version__,
        stochastic=stochastic,
        repeatable=repeatable,
        declared_order=declared_order(scheduler) if declared is None else declared,
        measurements=measurements,
        order=found_order(measurements),
        audits=audits,
    )
    report.verdicts = verdicts_of(report, run.view)
    return report


def found_order(measurements: Sequence[Measurement]) -> float | None:
    """Slope of the errors until they rise or reach rounding, without the first third; None without three of them."""
    chosen: list[Measurement] = []
    for entry in measurements[min(len(measurements) // 3, max(len(measurements) - 3, 0)) :]:
        if not math.isfinite(entry.error_at_end) or (chosen and entry.error_at_end >= chosen[-1].error_at_end):
            break
        chosen.append(entry)
        if entry.error_at_end < ROUNDING:
            break
    if len(chosen) < 3:
        return None
    return fitted_order([entry.calls for entry in chosen], [entry.error_at_end for entry in chosen])


class _Run:
    """One scheduler with its exact networks."""

    def __init__(self, scheduler: Any, view: NetworkView, mixture: GaussianMixture, step_arguments: dict[str, Any]):
        self.scheduler, self.view, self.mixture, self.step_arguments = scheduler, view, mixture, step_arguments
        self.set_timesteps_arguments: dict[str, Any] = {}
        self.gaussian = PROVING_GAUSSIAN

    def _prepare(self, count: int) -> None:
        self.scheduler.set_timesteps(count, **self.set_timesteps_arguments)

    def _sample(self, network: Any, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(self.scheduler, network, x, generator=generator, **self.step_arguments)

    def _start_scale(self) -> float:
        """What the network's input is, at the first call, for x = 1."""
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        return network_input(self.scheduler, one, visited_timesteps(self.scheduler)[0]).item()

    def _start_level(self) -> tuple[float, float]:
        return self.view.level(visited_timesteps(self.scheduler)[0].item())

    def _starts(self, n: int) -> torch.Tensor:
        """n quantiles of the starting noise, of shape (n, 1, 1, 1)."""
        quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
        return quantiles.reshape(n, 1, 1, 1) * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def is_stochastic(self, counts: Sequence[int]) -> tuple[bool, bool]:
        """(whether two runs differ, whether they agree with one seed), at the first count that runs."""
        network = ExactNetwork(self.mixture, self.view)
        for count in counts:
            ends = []
            try:
                for seed in (0, 0, 1):
                    self._prepare(count)
                    ends.append(self._sample(network, self._starts(8), seed))
            except Exception:  # the count's own failure is reported by `measured`
                continue
            first, again, other = (end.nan_to_num() for end in ends)
            repeatable = torch.equal(first, again)
            return not (repeatable and torch.equal(first, other)), repeatable
        return False, True

    def measured(self, count: int, stochastic: bool) -> Measurement:
        """Errors at this number of steps; what went wrong, in the entry itself, if it does not run."""
        try:
            return self._in_law(count) if stochastic else self._on_the_flow(count)
        except Exception as error:
            return Measurement(count, count, math.nan, math.nan, math.nan, failure=f"{type(error).__name__}: {error}")

    def _on_the_flow(self, count: int) -> Measurement:
        self._prepare(count)
        x = self._starts(POINTS)
        start, level = x * self._start_scale(), self._start_level()
        exact = self.mixture.flow(start, level, (1.0, 0.0))
        self._prepare(count)
        network = ExactNetwork(self.mixture, self.view)
        end = self._sample(network, x)
        error = rms(end, exact)
        return Measurement(
            count,
            network.calls,
            error,
            self._error_at_end(count, end, start, level, error),
            wasserstein(end, self.mixture),
        )

    def _error_at_end(self, count: int, end: torch.Tensor, start: torch.Tensor, level: Any, error: float) -> float:
        """The error against the flow to where the sampler ends by its settings, if that is the lowest noise level."""
        if count <= min(AUDITED_COUNTS):
            found = self.audited(count)
            self._last_end = found.end if found is not None else (1.0, 0.0)
        clean = self._last_end
        if not 1e-4 < clean[1] < 0.2 or abs(math.hypot(*clean) - 1) > 0.1:
            return error
        return min(error, rms(end, self.mixture.flow(start, level, clean)))

    _last_end = (1.0, 0.0)

    def _in_law(self, count: int) -> Measurement:
        distance = self._law_distance(count)
        calls = self._calls
        self._prepare(count)
        level, scale = self._start_level(), self._start_scale()
        (mean,), ((variance,),) = (part.tolist() for part in self.gaussian.moments())
        start = (level[0] * mean / scale, math.hypot(level[0] * math.sqrt(variance), level[1]) / scale)
        try:
            self._prepare(count)
            network = ExactNetwork(self.gaussian, self.view)
            law = gaussian_law(self.scheduler, network, start=start, **self.step_arguments)
        except ValueError:
            return Measurement(count, calls, distance, distance, distance, drawn=True)
        error = gaussian_distance(law, (mean, math.sqrt(variance)))
        return Measurement(count, calls, error, error, distance)

    def _law_distance(self, count: int) -> float:
        self._prepare(count)
        network = ExactNetwork(self.mixture, self.view)
        end = self._sample(network, self._starts(DRAWS))
        self._calls = network.calls
        return wasserstein(end, self.mixture)

    def _audit(self, count: int) -> Audit:
        self._prepare(count)
        return audit(self.scheduler, self.view, **self.step_arguments)

    def audited(self, count: int) -> Audit | None:
        """The audit at this number of steps; None where it can't be made."""
        try:
            return self._audit(count)
        except Exception:
            return None
