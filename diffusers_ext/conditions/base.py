"""What one call of a pipeline tells its network besides the sample and the time, and what it says for none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .class_label import class_indices, classes_of
from .image import IMAGE_CONDITIONS, Size, image_condition
from .text import encode_prompts, prompt_list

NetworkArguments = dict[str, torch.Tensor]


class Condition:
    """One kind of condition in one call.

    Attributes:
        argument: the pipeline's argument that gives it.
        given: what was given, one entry or as many as images; None for nothing.
        negative: what takes the null condition's place, likewise.
    """

    argument: str
    given: Any = None
    negative: Any = None

    def counts(self) -> dict[str, int]:
        """The number of entries of each argument that was given."""
        named = {self.argument: self.given, f"negative_{self.argument}": self.negative}
        return {name: len(entries) for name, entries in named.items() if entries is not None}

    def conditional(self, count: int, device: torch.device) -> NetworkArguments:
        """The condition of `count` images as arguments of the network; none where leaving them out means the null."""
        raise NotImplementedError

    def null(self, count: int, device: torch.device) -> NetworkArguments:
        """The null condition under the same names."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError for a negative without its positive."""
        if self.negative is not None and self.given is None:
            raise ValueError(f"negative_{self.argument} goes with {self.argument}, which is missing.")


class ClassCondition(Condition):
    """Labels, (n,) on the CPU."""

    argument = "class_labels"
    settings = {
        "label_column": {
            "type": str | None,
            "default": None,
            "text": "Column with the classes; `label` or `labels` when not given.",
        },
    }

    def __init__(self, unet: Any, id2label: Mapping[str, str] | None, labels: Any, negative: Any):
        names = {name: int(index) for index, name in (id2label or {}).items()}
        self.network = type(unet).__name__
        self.classes = classes_of(unet, id2label)
        self.given = class_indices(self.argument, labels, self.classes, names)
        self.negative = class_indices(f"negative_{self.argument}", negative, self.classes, names)
        self.check()

    def conditional(self, count: int, device: torch.device) -> NetworkArguments:
        if self.given is not None:
            return {"class_labels": self.given.to(device).expand(count)}
        return self.null(count, device) if self.classes.required else {}

    def null(self, count: int, device: torch.device) -> NetworkArguments:
        if self.given is None and not self.classes.required:
            return {}
        if self.negative is not None:
            return {"class_labels": self.negative.to(device).expand(count)}
        if self.classes.null is None and self.given is None:
            raise ValueError(f"class_labels are missing, and this {self.network} has no null class.")
        if self.classes.null is None:
            raise ValueError(
                f"Guidance needs a null class, and this {self.network} has none; take guidance_scale 1, "
                "negative_class_labels or a weak_unet."
            )
        return {"class_labels": torch.full((count,), self.classes.null, device=device)}


