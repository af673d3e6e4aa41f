"""Flow maps: networks that sample in one to four steps, trained from scratch by improved MeanFlow.

A flow map's network gives the average velocity of the probability flow between two times (Geng et al. 2025,
arXiv:2505.13447, eq. 3 and 12), so that one step z_r = z_t - (t - r) * u(z_t, t, t - r) follows the flow exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from ..schedulers.continuous_path import RectifiedFlowPath
from .network import ConditionedNetwork
from .randomness import draw_shared, rand_shared, randn_shared
from .timestep_sampling import TimestepSampler

DERIVATIVES = ("finite_difference", "jvp")

# Share of the batch that is trained at r = t, where the objective is flow matching.
INSTANTANEOUS = 0.5


class FlowMapObjective:
    """Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012), on z_t = (1 - t) * x0 + t * epsilon.

    With v = u(z, t, 0), and D = the derivative of u along (v, 1, 0) in (z, t, r), both without a gradient::

        V = u(z, t, t - r) + (t - r) * D,        loss = |V - (epsilon - x0)|^2 / (|V - (epsilon - x0)|^2 + c)^p

    The denominator is without a gradient. At the exact u, V is the velocity v. For half of the batch r = t, where the
    loss is that of flow matching; the derivative is computed for the other half alone. In evaluation mode the loss is
    the mean squared error of V over a sample's values, for the weighted loss is near 1 whatever the network does.

    The network is called as `net(z, t * T, duration=(t - r) * T)`.

    With `flow_map_guidance` the network also learns the flow maps of guided velocities
    v_w = v_null + w * (v_c - v_null) (Ho and Salimans 2022, arXiv:2207.12598, eq. 6), so that a guided sample costs one
    call. Where r < t, a scale w is drawn, log-uniform from 1 to `flow_map_guidance`, and the network is called with
    `guidance=w`. With v_c and v_null = u(z, t, 0) for the condition and for none, without a gradient, the tangent is
    v_w and the target (epsilon - x0) + (w - 1) * (v_c - v_null), whose expectation is v_w at the exact u. The first
    MeanFlow fixes the scale (arXiv:2505.13447); the improved one draws it, as here. A network without a condition, and
    one in evaluation mode, is trained or measured at w = 1.

    Args:
        path: a `RectifiedFlowPath`.
        sampler: of t and r, the later of two draws being t; uniform when not given. T is its number of levels.
        flow_map_derivative: `finite_difference`, a central one, which needs no forward differentiation and
            so works with every network and kernel; or `jvp`, the exact product.
        flow_map_step: half the width of the central difference in t.
        flow_map_guidance: the largest scale of guidance, above 1; None for no such input of the network.
        power: p; with 0 the expected gradient at the exact u is exactly zero, and with the default large errors count
            less.
        offset: c.

    Raises:
        ValueError: for another path, an unknown derivative, or a number outside its range.
    """

    settings = {
        "flow_map_derivative": {
            "type": str,
            "default": "finite_difference",
            "choices": DERIVATIVES,
            "on_resume": "refused",
            "text": "Derivative along the flow: finite_difference (any network) or jvp (forward-mode differentiation).",
        },
        "flow_map_step": {
            "type": float,
            "default": 0.01,
            "above": 0,
            "at_most": 0.1,
            "on_resume": "refused",
            "text": "Step in time of the finite difference, of a path of length 1.",
        },
        "flow_map_guidance": {
            "type": float | None,
            "default": None,
            "above": 1,
            "on_resume": "refused",
            "text": "Largest guidance scale that the network learns as an input, for guided steps in one network call; "
            "needs a condition. Not learned when not given.",
        },
    }
    # What a run with this objective needs, what it prefers, and entries of the network's configuration.
    implied = {"schedule": "rectified_flow", "prediction_type": "flow", "sampler": "flow-map"}
    preferred = {"ddpm_num_inference_steps": 4}
    network_entries = {"second_time": True}
    # Entries of a fresh network: a derivative through fast waves of time is noise.
    network_defaults = {"smooth_time": True}
    # Entries that take the value of a setting, where the network has a condition.
    conditional_entries = {"max_guidance": "flow_map_guidance"}

    def __init__(
        self,
        path: Any = None,
        sampler: TimestepSampler | None = None,
        flow_map_derivative: str = "finite_difference",
        flow_map_step: float = 0.01,
        flow_map_guidance: float | None = None,
        power: float = 1.0,
        offset: float = 0.01,
    ):
        self.path = RectifiedFlowPath() if path is None else path
        if not isinstance(self.path, RectifiedFlowPath):
            raise ValueError(f"A flow map needs the path rectified_flow, got {type(path).__name__}.")
        if flow_map_derivative not in DERIVATIVES:
            raise ValueError(f"flow_map_derivative must be one of {', '.join(DERIVATIVES)}, got {flow_map_derivative}.")
        if not flow_map_step > 0:
            raise ValueError(f"flow_map_step must be above 0, got {flow_map_step}.")
        if flow_map_guidance is not None and not flow_map_guidance > 1:
            raise ValueError(f"flow_map_guidance must be above 1, got {flow_map_guidance}.")
        self.sampler, self.guidance = sampler or TimestepSampler("uniform", 1000), flow_map_guidance
        self.kind, self.step, self.power, self.offset = flow_map_derivative, flow_map_step, power, offset

    def draw_timesteps(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Timesteps t * T of the network as in training, shape (count,)."""
        return self._draw_times(count, generator, device)[0] * self.sampler.num_levels

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """The loss of every sample, shape (batch,), float32."""
        x0 = batch["samples"]
        noise = randn_shared(tuple(x0.shape), generator, x0.device)
        t, r = self._draw_times(len(x0), generator, x0.device)
        scales = None
        if self.guidance is not None and net.training and net.null_conditions:
            scales = self.guidance ** rand_shared((len(x0),), generator, x0.device)
        errors = self.errors(net, x0, noise, t, r, scales)
        squares = errors.flatten(1).square()
        net.report(t * self.sampler.num_levels, squares.detach().mean(1))
        if not net.training:
            return squares.mean(1)
        totals = squares.sum(1)
        return totals / (totals.detach() + self.offset) ** self.power

    def errors(
        self,
        net: Any,
        x0: torch.Tensor,
        noise: torch.Tensor,
        t: torch.Tensor,
        r: torch.Tensor,
        scales: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """V minus its target, shaped as the samples, for given noise and times 0 <= r <= t <= 1 of shape (batch,).

        `scales` of guidance, (batch,), are used where r < t; with None the network gets no scale, which is w = 1.
        """
        z, duration, target = self.path.add_noise(x0, noise, t), t - r, noise - x0
        correction = torch.zeros_like(z)
        moving = (duration > 0).nonzero()[:, 0]
        if not len(moving):  # processes that share a batch call the network equally often, and correct nothing here
            moving = moving.new_zeros(1)
        guidance = {} if scales is None else {"guidance": torch.where(duration > 0, scales, 1.0)}
        some = net.part(moving)
        with torch.no_grad():
            where = z[moving], t[moving], duration[moving]
            velocity, null = self._instantaneous(some, where[0], where[1], with_null=scales is not None)
            if scales is not None:
                change = _like(guidance["guidance"][moving] - 1, velocity) * (velocity - null)
                velocity, target = velocity + change, target.index_add(0, moving, change)
                some = ConditionedNetwork(some.module, {**some.conditions, "guidance": guidance["guidance"][moving]})
            derivative = self.derivative(some, *where, velocity)
        correction[moving] = _like(duration[moving], derivative) * derivative.to(z.dtype)
        output = self._velocity(net, z, t, duration, **guidance)
        return output + correction - target

    def _draw_times(
        self, count: int, generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, r), each (count,), of a path of length 1; every second sample of the global batch has r = t."""

        def draw(number: int, source: torch.Generator) -> torch.Tensor:
            first, second = (self.sampler.draw(number, source, device) for _ in range(2))
            second = second[torch.randperm(number, generator=source, device=device)]  # both may be stratified
            later, earlier = torch.maximum(first, second), torch.minimum(first, second)
            period = round(1 / INSTANTANEOUS)
            first_one = torch.randint(period, (), generator=source, device=device)  # batches may be of one sample
            instantaneous = (torch.arange(number, device=device) + first_one) % period == 0
            return torch.stack([later, torch.where(instantaneous, later, earlier)])

        t, r = draw_shared(count, generator, draw, dim=1) / self.sampler.num_levels
        return t, r

    def _velocity(
        self, net: Any, z: torch.Tensor, t: torch.Tensor, duration: torch.Tensor, **conditions: Any
    ) -> torch.Tensor:
        """u(z, t, duration) in float32 or wider, times being those of a path of length 1."""
        levels = self.sampler.num_levels
        output: torch.Tensor = net(z, t * levels, duration=duration * levels, **conditions)
        return output.to(torch.promote_types(output.dtype, torch.float32))

    def _instantaneous(
        self, net: ConditionedNetwork, z: torch.Tensor, t: torch.Tensor, with_null: bool
    ) -> Sequence[torch.Tensor]:
        """(the velocity under the conditions, that under none or an empty tensor), in the dtype of z, by one call."""
        if with_null:
            conditions = {name: torch.cat([given, net.null_conditions[name]]) for name, given in net.conditions.items()}
            net, z, t = ConditionedNetwork(net.module, conditions), torch.cat([z, z]), torch.cat([t, t])
        velocities = self._velocity(net, z, t, torch.zeros_like(t)).to(z.dtype)
        return velocities.chunk(2) if with_null else (velocities, velocities[:0])

    def derivative(
        self, net: Any, z: torch.Tensor, t: torch.Tensor, duration: torch.Tensor, velocity: torch.Tensor
    ) -> torch.Tensor:
        """D, shaped as z: along `velocity` in z and 1 in t, while r stays, so that the duration grows as t does."""
        differentiate = self._product if self.kind == "jvp" else self._difference
        return differentiate(net, z, t, duration, velocity)

    def _difference(
        self, net: Any, z: torch.Tensor, t: torch.Tensor, duration: torch.Tensor, velocity: torch.Tensor
    ) -> torch.Tensor:
        h, both = self.step, net.part(torch.arange(len(z), device=z.device).repeat(2))
        around = [torch.cat([x + h * dx, x - h * dx]) for x, dx in ((z, velocity), (t, 1), (duration, 1))]
        after, before = self._velocity(both, *around).chunk(2)
        return (after - before) / (2 * h)

    def _product(
        self, net: Any, z: torch.Tensor, t: torch.Tensor, duration: torch.Tensor, velocity: torch.Tensor
    ) -> torch.Tensor:
        """The Jacobian-vector product by forward differentiation, in one call of the network."""
        with forward_ad.dual_level():
            one = torch.ones_like(t)
            arguments = (forward_ad.make_dual(x, dx) for x, dx in ((z, velocity), (t, one), (duration, one)))
            tangent = forward_ad.unpack_dual(self._velocity(net, *arguments)).tangent
        if tangent is None:
            raise ValueError("The network has no forward derivative; use flow_map_derivative finite_difference.")
        return tangent


def _like(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(batch,) values with an axis of size 1 for each further axis of x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
