"""A transformer on patches of images, with convolutions before the patches are cut and a prediction of clean patches.

Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023, arXiv:2212.09748): every block is modulated by the
time and the conditions. Xiao et al., "Early Convolutions Help Transformers See Better" (2021, arXiv:2106.14881): the
convolutions. Li and He, "Back to Basics: Let Denoising Generative Models Denoise" (2025, arXiv:2511.13720): a network
on large patches of pixels has to predict the clean image (`prediction_type` sample), as noise does not fit through it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import (
    DenoisingNetwork,
    MultiHeadAttention,
    from_patches,
    joined_with_image,
    sinusoidal_embedding,
    text_context,
)


class PatchAttention(MultiHeadAttention):
    """Attention of tokens (batch, tokens, channels), with queries and keys of the root mean square 1 in each head."""

    def query_key_value(self, tokens: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        q, k, v = super().query_key_value(tokens, context)
        return _normalized(q), _normalized(k), v

    def forward(self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        further = () if context is None else (context, mask)
        return self.processor(self, tokens, *further)


def _normalized(heads: Tensor) -> Tensor:
    return F.rms_norm(heads, heads.shape[-1:])


class PatchTransformerBlock(nn.Module):
    """x + gate * attend(modulated(x)), attention over a text if there is one, x + gate * mlp(modulated(x)).

    `forward(x, temb, context, mask)`: x is (batch, tokens, channels), temb (batch, channels). Begins as the identity.
    """

    def __init__(self, channels: int, heads: int, mlp_ratio: int, dropout: float, context_channels: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(channels, elementwise_affine=False)
        self.attention = PatchAttention(channels, channels, heads, use_bias=True)
        self.cross_attention = None
        if context_channels is not None:
            self.cross_attention = PatchAttention(channels, channels, heads, context_channels, use_bias=True)
            out: Any = self.cross_attention.to_out[0]
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
        self.up, self.down = nn.Linear(channels, mlp_ratio * channels), nn.Linear(mlp_ratio * channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(channels, 6 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(temb)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        if self.cross_attention is not None:
            x = x + self.cross_attention(self.norm1(x), context, mask)
        hidden = F.gelu(self.up(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.dropout(self.down(hidden))


class PatchTransformer2DModel(DenoisingNetwork):
    """Predicts from a noisy image, its timestep and, where built for them, a class, numbers, a text and an image.

    Train it to predict the clean image: `prediction_type` sample, with the loss weighted by `min_snr`.

    Args:
        sample_size: height and width that the positions of patches are learned at; at others they are interpolated. It
            can't be None, since there is a number for each position.
        in_channels: channels of the noisy image.
        out_channels: channels predicted; None for `in_channels`, twice that for a learned variance.
        patch_size: a token is a patch of so many pixels a side.
        hidden_size: channels of a token, an even number.
        num_layers: blocks.
        num_attention_heads: heads of every attention; they divide `hidden_size`.
        mlp_ratio: the hidden layer of a block has so many times `hidden_size`.
        stem_channels: channels of the two convolutions before the patches are cut, 0 for none.
        dropout: rate at the end of every block.
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        cross_attention_dim: channels of `encoder_hidden_states`, None for no attention over a text.
        condition_channels: channels of `image_condition`, 0 for none.
        vector_dim: how many real numbers the network is conditioned on, None for none. A row of NaN in `vector` stands
            for no numbers.
        vector_mean, vector_std: what the numbers are normalised with, one of each per number; None for 0 and 1.
        second_time: take the `duration` t - r of a step as well, as flow maps need it.
        smooth_time: embed the timestep by slow waves, so that the output is smooth in time, as flow maps need it.
        max_guidance: take a scale of guidance, `guidance`, as well, from 1 to this; above 1, None for no such input.
    """

    _no_split_modules: Any = ["PatchTransformerBlock"]
    _repeated_blocks = ["PatchTransformerBlock"]
    best_prediction_type = "sample"

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        patch_size: int = 4,
        hidden_size: int = 192,
        num_layers: int = 6,
        num_attention_heads: int = 6,
        mlp_ratio: int = 4,
        stem_channels: int = 0,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        cross_attention_dim: int | None = None,
        condition_channels: int = 0,
        vector_dim: int | None = None,
        vector_mean: tuple[float, ...] | None = None,
        vector_std: tuple[float, ...] | None = None,
        second_time: bool = False,
        smooth_time: bool = False,
        max_guidance: float | None = None,
    ):
        super().__init__()
        if hidden_size % num_attention_heads or hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and a multiple of num_attention_heads {num_attention_heads}, got "
                f"{hidden_size}."
            )
        size = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        if any(length % patch_size for length in size):
            raise ValueError(f"sample_size must be a multiple of patch_size {patch_size}, got {sample_size}.")
        out_channels = self._own_out_channels(out_channels)

        inputs = in_channels + condition_channels
        layers: list[nn.Module] = []
        if stem_channels:
            layers = [
                nn.Conv2d(inputs, stem_channels, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(stem_channels, stem_channels, 3, padding=1),
                nn.SiLU(),
            ]
        self.stem = nn.Sequential(*layers, nn.Conv2d(stem_channels or inputs, hidden_size, patch_size, patch_size))
        rows, columns = (length // patch_size for length in size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, hidden_size, rows, columns))
        self.time_embedding = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self._embed_conditions(hidden_size, waves=hidden_size)
        self.blocks = nn.ModuleList(
            PatchTransformerBlock(hidden_size, num_attention_heads, mlp_ratio, dropout, cross_attention_dim)
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
        self.conv_out = nn.Linear(hidden_size, out_channels * patch_size**2)
        for layer in (self.modulation_out, self.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def downsample_factor(self) -> int:
        """What height and width must be a multiple of."""
        return self.config.patch_size

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
        """Predicts (batch, out_channels, height, width); `DenoisingNetwork` describes the arguments."""
        self._check_sample(sample)
        c = self.config
        context, mask = text_context(sample, encoder_hidden_states, encoder_attention_mask, c.cross_attention_dim)
        waves = sinusoidal_embedding(self._times(timestep, sample), c.hidden_size, reach_lowest=False).to(sample.dtype)
        temb = self._with_conditions(self.time_embedding(waves), class_labels, vector, duration, guidance)
        temb = F.silu(temb)
        x = self.stem(joined_with_image(sample, image_condition, c.condition_channels))
        size = x.shape[2:]
        x = (x + _of_size(self.positions, size).to(x.dtype)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = self._run(block, x, temb, context, mask)
        scale, shift = self.modulation_out(temb)[:, None].chunk(2, dim=-1)
        x = self.conv_out(self.norm_out(x) * (1 + scale) + shift)
        x = from_patches(x.transpose(1, 2).unflatten(2, size), c.patch_size)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of such a network that was trained at another `sample_size`, with its positions interpolated."""
        return {**weights, "positions": _of_size(weights["positions"], self.positions.shape[2:])}


def _of_size(positions: Tensor, size: torch.Size) -> Tensor:
    """Embeddings (1, channels, rows, columns) of other numbers of rows and columns."""
    if positions.shape[2:] == size:
        return positions
    return F.interpolate(positions.float(), size, mode="bicubic", align_corners=False).to(positions.dtype)
