"""Averages of weights: the standard exponential one, power-function ones, and those of any length from snapshots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import atomic_write, one_line
from ..hub.averages import Reconstruction

EMA_KINDS = ("warmup", "power")
SNAPSHOT_DIR = "ema-snapshots"


class WeightAverage:
    """theta_ema <- decay * theta_ema + (1 - decay) * theta, with the decay that a child gives.

    Args:
        named_parameters: what to follow; the average starts as a copy.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.Tensor]]):
        self.averages = {name: parameter.detach().clone() for name, parameter in named_parameters}
        self.updates = 0

    def decay(self) -> float:
        """The decay of the next update, in [0, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Move every average towards its parameter."""
        parameters = dict(named_parameters)
        current = [parameters[name].detach() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - self.decay())
        self.updates += 1

    @contextmanager
    def applied_to(self, module: torch.nn.Module) -> Iterator[None]:
        """Within the context the module carries the averages; its own weights come back untouched."""
        with carrying(module, self.averages):
            yield

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Overwrite the module's weights with the averages."""
        parameters = dict(module.named_parameters())
        for name, average in self.averages.items():
            parameters[name].copy_(average)

    @torch.no_grad()
    def load(self, averages: dict[str, torch.Tensor], updates: int) -> None:
        """Take up saved averages and the number of updates behind them."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
        self.updates = updates


@contextmanager
def carrying(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the context the module carries these weights; its own come back untouched."""
    parameters = dict(module.named_parameters())
    own = {name: parameters[name].data for name in weights}
    for name, value in weights.items():
        parameters[name].data = value.to(own[name].device)
    try:
        yield
    finally:
        for name, data in own.items():
            parameters[name].data = data


class ExponentialMovingAverage(WeightAverage):
    """The standard average, with a decay that warms up.

    decay(k) = min(max_decay, 1 - (1 + k / inv_gamma)^-power) after k updates, as diffusers' EMAModel has it: early
    averages are short and forget the initial weights.

    Args:
        named_parameters: what to follow; the average starts as a copy.
        inv_gamma, power, max_decay: of the warm-up.
        update_after_step: updates before which the average just copies.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]],
        inv_gamma: float = 1.0,
        power: float = 0.75,
        max_decay: float = 0.9999,
        update_after_step: int = 0,
    ):
        super().__init__(named_parameters)
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay
        self.update_after_step = update_after_step

    def decay(self) -> float:
        """The decay of the next update, in [0, max_decay]."""
        k = self.updates - self.update_after_step
        return 0.0 if k <= 0 else max(0.0, min(self.max_decay, 1 - (1 + k / self.inv_gamma) ** -self.power))


class PowerFunctionAverage(WeightAverage):
    """An average whose length is a fixed share of the training so far: the weights of step tau count tau^gamma.

    Karras et al. 2024 (arXiv:2312.02696), eq. 121, tracked by eq. 127: decay = (1 - 1/t)^(gamma + 1) at step t. The
    first update copies, so that nothing of the initial weights is left.

    Args:
        named_parameters: what to follow.
        sigma_rel: the standard deviation of the profile as a share of the training, in (0, 0.28).

    Raises:
        ValueError: for a sigma_rel outside that range.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, torch.Tensor]], sigma_rel: float):
        super().__init__(named_parameters)
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    def decay(self) -> float:
        """The decay of the next update, in [0, 1)."""
        return (1 - 1 / (self.updates + 1)) ** (self.gamma + 1)


# gamma = 0, the plain mean of all steps, is the longest of the profiles that grow with time.
LONGEST_SIGMA_REL = 12**-0.5


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the power function with a relative standard deviation; Karras et al. 2024, eq. 126.

    Raises:
        ValueError: unless 0 < sigma_rel < 12^-1/2, where gamma is positive.
    """
    if not 0 < sigma_rel < LONGEST_SIGMA_REL:
        raise ValueError(f"sigma_rel must lie between 0 and {LONGEST_SIGMA_REL:.3f}, got {sigma_rel}.")
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), eq. 123, is a cubic in gamma with one positive root.
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


# --- snapshots, and what they make possible afterwards ----------------------------------------------------------------


def save_snapshot(run: Path, step: int, averages: Sequence[PowerFunctionAverage]) -> None:
    """Write the averages of one step into the run's `SNAPSHOT_DIR`, whole or not at all."""
    folder = run / SNAPSHOT_DIR
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    tensors = {
        f"{i}:{name}": value.contiguous()
        for i, average in enumerate(averages)
        for name, value in average.averages.items()
    }
    profile = {"step": step, "sigma_rel": [average.sigma_rel for average in averages]}
    atomic_write(path, lambda partial: save_file(tensors, partial, metadata={"profile": json.dumps(profile)}))


