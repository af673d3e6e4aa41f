"""The ADM U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs", 2021) in the additive form of generative_pytorch.

Class, text and image conditions enter where that lineage puts them: the class in the time embedding, text by
cross-attention beside the self-attention, an image as further input channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .lapped import from_bands, to_bands
from .layers import (
    DenoisingNetwork,
    GroupNorm32,
    PixelAttention,
    Upsample,
    convolution,
    from_patches,
    joined_with_image,
    over_positions,
    sinusoidal_embedding,
    text_context,
    to_patches,
)


class ADMResidualBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, plus the input through a 1x1 conv where widths differ.

    `forward(x, temb, skip=None)`: x is (batch, c, *size), temb (batch, time_channels); `skip` is joined to x. `dims` is
    the number of sizes.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, groups: int, dropout: float, dims: int = 2
    ):
        super().__init__()
        conv = convolution(dims)
        self.norm1 = GroupNorm32(groups, in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = GroupNorm32(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + over_positions(self.time_proj(temb), h)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + self.shortcut(x)


class ADMStage(nn.Module):
    """One residual block with the attentions that follow it, each of which may be None."""

    def __init__(self, block: nn.Module, attention: nn.Module | None, cross_attention: nn.Module | None):
        super().__init__()
        self.block, self.attention, self.cross_attention = block, attention, cross_attention


class ADMNetwork(DenoisingNetwork):
    """Predicts from a noisy sample of `dims` sizes, its timestep and, where built for them, conditions.

    Args:
        sample_size: size the model is trained at; any size the down-sampling divides is accepted.
        in_channels: channels of the noisy sample.
        out_channels: channels predicted; None for `in_channels`, twice that for a learned variance.
        base_channels: width of the first level; level i is `base_channels * channel_multipliers[i]` wide.
        channel_multipliers: one entry a level; each level but the last halves every size.
        layers_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention_resolutions: down-sampling factors (1, 2, 4, ...) at which attention follows every block.
        attention_heads: heads of every attention.
        attention_scale: q and k are each multiplied by this over the fourth root of the head's width; 1 is right, the
            source project's 10 is for its weights only.
        norm_num_groups: groups of every GroupNorm.
        dropout: rate inside blocks.
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        vector_dim: how many real numbers the network is conditioned on, None for none. A row of NaN in `vector` stands
            for no numbers.
        vector_mean, vector_std: what the numbers are normalised with, one of each per number; None for 0 and 1.
        cross_attention_dim: channels of `encoder_hidden_states`, None for no cross-attention.
        condition_channels: channels of `image_condition`, 0 for none.
        patch_size: the network sees patches of so many positions a side as channels, 1 for none.
        lapped_patches: patches of a signal overlap by half, and the channels are the `patch_size` bands of their
            modified discrete cosine transform; for signals only.
        input_skip: add to the output the channels of the input, mixed pixel by pixel with gains that the time gives; so
            what the input shows already (the noise, the condition) need not pass through the network. A learned form of
            the skip of Karras et al. 2022, arXiv:2206.00364, eq. 7; it starts at zero.
        input_gate: add to the output the patches of the sample as well, each entry times a gate that the network gives
            for it, from their values and magnitudes. What is noise with an envelope (speech in bands of frequency) is
            denoised by gates that vary slowly, as in a Wiener filter, while its values vary fast. It starts at zero.
        second_time: take the `duration` t - r of a step as well, as flow maps need it.
        smooth_time: embed the timestep by slow waves, so that the output is smooth in time, as flow maps need it.
        max_guidance: take a scale of guidance, `guidance`, as well, from 1 to this; above 1, None for no such input.
    """

    _no_split_modules: Any = ["ADMResidualBlock", "PixelAttention"]
    _repeated_blocks = ["ADMResidualBlock", "PixelAttention"]

    # torch's containers have no element type
    down_stages: Any
    downsamples: Any
    up_stages: Any
    upsamples: Any

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        base_channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 2, 2),
        layers_per_level: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        attention_heads: int = 4,
        attention_scale: float = 1.0,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        cross_attention_dim: int | None = None,
        condition_channels: int = 0,
        patch_size: int = 1,
        input_skip: bool = False,
        input_gate: bool = False,
        vector_dim: int | None = None,
        vector_mean: tuple[float, ...] | None = None,
        vector_std: tuple[float, ...] | None = None,
        second_time: bool = False,
        smooth_time: bool = False,
        max_guidance: float | None = None,
        lapped_patches: bool = False,
    ):
        super().__init__()
        if lapped_patches and self.dims != 1:
            raise ValueError("lapped_patches is for signals; images take plain patches.")
        factors = [2**i for i in range(len(channel_multipliers))]
        # A string such as "16,8" would be read as its characters, none of which is a factor.
        if isinstance(attention_resolutions, str) or any(f not in factors for f in attention_resolutions):
            raise ValueError(
                f"attention_resolutions is {attention_resolutions!r}; it takes down-sampling factors among {factors}."
            )
        out_channels = self._own_out_channels(out_channels)

        time_channels = 4 * base_channels
        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self._embed_conditions(time_channels, waves=base_channels)
        self.input_gains = None
        if input_skip:
            self.input_gains = nn.Linear(time_channels, out_channels * (in_channels + condition_channels))
            nn.init.zeros_(self.input_gains.weight)
            nn.init.zeros_(self.input_gains.bias)
        conv, patch_area = convolution(self.dims), patch_size**self.dims
        inputs = (in_channels + condition_channels) * patch_area
        self.conv_in = conv(2 * inputs if input_gate else inputs, base_channels, 3, padding=1)

        width = self._make_stages(factors)
        self.norm_out = GroupNorm32(norm_num_groups, width)
        self.conv_out = conv(width, out_channels * patch_area, 3, padding=1)
        self.gate_out = None
        if input_gate:
            if in_channels != out_channels:
                raise ValueError(f"input_gate needs as many out_channels as in_channels, {in_channels}.")
            self.gate_out = conv(width, out_channels * patch_area, 1)
            nn.init.zeros_(self.gate_out.weight)
            nn.init.zeros_(self.gate_out.bias)

    def _make_stages(self, factors: list[int]) -> int:
        """Make the stages down, in the middle and up; the width of the last one."""
        c, conv = self.config, convolution(self.dims)
        widths = [c.base_channels * m for m in c.channel_multipliers]
        width, skips = c.base_channels, [c.base_channels]
        self.down_stages, self.downsamples = nn.ModuleList(), nn.ModuleList()
        for factor, level_width in zip(factors, widths):
            stages = nn.ModuleList()
            for _ in range(c.layers_per_level):
                stages.append(self._stage(width, level_width, factor in c.attention_resolutions))
                width = level_width
                skips.append(width)
            self.down_stages.append(stages)
            if factor != factors[-1]:
                self.downsamples.append(conv(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.mid_stage = self._stage(width, width, attend=True)
        self.mid_block = self._block(width, width)
        self.up_stages, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for factor, level_width in zip(factors[::-1], widths[::-1]):
            stages = nn.ModuleList()
            for _ in range(c.layers_per_level + 1):
                stages.append(self._stage(width + skips.pop(), level_width, factor in c.attention_resolutions))
                width = level_width
            self.up_stages.append(stages)
            if factor != 1:
                self.upsamples.append(Upsample(width, width, dims=self.dims))
        return width

    def _block(self, in_channels: int, out_channels: int) -> ADMResidualBlock:
        c = self.config
        options = (4 * c.base_channels, c.norm_num_groups, c.dropout, self.dims)
        return ADMResidualBlock(in_channels, out_channels, *options)

    def _stage(self, in_channels: int, out_channels: int, attend: bool) -> ADMStage:
        cross = attend and self.config.cross_attention_dim is not None
        return ADMStage(
            self._block(in_channels, out_channels),
            self._attention(out_channels, None) if attend else None,
            self._attention(out_channels, self.config.cross_attention_dim) if cross else None,
        )

    def _attention(self, channels: int, context_channels: int | None) -> PixelAttention:
        c, heads = self.config, self.config.attention_heads
        if channels % heads:
            raise ValueError(f"attention_heads must divide the width {channels}, got {heads}.")
        norm = GroupNorm32(c.norm_num_groups, channels)
        attention = PixelAttention(channels, heads, channels // heads, norm, context_channels=context_channels)
        attention.score_scale = c.attention_scale**2
        return attention

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        image_condition: Tensor | None = None,
        vector: Tensor | None = None,
        duration: Tensor | float | int | None = None,
        guidance: Tensor | float | int | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, *size); `DenoisingNetwork` describes the arguments."""
        self._check_sample(sample)
        c = self.config
        context, mask = text_context(sample, encoder_hidden_states, encoder_attention_mask, c.cross_attention_dim)
        # Every block would start with this SiLU.
        temb = F.silu(
            self._with_conditions(self._embed_time(sample, timestep), class_labels, vector, duration, guidance)
        )
        given = joined_with_image(sample, image_condition, c.condition_channels)
        patches = self._to_patches(given)
        x = self.conv_in(torch.cat((patches, patches.abs()), dim=1) if c.input_gate else patches)
        skips = [x]
        for i, stages in enumerate(self.down_stages):
            for stage in stages:
                x = self._run_stage(stage, x, temb, None, context, mask)
                skips.append(x)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
                skips.append(x)
        x = self._run_stage(self.mid_stage, x, temb, None, context, mask)
        x = self._run(self.mid_block, x, temb)
        for i, stages in enumerate(self.up_stages):
            for stage in stages:
                x = self._run_stage(stage, x, temb, skips.pop(), context, mask)
            if i < len(self.upsamples):
                x = self.upsamples[i](x)
        features = F.silu(self.norm_out(x))
        x = self.conv_out(features)
        if self.gate_out is not None:
            x = x + self.gate_out(features) * patches[:, : x.shape[1]]
        x = self._from_patches(x)
        if self.input_gains is not None:
            gains = self.input_gains(temb).to(x.dtype).unflatten(1, (c.out_channels, given.shape[1]))
            x = x + (gains @ given.to(x.dtype).flatten(2)).unflatten(2, given.shape[2:])
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _to_patches(self, x: Tensor) -> Tensor:
        side = self.config.patch_size
        return to_bands(x, side).flatten(1, 2).to(x.dtype) if self.config.lapped_patches else to_patches(x, side)

    def _from_patches(self, x: Tensor) -> Tensor:
        side = self.config.patch_size
        if self.config.lapped_patches:
            return from_bands(x.unflatten(1, (-1, side))).to(x.dtype)
        return from_patches(x, side)

    def _run_stage(
        self, stage: Any, x: Tensor, temb: Tensor, skip: Tensor | None, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self._run(stage.block, x, temb, skip)
        if stage.attention is not None:
            x = self._run(stage.attention, x)
        if stage.cross_attention is not None:
            x = self._run(stage.cross_attention, x, context, mask)
        return x

    def _embed_time(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        timesteps = self._times(timestep, sample)
        waves = sinusoidal_embedding(timesteps, self.config.base_channels, cosine_first=True, reach_lowest=False)
        return self.time_embedding(waves.to(sample.dtype))


class ADMUNet2DModel(ADMNetwork):
    """Predicts from a noisy image, its timestep and, where built for them, a class, numbers, a text and an image.

    `sample` is (batch, channels, height, width); see `ADMNetwork` for the arguments.
    """
