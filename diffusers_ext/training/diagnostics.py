"""Plain warnings while a run goes on: what looks wrong with it, each in one sentence and said once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.base import Batch
from ..objectives.diffusion import Objective
from ..objectives.network import ConditionedNetwork
from ..objectives.randomness import generator_of
from .ema import WeightAverage

LEVELS = 10  # noise levels that losses are kept apart by: parts of equal probability of the times that are drawn
DRAWS = 8192  # times drawn to find where those parts end
LEAST_LOSSES = 64  # of a noise level, for a mean that can be compared
RISEN = 3.0  # a level's mean loss over its lowest one; above this twice in a row, it diverges
LEAST_IMAGES = 256  # before the range of the data is judged as too small
SMALL_RANGE = 1.001  # data that span no more of [-1, 1], whose length is 2: pixels in [0, 1] left as they are, say
ROUNDING = 1e-3  # by which data may leave [-1, 1]
LISTENERS = 16  # samples on which the condition is changed
# Change of the prediction over its size, below which the condition counts as ignored; a network that is told at its
# bottleneck alone (`usurf-guided-unet`) changes by 1e-3 when it is young, others by a tenth.
UNHEARD = 1e-5
LEAST_STEPS = 100  # before that is judged: a condition may enter through weights that start at zero
EARLY = 0.1  # the part of a run that counts as its start
EARLY_SHARE = 0.5  # of the EMA's weight on that part, above which it is too long
FORESEEABLE = 0.05  # the part of max_train_seconds from whose steps those of the whole run are reckoned


class Diagnostics:
    """Watches a run and changes nothing of it: no weight and no generator; reads the device at logging steps only.

    Each process watches its own share of the data, and all of them classifier what all have seen.

    Args:
        tell: takes a warning, the same on every process.
        bounded: whether samples must lie in [-1, 1], as images do; latents and standardised signals don't.
    """

    def __init__(
        self, objective: Objective, accelerator: Accelerator, tell: Callable[[str], None], bounded: bool = True
    ):
        self.objective, self._accelerator, self._tell, self._bounded = objective, accelerator, tell, bounded
        device = accelerator.device
        self._said: set[str] = set()
        self._edges = _edges_of(objective, device)
        self._losses = torch.zeros(2, LEVELS, device=device)  # sums and numbers
        self._range = torch.tensor([math.inf, -math.inf], device=device)
        self._lowest, self._risen = [math.inf] * LEVELS, [0] * LEVELS
        self._images = 0

    def _warn(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._tell(sentence)

    @torch.no_grad()
    def watch(self, images: torch.Tensor, times: torch.Tensor, losses: torch.Tensor) -> None:
        """Take note of a batch without waiting for the device.

        Args:
            images: samples (batch, channels, *size).
            times: (batch,).
            losses: (batch,).
        """
        if self._edges is not None:
            level = torch.bucketize(times.float(), self._edges[1:-1], right=True)
            counted = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
            self._losses.index_add_(1, level, counted)
        low, high = torch.aminmax(images)
        self._range = torch.stack([torch.minimum(self._range[0], low), torch.maximum(self._range[1], high)])
        self._images += len(images)

    def check(self, step: int) -> None:
        """Check what was watched until `step`: the range of the data and the loss of every noise level.

        Every process has to call this.
        """
        low, high, images, sums, counts = self._seen_by_all()
        if self._bounded:
            self._check_range(low, high, images)
        judged = [count >= LEAST_LOSSES for count in counts]
        means = {level: sums[level] / counts[level] for level in range(LEVELS) if judged[level]}
        self._check_levels(step, means)
        self._losses.masked_fill_(torch.tensor(judged, device=self._losses.device), 0)

    def _seen_by_all(self) -> tuple[float, float, float, list[float], list[float]]:
        """(lowest and highest pixel, number of images, sums of losses by level, their numbers) of all processes."""
        own = torch.cat([self._range, self._range.new_tensor([self._images]), self._losses.flatten()])
        shares = self._accelerator.gather(own[None])
        bounds, totals = torch.stack([shares[:, 0].amin(), shares[:, 1].amax()]), shares[:, 2:].sum(0)
        low, high, images, *losses = torch.cat([bounds, totals]).tolist()
        return low, high, images, losses[:LEVELS], losses[LEVELS:]

    def _check_range(self, low: float, high: float, images: float) -> None:
        told = f"The training samples reach from {low:.3g} to {high:.3g}"
        if not (low >= -1 - ROUNDING and high <= 1 + ROUNDING):
            self._warn("range", f"{told}, outside [-1, 1], which the noise is scaled for; rescale them.")
        elif images >= LEAST_IMAGES and high - low <= SMALL_RANGE:
            self._warn(
                "range", f"{told} and use a small part of [-1, 1], which the noise drowns early; stretch their range."
            )

    def _check_levels(self, step: int, means: dict[int, float]) -> None:
        """Warn of the level that rose the most: once may be bad luck, but twice in a row, it diverges."""
        # A loss of 0, as of a level without weight, has no rise.
        rises = {level: mean / self._lowest[level] if self._lowest[level] > 0 else 0.0 for level, mean in means.items()}
        for level, mean in means.items():
            self._risen[level] = self._risen[level] + 1 if rises[level] > RISEN else 0
            self._lowest[level] = min(self._lowest[level], mean)
        worst = max((level for level in means if self._risen[level] > 1), key=lambda level: rises[level], default=None)
        if worst is not None:
            assert self._edges is not None  # or no loss would have been counted
            first, last = self._edges[worst].item(), self._edges[worst + 1].item()
            self._warn(
                "level",
                f"The loss of the noise levels from t = {first:.4g} to {last:.4g} diverges: {means[worst]:.3g} at step "
                f"{step}, {rises[worst]:.1f} times its lowest, {self._lowest[worst]:.3g}; lower the learning rate, or "
                "weight these levels less.",
            )

    def check_path(self) -> None:
        """Warn of a noise path that ends with signal left, where samplers start from pure noise."""
        path: Any = getattr(self.objective, "path", None)
        if hasattr(path, "warn_about_ends"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                path.warn_about_ends()
            for warning in caught:
                self._warn("path", str(warning.message))

    def check_ema(self, ema: WeightAverage | None, steps: int) -> None:
        """Warn of an average that after `steps` updates still lies on the weights of a run's first part."""
        share = early_share(ema, steps) if ema is not None else 0.0
        if ema is not None and share > EARLY_SHARE:
            self._warn(
                "ema",
                f"After the {steps:,} steps of this run, {share:.0%} of the EMA's weight is on the first "
                f"{EARLY:.0%} of them, near the initial weights; use a shorter average (--ema_max_decay "
                f"{max(0.0, 1 - 10 / steps):.5g} or less), or train longer.",
            )

    def check_ema_early(
        self, ema: WeightAverage | None, step: int, max_steps: int, seconds: float, limit: float | None
    ) -> None:
        """`check_ema` as soon as the run's number of steps can be foreseen from `step` and the time it took."""
        if limit is None:
            self.check_ema(ema, max_steps)
        elif seconds >= FORESEEABLE * limit:
            self.check_ema(ema, min(max_steps, round(step * limit / seconds)))

    def check_condition(self, model: Any, data: Any, inputs: Callable[[Batch], dict[str, Any]], step: int) -> None:
        """Warn when samples that are told one another's conditions are predicted as before.

        Args:
            model: in evaluation mode; every process calls it, on the same samples.
            data: of which the samples are.
            inputs: the condition of a batch, as keyword arguments of the model.
            step: how long the model has learned.
        """
        if step < LEAST_STEPS:
            return
        device = self._range.device
        keys = [(int(index), 0) for index in np.linspace(0, len(data) - 1, min(LISTENERS, len(data)))]
        batch = {name: values.to(device) for name, values in data.__getitems__(keys).items()}
        own, others = inputs(batch), inputs({name: values.roll(1, 0) for name, values in batch.items()})
        if _equal(own, others):
            return
        change = response(self.objective, model, batch, own, others)
        if change < UNHEARD:
            self._warn(
                "condition",
                f"The model ignores its condition: told another one, its prediction changes by {change:.1g} of its "
                f"size after {step:,} steps; see that labels belong to their images and reach the network.",
            )


