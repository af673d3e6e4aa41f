"""U-SURF's guided U-Net: the annotated U-Net with the class entering two further blocks of the bottleneck.

The label goes through the *time* MLP, moved past the last timestep (label + label_shift), and modulates only those two
blocks; without a label they run unmodulated.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import (
    batched_timesteps,
    check_choice,
    checked_labels,
    joined_with_prediction,
)
from .unet_annotated import AnnotatedNetwork


class GuidedUNet2DModel(AnnotatedNetwork):
    """Predicts from a noisy image, its timestep and its class.

    Args:
        sample_size: height (and width) the model is trained at; any size the down-sampling divides is accepted.
        in_channels: channels of the image.
        out_channels: channels predicted; None for `in_channels`.
        base_channels: width of the stem; level i is `base_channels * channel_multipliers[i]` wide at its lower end.
        channel_multipliers: one entry a level; each level but the last halves height and width.
        norm_num_groups: groups of the blocks' GroupNorm.
        weight_standardization: "standard", None, or "inverted" (the source project's defect, for its weights only).
        attention_heads, attention_head_dim: heads and their width.
        dropout: rate inside blocks.
        num_class_embeds: number of classes; index `num_class_embeds` is the null class.
        class_conditioning: "everywhere" adds an embedding of the class to that of the time, which modulates every
            block; "bottleneck" is the source project's way: the class, embedded by the time MLP, modulates the two last
            blocks of the bottleneck and nothing else, and its influence on the image is weak.
        label_shift: what "bottleneck" adds to a label before the time MLP, to keep it clear of every timestep.
        self_condition: take an earlier prediction as further input channels (Chen et al., "Analog Bits", 2022).
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 1,
        out_channels: int | None = None,
        base_channels: int = 32,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 8),
        norm_num_groups: int = 4,
        weight_standardization: Literal["standard", "inverted"] | None = "standard",
        attention_heads: int = 4,
        attention_head_dim: int = 32,
        dropout: float = 0.0,
        num_class_embeds: int = 10,
        class_conditioning: Literal["everywhere", "bottleneck"] = "everywhere",
        label_shift: float = 400.0,
        self_condition: bool = False,
    ):
        super().__init__()
        check_choice("weight_standardization", weight_standardization, ("standard", "inverted", None))
        check_choice("class_conditioning", class_conditioning, ("everywhere", "bottleneck"))
        out_channels = self._own_out_channels(out_channels)

        time_channels = 4 * base_channels
        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.GELU(), nn.Linear(time_channels, time_channels)
        )
        everywhere = class_conditioning == "everywhere"
        self.class_embedding = nn.Embedding(num_class_embeds + 1, time_channels) if everywhere else None
        self.stem = nn.Conv2d(in_channels * (2 if self_condition else 1), base_channels, 1)
        self._make_levels(["linear"] * len(channel_multipliers), "full", layers=2, upsample_type="nearest")
        width = base_channels * channel_multipliers[-1]
        self.class_block1, self.class_block2 = self._block(width, width), self._block(width, width)
        self.final_block = self._block(2 * base_channels, base_channels)
        self.conv_out = nn.Conv2d(base_channels, out_channels, 1)

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether a step without labels leaves weights aside: those by which the class modulates its blocks."""
        return self.class_embedding is None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        self_condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width); `DenoisingNetwork` describes the arguments.

        With `class_conditioning` of "bottleneck", samples of the null class pass the class blocks unmodulated.
        """
        self._check_sample(sample)
        temb = self._embed_waves(batched_timesteps(timestep, sample), sample)
        if self.class_embedding is not None:
            temb = self._with_class(temb, class_labels)
        temb = F.silu(temb)
        x = self.stem(joined_with_prediction(sample, self_condition, self.config.self_condition))
        stem = x
        x, skips = self._run_down(x, temb)
        x = self._run_class_blocks(x, temb, class_labels, sample)
        x = self._run_up(x, temb, skips)
        x = self.conv_out(self._run(self.final_block, x, temb, stem))
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run_class_blocks(self, x: Tensor, temb: Tensor, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        """Twice: the bottleneck's attention once more (the same module), then a block modulated by the class."""
        film, strength = self._label_film(class_labels, sample) if self.class_embedding is None else (temb, None)
        for block in (self.class_block1, self.class_block2):
            x = self._run(block, self._attend(self.mid_attn, x), film, None, strength)
        return x

    def _label_film(self, class_labels: Tensor | None, sample: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the labels alone modulate by, and how strongly; no labels, no modulation."""
        if class_labels is None:
            return None, None
        labels = checked_labels(class_labels, sample, self.config.num_class_embeds)
        film = F.silu(self._embed_waves(labels.float() + self.config.label_shift, sample))
        return film, self._modulation_strength(labels)

    def _modulation_strength(self, labels: Tensor) -> Tensor:
        """1 for a class and 0 for the null class, (batch,), by a look-up.

        No table of this model is indexed by labels; this one lets the device find a label out of range by itself.
        """
        strengths = torch.ones(self.config.num_class_embeds + 1, 1, device=labels.device)
        strengths[-1] = 0
        return F.embedding(labels, strengths)[:, 0]