class TextCondition(Condition):
    """Lists of prompts; the null condition is the encoding of ""."""

    argument = "prompt"
    settings = {
        "caption_column": {
            "type": str | None,
            "default": None,
            "text": "Column with the texts; `text` or `caption` when not given.",
        },
        "text_encoder": {
            "type": str,
            "default": "small",
            "text": "Name or folder of a transformers text encoder with its tokenizer, or `small`: a CLIP text model "
            "of two layers and a tokenizer, both trained on the data set's own captions.",
        },
        "train_text_encoder": {
            "type": bool,
            "default": False,
            "text": "Train a named text encoder too; `small` always is trained.",
        },
        "max_text_tokens": {
            "type": int,
            "default": 77,
            "at_least": 2,
            "text": "Texts are cut to this many tokens.",
        },
    }

    @staticmethod
    def check_settings(arguments: Any) -> None:
        """Raise ValueError for a stream, which can't give texts."""
        if arguments.streaming:
            raise ValueError("streaming can't give texts yet, only classes and conditions made from the image itself.")

    def __init__(self, unet: Any, tokenizer: Any, text_encoder: Any, prompt: Any, negative: Any):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.given, self.negative = prompt_list("prompt", prompt), prompt_list("negative_prompt", negative)
        self.check()
        self.taken = getattr(unet.config, "cross_attention_dim", None) is not None
        if self.given is not None and not self.taken:
            raise ValueError("prompt was given, but the network takes no text (cross_attention_dim is not set).")
        if self.taken and (tokenizer is None or text_encoder is None):
            raise ValueError("The network takes text, and this pipeline has no text_encoder and tokenizer.")

    def conditional(self, count: int, device: torch.device) -> NetworkArguments:
        return self._encoded(self.given, count, device)

    def null(self, count: int, device: torch.device) -> NetworkArguments:
        return self._encoded(self.negative, count, device)

    def _encoded(self, prompts: list[str] | None, count: int, device: torch.device) -> NetworkArguments:
        if not self.taken:
            return {}
        states, mask = encode_prompts(self.tokenizer, self.text_encoder, prompts or [""], device)
        return {
            "encoder_hidden_states": states.expand(count, -1, -1),
            "encoder_attention_mask": mask.expand(count, -1),
        }


class PictureCondition(Condition):
    """Condition images, (n, channels, height, width) in [-1, 1]; the null condition is zeros."""

    argument = "image"
    settings = {
        "condition_image_column": {
            "type": str | None,
            "default": None,
            "text": "Column with the images that the network is conditioned on.",
        },
        "image_condition": {
            "type": str | None,
            "default": None,
            "choices": tuple(name for name in IMAGE_CONDITIONS if name != "image"),
            "text": "Make the condition from the target: super_resolution_2, _4 or _8, colorization or inpainting.",
        },
    }

    @staticmethod
    def check_settings(arguments: Any) -> None:
        """Raise ValueError unless just one source of condition images was given, which a stream can't give."""
        column, made = arguments.condition_image_column, arguments.image_condition
        if (column is None) == (made is None):
            raise ValueError("condition image needs either condition_image_column or image_condition.")
        if arguments.streaming and column is not None:
            raise ValueError(
                "streaming can't give condition_image_column yet, only what is made from the image itself."
            )

    def __init__(self, unet: Any, name: str | None, image: Any, mask_image: Any, size: Size):
        if image is None:
            if mask_image is not None:
                raise ValueError("mask_image goes with image, which is missing.")
            return
        channels = getattr(unet.config, "condition_channels", 0) or 0
        if channels == 0:
            raise ValueError("image was given, but the network takes no image (condition_channels is 0).")
        as_it_is = name is None or name == "image"
        condition = image_condition(name, channels if as_it_is else unet.config.in_channels)
        if condition.channels != channels:
            raise ValueError(
                f"The condition '{name}' has {condition.channels} channels, but the network takes {channels} "
                "(condition_channels)."
            )
        self.given = condition.from_user(image, mask_image, size).to(unet.dtype)

    def conditional(self, count: int, device: torch.device) -> NetworkArguments:
        if self.given is None:
            return {}
        return {"image_condition": self.given.to(device).expand(count, -1, -1, -1)}

    def null(self, count: int, device: torch.device) -> NetworkArguments:
        return {name: torch.zeros_like(images) for name, images in self.conditional(count, device).items()}


def arguments_known_to(network: Any, arguments: NetworkArguments) -> NetworkArguments:
    """Those of the arguments that the network was built for."""
    config = network.config
    taken = {
        "class_labels": getattr(config, "num_class_embeds", None) is not None,
        "encoder_hidden_states": getattr(config, "cross_attention_dim", None) is not None,
        "encoder_attention_mask": getattr(config, "cross_attention_dim", None) is not None,
        "image_condition": bool(getattr(config, "condition_channels", 0)),
    }
    return {name: value for name, value in arguments.items() if taken[name]}
