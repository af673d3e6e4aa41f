"""The ADM U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs", 2021) in the additive form of generative_pytorch.

Class, text and image conditions enter where that lineage puts them: the class in the time embedding, text by
cross-attention beside the self-attention, an image as further input channels.  The file needs torch and diffusers only,
so that it can travel beside the weights.
"""

import inspect
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
    """`[cos(t w) | sin(t w)]` with w falling geometrically from 1 towards 1/10000 over channels/2 frequencies.

    `timesteps` is (batch,); the result is (batch, channels), always in float32: bf16 cannot hold t = 999.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000.0) / half * steps)
    angles = timesteps.float()[:, None] * frequencies[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


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


class ADMResidualBlock(nn.Module):
    """norm, SiLU, conv, + time, norm, SiLU, dropout, conv, plus the input through a 1x1 conv where widths differ.

    `forward(x, temb, skip=None)`: x is (batch, c, height, width), temb (batch, time_channels); `skip` is joined to x.
    """

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm32(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = GroupNorm32(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_proj(temb)[:, :, None, None].to(h.dtype)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + self.shortcut(x)


class ADMAttnProcessor:
    """softmax(s^2 q k^T / sqrt(d)) v, with s the model's `attention_scale`, 1 where it is right."""

    _attention_backend = None

    def __call__(
        self, attn: "ADMAttention", x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = attn.query_key_value(x, context)
        scale = attn.attention_scale**2 * q.shape[-1] ** -0.5
        if self._attention_backend is not None and dispatch_attention_fn is not None:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            out = dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=self._attention_backend)
            return attn.project_out(out.transpose(1, 2))
        # A mask stays with the fused kernel, which says what a row without any token left gives.
        if q.device.type == "cpu" and k.shape[2] <= PLAIN_ATTENTION_TOKENS and mask is None:
            weights = (q * scale) @ k.transpose(-1, -2)
            return attn.project_out(weights.softmax(dim=-1) @ v)
        return attn.project_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))


