"""Images as a condition: another image beside each sample, from a column or made from the sample itself.

Of signals, it is another signal: one of narrower bandwidth, or one with a gap. Beside latents it is an image too, whose
pixels are folded into channels of the latents' size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .base import Batch, Condition, NetworkArguments, PythonCode, config_entry, setting
from .image_transforms import IMAGE_TRANSFORMS, ImageTransform, image_transform
from .user_images import Size

FROM_TARGET = tuple(name for name in IMAGE_TRANSFORMS if name != "image")


class ImageCondition(Condition):
    """An image, concatenated to the network's input; the null condition is all zeros.

    Args:
        condition_image_column: column of the data with the images; None makes them from the samples.
        image_condition: how they are made, one of `FROM_TARGET`.

    Attributes:
        transform: what makes the condition, after `prepare`, or after `adopt` in a pipeline.
        factor: pixels along one side for each entry of a latent; 1 without a vae.

    Raises:
        ValueError: for an unknown `image_condition`.
    """

    name = "image"
    noun = "an image"
    argument = "image"
    further_arguments = ("mask_image",)
    column = "condition"
    network_argument = "image_condition"
    network_entries = ("condition_channels",)
    takes_negative = False
    adjective = "An image-to-image"
    task = "image-to-image"
    settings = {
        "condition_image_column": setting(
            str | None, None, "Column with the images that the network is conditioned on."
        ),
        "image_condition": setting(
            str | None,
            None,
            "Make the condition from the target: super_resolution_2, _4 or _8, colorization or inpainting.",
            on_resume="refused",
            choices=FROM_TARGET,
        ),
    }
    flags = {
        "image": setting(str | None, None, "File of the image that the network is conditioned on."),
        "mask_image": setting(str | None, None, "File of the mask, white where to repaint."),
    }

    transform: ImageTransform
    factor: int = 1
    image_channels: Any = None  # of the images to generate, in a pipeline

    @staticmethod
    def check_settings(arguments: Any) -> None:
        column, made = arguments.condition_image_column, arguments.image_condition
        if (column is None) == (made is None):
            raise ValueError("condition image needs either condition_image_column or image_condition.")
        if arguments.streaming and column is not None:
            raise ValueError(
                "streaming can't give condition_image_column yet, only conditions made from the image itself."
            )

    def __init__(self, condition_image_column: str | None = None, image_condition: str | None = None):
        self.condition_image_column, self.image_condition = condition_image_column, image_condition

    def column_arguments(self) -> dict[str, Any]:
        return {}

    def prepare(self, data: Any, seed: int = 0, token: str | None = None) -> None:
        if getattr(getattr(data, "normalization", None), "band_scale", None) is not None:
            raise ValueError(
                "condition image takes signals frame by frame, which normalization spectral mixes; use standardize."
            )
        images = self._with_images(data)
        self.factor = images.size[0] // data.size[0]
        source = images if images.companion is None else images.companion
        self.transform = image_transform(self.image_condition, source.channels)
        if images.companion is None:
            self.transform.from_target(images[0]["samples"][None])  # fails now rather than at the first step

    @staticmethod
    def _with_images(data: Any) -> Any:
        """The images of the data. Those behind latents come with the latents from now on."""
        if hasattr(data, "gives_images"):
            data.gives_images = True
        return getattr(data, "images", data)

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"condition_channels": self.transform.channels * self.factor**2}

    def adopt(self, held_out: Any) -> None:
        images = self._with_images(held_out)
        companion = images.companion
        if not hasattr(self, "transform"):  # of a pipeline
            self.transform = image_transform(self.image_condition, images.channels)
            if self.transform.name == "image" and companion is None:
                raise ValueError(
                    "The network is conditioned on images from a column of their own, which is read only in training; "
                    "measure its samples there, with --classifier or --features."
                )
        elif self.transform.name == "image" and companion is None:
            raise ValueError("The training data have condition images of their own, and the held-out data have none.")
        if companion is not None and companion.channels != self.transform.channels:
            raise ValueError(
                f"condition_image_column has images of {companion.channels} channels in the validation split, "
                f"and of {self.transform.channels} in the training split; set --channels."
            )

    def inputs(
        self, batch: Batch, data: Any, dropped: torch.Tensor, generator: torch.Generator, before: int
    ) -> dict[str, Any]:
        if "condition" in batch:
            condition = batch["condition"]
        else:  # random parts are drawn for the samples before them in the global batch too
            images = batch.get("images", batch["samples"])
            earlier = images.new_zeros(before, *images.shape[1:])
            condition = self.transform.from_target(torch.cat([earlier, images]), generator)[before:]
        condition = self._folded(condition)
        return {"image_condition": condition * ~dropped.to(condition.device).reshape(-1, *[1] * (condition.ndim - 1))}

    def _folded(self, condition: torch.Tensor) -> torch.Tensor:
        return condition if self.factor == 1 else F.pixel_unshuffle(condition, self.factor)

    def pipeline_parts(self, network: Any) -> dict[str, Any]:
        return {"condition": self.transform.name}

    def of_samples(self, data: Any, indices: list[int], generator: torch.Generator) -> dict[str, Any]:
        batch = getattr(data, "images", data).__getitems__(indices)
        given = self.transform.user_input(batch.get("condition", batch["samples"]), generator)
        if getattr(data, "normalization", None) is not None:  # a pipeline takes signals in the units of the data
            given["image"] = data.normalization.undo(given["image"])
        return given

    @classmethod
    def for_pipeline(cls, pipeline: Any) -> ImageCondition:
        condition = cls(image_condition=pipeline.config.condition)
        condition.unet, condition.image_channels = pipeline.unet, config_entry(pipeline.unet, "in_channels")
        if getattr(pipeline, "vae", None) is not None:
            condition.factor = pipeline.vae_scale_factor
            condition.image_channels = config_entry(pipeline.vae, "in_channels") or 3
        return condition

    def check(self, values: Mapping[str, Any]) -> None:
        super().check(values)
        if "mask_image" in values and "image" not in values:
            raise ValueError("mask_image goes with image, which is missing.")

    def refusal(self) -> str:
        return "the network takes no image (condition_channels is 0)"

    def read(self, argument: str, values: Mapping[str, Any], size: Size) -> torch.Tensor:
        channels = config_entry(self.unet, "condition_channels") // self.factor**2
        as_it_is = self.image_condition in (None, "image")
        transform = image_transform(self.image_condition, channels if as_it_is else self.image_channels)
        if transform.channels != channels:
            raise ValueError(
                f"The condition '{self.image_condition}' has {transform.channels} channels, but the network takes "
                f"{channels} (condition_channels)."
            )
        pixels = tuple(side * self.factor for side in size)
        condition = transform.from_user(values["image"], values.get("mask_image"), pixels)
        return self._folded(condition).to(self.unet.dtype)

    def encode(self, entries: torch.Tensor, count: int, device: torch.device) -> NetworkArguments:
        return {"image_condition": entries.to(device).expand(count, *entries.shape[1:])}

    def from_command_line(
        self, values: Mapping[str, Any], pipeline: Any, open_image: Callable[[str, str], Any]
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        return {}, {name: open_image(name, path) for name, path in values.items() if name in self.flags}

    @classmethod
    def saved_in(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
        return bool(index.get("condition")) or super().saved_in(network, index)

    @classmethod
    def call_example(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
        example = {"image": _blank(network, index)}
        if index.get("condition") == "inpainting":
            example["mask_image"] = _blank(network, index, mask=True)
        return example


def _blank(network: Mapping[str, Any], index: Mapping[str, Any], mask: bool = False) -> PythonCode:
    """A plain image in the size and mode that the network's condition takes, as Python."""
    size = network.get("sample_size") or 0
    condition = index.get("condition") or ""
    channels, factor = _unfolded(condition, int(network.get("condition_channels") or 0))
    height, width = (int(side) * factor for side in (size if isinstance(size, list | tuple) else (size, size)))
    name, _, reduction = condition.rpartition("_")
    if name == "super_resolution":
        height, width = height // int(reduction), width // int(reduction)
    grey = mask or condition == "colorization" or channels == 1
    return PythonCode(f'Image.new("{"L" if grey else "RGB"}", ({width}, {height}), "{"white" if mask else "grey"}")')


def _unfolded(condition: str, condition_channels: int) -> tuple[int, int]:
    """(channels of the images to generate, factor) of a network's `condition_channels`; only one pair gives them."""
    for channels in (3,) if condition == "colorization" else (1, 3):
        for factor in (1, 2, 4, 8, 16, 32):
            if image_transform(condition or None, channels).channels * factor**2 == condition_channels:
                return channels, factor
    return 3, 1
