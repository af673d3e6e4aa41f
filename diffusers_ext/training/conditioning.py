"""What the network is told besides the noisy image: nothing, a class, a text, or an image.

A `Conditioning` knows what a batch has to carry, what the network's configuration needs for it, and what the pipeline
needs to be asked for it. Dropped conditions, which classifier-free guidance needs (Ho and Salimans 2022,
arXiv:2207.12598), are drawn for the global batch, as noise is, so they are the same on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..conditions.image import image_condition
from ..conditions.text_encoder import (
    SMALL,
    TextConditionedNetwork,
    load_text_encoder,
    small_text_encoder,
    tokenize,
    train_tokenizer,
)
from ..data.base import Batch
from ..data.images import ImageData
from ..objectives.randomness import generator_of, seed_of
from ..pipelines import GenerationPipeline
from .arguments import TrainingArguments
from .build import make_pipeline


class Conditioning:
    """No condition; and what the others share.

    Args:
        arguments: the settings.
        data: the images to train on.
    """

    figure_images = 64  # samples in the picture of a finished run

    def __init__(self, arguments: TrainingArguments, data: ImageData):
        self.arguments, self.data = arguments, data

    @property
    def model_entries(self) -> dict[str, Any]:
        """Entries that the network's configuration needs."""
        return {}

    def adopt(self, held_out: ImageData) -> None:
        """Make conditions of held-out images mean what those of the training images mean.

        Raises ValueError, in one sentence, where they can't.
        """

    def wrap(self, unet: Any) -> Any:
        """What is trained: the denoiser, and whatever is trained along with it."""
        return unet

    def unet(self, network: Any) -> Any:
        """The denoiser in what `wrap` gave."""
        return network

    def dropped(self, number: int, epoch: int, batch_size: int) -> torch.Tensor:
        """Which samples of the global batch `number` lose their condition, bool (batch_size,), on the CPU."""
        return torch.zeros(batch_size, dtype=torch.bool)

    def inputs(self, batch: Batch, data: ImageData, dropped: torch.Tensor, seed: int, mine: slice) -> dict[str, Any]:
        """Keyword arguments for the network.

        Args:
            batch: of `data`, on the device of the network.
            data: the images that the batch is of.
            dropped: samples whose condition is the null one, bool (batch,), on the CPU.
            seed: of random conditions, other for each global batch.
            mine: where in the global batch this one lies.
        """
        return {}

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        """A pipeline around the network."""
        return make_pipeline(network, scheduler)

    def request(self, count: int, data: ImageData) -> dict[str, Any]:
        """Keyword arguments that ask the pipeline for about `count` pictures, with conditions of `data`; fixed."""
        return {"batch_size": count}


class _Conditional(Conditioning):
    def dropped(self, number: int, epoch: int, batch_size: int) -> torch.Tensor:
        if epoch >= self.arguments.num_epochs - self.arguments.label_free_epochs:
            return torch.ones(batch_size, dtype=torch.bool)
        draws = torch.rand(batch_size, generator=generator_of(self.arguments.seed, "drop", number))
        return draws < self.arguments.condition_dropout

    def _guided(self, request: dict[str, Any]) -> dict[str, Any]:
        return {**request, "guidance_scale": self.arguments.guidance_scale}


