"""Blocks that the networks share: embeddings of time and conditions, normalisation, attention, resampling, checks.

The modules need torch and diffusers only. The Hub exporter merges them with a network's file, so that the code can
travel beside the weights.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..value_types import check_counts, check_types

try:  # diffusers >= 0.35 shares attention's bookkeeping through two mixins
    from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
    from diffusers.models.attention_dispatch import dispatch_attention_fn
except ImportError:  # 0.33 and 0.34: the model still trains, samples, saves and loads

    class AttentionMixin:  # type: ignore[no-redef]
        """Stands in where diffusers has no such mixin."""

    class AttentionModuleMixin:  # type: ignore[no-redef]
        """Stands in where diffusers has no such mixin."""

        fused_projections = False

        def set_processor(self, processor: Any) -> None:
            self.processor = processor

    dispatch_attention_fn = None  # type: ignore[assignment]

# The whole path of 1000 is a phase of 10: a network of flow maps must be smooth in its times, for it is trained by its
# own derivative.
SMOOTH_SCALE = 0.01

# Up to this many tokens the plain product trains faster on a CPU than the fused kernel, whose backward is slow.
PLAIN_ATTENTION_TOKENS = 128


# time


def sinusoidal_embedding(
    timesteps: Tensor, channels: int, cosine_first: bool = False, reach_lowest: bool = True
) -> Tensor:
    """`[sin(t w) | cos(t w)]` with frequencies w that fall geometrically from 1.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5.

    Args:
        timesteps: (batch,).
        channels: of the result; there are half as many frequencies.
        cosine_first: order the halves `[cos | sin]`.
        reach_lowest: the last frequency is 1/10000; otherwise it is the one before that in a longer series.

    Returns:
        (batch, channels), always in float32, because bf16 cannot hold t = 999.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    divisor = max(half - 1, 1) if reach_lowest else half
    frequencies = torch.exp(-math.log(10000.0) / divisor * steps)
    angles = timesteps.float()[:, None] * frequencies[None, :]
    waves = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=-1)


def batched_timesteps(timestep: Tensor | float | int, sample: Tensor, name: str = "timestep") -> Tensor:
    """One float32 timestep per sample, from a number, a 0-d tensor, or a tensor of 1 or `batch` entries.

    Raises ValueError, which calls the argument by `name`, for a tensor of another shape.
    """
    batch = sample.shape[0]
    if not torch.is_tensor(timestep):
        return torch.full((batch,), timestep, dtype=torch.float32, device=sample.device)
    if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
        raise ValueError(f"{name} has shape {tuple(timestep.shape)}; it takes a number or {batch} entries.")
    return timestep.to(device=sample.device, dtype=torch.float32).reshape(-1).expand(batch)


def has_tangent(x: Tensor) -> bool:
    """Whether x carries a tangent of forward-mode differentiation, which some kernels lack."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad.unpack_dual(x).tangent is not None


def over_positions(values: Tensor, x: Tensor) -> Tensor:
    """(batch, channels) values in x's dtype, with an axis of size 1 for each axis of positions that x has."""
    return values.to(x.dtype).reshape(*values.shape, *(1,) * (x.ndim - 2))


# normalisation


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 where the input is in half precision; the output has the input's dtype.

    A bf16 sum over a group loses the mean; and on a CPU the half-precision kernel is the slower one, twofold with its
    backward on channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        if has_tangent(x):
            x = x.contiguous()  # the forward derivative views x as if it were
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


