"""A transformer on patches of images, which docs/results.md compares with the package's U-Net:

    diffusers-ext train cifar10 --dataset_name DIR --model benchmarks/patch_transformer.py:PatchTransformer \
        --prediction_type sample --loss_weighting min_snr

Blocks are modulated by the time and the class (Peebles and Xie 2023, arXiv:2212.09748), convolutions come before the
patches (Xiao et al. 2021, arXiv:2106.14881), and the network is meant to predict the clean image (Li and He 2025,
arXiv:2511.13720).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and a multilayer perceptron on tokens (batch, tokens, width), modulated by (batch, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = _zero(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, -1)
        heads = self.qkv(self.norm1(x) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.out(attended)
        hidden = F.gelu(self.up(self.norm2(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.down(hidden)


class PatchTransformer(ModelMixin, ConfigMixin):
    """Predicts from a noisy image (batch, in_channels, height, width), its timestep and its class."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        stem_channels: int = 32,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(stem_channels, stem_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(stem_channels, width, patch_size, stride=patch_size),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, (sample_size // patch_size) ** 2, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = None if num_class_embeds is None else nn.Embedding(num_class_embeds + 1, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = _zero(nn.Linear(width, 2 * width))
        self.last = _zero(nn.Linear(width, in_channels * patch_size**2))

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The prediction, shaped as `sample`; None stands for no class."""
        config = self.config
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        waves = times[:, None].float() * torch.logspace(0, -4, config.width // 2 + 1, device=sample.device)[:-1]
        embedding = self.time(torch.cat([waves.sin(), waves.cos()], 1).to(sample.dtype))
        if self.classes is not None:
            if class_labels is None:
                class_labels = torch.full((len(sample),), config.num_class_embeds, device=sample.device)
            embedding = embedding + self.classes(class_labels)
        embedding = F.silu(embedding)
        x = self.stem(sample)
        rows = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, embedding)
        scale, shift = self.final_modulation(embedding)[:, None].chunk(2, -1)
        x = self.last(self.norm(x) * (1 + scale) + shift).transpose(1, 2).unflatten(2, rows)
        return F.pixel_shuffle(x, config.patch_size)


def _zero(layer: nn.Linear) -> nn.Linear:
    """The layer, which gives 0 at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
