"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class ExponentialMovingAverage:
    """theta_ema <- decay * theta_ema + (1 - decay) * theta, with a decay that warms up.

    decay(k) = min(max_decay, 1 - (1 + k / inv_gamma)^-power) after k updates, as diffusers' EMAModel has it: early
    averages are short and forget the initial weights.

    Args:
        named_parameters: what to follow; the average starts as a copy.
        inv_gamma, power, max_decay: of the warm-up.
        update_after_step: updates before which the average just copies.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        inv_gamma: float = 1.0,
        power: float = 0.75,
        max_decay: float = 0.9999,
        update_after_step: int = 0,
    ):
        self.averages = {name: parameter.detach().clone() for name, parameter in named_parameters}
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay
        self.update_after_step = update_after_step
        self.updates = 0

    def decay(self) -> float:
        """The decay of the next update, in [0, max_decay]."""
        k = self.updates - self.update_after_step
        return 0.0 if k <= 0 else max(0.0, min(self.max_decay, 1 - (1 + k / self.inv_gamma) ** -self.power))

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        """Move every average towards its parameter."""
        parameters = dict(named_parameters)
        current = [parameters[name].detach() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - self.decay())
        self.updates += 1

    @contextmanager
    def applied_to(self, module: torch.nn.Module) -> Iterator[None]:
        """Within the context the module carries the averages; its own weights come back untouched."""
        parameters = dict(module.named_parameters())
        own = {name: parameters[name].data for name in self.averages}
        for name, average in self.averages.items():
            parameters[name].data = average
        try:
            yield
        finally:
            for name, data in own.items():
                parameters[name].data = data

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
