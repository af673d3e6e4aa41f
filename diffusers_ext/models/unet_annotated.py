"""The U-Net of the annotated-diffusion lineage and of denoising-diffusion-pytorch, as one configurable class.

Three families that differ in details share one skeleton (Ho et al., "Denoising Diffusion Probabilistic Models", 2020):

    stem -> [blocks, attention, down] x levels -> block, attention, block -> [blocks, attention, up] x levels
         -> block over (features, stem) -> 1x1 convolution

Every block's output on the way down is concatenated to a block's input on the way up.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import (
    DenoisingNetwork,
    FilmResidualBlock,
    PixelAttention,
    Upsample,
    check_choice,
    fourier_features,
    joined_with_prediction,
    make_pixel_attention,
    sinusoidal_embedding,
)

AttentionKind = Literal["linear", "full"] | None
NormKind = Literal["group", "rms", "layer"]
WeightStandardization = Literal["standard", "inverted"] | None
UpsampleKind = Literal["nearest", "transposed"]


class AnnotatedLevel(nn.Module):
    """The modules of one resolution, on the way down or up: residual blocks, attention or None, and the resampling."""

    def __init__(self, blocks: Sequence[nn.Module], attention: nn.Module | None, resample: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.resample = resample


class AnnotatedNetwork(DenoisingNetwork):
    """The skeleton: levels on the way down, a middle, and levels on the way up.

    A subclass has the arguments of `AnnotatedUNet2DModel` that it needs; the others have their defaults there.
    """

    _no_split_modules: Any = ["FilmResidualBlock", "PixelAttention"]
    _repeated_blocks = ["FilmResidualBlock", "PixelAttention"]

    # torch's containers have no element type
    down_levels: Any
    up_levels: Any
    mid_attn: nn.Module | None

    def _block(self, in_channels: int, out_channels: int) -> FilmResidualBlock:
        c = self.config
        return FilmResidualBlock(
            in_channels,
            out_channels,
            c.get("time_embed_dim") or 4 * c.base_channels,
            c.get("block_norm", "group"),
            c.norm_num_groups,
            c.weight_standardization,
            c.dropout,
        )

    def _attention(self, channels: int, kind: AttentionKind) -> PixelAttention | None:
        if kind is None:
            return None
        c, norm = self.config, self.config.get("attention_norm", "group")
        memory = c.get("num_memory_kv", 0)
        return make_pixel_attention(channels, kind, norm, c.attention_heads, c.attention_head_dim, memory)

    def _make_levels(
        self, level_attention: Sequence[AttentionKind], mid_attention: AttentionKind, layers: int, upsample_type: str
    ) -> None:
        """Make the levels, each with `layers` blocks, and the middle."""
        base = self.config.base_channels
        widths = [base, *(base * m for m in self.config.channel_multipliers)]
        levels = list(zip(widths[:-1], widths[1:], level_attention))
        last = len(levels) - 1
        self.down_levels = nn.ModuleList(
            AnnotatedLevel(
                [self._block(upper, upper) for _ in range(layers)],
                self._attention(upper, kind),
                nn.Conv2d(upper, lower, 2, stride=2) if i < last else nn.Conv2d(upper, lower, 3, padding=1),
            )
            for i, (upper, lower, kind) in enumerate(levels)
        )
        self.mid_block1 = self._block(widths[-1], widths[-1])
        self.mid_attn = self._attention(widths[-1], mid_attention)
        self.mid_block2 = self._block(widths[-1], widths[-1])
        self.up_levels = nn.ModuleList(
            AnnotatedLevel(
                [self._block(lower + upper, lower) for _ in range(layers)],
                self._attention(lower, kind),
                Upsample(lower, upper, upsample_type) if i > 0 else nn.Conv2d(lower, upper, 3, padding=1),
            )
            for i, (upper, lower, kind) in reversed(list(enumerate(levels)))
        )

    def _run_down(self, x: Tensor, temb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features after the levels down and the middle, and the skips."""
        skips = []
        for level in self.down_levels:
            for block in level.blocks[:-1]:
                x = self._run(block, x, temb)
                skips.append(x)
            x = self._attend(level.attention, self._run(level.blocks[-1], x, temb))
            skips.append(x)
            x = level.resample(x)
        x = self._attend(self.mid_attn, self._run(self.mid_block1, x, temb))
        return self._run(self.mid_block2, x, temb), skips

    def _run_up(self, x: Tensor, temb: Tensor, skips: list[Tensor]) -> Tensor:
        for level in self.up_levels:
            for block in level.blocks:
                x = self._run(block, x, temb, skips.pop())
            x = level.resample(self._attend(level.attention, x))
        return x

    def _attend(self, attention: nn.Module | None, x: Tensor) -> Tensor:
        return x if attention is None else self._run(attention, x)

    def _embed_waves(self, values: Tensor, sample: Tensor) -> Tensor:
        """The time MLP of timesteps (batch,), before its SiLU, in the sample's dtype."""
        return self.time_embedding(sinusoidal_embedding(values, self.config.base_channels).to(sample.dtype))


