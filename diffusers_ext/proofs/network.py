"""The exact network of a mixture: what a network trained without error would output."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .levels import NetworkView, view_of
from .mixture import GaussianMixture


class ExactNetwork(torch.nn.Module):
    """The optimal network for a mixture, called as `network(sample, timestep)`.

    Args:
        mixture: the data.
        source: what the network is trained for: a scheduler (its noise levels and prediction type are read through its
            public interface, see `levels.view_of`), a `NetworkView`, or a noise path with `alpha(t)` and `sigma(t)`.
        prediction_type: what it outputs; that of the scheduler, or `epsilon` for a path, if not given.
        guidance: None, or (label, scale) for classifier-free guidance, null + scale * (conditional - null).
        time: from the timestep that the scheduler gives to the path's time, where they differ.

    Attributes:
        calls: number of calls so far.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        source: Any,
        prediction_type: str | None = None,
        guidance: tuple[int, float] | None = None,
        time: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        self.mixture = mixture
        self.view: NetworkView = view_of(source, prediction_type, time)
        self.guidance = (mixture.conditional(guidance[0]), guidance[1]) if guidance else None
        self.calls = 0

    @property
    def prediction_type(self) -> str:
        """What it outputs."""
        return self.view.prediction_type

    def forward(self, sample: torch.Tensor, timestep: Any) -> Any:
        """The output, in the shape and dtype of `sample`, of shape (batch, ...) with d numbers in each sample.

        `timestep` is a number, a one-element tensor, or a tensor of shape (batch,) with one value for the whole batch.
        """
        self.calls += 1
        t = timestep.flatten()[0].item() if isinstance(timestep, torch.Tensor) else timestep
        output = self.view.output(self.mixture, sample, t)
        if self.guidance is not None:
            conditional, scale = self.guidance
            output = output + scale * (self.view.output(conditional, sample, t) - output)
        return output.to(sample.dtype)


class MixtureNetwork(ExactNetwork):
    """The exact network in the shape that a pipeline takes: with a configuration, the output in `.sample`.

    Args:
        mixture: the data, in d dimensions.
        source, prediction_type: as for `ExactNetwork`.
        shape: (channels, size) of a sample with d numbers: size is the length of a signal or the side of a square
            image. d channels and one pixel when None.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(
        self,
        mixture: GaussianMixture,
        source: Any,
        prediction_type: str | None = None,
        shape: tuple[int, int] | None = None,
    ):
        super().__init__(mixture, source, prediction_type)
        channels, size = (mixture.means.shape[1], 1) if shape is None else shape
        self.config = SimpleNamespace(in_channels=channels, sample_size=size)

    def forward(self, sample: torch.Tensor, timestep: Any) -> SimpleNamespace:
        """`.sample` in the shape of the sample."""
        return SimpleNamespace(sample=super().forward(sample, timestep))
