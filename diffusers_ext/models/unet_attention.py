"""The U-Net with attention after every stage, as ddpm_accelerate's README describes it.

Double convolutions with one-group normalisation and GELU, max-pooling down, bilinear up, and a transformer block after
every stage.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import (
    DenoisingNetwork,
    GroupNorm32,
    MultiHeadAttention,
    batched_timesteps,
    over_positions,
    sinusoidal_embedding,
)


class DoubleConv(nn.Module):
    """conv, GroupNorm(1), GELU, conv, GroupNorm(1), at one size; a residual one adds its input and ends in GELU."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None, residual: bool = False):
        super().__init__()
        mid_channels = out_channels if mid_channels is None else mid_channels
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False)
        self.norm1 = GroupNorm32(1, mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = GroupNorm32(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        return F.gelu(x + h) if self.residual else h


class AttentionDown(nn.Module):
    """Max-pooling by 2, a residual and a widening double convolution, and the time embedding added."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int):
        super().__init__()
        self.conv1 = DoubleConv(in_channels, in_channels, residual=True)
        self.conv2 = DoubleConv(in_channels, out_channels)
        self.time_proj = nn.Linear(time_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        x = self.conv2(self.conv1(F.max_pool2d(x, 2)))
        return x + over_positions(self.time_proj(temb), x)


class AttentionUp(nn.Module):
    """Bilinear interpolation to the skip's size, concatenation (skip first), two double convolutions, time added."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int):
        super().__init__()
        self.conv1 = DoubleConv(in_channels, in_channels, residual=True)
        self.conv2 = DoubleConv(in_channels, out_channels, mid_channels=in_channels // 2)
        self.time_proj = nn.Linear(time_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor) -> Tensor:
        # The skip's size, not twice our own: pooling rounds odd sizes down.
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
        x = self.conv2(self.conv1(torch.cat((skip, x), dim=1)))
        return x + over_positions(self.time_proj(temb), x)


class StageTransformer(nn.Module):
    """x + attention(norm(x)), then + feed-forward(norm(.)), on the pixels of (batch, channels, height, width)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(channels, channels, heads, use_bias=True)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, channels)
        self.linear2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class AttentionUNet2DModel(DenoisingNetwork):
    """Predicts from a noisy image, its timestep and, where built for it, a class; any height and width from 8 up.

    Args:
        sample_size: height (and width) the model is trained at; any size from 8 up is accepted.
        in_channels: channels of the image.
        out_channels: channels predicted; None for `in_channels`.
        down_widths: channels at full, half, quarter and eighth size.
        mid_width: channels of the two inner double convolutions of the bottleneck.
        up_widths: channels at quarter, half and full size on the way up.
        attention_heads: heads of every attention.
        time_embed_dim: width of the sinusoidal embedding, which no MLP follows.
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        vector_dim: how many real numbers the network is conditioned on, None for none. A row of NaN in `vector` stands
            for no numbers.
        vector_mean, vector_std: what the numbers are normalised with, one of each per number; None for 0 and 1.
    """

    _no_split_modules: Any = ["DoubleConv", "AttentionDown", "AttentionUp", "StageTransformer"]
    _repeated_blocks = ["AttentionDown", "AttentionUp", "StageTransformer"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 64,
        in_channels: int = 3,
        out_channels: int | None = None,
        down_widths: tuple[int, int, int, int] = (64, 128, 256, 256),
        mid_width: int = 512,
        up_widths: tuple[int, int, int] = (128, 64, 64),
        attention_heads: int = 4,
        time_embed_dim: int = 256,
        num_class_embeds: int | None = None,
        vector_dim: int | None = None,
        vector_mean: tuple[float, ...] | None = None,
        vector_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        out_channels = self._own_out_channels(out_channels)
        self._embed_conditions(time_embed_dim)
        self.conv_in = DoubleConv(in_channels, down_widths[0])
        self.downs = nn.ModuleList(
            AttentionDown(upper, lower, time_embed_dim) for upper, lower in itertools.pairwise(down_widths)
        )
        self.down_transformers = nn.ModuleList(StageTransformer(w, attention_heads) for w in down_widths[1:])
        self.mid = nn.ModuleList(
            [
                DoubleConv(down_widths[-1], mid_width),
                DoubleConv(mid_width, mid_width),
                DoubleConv(mid_width, down_widths[-2]),
            ]
        )
        below = (down_widths[-2], *up_widths[:-1])
        self.ups = nn.ModuleList(
            AttentionUp(lower + skip, upper, time_embed_dim)
            for lower, skip, upper in zip(below, down_widths[-2::-1], up_widths)
        )
        self.up_transformers = nn.ModuleList(StageTransformer(w, attention_heads) for w in up_widths)
        self.conv_out = nn.Conv2d(up_widths[-1], out_channels, 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        vector: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width); `DenoisingNetwork` describes the arguments."""
        self._check_sample(sample)
        temb = self._embed(sample, timestep, class_labels, vector)
        x = self._run(self.conv_in, sample)
        skips = []
        for down, transformer in zip(self.downs, self.down_transformers):
            skips.append(x)
            x = self._run(transformer, self._run(down, x, temb))
        for block in self.mid:
            x = self._run(block, x)
        for up, transformer in zip(self.ups, self.up_transformers):
            x = self._run(transformer, self._run(up, x, temb, skips.pop()))
        x = self.conv_out(x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _embed(
        self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """SiLU of the time (and class) embedding, (batch, time_embed_dim): every stage would start with this SiLU."""
        timesteps = batched_timesteps(timestep, sample)
        waves = sinusoidal_embedding(timesteps, self.config.time_embed_dim, reach_lowest=False)
        return F.silu(self._with_conditions(waves.to(sample.dtype), class_labels, vector))

    def _check_sample(self, sample: Tensor) -> None:
        self._check_channels(sample)
        if min(sample.shape[2:]) < 8:
            raise ValueError(f"sample is {sample.shape[2]}x{sample.shape[3]}; it must be at least 8x8.")