class AnnotatedUNet2DModel(AnnotatedNetwork):
    """Predicts from a noisy image and its timestep; covers annotated diffusion and denoising-diffusion-pytorch.

    The defaults are the annotated U-Net in its right form: 1x1 stem, weight-standardised convolutions, GroupNorm with 4
    groups, linear attention at every level and full attention in the middle.

    Args:
        sample_size: height (and width) the model is trained at; any size the down-sampling divides is accepted.
        in_channels: channels of the image.
        out_channels: channels predicted; None for `in_channels`, twice that for a learned variance.
        base_channels: width of the stem; level i is `base_channels * channel_multipliers[i]` wide at its lower end.
        channel_multipliers: one entry a level; each level but the last halves height and width.
        layers_per_level: residual blocks, and skips, of one level on the way down and again on the way up.
        stem_kernel_size: odd kernel of the first convolution.
        patch_size: images enter as patches of this side, moved into channels, and leave the same way.
        block_norm, norm_num_groups: normalisation in blocks, "group", or "rms" or "layer" over each pixel's channels.
        weight_standardization: "standard", None, or "inverted" (a source project's defect, for its weights only).
        level_attention: "linear", "full" or None for each level.
        mid_attention: the same for the middle.
        attention_norm: normalisation before attention (and after linear attention): "group" is of one group.
        attention_heads, attention_head_dim, num_memory_kv: heads, their width, learned keys and values.
        upsample_type: "nearest" (and 3x3 convolution) or "transposed" (2x2, cheaper).
        stem_skip: concatenate the stem's output at the end and run one more block over both.
        time_embed_dim: width of the time embedding; None for `4 * base_channels`.
        dropout: rate inside blocks.
        self_condition: take an earlier prediction as further input channels (Chen et al., "Analog Bits", 2022).
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        vector_dim: how many real numbers the network is conditioned on, None for none. A row of NaN in `vector` stands
            for no numbers.
        vector_mean, vector_std: what the numbers are normalised with, one of each per number; None for 0 and 1.
        zero_init_output: start with output 0, which is the mean of most targets.
        second_time: take the `duration` t - r of a step as well, as flow maps need it.
        smooth_time: embed the timestep by slow waves, so that the output is smooth in time, as flow maps need it.
        max_guidance: take a scale of guidance, `guidance`, as well, from 1 to this; above 1, None for no such input.
        fourier_frequencies: sines and cosines of the sample with these frequencies, in cycles per unit, are further
            inputs. A likelihood needs them: with 127.5 the network sees where in one of 256 levels a pixel is.

    Down-sampling is a 2x2 convolution of stride 2: the same map, with the same parameters, as moving 2x2 pixels into
    channels and a 1x1 convolution, without the copy.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        base_channels: int = 32,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 8),
        layers_per_level: int = 2,
        stem_kernel_size: int = 1,
        patch_size: int = 1,
        block_norm: NormKind = "group",
        norm_num_groups: int = 4,
        weight_standardization: WeightStandardization = "standard",
        level_attention: tuple[AttentionKind, ...] = ("linear", "linear", "linear", "linear"),
        mid_attention: AttentionKind = "full",
        attention_norm: NormKind = "group",
        attention_heads: int = 4,
        attention_head_dim: int = 32,
        num_memory_kv: int = 0,
        upsample_type: UpsampleKind = "nearest",
        stem_skip: bool = True,
        time_embed_dim: int | None = None,
        dropout: float = 0.0,
        self_condition: bool = False,
        num_class_embeds: int | None = None,
        zero_init_output: bool = False,
        vector_dim: int | None = None,
        vector_mean: tuple[float, ...] | None = None,
        vector_std: tuple[float, ...] | None = None,
        second_time: bool = False,
        smooth_time: bool = False,
        max_guidance: float | None = None,
        fourier_frequencies: tuple[float, ...] = (),
    ):
        super().__init__()
        check_choice("block_norm", block_norm, ("group", "rms", "layer"))
        check_choice("attention_norm", attention_norm, ("group", "rms", "layer"))
        check_choice("weight_standardization", weight_standardization, ("standard", "inverted", None))
        check_choice("upsample_type", upsample_type, ("nearest", "transposed"))
        for kind in (*level_attention, mid_attention):
            check_choice("level_attention or mid_attention", kind, ("linear", "full", None))
        if len(level_attention) != len(channel_multipliers):
            raise ValueError(
                f"level_attention has {len(level_attention)} entries; it takes one for each of the "
                f"{len(channel_multipliers)} channel_multipliers."
            )
        out_channels = self._own_out_channels(out_channels)
        time_channels = 4 * base_channels if time_embed_dim is None else time_embed_dim
        self.register_to_config(time_embed_dim=time_channels)

        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.GELU(), nn.Linear(time_channels, time_channels)
        )
        self._embed_conditions(time_channels, waves=base_channels)

        inputs = in_channels * (2 if self_condition else 1) * (1 + 2 * len(fourier_frequencies))
        stem_channels = inputs * patch_size**2
        self.stem = nn.Conv2d(stem_channels, base_channels, stem_kernel_size, padding=stem_kernel_size // 2)

        self._make_levels(level_attention, mid_attention, layers_per_level, upsample_type)
        self.final_block = self._block(2 * base_channels, base_channels) if stem_skip else None
        self.conv_out = nn.Conv2d(base_channels, out_channels * patch_size**2, 1)
        if zero_init_output:
            nn.init.zeros_(self.conv_out.weight)
            nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        self_condition: Tensor | None = None,
        vector: Tensor | None = None,
        duration: Tensor | float | int | None = None,
        guidance: Tensor | float | int | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width); `DenoisingNetwork` describes the arguments."""
        self._check_sample(sample)
        # Every block would start with this SiLU.
        temb = F.silu(
            self._with_conditions(
                self._embed_waves(self._times(timestep, sample), sample), class_labels, vector, duration, guidance
            )
        )
        patch_size = self.config.patch_size
        x = joined_with_prediction(sample, self_condition, self.config.self_condition)
        if self.config.fourier_frequencies:
            x = fourier_features(x, self.config.fourier_frequencies).to(sample.dtype)
        x = self.stem(F.pixel_unshuffle(x, patch_size) if patch_size > 1 else x)
        stem = x
        x, skips = self._run_down(x, temb)
        x = self._run_up(x, temb, skips)
        if self.final_block is not None:
            x = self._run(self.final_block, x, temb, stem)
        x = self.conv_out(x)
        x = F.pixel_shuffle(x, patch_size) if patch_size > 1 else x
        return UNet2DOutput(sample=x) if return_dict else (x,)