class ChannelRMSNorm(nn.Module):
    """x / |x| * sqrt(channels) * gain at each pixel, over its channels (Zhang and Sennrich, 2019, without epsilon).

    `forward(x, scale, shift)` gives norm(x) * scale + shift; the gain joins the scale before that meets the pixels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        gain = (self.gain * self.gain.shape[0] ** 0.5)[:, None, None]
        gain = (gain if scale is None else gain * scale).to(x.dtype)
        # Squares leave float16's range.  Sum and rsqrt are a third of the cost of F.normalize's norm and division.
        wide = x.float() if x.dtype == torch.float16 else x
        inverse = wide.square().sum(dim=1, keepdim=True).clamp_min(1e-24).rsqrt()
        unit = (wide * inverse).to(x.dtype)
        return unit * gain if shift is None else torch.addcmul(shift.to(x.dtype), unit, gain)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation of each pixel over its channels; a view, no copy, on channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_norm(kind: str, channels: int, groups: int) -> nn.Module:
    """The normalisation called `kind` ("group", "rms" or "layer") over (batch, channels, height, width)."""
    if kind == "group":
        return GroupNorm32(groups, channels)
    return ChannelRMSNorm(channels) if kind == "rms" else ChannelLayerNorm(channels)


# convolution blocks


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and variance 1 before use (Qiao et al., 2019, eq. 10).

    `mode="inverted"` multiplies by the standard deviation instead of dividing by it. This is a defect of one source
    project, kept by name so that weights trained with it give the outputs they were trained to give.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int, mode: str):
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.mode = mode

    def standardized_weight(self) -> Tensor:
        """The filters in use, (out, in, height, width), never in half precision, which loses the small variances."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        # Not var_mean: its backward reads the weight itself, which layerwise casting has stored in 8 bits by then.
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (weight.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return weight / deviation if self.mode == "standard" else weight * deviation

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.standardized_weight().to(x.dtype), bias)


def make_block_conv(in_channels: int, out_channels: int, weight_standardization: str | None) -> nn.Conv2d:
    """A block's 3x3 convolution with weight standardisation `standard`, `inverted` (the defect) or None."""
    if weight_standardization is None:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return StandardizedConv2d(in_channels, out_channels, 3, padding=1, mode=weight_standardization)


class FilmResidualBlock(nn.Module):
    """conv, norm, FiLM, SiLU, dropout, conv, norm, SiLU, plus the input through a 1x1 convolution where widths differ.

    FiLM (Perez et al., 2018) is x * (scale + 1) + shift with scale and shift linear in the activated time embedding.
    `forward(x, temb, skip, strength)`: x is (batch, c, height, width), temb (batch, time_channels) or None for no FiLM.
    `skip` is concatenated to x here, inside the block, so that checkpointing need not keep the wide tensor.
    `strength`, (batch,) or None for 1, multiplies each sample's scale and shift.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        norm: str,
        norm_num_groups: int,
        weight_standardization: str | None,
        dropout: float,
    ):
        super().__init__()
        self.time_proj = nn.Linear(time_channels, 2 * out_channels)
        self.conv1 = make_block_conv(in_channels, out_channels, weight_standardization)
        self.norm1 = make_norm(norm, out_channels, norm_num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = make_block_conv(out_channels, out_channels, weight_standardization)
        self.norm2 = make_norm(norm, out_channels, norm_num_groups)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, x: Tensor, temb: Tensor | None = None, skip: Tensor | None = None, strength: Tensor | None = None
    ) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.dropout(F.silu(self._modulated(self.conv1(x), temb, strength)))
        h = F.silu(self.norm2(self.conv2(h)))
        return h + self.shortcut(x)

    def _modulated(self, h: Tensor, temb: Tensor | None, strength: Tensor | None) -> Tensor:
        if temb is None:
            return self.norm1(h)
        modulation = self.time_proj(temb)
        if strength is not None:
            modulation = modulation * strength[:, None].to(modulation.dtype)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        if isinstance(self.norm1, ChannelRMSNorm):
            return self.norm1(h, scale + 1, shift)
        return torch.addcmul(shift.to(h.dtype), self.norm1(h), (scale + 1).to(h.dtype))


def convolution(dims: int) -> Any:
    """The convolution over 1 (length) or 2 (height, width) dimensions."""
    return {1: nn.Conv1d, 2: nn.Conv2d}[dims]


def to_patches(x: Tensor, side: int) -> Tensor:
    """Move patches of `side` positions along each dimension into channels: (batch, c * side^dims, *size / side)."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, side)
    return x.unflatten(2, (-1, side)).movedim(3, 2).flatten(1, 2)


