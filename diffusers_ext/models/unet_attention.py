"""The U-Net with attention after every stage, as ddpm_accelerate's README describes it.

Double convolutions with one-group normalisation and GELU, max-pooling down, bilinear up, and a transformer block after
every stage.  The file needs torch and diffusers only, so that it can travel beside the weights.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

try:  # diffusers >= 0.35 shares attention's bookkeeping through two mixins
    from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
    from diffusers.models.attention_dispatch import dispatch_attention_fn
except ImportError:  # 0.33 and 0.34: the model still trains, samples, saves and loads

    class AttentionMixin:  # type: ignore[no-redef]
        """Stands in where diffusers has no such mixin."""

    class AttentionModuleMixin:  # type: ignore[no-redef]
        """Stands in where diffusers has no such mixin."""

        fused_projections = False

    dispatch_attention_fn = None  # type: ignore[assignment]

# Up to this many tokens the plain product trains faster on a CPU than the fused kernel, whose backward is slow.
PLAIN_ATTENTION_TOKENS = 128


def sinusoidal_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """`[sin(t w) | cos(t w)]` with w falling geometrically from 1 towards 1/10000 over channels/2 frequencies.

    `timesteps` is (batch,); the result is (batch, channels), always in float32: bf16 cannot hold t = 999.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000.0) / half * steps)
    angles = timesteps.float()[:, None] * frequencies[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def batched_timesteps(timestep: Tensor | float | int, sample: Tensor) -> Tensor:
    """One float32 timestep per sample, from a number, a 0-d tensor, or a tensor of 1 or `batch` entries."""
    batch = sample.shape[0]
    if not torch.is_tensor(timestep):
        return torch.full((batch,), timestep, dtype=torch.float32, device=sample.device)
    if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
        raise ValueError(f"timestep has shape {tuple(timestep.shape)}; it takes a number or {batch} entries.")
    return timestep.to(device=sample.device, dtype=torch.float32).reshape(-1).expand(batch)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 where half precision comes in, and handed back in the input's dtype.

    A bf16 sum over a group loses the mean; and on a CPU the half-precision kernel is the slower one, twofold with its
    backward on channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


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
        return x + self.time_proj(temb)[:, :, None, None].to(x.dtype)


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
        return x + self.time_proj(temb)[:, :, None, None].to(x.dtype)


class StageAttnProcessor:
    """softmax(q k^T / sqrt(d)) v over all pixels."""

    _attention_backend = None

    def __call__(self, attn: "StageAttention", tokens: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(tokens)
        if self._attention_backend is not None and dispatch_attention_fn is not None:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            return attn.project_out(dispatch_attention_fn(q, k, v, backend=self._attention_backend).transpose(1, 2))
        if q.device.type == "cpu" and k.shape[2] <= PLAIN_ATTENTION_TOKENS:
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return attn.project_out(weights.softmax(dim=-1) @ v)
        return attn.project_out(F.scaled_dot_product_attention(q, k, v))


class StageAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention of (batch, tokens, channels), all projections with biases."""

    _default_processor_cls: Any = StageAttnProcessor
    _available_processors: Any = [StageAttnProcessor]

    processor: Any
    to_qkv: nn.Linear

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.use_bias, self.is_cross_attention = heads, True, False
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.processor = StageAttnProcessor()

    def query_key_value(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, each (batch, heads, tokens, head_dim)."""
        if self.fused_projections:
            projections = self.to_qkv(tokens).chunk(3, dim=-1)
        else:
            projections = (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return tuple(y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projections)

    def project_out(self, heads: Tensor) -> Tensor:
        """(batch, heads, tokens, head_dim) -> (batch, tokens, channels)."""
        return self.to_out[0](heads.transpose(1, 2).flatten(2))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.processor(self, tokens)


class StageTransformer(nn.Module):
    """x + attention(norm(x)), then + feed-forward(norm(.)), on the pixels of (batch, channels, height, width)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = StageAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, channels)
        self.linear2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class AttentionUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
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
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["DoubleConv", "AttentionDown", "AttentionUp", "StageTransformer"]
    _repeated_blocks = ["AttentionDown", "AttentionUp", "StageTransformer"]
    _skip_layerwise_casting_patterns: Any = ["norm", "class_embedding"]

    # diffusers types these as a bare dict and as None, and torch's containers have no element type
    config: Any
    _gradient_checkpointing_func: Any

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
    ):
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.register_to_config(out_channels=out_channels)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds + 1, time_embed_dim)
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
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width) from `sample` (batch, in_channels, height, width).

        `timestep` is a number, a 0-d or a (batch,) tensor, whole or fractional.  `class_labels` is (batch,) of integers
        in 0..num_class_embeds, the last being the null class, which None stands for.

        Raises ValueError for a sample of other channels or smaller than 8x8, for a timestep or labels of another shape,
        for labels out of range (found without a device synchronisation: on a CPU only) and for labels given to a model
        without classes.
        """
        self._check_sample(sample)
        temb = self._embed(sample, timestep, class_labels)
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

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _embed(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        """SiLU of the time (and class) embedding, (batch, time_embed_dim): every stage would start with this SiLU."""
        timesteps = batched_timesteps(timestep, sample)
        embedding = sinusoidal_embedding(timesteps, self.config.time_embed_dim).to(sample.dtype)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(self._labels(class_labels, sample)).to(embedding.dtype)
        elif class_labels is not None:
            raise ValueError("class_labels were given to a model without classes; build it with num_class_embeds.")
        return F.silu(embedding)

    def _labels(self, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        """Integer labels, (batch,); None becomes the null class of every sample."""
        batch, null_class = sample.shape[0], self.config.num_class_embeds
        if class_labels is None:
            return torch.full((batch,), null_class, dtype=torch.long, device=sample.device)
        if class_labels.shape != (batch,) or class_labels.is_floating_point():
            raise ValueError(
                f"class_labels are {class_labels.dtype} of shape {tuple(class_labels.shape)}; "
                f"they take one integer for each of {batch} samples."
            )
        # Reading values back from an accelerator would stall it; there the embedding's own device assert stops the run.
        if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = class_labels[(class_labels < 0) | (class_labels > null_class)]
            if outside.numel():
                raise ValueError(
                    f"class_labels hold {outside[0].item()}; they take 0..{null_class}, the last for none."
                )
        return class_labels.to(sample.device)

    def _check_sample(self, sample: Tensor) -> None:
        channels = self.config.in_channels
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(f"sample has shape {tuple(sample.shape)}; it takes (batch, {channels}, height, width).")
        if min(sample.shape[2:]) < 8:
            raise ValueError(f"sample is {sample.shape[2]}x{sample.shape[3]}; it must be at least 8x8.")
