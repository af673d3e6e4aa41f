"""Guidance: what a sampler follows instead of the network's conditional prediction."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging

from ..schedulers.tensors import working_dtype
from .call_arguments import is_number

logger = logging.get_logger(__name__)

Arguments = Mapping[str, Any]

# Arguments that a step of the scheduler brings -> the entry of a network's configuration that says it takes them.
STEP_ARGUMENTS = {"duration": "second_time", "guidance": "max_guidance"}


class GuidedNetwork:
    """reference + scale * (conditional - reference), formed in whatever the network predicts.

    The reference is the network's own prediction for the null condition (classifier-free guidance: Ho and Salimans
    2022, arXiv:2207.12598, eq. 6 with 1 + w = scale), or a weaker network's for the same condition (autoguidance:
    Karras et al. 2024, arXiv:2406.02507). At one x_t every prediction type is affine in the score, with one
    slope for all conditions, so the scores combine alike.

    Scale 0 is the reference alone and scale 1 the conditional alone, one forward each. Otherwise both halves go through
    the network as one batch of twice the size. A weaker network always takes a forward of its own. A batch that the
    device has no memory for goes through the network in parts from then on.

    A flow map that takes guidance as an input (`config.max_guidance`) needs one forward, without the reference: for
    scales up to that, steps that say their duration, and no rescaling.

    Args:
        unet: called as `unet(sample, timestep, **arguments)`; returns a tensor or an object with `.sample`. The sample
            is cast to the network's dtype; the outputs are combined in float32 or wider.
        conditional: the condition, as keyword arguments of the network.
        reference: the null condition under the same keywords, or the arguments of `weak_unet`.
        scale: at least 0.
        interval: (start, stop); guided where start <= progress < stop, the conditional prediction elsewhere
            (Kynkaanniemi et al. 2024, arXiv:2404.07724, in noise levels there).
        rescale: phi of `rescaled`; has no effect at the scales 0 and 1.
        weak_unet: gives the reference instead of `unet`.
        from_null: whether the reference is the null condition that the network was trained with.

    Attributes:
        takes_x0: whether a network takes the last predicted x0 (`config.self_condition`).
    """

    def __init__(
        self,
        unet: Any,
        conditional: Arguments,
        reference: Arguments,
        scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0),
        rescale: float = 0.0,
        weak_unet: Any = None,
        from_null: bool = True,
    ):
        self.unet, self.weak_unet = unet, weak_unet
        self.conditional, self.reference = conditional, reference
        self.scale, self.interval, self.rescale = scale, interval, rescale
        self.takes_x0 = _takes_x0(unet) or _takes_x0(weak_unet)
        most = getattr(getattr(unet, "config", None), "max_guidance", None) or 1.0
        self._takes_scale = from_null and weak_unet is None and rescale == 0 and 1 < scale <= most
        if from_null and weak_unet is None and 1 < most < scale:
            _warn_of_scale(scale, most)
        self._step: Arguments = {}
        self._most: int | None = None  # samples in a call of the network
        self._joint: Arguments | None = None
        if weak_unet is None and scale not in (0, 1):
            self._joint = {name: torch.cat([reference[name], given]) for name, given in conditional.items()}

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: Any,
        progress: float,
        x0: torch.Tensor | None = None,
        step: Arguments | None = None,
    ) -> torch.Tensor:
        """The guided prediction, in float32 or wider.

        A network with twice the sample's channels predicts a variance in the second half: it stays the conditional's.

        Args:
            sample: the network's input, (batch, channels, height, width).
            timestep: the time that the scheduler gives.
            progress: share of the sampling steps that are done.
            x0: the last predicted x0, for networks that take it.
            step: further arguments of this step, for networks that take them (`STEP_ARGUMENTS`).
        """
        self._step = step or {}
        if self.scale == 1 or not self.interval[0] <= progress < self.interval[1]:
            return self._conditional(sample, timestep, x0)
        if self.scale == 0:
            return self._reference(sample, timestep, x0)
        if self._takes_scale and "duration" in self._step:
            self._step = {**self._step, "guidance": self.scale}
            return self._conditional(sample, timestep, x0)
        reference, conditional = self._both(sample, timestep, x0)
        channels = sample.shape[1]
        if conditional.shape[1] != 2 * channels:
            return self._combine(reference, conditional)
        guided = self._combine(reference[:, :channels], conditional[:, :channels])
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _conditional(self, sample: torch.Tensor, timestep: Any, x0: torch.Tensor | None) -> torch.Tensor:
        return self._predict(self.unet, sample, timestep, self.conditional, x0)

    def _reference(self, sample: torch.Tensor, timestep: Any, x0: torch.Tensor | None) -> torch.Tensor:
        network = self.unet if self.weak_unet is None else self.weak_unet
        return self._predict(network, sample, timestep, self.reference, x0)

    def _both(self, sample: torch.Tensor, timestep: Any, x0: torch.Tensor | None) -> Sequence[torch.Tensor]:
        if self._joint is not None:
            twice = None if x0 is None else torch.cat([x0, x0])
            both = torch.cat([sample, sample])
            return self._predict(self.unet, both, timestep, self._joint, twice).chunk(2)
        return self._reference(sample, timestep, x0), self._conditional(sample, timestep, x0)

    def _predict(
        self, network: Any, sample: torch.Tensor, timestep: Any, arguments: Arguments, x0: torch.Tensor | None
    ) -> torch.Tensor:
        """The network's output for a whole batch, in as many calls as the memory asks for."""
        given = {"timestep": timestep, "x0": x0}
        found: list[torch.Tensor] = []
        start = 0
        while start < len(sample):
            part = slice(start, start + (self._most or len(sample)))
            rows, own, step = (_part(values, part, len(sample)) for values in (given, arguments, self._step))
            try:
                found.append(predict(network, sample[part], rows["timestep"], own, rows["x0"], step))
                start = part.stop
                continue
            except RuntimeError as error:
                if not _is_out_of_memory(error) or len(sample[part]) == 1:
                    raise
            # Outside the handler, where the failed call's tensors are no longer held by the exception.
            self._most = (len(sample[part]) + 1) // 2
            logger.warning(f"No memory for {len(sample[part])} images in one call: {self._most} at most from here on.")
        return found[0] if len(found) == 1 else torch.cat(found)

    def _combine(self, reference: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
        guided = torch.lerp(reference, conditional, self.scale)
        return guided if self.rescale == 0 else rescaled(guided, conditional, self.rescale)


def predict(
    network: Any,
    sample: torch.Tensor,
    timestep: Any,
    arguments: Arguments,
    x0: torch.Tensor | None = None,
    step: Arguments | None = None,
) -> torch.Tensor:
    """A network's output in float32 or wider, for a sample that is cast to the network's dtype.

    Args:
        network: called as `network(sample, timestep, **arguments)`; returns a tensor or an object with `.sample`.
        sample: shape (batch, channels, ...).
        timestep: the time that the scheduler gives.
        arguments: the network's keyword arguments.
        x0: the last predicted x0, passed as `self_condition` to networks that take it.
        step: arguments of the scheduler's step, passed to networks that take them (`STEP_ARGUMENTS`).
    """
    taken = {name: value for name, value in (step or {}).items() if _configured(network, STEP_ARGUMENTS[name])}
    arguments = {**arguments, **taken}
    if x0 is not None and _takes_x0(network):
        arguments = {**arguments, "self_condition": x0}
    if isinstance(network, ModelMixin):  # as in training, where each sample has a timestep of its own
        timestep = torch.as_tensor(timestep, device=sample.device)
        timestep = timestep.expand(len(sample)) if timestep.ndim == 0 else timestep
    output = network(sample.to(dtype_of(network)), timestep, **arguments)
    output = output if isinstance(output, torch.Tensor) else output.sample
    return output.to(working_dtype(output.dtype))


def _part(values: Arguments, part: slice, count: int) -> dict[str, Any]:
    """The rows of a part of a batch of `count`; what is not one row for each sample stays whole."""
    return {
        name: value[part] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in values.items()
    }


def dtype_of(network: Any) -> torch.dtype:
    """The dtype of a network's inputs: its `dtype`, or that of its first floating-point parameter, or float32."""
    dtype = getattr(network, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def _takes_x0(network: Any) -> bool:
    return _configured(network, "self_condition")


def _configured(network: Any, entry: str) -> bool:
    """Whether an entry of the network's configuration is there and on."""
    return bool(getattr(getattr(network, "config", None), entry, False))


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, phi: float) -> torch.Tensor:
    """A guided prediction whose standard deviation per image is drawn back to the conditional's, by a share phi.

    Lin et al. 2023 (arXiv:2305.08891), eq. 15-16.
    """
    wide = torch.promote_types(guided.dtype, torch.float32)
    deviations = [x.flatten(1).to(wide).std(dim=1) for x in (conditional, guided)]
    # A prediction that is constant over the image, such as an untrained network's zeros, has nothing to rescale.
    ratio = torch.where(deviations[1] > 0, deviations[0] / deviations[1], 1.0)
    factor = (phi * ratio + (1 - phi)).to(guided.dtype)
    return guided * factor.reshape(-1, *(1,) * (guided.ndim - 1))


@functools.cache
def _warn_of_scale(scale: float, most: float) -> None:
    """Once for each scale, since evaluation makes many calls."""
    logger.warning(
        f"guidance_scale {scale:g} is above {most:g}, the largest that the network was trained with: each step is "
        "computed for twice the images."
    )


def check_guidance(scale: float, interval: Sequence[float], rescale: float) -> None:
    """Raise ValueError, in one sentence, for a number out of its range."""
    if not is_number(scale) or scale < 0:
        raise ValueError(f"guidance_scale must be a number of at least 0, got {scale!r}.")
    two_numbers = isinstance(interval, list | tuple) and len(interval) == 2 and all(map(is_number, interval))
    if not two_numbers or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"guidance_interval must be (start, stop) with 0 <= start <= stop <= 1, got {interval!r}.")
    if not is_number(rescale) or not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be a number from 0 to 1, got {rescale!r}.")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Accelerators have a class of their own for it; the CPU's allocator, and some backends, only a message."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "defaultcpuallocator" in text