class ClassConditioning(_Conditional):
    """The class of each image, by number; the null class comes after the last."""

    figure_images = 100

    def __init__(self, arguments: TrainingArguments, data: ImageData):
        super().__init__(arguments, data)
        if data.labels is None:
            raise ValueError(
                "condition class needs classes: a label_column of dataset_name, or a train_data_dir with a folder for "
                "each class."
            )
        if data.labels.min() < 0:
            raise ValueError(f"Classes are numbered from 0, but the data hold {int(data.labels.min())}.")
        self.id2label = {str(i): name for i, name in enumerate(data.label_names or [])}

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"num_class_embeds": len(self.id2label)}

    def adopt(self, held_out: ImageData) -> None:
        held_out.number_classes_as(list(self.id2label.values()))

    def inputs(self, batch: Batch, data: ImageData, dropped: torch.Tensor, seed: int, mine: slice) -> dict[str, Any]:
        labels = batch["labels"]
        if data.stream is not None and labels.min() < 0:  # of other data it is known beforehand
            raise ValueError("a row of the stream has no class; every image needs one")
        return {"class_labels": labels.masked_fill(dropped.to(labels.device), len(self.id2label))}

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        return GenerationPipeline(network, scheduler, id2label=self.id2label)

    def request(self, count: int, data: ImageData) -> dict[str, Any]:
        """As many of each class, in order, as fit into `count`; the first classes, when there are more than `count`."""
        classes = min(count, len(self.id2label))
        return self._guided({"class_labels": [label for label in range(classes) for _ in range(count // classes)]})


class TextConditioning(_Conditional):
    """The caption of each image; the null text is the empty one."""

    def __init__(self, arguments: TrainingArguments, data: ImageData):
        super().__init__(arguments, data)
        if data.captions is None:
            raise ValueError("condition text needs texts: name the caption_column of a dataset_name.")
        torch.manual_seed(seed_of(arguments.seed, "text encoder"))
        self.trained = arguments.train_text_encoder or arguments.text_encoder == SMALL
        if arguments.text_encoder == SMALL:
            self.tokenizer: Any = train_tokenizer(data.captions, arguments.max_text_tokens)
            self.text_encoder: Any = small_text_encoder(self.tokenizer)
        else:
            self.text_encoder, self.tokenizer = load_text_encoder(
                arguments.text_encoder, arguments.max_text_tokens, arguments.hub_token
            )
        self.text_encoder.requires_grad_(self.trained).train(self.trained)
        self._tokens: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def model_entries(self) -> dict[str, Any]:
        config = self.text_encoder.config
        return {"cross_attention_dim": getattr(config, "hidden_size", None) or config.d_model}

    def adopt(self, held_out: ImageData) -> None:
        if held_out.captions is None:
            raise ValueError(f"{held_out.description} has no texts, and the training data have.")

    def wrap(self, unet: Any) -> Any:
        return TextConditionedNetwork(unet, self.text_encoder) if self.trained else unet

    def unet(self, network: Any) -> Any:
        return network.unet if self.trained else network

    def inputs(self, batch: Batch, data: ImageData, dropped: torch.Tensor, seed: int, mine: slice) -> dict[str, Any]:
        device, index = batch["samples"].device, batch["index"].cpu()
        ids, mask = self._all_tokens(data)
        null_ids, null_mask = tokenize(self.tokenizer, [""])
        ids = torch.where(dropped[:, None], null_ids, ids[index]).to(device)
        mask = torch.where(dropped[:, None], null_mask, mask[index]).to(device)
        if self.trained:
            return {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            states = self.text_encoder.to(device)(input_ids=ids, attention_mask=mask).last_hidden_state
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _all_tokens(self, data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of all captions: texts are few bytes beside their images."""
        if id(data) not in self._tokens:
            assert data.captions is not None
            self._tokens[id(data)] = tokenize(self.tokenizer, data.captions)
        return self._tokens[id(data)]

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        encoder = network.text_encoder if self.trained else self.text_encoder
        return GenerationPipeline(self.unet(network), scheduler, text_encoder=encoder.eval(), tokenizer=self.tokenizer)

    def request(self, count: int, data: ImageData) -> dict[str, Any]:
        captions = data.captions or self.data.captions
        assert captions is not None
        return self._guided({"prompt": [captions[i] for i in _spread(len(captions), count)]})


class ImageConditioning(_Conditional):
    """Another image beside each, from a column or made from the image itself; the null image is all zeros."""

    def __init__(self, arguments: TrainingArguments, data: ImageData):
        super().__init__(arguments, data)
        source = data if data.companion is None else data.companion
        self.condition = image_condition(arguments.image_condition, source.channels)
        if data.companion is None:
            self.condition.from_target(data[0]["samples"][None])  # fails now rather than at the first step

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"condition_channels": self.condition.channels}

    def adopt(self, held_out: ImageData) -> None:
        if held_out.companion is not None and held_out.companion.channels != self.condition.channels:
            raise ValueError(
                f"condition_image_column has images of {held_out.companion.channels} channels in the validation split, "
                f"and of {self.condition.channels} in the training split; set --channels."
            )

    def inputs(self, batch: Batch, data: ImageData, dropped: torch.Tensor, seed: int, mine: slice) -> dict[str, Any]:
        condition = batch["condition"] if "condition" in batch else self._made(batch["samples"], seed, mine)
        return {"image_condition": condition * ~dropped.to(condition.device)[:, None, None, None]}

    def _made(self, images: torch.Tensor, seed: int, mine: slice) -> torch.Tensor:
        """Conditions of the images; what is random in them is drawn for the images before them in the batch too."""
        before = images.new_zeros(mine.start, *images.shape[1:])
        generator = generator_of(seed, "image condition")
        return self.condition.from_target(torch.cat([before, images]), generator)[mine.start :]

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        return GenerationPipeline(network, scheduler, condition=self.condition.name)

    def request(self, count: int, data: ImageData) -> dict[str, Any]:
        batch = data.__getitems__(_spread(len(data), count))
        generator = generator_of(self.arguments.seed, "preview condition")
        return self._guided(self.condition.user_input(batch.get("condition", batch["samples"]), generator))


_CONDITIONINGS: dict[str, Callable[[Any, ImageData], Conditioning]] = {
    "class": ClassConditioning,
    "text": TextConditioning,
    "image": ImageConditioning,
}


def make_conditioning(arguments: TrainingArguments, data: ImageData) -> Conditioning:
    """The condition that the settings ask for.

    Raises:
        ValueError: one sentence on what the data lack for it.
    """
    if arguments.condition is not None:
        return _CONDITIONINGS[arguments.condition](arguments, data)
    return Conditioning(arguments, data)


def _spread(length: int, count: int) -> Sequence[int]:
    """`count` indices spread evenly over 0 ... length - 1."""
    return np.linspace(0, length - 1, count).round().astype(int).tolist()
