"""The U-Net of the annotated-diffusion lineage and of denoising-diffusion-pytorch, as one configurable class.

Three families that differ in details share one skeleton (Ho et al., "Denoising Diffusion Probabilistic Models", 2020):

    stem -> [blocks, attention, down] x levels -> block, attention, block -> [blocks, attention, up] x levels
         -> block over (features, stem) -> 1x1 convolution

Every block's output on the way down is concatenated to a block's input on the way up.  The file needs torch and
diffusers only, so that it can travel beside the weights.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

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

        def set_processor(self, processor: Any) -> None:
            self.processor = processor

    dispatch_attention_fn = None  # type: ignore[assignment]

AttentionKind = Literal["linear", "full"] | None
NormKind = Literal["group", "rms", "layer"]
WeightStandardization = Literal["standard", "inverted"] | None
UpsampleKind = Literal["nearest", "transposed"]

# Up to this many tokens the plain product trains faster on a CPU than the fused kernel, whose backward is slow.
PLAIN_ATTENTION_TOKENS = 128


def sinusoidal_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """`[sin(t w) | cos(t w)]` with w falling geometrically from 1 to 1/10000 over channels/2 frequencies.

    `timesteps` is (batch,); the result is (batch, channels), always in float32: bf16 cannot hold t = 999.
    Vaswani et al., "Attention Is All You Need" (2017), section 3.5, with the divisor half - 1.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000.0) / max(half - 1, 1) * steps)
    angles = timesteps.float()[:, None] * frequencies[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def batched_timesteps(timestep: Tensor | float | int, sample: Tensor) -> Tensor:
    """One float32 timestep per sample, from a number, a 0-d tensor, or a tensor of 1 or `batch` entries.

    Raises ValueError where a tensor has another shape.
    """
    batch = sample.shape[0]
    if not torch.is_tensor(timestep):
        return torch.full((batch,), timestep, dtype=torch.float32, device=sample.device)
    if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
        raise ValueError(
            f"timestep has shape {tuple(timestep.shape)}; it takes a number or one entry for each of {batch}."
        )
    return timestep.to(device=sample.device, dtype=torch.float32).reshape(-1).expand(batch)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and variance 1 before use (Qiao et al., 2019, eq. 10).

    `mode="inverted"` multiplies by the standard deviation in place of dividing by it: a defect of one source project,
    kept by name so that weights trained with it give the outputs they were trained to give.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int, mode: str):
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.mode = mode

    def standardized_weight(self) -> Tensor:
        """The filters in use, (out, in, height, width), never in half precision, which loses the small variances."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        # Not var_mean, whose backward reads the weight itself, which layerwise casting has put away in 8 bits by then.
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (weight.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return weight / deviation if self.mode == "standard" else weight * deviation

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardized_weight().to(x.dtype), _like(self.bias, x))


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


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


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 where half precision comes in, and handed back in the input's dtype.

    A bf16 sum over a group loses the mean; and on a CPU the half-precision kernel is the slower one, twofold with its
    backward on channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


def make_norm(kind: str, channels: int, groups: int) -> nn.Module:
    """The normalisation called `kind` over (batch, channels, height, width)."""
    if kind == "group":
        return GroupNorm32(groups, channels)
    return ChannelRMSNorm(channels) if kind == "rms" else ChannelLayerNorm(channels)


def make_block_conv(in_channels: int, out_channels: int, weight_standardization: str | None) -> nn.Conv2d:
    """A block's 3x3 convolution, weight-standardised as asked: `standard`, `inverted` (the defect) or None."""
    if weight_standardization is None:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return StandardizedConv2d(in_channels, out_channels, 3, padding=1, mode=weight_standardization)