def early_share(ema: WeightAverage, steps: int) -> float:
    """The part of the EMA's weight that after `steps` updates is on the initial weights and the run's first `EARLY`.

    It is the product of the later decays, reckoned from the mean of their logarithms on a grid.
    """
    if steps < 1:
        return 0.0
    average = copy.copy(ema)
    updates = np.unique(np.linspace(int(EARLY * steps), steps - 1, 1000).round())
    logarithms = []
    for average.updates in updates.astype(int).tolist():
        decay = average.decay()
        logarithms.append(math.log(decay) if decay > 0 else -math.inf)
    if -math.inf in logarithms:
        return 0.0
    return math.exp(np.mean(logarithms) * (steps - int(EARLY * steps)))


@torch.no_grad()
def response(objective: Objective, model: Any, batch: Batch, own: dict[str, Any], others: dict[str, Any]) -> float:
    """Root mean square of what another condition changes in the prediction, over that of the prediction.

    Args:
        objective: decides on the noise and the timesteps, the same for both conditions.
        model: in evaluation mode.
        batch: on the model's device.
        own, others: conditions of the batch, as keyword arguments of the model.
    """
    first, second = (_prediction(objective, model, batch, conditions) for conditions in (own, others))
    return ((second - first).norm() / first.norm().clamp(min=1e-12)).item()


def _prediction(objective: Objective, model: Any, batch: Batch, conditions: dict[str, Any]) -> torch.Tensor:
    """The first prediction that the objective asks of the network."""
    outputs: list[torch.Tensor] = []

    def listen(*arguments: Any, **conditions: Any) -> torch.Tensor:
        output = model(*arguments, **conditions)
        outputs.append((output if isinstance(output, torch.Tensor) else output.sample).float())
        return outputs[-1]

    objective(ConditionedNetwork(listen, conditions), batch, generator_of("listening", device=batch["samples"].device))
    return outputs[0]


def _edges_of(objective: Objective, device: torch.device) -> torch.Tensor | None:
    """Where parts of equal probability of the timesteps end; None for an objective that does not say how it draws."""
    draw = getattr(objective, "draw_timesteps", None)
    if draw is None:
        return None
    times = draw(DRAWS, generator_of("diagnostics", device=device), device).float()
    return torch.quantile(times, torch.linspace(0, 1, LEVELS + 1, device=device))


def _equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())