class ADMAttention(nn.Module, AttentionModuleMixin):
    """Residual multi-head attention of all pixels over all pixels, or over `context` (batch, tokens, context_channels).

    `mask`, (batch, 1, 1, tokens) of booleans, is False at tokens to be left out.
    """

    _default_processor_cls: Any = ADMAttnProcessor
    _available_processors: Any = [ADMAttnProcessor]

    processor: Any
    to_qkv: nn.Linear
    to_kv: nn.Linear

    def __init__(self, channels: int, context_channels: int | None, heads: int, groups: int, attention_scale: float):
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention_heads is {heads}; it takes a divisor of the width it meets, {channels}.")
        self.heads, self.attention_scale, self.use_bias = heads, attention_scale, False
        self.is_cross_attention = context_channels is not None
        self.norm = GroupNorm32(groups, channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels if context_channels is None else context_channels, channels, bias=False)
        self.to_v = nn.Linear(channels if context_channels is None else context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.processor = ADMAttnProcessor()

    def query_key_value(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """q of the pixels of x, k and v of the context or the same pixels, each (batch, heads, tokens, head_dim)."""
        tokens = x.flatten(2).transpose(1, 2)
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

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        attended = self.processor(self, self.norm(x), context, mask)
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class ADMUpsample(nn.Module):
    """Nearest neighbour to twice the size and a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ADMStage(nn.Module):
    """One residual block with the attentions that follow it, each of which may be None."""

    def __init__(self, block: nn.Module, attention: nn.Module | None, cross_attention: nn.Module | None):
        super().__init__()
        self.block, self.attention, self.cross_attention = block, attention, cross_attention


class ADMUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Predicts from a noisy image, its timestep and, where built for them, a class, a text and an image.

    Args:
        sample_size: height (and width) the model is trained at; any size the down-sampling divides is accepted.
        in_channels: channels of the noisy image.
        out_channels: channels predicted; None for `in_channels`, twice that for a learned variance.
        base_channels: width of the first level; level i is `base_channels * channel_multipliers[i]` wide.
        channel_multipliers: one entry a level; each level but the last halves height and width.
        layers_per_level: residual blocks of a level on the way down; there is one more on the way up.
        attention_resolutions: down-sampling factors (1, 2, 4, ...) at which attention follows every block.
        attention_heads: heads of every attention.
        attention_scale: q and k are each multiplied by this over the fourth root of the head's width; 1 is right, the
            source project's 10 is for its weights only.
        norm_num_groups: groups of every GroupNorm.
        dropout: rate inside blocks.
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        cross_attention_dim: channels of `encoder_hidden_states`, None for no cross-attention.
        condition_channels: channels of `image_condition`, 0 for none.
        patch_size: the network sees patches of so many pixels a side as channels (space-to-depth), 1 for pixels.
        input_skip: add to the output the channels of the input, mixed pixel by pixel with gains that the time gives; so
            what the input shows already (the noise, the condition) need not pass through the network. A learned form of
            the skip of Karras et al. 2022, arXiv:2206.00364, eq. 7; it starts at zero.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["ADMResidualBlock", "ADMAttention"]
    _repeated_blocks = ["ADMResidualBlock", "ADMAttention"]
    _skip_layerwise_casting_patterns: Any = ["norm", "time_embedding", "class_embedding"]

    # diffusers types its configuration as a bare dict, and torch's containers have no element type
    config: Any
    _gradient_checkpointing_func: Any
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
    ):
        super().__init__()
        factors = [2**i for i in range(len(channel_multipliers))]
        # A string such as "16,8" would be read as its characters, none of which is a factor.
        if isinstance(attention_resolutions, str) or any(f not in factors for f in attention_resolutions):
            raise ValueError(
                f"attention_resolutions is {attention_resolutions!r}; it takes down-sampling factors among {factors}."
            )
        out_channels = in_channels if out_channels is None else out_channels
        self.register_to_config(out_channels=out_channels)

        time_channels = 4 * base_channels
        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds + 1, time_channels)
        self.input_gains = None
        if input_skip:
            self.input_gains = nn.Linear(time_channels, out_channels * (in_channels + condition_channels))
            nn.init.zeros_(self.input_gains.weight)
            nn.init.zeros_(self.input_gains.bias)
        self.conv_in = nn.Conv2d((in_channels + condition_channels) * patch_size**2, base_channels, 3, padding=1)

        widths = [base_channels * m for m in channel_multipliers]
        width, skips = base_channels, [base_channels]
        self.down_stages, self.downsamples = nn.ModuleList(), nn.ModuleList()
        for factor, level_width in zip(factors, widths):
            stages = nn.ModuleList()
            for _ in range(layers_per_level):
                stages.append(self._stage(width, level_width, factor in attention_resolutions))
                width = level_width
                skips.append(width)
            self.down_stages.append(stages)
            if factor != factors[-1]:
                self.downsamples.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.mid_stage = self._stage(width, width, attend=True)
        self.mid_block = self._block(width, width)
        self.up_stages, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for factor, level_width in zip(factors[::-1], widths[::-1]):
            stages = nn.ModuleList()
            for _ in range(layers_per_level + 1):
                stages.append(self._stage(width + skips.pop(), level_width, factor in attention_resolutions))
                width = level_width
            self.up_stages.append(stages)
            if factor != 1:
                self.upsamples.append(ADMUpsample(width))
        self.norm_out = GroupNorm32(norm_num_groups, width)
        self.conv_out = nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)
        self.gradient_checkpointing = False

    def _block(self, in_channels: int, out_channels: int) -> ADMResidualBlock:
        c = self.config
        return ADMResidualBlock(in_channels, out_channels, 4 * c.base_channels, c.norm_num_groups, c.dropout)

    def _stage(self, in_channels: int, out_channels: int, attend: bool) -> ADMStage:
        c = self.config
        options = (c.attention_heads, c.norm_num_groups, c.attention_scale)
        cross = attend and c.cross_attention_dim is not None
        return ADMStage(
            self._block(in_channels, out_channels),
            ADMAttention(out_channels, None, *options) if attend else None,
            ADMAttention(out_channels, c.cross_attention_dim, *options) if cross else None,
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
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        image_condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width) from `sample` (batch, in_channels, height, width).

        `timestep` is a number, a 0-d or a (batch,) tensor, whole or fractional.  `class_labels` is (batch,) of integers
        in 0..num_class_embeds, the last being the null class, which None stands for.  `encoder_hidden_states` is
        (batch, tokens, cross_attention_dim), with `encoder_attention_mask` (batch, tokens), nonzero at tokens to attend
        to.  `image_condition` is (batch, condition_channels, height, width); None stands for zeros.

        Raises ValueError for a sample of other channels or of a size the down-sampling does not divide, for a timestep
        or a condition of another shape, for labels out of range (found without a device synchronisation: on a CPU
        only), for a missing text and for conditions the model was not built for.
        """
        self._check_sample(sample)
        context, mask = self._context(sample, encoder_hidden_states, encoder_attention_mask)
        temb = self._embed(sample, timestep, class_labels)
        given = self._with_condition(sample, image_condition)
        x = self.conv_in(F.pixel_unshuffle(given, self.config.patch_size))
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
        x = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.config.patch_size)
        if self.input_gains is not None:
            gains = self.input_gains(temb).to(x.dtype).unflatten(1, (self.config.out_channels, given.shape[1]))
            x = x + (gains @ given.to(x.dtype).flatten(2)).unflatten(2, given.shape[2:])
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run_stage(
        self, stage: Any, x: Tensor, temb: Tensor, skip: Tensor | None, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self._run(stage.block, x, temb, skip)
        if stage.attention is not None:
            x = self._run(stage.attention, x)
        if stage.cross_attention is not None:
            x = self._run(stage.cross_attention, x, context, mask)
        return x

    def _run(self, block: nn.Module, *args: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _embed(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        """SiLU of the time (and class) embedding, (batch, 4 * base_channels), with which every block would start."""
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
                    f"class_labels hold {outside[0].item()}; they take 0..{null_class}, the last for none."
                )
        return class_labels.to(sample.device)

    def _context(
        self, sample: Tensor, states: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The text in the sample's dtype and its mask as (batch, 1, 1, tokens) of booleans."""
        channels = self.config.cross_attention_dim
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

    def _with_condition(self, sample: Tensor, image_condition: Tensor | None) -> Tensor:
        channels = self.config.condition_channels
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

    def _check_sample(self, sample: Tensor) -> None:
        channels, factor = self.config.in_channels, self.downsample_factor
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(f"sample has shape {tuple(sample.shape)}; it takes (batch, {channels}, height, width).")
        if sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(
                f"sample is {sample.shape[2]}x{sample.shape[3]}; height and width must be multiples of {factor}."
            )