def from_patches(x: Tensor, side: int) -> Tensor:
    """The inverse of `to_patches`."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, side)
    return x.unflatten(1, (-1, side)).movedim(2, 3).flatten(2)


class Upsample(nn.Module):
    """Doubles every size: nearest neighbour and a convolution of width 3, or one transposed 2x2 convolution."""

    def __init__(self, in_channels: int, out_channels: int, kind: str = "nearest", dims: int = 2):
        super().__init__()
        self.nearest = kind == "nearest"
        if self.nearest:
            self.conv: nn.Module = convolution(dims)(in_channels, out_channels, 3, padding=1)
        else:
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.nearest else x)


# attention


class SoftmaxAttnProcessor:
    """softmax(s q k^T / sqrt(d)) v, with s the attention's `score_scale`."""

    _attention_backend = None

    def __call__(
        self, attn: "MultiHeadAttention", x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = attn.query_key_value(x, context)
        scale = attn.score_scale * q.shape[-1] ** -0.5
        if self._attention_backend is not None and dispatch_attention_fn is not None:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            out = dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=self._attention_backend)
            return attn.project_out(out.transpose(1, 2))
        # A mask stays with the fused kernel, which defines the result for a row whose tokens are all masked.
        few = q.device.type == "cpu" and k.shape[2] <= attn.plain_attention_tokens
        if mask is None and (few or has_tangent(q)):  # the fused kernel has no forward derivative
            weights = (q * scale) @ k.transpose(-1, -2)
            return attn.project_out(weights.softmax(dim=-1) @ v)
        return attn.project_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))