def list_snapshots(run: Path) -> list[Path]:
    """Snapshot files of a run, oldest first."""
    return sorted((run / SNAPSHOT_DIR).glob("step-*.safetensors"))


def retire_snapshots_after(run: Path, step: int) -> None:
    """Delete snapshots of later steps, which a resumed run will write again."""
    for path in list_snapshots(run):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


def reconstruct(run: Path, sigma_rel: float, step: int | None = None) -> tuple[dict[str, torch.Tensor], Reconstruction]:
    """The power-function average of any length, from the snapshots of a run: Karras et al. 2024, algorithm 3.

    Args:
        run: the run's output folder.
        sigma_rel: the length wanted, in (0, 0.28); the closer to those of the snapshots, the truer.
        step: the training step at which the average ends, one that has a snapshot; the last one when not given.

    Returns:
        Weights by parameter name, float32 on the CPU, and what they are.

    Raises:
        ValueError: for a length out of range, a step without a snapshot, or a snapshot that can't be read.
        FileNotFoundError: when the run has no snapshots.
    """
    profiles = {path: _profile(path) for path in list_snapshots(run)}
    if not profiles:
        raise FileNotFoundError(f"run '{run}' has no snapshots; train it with ema_snapshots.")
    steps = [profile["step"] for profile in profiles.values()]
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(f"step must be one that has a snapshot, {steps[0]} to {steps[-1]}, got {step}.")
    # What comes after the end has no part in the average.
    profiles = {path: profile for path, profile in profiles.items() if profile["step"] <= step}
    times = [profile["step"] for profile in profiles.values() for _ in profile["sigma_rel"]]
    gammas = [gamma_of(sigma) for profile in profiles.values() for sigma in profile["sigma_rel"]]
    wanted = times[-1], gamma_of(sigma_rel)
    weights = posthoc_weights(times, gammas, *wanted)
    error = posthoc_error(weights, times, gammas, *wanted)
    lengths = sorted({sigma for profile in profiles.values() for sigma in profile["sigma_rel"]})
    return _combined(profiles, iter(weights)), Reconstruction(sigma_rel, step, error, len(profiles), lengths)


def posthoc_weights(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> np.ndarray:
    """Weights, of sum 1, with which given profiles come closest to the one that ends at `time` with exponent `gamma`.

    Args:
        times, gammas: where each given profile ends, above 0, and its exponent.

    Returns:
        float64 array, one weight a profile.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    gram = _inner_products(t[:, None], g[:, None], t[None], g[None])
    weights = np.linalg.lstsq(gram, _inner_products(t, g, time, gamma), rcond=1e-15)[0]
    return weights / weights.sum()


def posthoc_error(
    weights: np.ndarray, times: Sequence[float], gammas: Sequence[float], time: float, gamma: float
) -> float:
    """Distance of the profile that these weights give from the one wanted, as a share of the latter's norm.

    Other arguments as in `posthoc_weights`. Rounding alone gives about 1e-8.
    """
    t, g = np.asarray(times, dtype=np.float64), np.asarray(gammas, dtype=np.float64)
    reached = weights @ _inner_products(t[:, None], g[:, None], t[None], g[None]) @ weights
    both = weights @ _inner_products(t, g, time, gamma)
    wanted = float(_inner_products(np.asarray(time), np.asarray(gamma), time, gamma))
    return float(np.sqrt(max(0.0, reached - 2 * both + wanted) / wanted))


def _inner_products(
    t: np.ndarray, g: np.ndarray, other_t: np.ndarray | float, other_g: np.ndarray | float
) -> np.ndarray:
    """Integrals of the products of profiles; Karras et al. 2024, eq. 151."""
    first, last = np.minimum(t, other_t), np.maximum(t, other_t)
    exponent_of_last = np.where(t < other_t, other_g, g)
    return (g + 1) * (other_g + 1) / (g + other_g + 1) * (first / last) ** exponent_of_last / last


def _profile(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["profile"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"Snapshot '{path}' can't be read: {one_line(error)}.") from None


def _combined(profiles: dict[Path, dict], weights: Iterator[float]) -> dict[str, torch.Tensor]:
    """The weighted sum of all averages of all snapshots, one file at a time, summed in float64."""
    total: dict[str, torch.Tensor] = {}
    for path, profile in profiles.items():
        of_index = [next(weights) for _ in profile["sigma_rel"]]
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                index, _, name = key.partition(":")
                term = file.get_tensor(key).double() * of_index[int(index)]
                total[name] = total[name].add_(term) if name in total else term
    return {name: value.float() for name, value in total.items()}
