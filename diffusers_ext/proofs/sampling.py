"""The loop of a diffusers pipeline, without a pipeline."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..schedulers.tensors import previous_sample

# Schedulers whose `step` takes one timestep for each sample, and whose list of timesteps ends with the data.
_BATCHED_TIMESTEPS = ("DDPMWuerstchenScheduler",)


def sample(
    scheduler: Any,
    network: Any,
    x: torch.Tensor,
    calls: int | None = None,
    generator: torch.Generator | None = None,
    **step_arguments: Any,
) -> torch.Tensor:
    """The sample after all, or the first `calls`, network calls. Call `scheduler.set_timesteps` before.

    Args:
        scheduler: any object with diffusers' scheduler interface.
        network: called as `network(input, timestep)`.
        x: the start, of standard deviation `scheduler.init_noise_sigma`, shape (batch, ...).
        calls: number of network calls; all if None, all but the last n if -n.
        generator: source of the sampler's noise.
        step_arguments: further arguments of `scheduler.step`, such as `eta`.
    """
    for call, t in enumerate(visited_timesteps(scheduler)[:calls]):
        x = step(scheduler, network, t, x, generator, **arguments_of_call(scheduler, call), **step_arguments)
    return x


def visited_timesteps(scheduler: Any) -> Any:
    """The timesteps at which a pipeline calls the network: all, but for a class that lists the end as well."""
    return scheduler.timesteps[:-1] if type(scheduler).__name__ in _BATCHED_TIMESTEPS else scheduler.timesteps


def arguments_of_call(scheduler: Any, call: int) -> dict[str, Any]:
    """Arguments of `step` that its pipeline takes from the list: `prev_timestep` of UnCLIPScheduler."""
    if "prev_timestep" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"prev_timestep": scheduler.timesteps[call + 1] if call + 1 < len(scheduler.timesteps) else None}


def step(
    scheduler: Any,
    network: Any,
    t: Any,
    x: torch.Tensor,
    generator: torch.Generator | None = None,
    **step_arguments: Any,
) -> torch.Tensor:
    """The sample after one network call at timestep t."""
    output = network(network_input(scheduler, x, t), t)
    if type(scheduler).__name__ in _BATCHED_TIMESTEPS:
        t = t.expand(len(x))
    if generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
        step_arguments["generator"] = generator
    return previous_sample(scheduler.step(output, t, x, **step_arguments))


def network_input(scheduler: Any, x: torch.Tensor, t: Any) -> torch.Tensor:
    """x as the scheduler scales it for the network; flow-matching schedulers have no `scale_model_input`."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def starting_noise(scheduler: Any, n: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    """n starts of shape (n, dimensions), float64, with standard deviation `scheduler.init_noise_sigma` (default 1)."""
    noise = torch.randn(n, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