class LinearAttnProcessor:
    """softmax_d(q) / sqrt(d) (softmax_n(k)^T v): linear in the number of pixels (Shen et al., 2018)."""

    _attention_backend = None

    def __call__(self, attn: "MultiHeadAttention", x: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(x)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v
        return attn.project_out((q.softmax(dim=-1) * q.shape[-1] ** -0.5) @ context)


class MultiHeadAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention of tokens (batch, tokens, channels) over themselves or over `context`.

    `context` is (batch, tokens, context_channels).

    Attributes:
        plain_attention_tokens: up to this many keys, attention on a CPU is a plain product instead of the fused kernel.
        score_scale: multiplies the scores q k^T / sqrt(d).
    """

    _default_processor_cls: Any = SoftmaxAttnProcessor
    _available_processors: Any = [SoftmaxAttnProcessor, LinearAttnProcessor]

    processor: Any
    to_qkv: nn.Linear
    to_kv: nn.Linear

    def __init__(
        self, channels: int, inner: int, heads: int, context_channels: int | None = None, use_bias: bool = False
    ):
        super().__init__()
        source = channels if context_channels is None else context_channels
        self.heads, self.use_bias, self.is_cross_attention = heads, use_bias, context_channels is not None
        self.score_scale, self.plain_attention_tokens = 1.0, PLAIN_ATTENTION_TOKENS
        self.to_q = nn.Linear(channels, inner, bias=use_bias)
        self.to_k = nn.Linear(source, inner, bias=use_bias)
        self.to_v = nn.Linear(source, inner, bias=use_bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.processor = SoftmaxAttnProcessor()

    def set_plain_attention(self, max_tokens: int | None) -> None:
        """On a CPU, use the plain product up to `max_tokens` keys; None restores the default."""
        self.plain_attention_tokens = PLAIN_ATTENTION_TOKENS if max_tokens is None else max_tokens

    def query_key_value(self, tokens: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """q of the tokens, k and v of the context or of the same tokens, each (batch, heads, tokens, head_dim)."""
        source = tokens if context is None else context
        if not self.fused_projections:
            projections = (self.to_q(tokens), self.to_k(source), self.to_v(source))
        elif self.is_cross_attention:
            projections = (self.to_q(tokens), *self.to_kv(source).chunk(2, dim=-1))
        else:
            projections = self.to_qkv(tokens).chunk(3, dim=-1)
        return tuple(y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projections)

    def project_out(self, heads: Tensor) -> Tensor:
        """(batch, heads, tokens, head_dim) -> (batch, tokens, channels)."""
        return self.to_out[0](heads.transpose(1, 2).flatten(2))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.processor(self, tokens)


class PixelAttention(MultiHeadAttention):
    """Residual attention over the positions of (batch, channels, *size), x + out(attend(norm(x))).

    Linear attention has a second normalisation after its output projection. `num_memory_kv` learned keys and values
    come before those of the pixels. `forward(x, context, mask)`: `mask`, (batch, 1, 1, tokens) of booleans, is False at
    tokens of the context to leave out.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        norm: nn.Module,
        norm_out: nn.Module | None = None,
        num_memory_kv: int = 0,
        context_channels: int | None = None,
    ):
        super().__init__(channels, heads * head_dim, heads, context_channels)
        self.norm = norm
        self.norm_out = nn.Identity() if norm_out is None else norm_out
        self.memory_kv = nn.Parameter(torch.randn(2, heads, num_memory_kv, head_dim)) if num_memory_kv else None

    def query_key_value(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """q of the positions of x, k and v of the context or of the same positions, with the memory before them."""
        # One copy here, none on channels-last memory; without it each projection makes its own.
        q, k, v = super().query_key_value(x.flatten(2).transpose(1, 2).contiguous(), context)
        if self.memory_kv is not None:
            memory_k, memory_v = self.memory_kv.to(k.dtype)[:, None].expand(-1, x.shape[0], -1, -1, -1)
            k, v = torch.cat((memory_k, k), dim=2), torch.cat((memory_v, v), dim=2)
        return q, k, v

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        further = () if context is None else (context, mask)
        attended = self.processor(self, self.norm(x), *further)
        return x + self.norm_out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


def make_pixel_attention(
    channels: int, kind: str, norm: str, heads: int, head_dim: int, num_memory_kv: int = 0
) -> PixelAttention:
    """Self-attention of `kind` "full" or "linear", normalised by `norm` in one group, or over each pixel's channels."""
    norm_out = make_norm(norm, channels, groups=1) if kind == "linear" else None
    attention = PixelAttention(channels, heads, head_dim, make_norm(norm, channels, groups=1), norm_out, num_memory_kv)
    if kind == "linear":
        attention.processor = LinearAttnProcessor()
    return attention


# conditions and checks


class SmoothEmbedding(nn.Module):
    """(batch,) numbers from 0 to about 1000, such as durations, to (batch, channels): smooth waves and a two-layer MLP.

    The last layer starts at zero, so that a network with the weights of one without this input begins as that one.

    Args:
        waves: channels of the sinusoidal embedding.
        channels: of the embedding.
    """

    def __init__(self, waves: int, channels: int):
        super().__init__()
        self.waves = waves
        self.linear1 = nn.Linear(waves, channels)
        self.linear2 = nn.Linear(channels, channels)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        waves = sinusoidal_embedding(SMOOTH_SCALE * numbers, self.waves).to(dtype)
        return self.linear2(F.silu(self.linear1(waves))).to(dtype)


class VectorEmbedding(nn.Module):
    """(batch, dim) real numbers to (batch, channels): normalised by fixed means and deviations, then a two-layer MLP.

    A row with a NaN stands for no numbers and becomes a learned embedding.

    Args:
        dim: how many numbers.
        channels: of the embedding.
        mean, std: of each number over the training data; None for 0 and 1.

    Raises:
        ValueError: for another number of means or deviations than `dim`, and for deviations that are not above 0.
    """

    def __init__(self, dim: int, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None):
        super().__init__()
        self.mean, self.std = list(mean or [0.0] * dim), list(std or [1.0] * dim)
        if len(self.mean) != dim or len(self.std) != dim or min(self.std) <= 0:
            raise ValueError(
                f"vector_mean and vector_std must hold {dim} numbers (vector_dim), the latter above 0, "
                f"got {mean} and {std}."
            )
        self.linear1 = nn.Linear(dim, channels)
        self.linear2 = nn.Linear(channels, channels)
        self.null = nn.Parameter(0.02 * torch.randn(channels))

    def forward(self, vector: Tensor, dtype: torch.dtype) -> Tensor:
        # Normalised in float32: a value such as 359.5 has no place in bf16.
        mean, std = (vector.new_tensor(numbers, dtype=torch.float32) for numbers in (self.mean, self.std))
        normalised = (vector.float() - mean) / std
        absent = normalised.isnan().any(dim=1, keepdim=True)
        h = F.silu(self.linear1(normalised.masked_fill(absent, 0).to(dtype)))
        return torch.where(absent, self.null.to(dtype), self.linear2(h).to(dtype))


def checked_labels(class_labels: Tensor, sample: Tensor, null_class: int) -> Tensor:
    """Integer labels (batch,) on the sample's device.

    Raises ValueError for another shape or dtype and, on a CPU, for a label outside 0..null_class.
    """
    batch = sample.shape[0]
    if class_labels.shape != (batch,) or class_labels.is_floating_point():
        raise ValueError(
            f"class_labels are {class_labels.dtype} of shape {tuple(class_labels.shape)}; "
            f"they take one integer for each of {batch} samples."
        )
    # Reading values back from an accelerator would stall it; there the look-up's own device assert stops the run.
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = class_labels[(class_labels < 0) | (class_labels > null_class)]
        if outside.numel():
            raise ValueError(
                f"class_labels hold {outside[0].item()}; they take 0..{null_class}, the last for no class."
            )
    return class_labels.to(sample.device)


def text_context(
    sample: Tensor, states: Tensor | None, mask: Tensor | None, channels: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """The text's states in the sample's dtype and its mask as (batch, 1, 1, tokens) of booleans.

    `channels` is the network's `cross_attention_dim`. Raises ValueError for states of another shape, missing states,
    and states given to a network without cross-attention.
    """
    if channels is None:
        if states is not None:
            raise ValueError("encoder_hidden_states were given to a model without cross_attention_dim.")
        return None, None
    if states is None:
        raise ValueError("encoder_hidden_states are missing; a model with cross_attention_dim needs them.")
    if states.ndim != 3 or states.shape[0] != sample.shape[0] or states.shape[2] != channels:
        raise ValueError(
            f"encoder_hidden_states have shape {tuple(states.shape)}; "
            f"they take ({sample.shape[0]}, tokens, {channels})."
        )
    return states.to(sample.dtype), None if mask is None else mask.bool()[:, None, None, :]


def joined_with_image(sample: Tensor, image_condition: Tensor | None, channels: int) -> Tensor:
    """The sample with the `channels` of an image condition after its own; None stands for zeros.

    Raises ValueError for a condition of another shape, or given to a network that takes none.
    """
    shape = (sample.shape[0], channels, *sample.shape[2:])
    if channels == 0:
        if image_condition is not None:
            raise ValueError("image_condition was given to a model without condition_channels.")
        return sample
    if image_condition is None:
        image_condition = sample.new_zeros(shape)
    if image_condition.shape != shape:
        raise ValueError(f"image_condition has shape {tuple(image_condition.shape)}; it takes {shape}.")
    return torch.cat((sample, image_condition.to(sample.dtype)), dim=1)


def joined_with_prediction(sample: Tensor, self_condition: Tensor | None, taken: bool) -> Tensor:
    """The sample after an earlier prediction of its shape, where the network takes one; None stands for zeros.

    Raises ValueError for a prediction of another shape, or given to a network that takes none.
    """
    if not taken:
        if self_condition is not None:
            raise ValueError("self_condition was given to a model without it; build it with self_condition=True.")
        return sample
    earlier = torch.zeros_like(sample) if self_condition is None else self_condition.to(sample.dtype)
    if earlier.shape != sample.shape:
        raise ValueError(
            f"self_condition has shape {tuple(earlier.shape)}; it takes the sample's, {tuple(sample.shape)}."
        )
    return torch.cat((earlier, sample), dim=1)


def fourier_features(x: Tensor, frequencies: Sequence[float]) -> Tensor:
    """`[x | sin(2 pi f x) | cos(2 pi f x)]` for every frequency f, in (1 + 2 F) C channels, float32 or float64.

    They show a network differences of x that are far smaller than x itself (Kingma et al. 2021, arXiv:2107.00630,
    appendix C), and that bf16 does not have near 1.
    """
    x = x if x.dtype == torch.float64 else x.float()
    phases = [2 * math.pi * frequency * x for frequency in frequencies]
    waves = [wave(phase) for wave in (torch.sin, torch.cos) for phase in phases]
    return torch.cat((x, *waves), dim=1)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it takes one of {', '.join(map(repr, choices))}.")


class DenoisingNetwork(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """What the networks share: gradient checkpointing, compilation by blocks, checks of a sample, embedded conditions.

    A subclass has `config.in_channels`. Its constructor calls `_embed_conditions` if the network takes classes
    (`config.num_class_embeds`), numbers (`vector_dim`, `vector_mean`, `vector_std`), a duration
    (`second_time`) or a scale of guidance (`max_guidance`).

    `forward` gives (batch, out_channels, *size), *size being (height, width) or (length,). A network takes those of
    these arguments that it was built for:

    - `sample`: (batch, in_channels, *size);
    - `timestep`: a number, a 0-d or a (batch,) tensor, whole or fractional;
    - `class_labels`: (batch,) of integers in 0..num_class_embeds, the last being the null class, which None stands for;
    - `vector`: (batch, vector_dim), a row of NaN or None for no numbers;
    - `duration`: t - r in the timestep's unit, shaped as `timestep`; None stands for 0;
    - `guidance`: the scale w of null + w * (conditional - null), from 1 to `max_guidance`, shaped as `timestep`; None
      stands for 1;
    - `self_condition`: an earlier prediction shaped as `sample`; None stands for zeros;
    - `encoder_hidden_states`: (batch, tokens, cross_attention_dim), and `encoder_attention_mask`: (batch, tokens),
      nonzero at tokens to attend to;
    - `image_condition`: (batch, condition_channels, *size); None stands for zeros.

    It raises ValueError for a sample of other channels or of a size the down-sampling does not divide, for an argument
    of another shape, for labels out of range (found without a device synchronisation: on a CPU only), for a missing
    text, and for conditions that the network was not built for.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = [
        "norm",
        "time_embedding",
        "class_embedding",
        "vector_embedding",
        "duration_embedding",
        "guidance_embedding",
    ]
    gradient_checkpointing = False

    dims: int = 2  # of a sample: 2 for images, 1 for signals

    def __init__(self) -> None:
        """Raises ValueError for an entry of the configuration that its annotation excludes, or a count below 1."""
        super().__init__()
        hints, parameters = get_type_hints(type(self).__init__), inspect.signature(type(self).__init__).parameters
        entries = {name: value for name, value in self.config.items() if name in parameters}
        check_types(hints, entries)
        check_counts(hints, entries, {name: parameter.default for name, parameter in parameters.items()})

    # diffusers types its configuration as a bare dict, and this function as None
    config: Any
    _gradient_checkpointing_func: Any
    class_embedding: nn.Module | None
    vector_embedding: nn.Module | None
    duration_embedding: nn.Module | None
    guidance_embedding: nn.Module | None

    @property
    def downsample_factor(self) -> int:
        """What height and width, or the length, must be a multiple of."""
        return self.config.get("patch_size", 1) * 2 ** (len(self.config.channel_multipliers) - 1)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers', with room for as many compilations as a U-Net has shapes of blocks.

        Past torch's limit of 8 `fullgraph=True` is an error, and without it the blocks left over are not compiled.
        """
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("recompile_limit", 64)
        super().compile_repeated_blocks(*args, **kwargs)

    def _run(self, block: nn.Module, *args: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _own_out_channels(self, out_channels: int | None) -> int:
        """The channels that are predicted, those of the sample when None; enters them into the configuration."""
        out_channels = self.config.in_channels if out_channels is None else out_channels
        self.register_to_config(out_channels=out_channels)
        return out_channels

    def _embed_conditions(self, channels: int, waves: int | None = None) -> None:
        """Make the embeddings, `channels` wide, of what the configuration says that the network is conditioned on.

        `waves` are the channels of the sinusoidal embeddings of a duration and of a scale of guidance. The class
        embedding has one row more than classes, the last for no class.
        """
        c = self.config
        self.class_embedding = None if c.num_class_embeds is None else nn.Embedding(c.num_class_embeds + 1, channels)
        self.vector_embedding = self.duration_embedding = self.guidance_embedding = None
        if c.vector_dim is not None:
            self.vector_embedding = VectorEmbedding(c.vector_dim, channels, c.vector_mean, c.vector_std)
        if waves is not None and c.second_time:
            self.duration_embedding = SmoothEmbedding(waves, channels)
        if waves is not None and c.max_guidance is not None:
            if c.max_guidance <= 1:
                raise ValueError(f"max_guidance must be above 1, got {c.max_guidance}.")
            self.guidance_embedding = SmoothEmbedding(waves, channels)

    def _times(self, timestep: Tensor | float | int, sample: Tensor) -> Tensor:
        """The timesteps (batch,) whose waves are embedded; with `smooth_time` a hundredth of them."""
        timesteps = batched_timesteps(timestep, sample)
        return SMOOTH_SCALE * timesteps if self.config.smooth_time else timesteps

    def _with_class(self, embedding: Tensor, class_labels: Tensor | None) -> Tensor:
        """The time embedding (batch, channels) plus that of the class; None becomes the null class of every sample."""
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("class_labels were given to a model without classes; build it with num_class_embeds.")
            return embedding
        null_class = self.config.num_class_embeds
        if class_labels is None:
            class_labels = torch.full(embedding.shape[:1], null_class, dtype=torch.long, device=embedding.device)
        labels = checked_labels(class_labels, embedding, null_class)
        return embedding + self.class_embedding(labels).to(embedding.dtype)

    def _with_vector(self, embedding: Tensor, vector: Tensor | None) -> Tensor:
        """The time embedding (batch, channels) plus that of the numbers; None becomes no numbers for every sample."""
        if self.vector_embedding is None:
            if vector is not None:
                raise ValueError("vector was given to a model without numbers; build it with vector_dim.")
            return embedding
        shape = (embedding.shape[0], self.config.vector_dim)
        if vector is None:
            vector = torch.full(shape, math.nan, device=embedding.device)
        if vector.shape != shape:
            raise ValueError(f"vector has shape {tuple(vector.shape)}; it takes {shape}.")
        return embedding + self.vector_embedding(vector.to(embedding.device), embedding.dtype)

    def _with_conditions(
        self,
        embedding: Tensor,
        class_labels: Tensor | None,
        vector: Tensor | None,
        duration: Tensor | float | int | None = None,
        guidance: Tensor | float | int | None = None,
    ) -> Tensor:
        """The time embedding (batch, channels) plus those of the class, the numbers, the duration and the guidance."""
        embedding = self._with_vector(self._with_class(embedding, class_labels), vector)
        return self._with_guidance(self._with_duration(embedding, duration), guidance)

    def _with_duration(self, embedding: Tensor, duration: Tensor | float | int | None) -> Tensor:
        """The time embedding (batch, channels) plus that of the duration; None is 0, an instantaneous velocity."""
        if self.duration_embedding is None:
            if duration is not None:
                raise ValueError("duration was given to a model without it; build it with second_time=True.")
            return embedding
        durations = batched_timesteps(0.0 if duration is None else duration, embedding, "duration")
        return embedding + self.duration_embedding(durations, embedding.dtype)

    def _with_guidance(self, embedding: Tensor, guidance: Tensor | float | int | None) -> Tensor:
        """The time embedding (batch, channels) plus that of the scale of guidance; None is 1, the condition itself."""
        if self.guidance_embedding is None:
            if guidance is not None:
                raise ValueError("guidance was given to a model without it; build it with max_guidance.")
            return embedding
        scales = batched_timesteps(1.0 if guidance is None else guidance, embedding, "guidance")
        return embedding + self.guidance_embedding(1000 * (1 - 1 / scales), embedding.dtype)

    def _check_sample(self, sample: Tensor) -> None:
        self._check_channels(sample)
        factor = self.downsample_factor
        if any(size % factor for size in sample.shape[2:]):
            found = "x".join(str(size) for size in sample.shape[2:])
            wanted = "height and width must be multiples" if self.dims == 2 else "its length must be a multiple"
            raise ValueError(f"sample is {found}; {wanted} of {factor}.")

    def _check_channels(self, sample: Tensor) -> None:
        channels = self.config.in_channels
        if sample.ndim != 2 + self.dims or sample.shape[1] != channels:
            size = "height, width" if self.dims == 2 else "length"
            raise ValueError(f"sample has shape {tuple(sample.shape)}; it takes (batch, {channels}, {size}).")
