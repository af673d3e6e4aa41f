"""How training uses a condition: when it is dropped, and what previews are conditioned on.

Dropped conditions, which classifier-free guidance needs (Ho and Salimans 2022, arXiv:2207.12598), are drawn for the
global batch, as noise is, so they are the same on any number of processes.
"""

from __future__ import annotations

from typing import Any

import torch

from ..conditions import Condition
from ..data.base import Batch, TrainingData
from ..modalities import MODALITIES, modality_of_size
from ..objectives.randomness import generator_of
from ..pipelines import GenerationPipeline
from .pipeline import make_pipeline

UNCONDITIONAL_FIGURE_IMAGES = 64


class Conditioning:
    """A condition, or none, in a training run.

    Args:
        condition: prepared for the training data; None trains without a condition.
        data: the training data.
        dropout: probability with which a sample gets the null condition.
        label_free_from: first epoch in which all samples get the null condition; None for no such epoch.
        guidance_scale: of previews.
    """

    def __init__(
        self,
        condition: Condition | None,
        data: TrainingData,
        seed: int = 0,
        dropout: float = 0.0,
        label_free_from: int | None = None,
        guidance_scale: float = 1.0,
    ):
        self.condition, self.data, self.seed = condition, data, seed
        self.dropout, self.label_free_from, self.guidance_scale = dropout, label_free_from, guidance_scale

    @property
    def name(self) -> str | None:
        """The condition's name, or None."""
        return None if self.condition is None else self.condition.name

    @property
    def figure_images(self) -> int:
        """Samples in the picture of a finished run."""
        return UNCONDITIONAL_FIGURE_IMAGES if self.condition is None else self.condition.figure_images

    @property
    def model_entries(self) -> dict[str, Any]:
        """Entries that the network's configuration needs."""
        return {} if self.condition is None else self.condition.model_entries

    def wrap(self, unet: Any) -> Any:
        """What is trained: the network, and whatever is trained along with it."""
        return unet if self.condition is None else self.condition.wrap(unet)

    def unet(self, network: Any) -> Any:
        """The network in what `wrap` returned."""
        return network if self.condition is None else self.condition.unet_of(network)

    def dropped(self, number: int, epoch: int, batch_size: int) -> torch.Tensor:
        """Which samples of the global batch `number` lose their condition, bool (batch_size,), on the CPU."""
        if self.condition is None:
            return torch.zeros(batch_size, dtype=torch.bool)
        if self.label_free_from is not None and epoch >= self.label_free_from:
            return torch.ones(batch_size, dtype=torch.bool)
        return torch.rand(batch_size, generator=generator_of(self.seed, "drop", number)) < self.dropout

    def inputs(self, batch: Batch, data: TrainingData, dropped: torch.Tensor, seed: int, mine: slice) -> dict[str, Any]:
        """Keyword arguments for the network.

        Args:
            batch: of `data`, on the network's device.
            data: the data that the batch is from.
            dropped: bool (batch,) on the CPU; these samples get the null condition.
            seed: of random conditions, a different one for each global batch.
            mine: where in the global batch this one lies.
        """
        if self.condition is None:
            return {}
        generator = generator_of(seed, f"{self.condition.name} condition")
        return self.condition.inputs(batch, data, dropped, generator, mine.start)

    def pipeline(self, network: Any, scheduler: Any, vae: Any = None) -> Any:
        """A pipeline around the network, with the autoencoder whose latents it was trained on."""
        modality = modality_of_size(self.data.size) or MODALITIES["image"]
        if self.condition is None and modality.pipeline_class is GenerationPipeline:
            return make_pipeline(network, scheduler, vae)
        parts = {} if self.condition is None else self.condition.pipeline_parts(network)
        parts |= {} if vae is None else {"vae": vae}
        return modality.pipeline_class(self.unet(network), scheduler, **parts, **modality.pipeline_parts(self.data))

    def request(self, count: int, data: TrainingData) -> dict[str, Any]:
        """Pipeline arguments for a preview of about `count` samples, with conditions of `data`; always the same."""
        if self.condition is None:
            return {"batch_size": count}
        generator = generator_of(self.seed, "preview condition")
        return {**self.condition.examples(data, count, generator), "guidance_scale": self.guidance_scale}