class AnnotatedResidualBlock(nn.Module):
    """conv, norm, FiLM, SiLU, dropout, conv, norm, SiLU, plus the input through a 1x1 convolution where widths differ.

    FiLM (Perez et al., 2018) is x * (scale + 1) + shift with scale and shift linear in the activated time embedding.
    `forward(x, temb, skip=None)`: x is (batch, c, height, width), temb (batch, time_channels) or None for no FiLM.
    `skip` is concatenated to x here, inside the block, so that checkpointing need not keep the wide tensor.
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

    def forward(self, x: Tensor, temb: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.dropout(F.silu(self._modulated(self.conv1(x), temb)))
        h = F.silu(self.norm2(self.conv2(h)))
        return h + self.shortcut(x)

    def _modulated(self, h: Tensor, temb: Tensor | None) -> Tensor:
        if temb is None:
            return self.norm1(h)
        scale, shift = self.time_proj(temb)[:, :, None, None].chunk(2, dim=1)
        if isinstance(self.norm1, ChannelRMSNorm):
            return self.norm1(h, scale + 1, shift)
        return torch.addcmul(shift.to(h.dtype), self.norm1(h), (scale + 1).to(h.dtype))


class SoftmaxAttnProcessor:
    """softmax(q k^T / sqrt(d)) v over all pixels."""

    _attention_backend = None

    def __call__(self, attn: "AnnotatedAttention", x: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(x)
        if self._attention_backend is not None and dispatch_attention_fn is not None:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            return attn.project_out(dispatch_attention_fn(q, k, v, backend=self._attention_backend).transpose(1, 2))
        if q.device.type == "cpu" and k.shape[2] <= PLAIN_ATTENTION_TOKENS:
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return attn.project_out(weights.softmax(dim=-1) @ v)
        return attn.project_out(F.scaled_dot_product_attention(q, k, v))


class LinearAttnProcessor:
    """softmax_d(q) / sqrt(d) (softmax_n(k)^T v): linear in the number of pixels (Shen et al., 2018)."""

    _attention_backend = None

    def __call__(self, attn: "AnnotatedAttention", x: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(x)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v
        return attn.project_out((q.softmax(dim=-1) * q.shape[-1] ** -0.5) @ context)


class AnnotatedAttention(nn.Module, AttentionModuleMixin):
    """Residual multi-head self-attention over pixels, x + out(attend(norm(x))), on (batch, channels, height, width).

    `num_memory_kv` learned keys and values join those of the pixels.  Linear attention has a second normalisation after
    its output projection.
    """

    _default_processor_cls: Any = SoftmaxAttnProcessor
    _available_processors: Any = [SoftmaxAttnProcessor, LinearAttnProcessor]

    processor: Any
    to_qkv: nn.Linear

    def __init__(self, channels: int, kind: str, norm: str, heads: int, head_dim: int, num_memory_kv: int):
        super().__init__()
        inner = heads * head_dim
        self.heads, self.use_bias, self.is_cross_attention = heads, False, False
        self.norm = make_norm(norm, channels, groups=1)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.norm_out = make_norm(norm, channels, groups=1) if kind == "linear" else nn.Identity()
        self.memory_kv = nn.Parameter(torch.randn(2, heads, num_memory_kv, head_dim)) if num_memory_kv else None
        self.processor = LinearAttnProcessor() if kind == "linear" else SoftmaxAttnProcessor()

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the pixels of x, each (batch, heads, tokens, head_dim); memory comes first in k and v."""
        # One copy here, none on channels-last memory; without it each projection makes its own.
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        if self.fused_projections:
            projections = self.to_qkv(tokens).chunk(3, dim=-1)
        else:
            projections = (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projections)
        if self.memory_kv is not None:
            memory_k, memory_v = self.memory_kv.to(k.dtype)[:, None].expand(-1, x.shape[0], -1, -1, -1)
            k, v = torch.cat((memory_k, k), dim=2), torch.cat((memory_v, v), dim=2)
        return q, k, v

    def project_out(self, heads: Tensor) -> Tensor:
        """(batch, heads, tokens, head_dim) -> (batch, tokens, channels)."""
        return self.to_out[0](heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.processor(self, self.norm(x))
        return x + self.norm_out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class AnnotatedUpsample(nn.Module):
    """Doubles height and width: nearest neighbour and a 3x3 convolution, or one transposed 2x2 convolution."""

    def __init__(self, in_channels: int, out_channels: int, kind: str):
        super().__init__()
        self.nearest = kind == "nearest"
        if self.nearest:
            self.conv: nn.Module = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        else:
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.nearest else x)


