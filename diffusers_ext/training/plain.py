"""A plain torch module in the place of a diffusers network, for previews, figures and evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict


class PlainNetwork(torch.nn.Module):
    """What a pipeline needs of its network, around a module that has none of it.

    Args:
        network: called as `network(sample, timestep, **conditions)`; gives a tensor, or an object with `.sample`.
        channels: of a sample.
        size: of a sample, (height, width) for images.
        entries: what conditions need to find in a network's configuration, the number of classes for instance.
    """

    def __init__(self, network: torch.nn.Module, channels: int, size: tuple[int, ...], **entries: Any):
        super().__init__()
        self.network = network
        shape = size[0] if len(set(size)) == 1 else list(size)
        self.config = FrozenDict({"in_channels": channels, "out_channels": channels, "sample_size": shape, **entries})

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter."""
        return next((p.dtype for p in self.network.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def forward(self, sample: torch.Tensor, timestep: Any, **conditions: Any) -> Any:
        """An object with `.sample`, shaped as the network gives it; the network gets a timestep for each sample."""
        times = torch.as_tensor(timestep, device=sample.device)
        times = times.expand(len(sample)) if times.ndim == 0 else times  # pipelines give one for all
        output = self.network(sample, times, **conditions)
        return SimpleNamespace(sample=output) if isinstance(output, torch.Tensor) else output