class AnnotatedLevel(nn.Module):
    """The modules of one resolution, on the way down or up: residual blocks, attention or None, and the resampling."""

    def __init__(self, blocks: Sequence[nn.Module], attention: nn.Module | None, resample: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.resample = resample


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError where `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it takes one of {', '.join(map(repr, choices))}.")


class AnnotatedUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
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
        zero_init_output: start with output 0, which is the mean of most targets.

    Down-sampling is a 2x2 convolution of stride 2: the same map, with the same parameters, as moving 2x2 pixels into
    channels and a 1x1 convolution, without the copy.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["AnnotatedResidualBlock", "AnnotatedAttention"]
    _repeated_blocks = ["AnnotatedResidualBlock", "AnnotatedAttention"]
    _skip_layerwise_casting_patterns: Any = ["norm", "time_embedding", "class_embedding"]

    # diffusers types its configuration as a bare dict, and torch's containers have no element type
    config: Any
    _gradient_checkpointing_func: Any
    down_levels: Any
    up_levels: Any
    mid_attn: nn.Module | None

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
        out_channels = in_channels if out_channels is None else out_channels
        time_channels = 4 * base_channels if time_embed_dim is None else time_embed_dim
        self.register_to_config(out_channels=out_channels, time_embed_dim=time_channels)

        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.GELU(), nn.Linear(time_channels, time_channels)
        )
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds + 1, time_channels)

        stem_channels = in_channels * (2 if self_condition else 1) * patch_size**2
        self.stem = nn.Conv2d(stem_channels, base_channels, stem_kernel_size, padding=stem_kernel_size // 2)

        widths = [base_channels, *(base_channels * m for m in channel_multipliers)]
        levels = list(zip(widths[:-1], widths[1:], level_attention))
        last = len(levels) - 1
        self.down_levels = nn.ModuleList(
            AnnotatedLevel(
                [self._block(upper, upper) for _ in range(layers_per_level)],
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
                [self._block(lower + upper, lower) for _ in range(layers_per_level)],
                self._attention(lower, kind),
                AnnotatedUpsample(lower, upper, upsample_type) if i > 0 else nn.Conv2d(lower, upper, 3, padding=1),
            )
            for i, (upper, lower, kind) in reversed(list(enumerate(levels)))
        )
        self.final_block = self._block(2 * base_channels, base_channels) if stem_skip else None
        self.conv_out = nn.Conv2d(base_channels, out_channels * patch_size**2, 1)
        if zero_init_output:
            nn.init.zeros_(self.conv_out.weight)
            nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self.gradient_checkpointing = False

    def _block(self, in_channels: int, out_channels: int) -> AnnotatedResidualBlock:
        config = self.config
        return AnnotatedResidualBlock(
            in_channels,
            out_channels,
            config.time_embed_dim,
            config.block_norm,
            config.norm_num_groups,
            config.weight_standardization,
            config.dropout,
        )

    def _attention(self, channels: int, kind: str | None) -> AnnotatedAttention | None:
        if kind is None:
            return None
        config = self.config
        return AnnotatedAttention(
            channels,
            kind,
            config.attention_norm,
            config.attention_heads,
            config.attention_head_dim,
            config.num_memory_kv,
        )

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers', with room for as many compilations as a U-Net has shapes of blocks.

        Past torch's limit of 8 `fullgraph=True` is an error, and without it the blocks left over are not compiled.
        """
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("recompile_limit", 64)
        super().compile_repeated_blocks(*args, **kwargs)

    @property
    def downsample_factor(self) -> int:
        """What height and width must be a multiple of."""
        return self.config.patch_size * 2 ** (len(self.config.channel_multipliers) - 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        self_condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width) from `sample` (batch, in_channels, height, width).

        `timestep` is a number, a 0-d or a (batch,) tensor, whole or fractional.  `class_labels` is (batch,) of integers
        in 0..num_class_embeds, the last being the null class, which None stands for.  `self_condition` is an earlier
        prediction shaped as `sample`; None stands for zeros.

        Raises ValueError for a sample of other channels or of a size the down-sampling does not divide, for a timestep
        or labels of another shape, for labels out of range (found without a device synchronisation: on a CPU only) and
        for conditions the model was not built for.
        """
        self._check_sample(sample)
        temb = self._embed(sample, timestep, class_labels)
        x = self.stem(self._stem_input(sample, self_condition))
        stem, skips = x, []
        for level in self.down_levels:
            for block in level.blocks[:-1]:
                x = self._run(block, x, temb)
                skips.append(x)
            x = self._run(level.blocks[-1], x, temb)
            x = self._attend(level.attention, x)
            skips.append(x)
            x = level.resample(x)
        x = self._run(self.mid_block1, x, temb)
        x = self._attend(self.mid_attn, x)
        x = self._run(self.mid_block2, x, temb)
        for level in self.up_levels:
            for block in level.blocks:
                x = self._run(block, x, temb, skips.pop())
            x = level.resample(self._attend(level.attention, x))
        if self.final_block is not None:
            x = self._run(self.final_block, x, temb, stem)
        x = (
            F.pixel_shuffle(self.conv_out(x), self.config.patch_size)
            if self.config.patch_size > 1
            else self.conv_out(x)
        )
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _attend(self, attention: nn.Module | None, x: Tensor) -> Tensor:
        return x if attention is None else self._run(attention, x)

    def _embed(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        """SiLU of the time (and class) embedding, (batch, time_embed_dim): every block would start with this SiLU."""
        timesteps = batched_timesteps(timestep, sample)
        waves = sinusoidal_embedding(timesteps, self.config.base_channels).to(sample.dtype)
        embedding = self.time_embedding(waves)
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
                    f"class_labels hold {outside[0].item()}; they take 0..{null_class}, the last for no class."
                )
        return class_labels.to(sample.device)

    def _stem_input(self, sample: Tensor, self_condition: Tensor | None) -> Tensor:
        if self.config.self_condition:
            earlier = torch.zeros_like(sample) if self_condition is None else self_condition.to(sample.dtype)
            if earlier.shape != sample.shape:
                raise ValueError(
                    f"self_condition has shape {tuple(earlier.shape)}; it takes the sample's, {tuple(sample.shape)}."
                )
            sample = torch.cat((earlier, sample), dim=1)
        elif self_condition is not None:
            raise ValueError("self_condition was given to a model without it; build it with self_condition=True.")
        return F.pixel_unshuffle(sample, self.config.patch_size) if self.config.patch_size > 1 else sample

    def _check_sample(self, sample: Tensor) -> None:
        channels, factor = self.config.in_channels, self.downsample_factor
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(f"sample has shape {tuple(sample.shape)}; it takes (batch, {channels}, height, width).")
        if sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(
                f"sample is {sample.shape[2]}x{sample.shape[3]}; height and width must be multiples of {factor}."
            )
