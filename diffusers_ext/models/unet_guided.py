"""U-SURF's guided U-Net: the annotated U-Net with the class entering two further blocks of the bottleneck.

The label goes through the *time* MLP, moved past the last timestep (label + label_shift), and modulates only those two
blocks; without a label they run unmodulated.  The file needs torch and diffusers only, so that it can travel beside the
weights.
"""

import inspect
import itertools
import math
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

    dispatch_attention_fn = None  # type: ignore[assignment]

# Up to this many tokens the plain product trains faster on a CPU than the fused kernel, whose backward is slow.
PLAIN_ATTENTION_TOKENS = 128


def sinusoidal_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """`[sin(t w) | cos(t w)]` with w falling geometrically from 1 to 1/10000 over channels/2 frequencies.

    `timesteps` is (batch,); the result is (batch, channels), always in float32: bf16 cannot hold t = 999.
    """
    half = channels // 2
    steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10000.0) / max(half - 1, 1) * steps)
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


class GuidedConv2d(nn.Conv2d):
    """A 3x3 convolution whose filters are brought to mean 0 and variance 1 before use (Qiao et al., 2019, eq. 10).

    `mode="inverted"` multiplies by the standard deviation in place of dividing by it, as the source project does; None
    leaves the filters alone.
    """

    def __init__(self, in_channels: int, out_channels: int, mode: str | None):
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.mode = mode

    def filters(self) -> Tensor:
        """The filters in use, (out, in, 3, 3), never in half precision, which loses the small variances."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.mode is None:
            return weight
        # Not var_mean, whose backward reads the weight itself, which layerwise casting has put away in 8 bits by then.
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (weight.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return weight / deviation if self.mode == "standard" else weight * deviation

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.filters().to(x.dtype), bias)


class GuidedResidualBlock(nn.Module):
    """conv, GroupNorm, FiLM, SiLU, conv, GroupNorm, SiLU, plus the input through a 1x1 convolution where widths differ.

    `forward(x, film, skip, strength)`: `film` is (batch, time_channels) or None for no modulation; `skip` joins x's
    channels; `strength`, (batch,), scales the modulation of each sample.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, groups: int, mode: str | None, dropout: float
    ):
        super().__init__()
        self.time_proj = nn.Linear(time_channels, 2 * out_channels)
        self.conv1 = GuidedConv2d(in_channels, out_channels, mode)
        self.norm1 = GroupNorm32(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = GuidedConv2d(out_channels, out_channels, mode)
        self.norm2 = GroupNorm32(groups, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, x: Tensor, film: Tensor | None = None, skip: Tensor | None = None, strength: Tensor | None = None
    ) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.norm1(self.conv1(x))
        if film is not None:
            modulation = self.time_proj(film)
            if strength is not None:
                modulation = modulation * strength[:, None].to(modulation.dtype)
            scale, shift = modulation[:, :, None, None].to(h.dtype).chunk(2, dim=1)
            h = h * (scale + 1) + shift
        h = self.dropout(F.silu(h))
        h = F.silu(self.norm2(self.conv2(h)))
        return h + self.shortcut(x)


class GuidedSoftmaxAttnProcessor:
    """softmax(q k^T / sqrt(d)) v over all pixels."""

    _attention_backend = None

    def __call__(self, attn: "GuidedAttention", x: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(x)
        if self._attention_backend is not None and dispatch_attention_fn is not None:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            return attn.project_out(dispatch_attention_fn(q, k, v, backend=self._attention_backend).transpose(1, 2))
        if q.device.type == "cpu" and k.shape[2] <= PLAIN_ATTENTION_TOKENS:
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return attn.project_out(weights.softmax(dim=-1) @ v)
        return attn.project_out(F.scaled_dot_product_attention(q, k, v))


class GuidedLinearAttnProcessor:
    """softmax_d(q) / sqrt(d) (softmax_n(k)^T v): linear in the number of pixels (Shen et al., 2018)."""

    _attention_backend = None

    def __call__(self, attn: "GuidedAttention", x: Tensor) -> Tensor:
        q, k, v = attn.query_key_value(x)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v
        return attn.project_out((q.softmax(dim=-1) * q.shape[-1] ** -0.5) @ context)


class GuidedAttention(nn.Module, AttentionModuleMixin):
    """Residual multi-head self-attention over pixels with GroupNorm(1) before it, and after it where it is linear."""

    _default_processor_cls: Any = GuidedSoftmaxAttnProcessor
    _available_processors: Any = [GuidedSoftmaxAttnProcessor, GuidedLinearAttnProcessor]

    processor: Any
    to_qkv: nn.Linear

    def __init__(self, channels: int, linear: bool, heads: int, head_dim: int):
        super().__init__()
        inner = heads * head_dim
        self.heads, self.use_bias, self.is_cross_attention = heads, False, False
        self.norm = GroupNorm32(1, channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])
        self.norm_out = GroupNorm32(1, channels) if linear else nn.Identity()
        self.processor = GuidedLinearAttnProcessor() if linear else GuidedSoftmaxAttnProcessor()

    def query_key_value(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v of the pixels of x, each (batch, heads, tokens, head_dim)."""
        tokens = x.flatten(2).transpose(1, 2)
        if self.fused_projections:
            projections = self.to_qkv(tokens).chunk(3, dim=-1)
        else:
            projections = (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return tuple(y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projections)

    def project_out(self, heads: Tensor) -> Tensor:
        """(batch, heads, tokens, head_dim) -> (batch, tokens, channels)."""
        return self.to_out[0](heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.processor(self, self.norm(x))
        return x + self.norm_out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class GuidedUpsample(nn.Module):
    """Nearest neighbour to twice the size and a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class GuidedLevel(nn.Module):
    """The modules of one resolution, on the way down or up: two residual blocks, attention and the resampling."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, resample: nn.Module):
        super().__init__()
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample


class GuidedUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
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

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["GuidedResidualBlock", "GuidedAttention"]
    _repeated_blocks = ["GuidedResidualBlock", "GuidedAttention"]
    _skip_layerwise_casting_patterns: Any = ["norm", "time_embedding", "class_embedding"]

    # diffusers types its configuration as a bare dict, and torch's containers have no element type
    config: Any
    _gradient_checkpointing_func: Any
    down_levels: Any
    up_levels: Any

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
        if weight_standardization not in ("standard", "inverted", None):
            raise ValueError(
                f"weight_standardization is {weight_standardization!r}; it takes 'standard', 'inverted' or None."
            )
        if class_conditioning not in ("everywhere", "bottleneck"):
            raise ValueError(f"class_conditioning is {class_conditioning!r}; it takes 'everywhere' or 'bottleneck'.")
        out_channels = in_channels if out_channels is None else out_channels
        self.register_to_config(out_channels=out_channels)

        time_channels = 4 * base_channels
        self.time_embedding = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.GELU(), nn.Linear(time_channels, time_channels)
        )
        everywhere = class_conditioning == "everywhere"
        self.class_embedding = nn.Embedding(num_class_embeds + 1, time_channels) if everywhere else None
        self.stem = nn.Conv2d(in_channels * (2 if self_condition else 1), base_channels, 1)
        widths = [base_channels, *(base_channels * m for m in channel_multipliers)]
        levels = list(itertools.pairwise(widths))
        last = len(levels) - 1
        self.down_levels = nn.ModuleList(
            GuidedLevel(
                self._block(upper, upper),
                self._block(upper, upper),
                self._attention(upper, linear=True),
                nn.Conv2d(upper, lower, 2, stride=2) if i < last else nn.Conv2d(upper, lower, 3, padding=1),
            )
            for i, (upper, lower) in enumerate(levels)
        )
        self.mid_block1, self.mid_block2 = self._block(widths[-1], widths[-1]), self._block(widths[-1], widths[-1])
        self.mid_attn = self._attention(widths[-1], linear=False)
        self.class_block1, self.class_block2 = self._block(widths[-1], widths[-1]), self._block(widths[-1], widths[-1])
        self.up_levels = nn.ModuleList(
            GuidedLevel(
                self._block(lower + upper, lower),
                self._block(lower + upper, lower),
                self._attention(lower, linear=True),
                GuidedUpsample(lower, upper) if i > 0 else nn.Conv2d(lower, upper, 3, padding=1),
            )
            for i, (upper, lower) in reversed(list(enumerate(levels)))
        )
        self.final_block = self._block(2 * base_channels, base_channels)
        self.conv_out = nn.Conv2d(base_channels, out_channels, 1)
        self.gradient_checkpointing = False

    def _block(self, in_channels: int, out_channels: int) -> GuidedResidualBlock:
        c = self.config
        return GuidedResidualBlock(
            in_channels, out_channels, 4 * c.base_channels, c.norm_num_groups, c.weight_standardization, c.dropout
        )

    def _attention(self, channels: int, linear: bool) -> GuidedAttention:
        return GuidedAttention(channels, linear, self.config.attention_heads, self.config.attention_head_dim)

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
        return 2 ** (len(self.config.channel_multipliers) - 1)

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
        in 0..num_class_embeds, the last being the null class, which None stands for; with `class_conditioning` of
        "bottleneck" its samples pass the class blocks unmodulated.  `self_condition` is an earlier prediction shaped as
        `sample`; None stands for zeros.

        Raises ValueError for a sample of other channels or of a size the down-sampling does not divide, for a timestep
        or labels of another shape, for labels out of range (found without a device synchronisation: on a CPU only) and
        for self-conditioning the model was not built for.
        """
        self._check_sample(sample)
        labels = None if class_labels is None else self._labels(class_labels, sample)
        temb = self._embed(batched_timesteps(timestep, sample), sample, self._class_embedding(labels, sample))
        x = self.stem(self._stem_input(sample, self_condition))
        stem, skips = x, []
        for level in self.down_levels:
            x = self._run(level.block1, x, temb)
            skips.append(x)
            x = self._run(level.attention, self._run(level.block2, x, temb))
            skips.append(x)
            x = level.resample(x)
        x = self._run(self.mid_attn, self._run(self.mid_block1, x, temb))
        x = self._run(self.mid_block2, x, temb)
        x = self._run_class_blocks(x, temb, labels, sample)
        for level in self.up_levels:
            x = self._run(level.block1, x, temb, skips.pop())
            x = self._run(level.block2, x, temb, skips.pop())
            x = level.resample(self._run(level.attention, x))
        x = self.conv_out(self._run(self.final_block, x, temb, stem))
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _run_class_blocks(self, x: Tensor, temb: Tensor, labels: Tensor | None, sample: Tensor) -> Tensor:
        """Twice: the bottleneck's attention once more (the same module), then a block modulated by the class."""
        film, strength = self._label_film(labels, sample) if self.class_embedding is None else (temb, None)
        for block in (self.class_block1, self.class_block2):
            x = self._run(block, self._run(self.mid_attn, x), film, None, strength)
        return x

    def _label_film(self, labels: Tensor | None, sample: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the labels alone modulate by, and how strongly; no labels, no modulation."""
        if labels is None:
            return None, None
        return self._embed(labels.float() + self.config.label_shift, sample), self._modulation_strength(labels)

    def _run(self, block: nn.Module, *args: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _embed(self, values: Tensor, sample: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """SiLU of the time MLP plus `shift`, (batch, 4 * base_channels): every block would start with this SiLU."""
        waves = sinusoidal_embedding(values, self.config.base_channels).to(sample.dtype)
        return F.silu(self.time_embedding(waves) + shift)

    def _class_embedding(self, labels: Tensor | None, sample: Tensor) -> Tensor | float:
        """(batch, 4 * base_channels), that of the null class for no labels; 0 where the class enters elsewhere."""
        if self.class_embedding is None:
            return 0.0
        if labels is None:
            labels = torch.full((sample.shape[0],), self.config.num_class_embeds, device=sample.device)
        return self.class_embedding(labels).to(sample.dtype)

    def _labels(self, class_labels: Tensor, sample: Tensor) -> Tensor:
        batch, null_class = sample.shape[0], self.config.num_class_embeds
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
                    f"class_labels hold {outside[0].item()}; they take 0..{null_class}, the last for none."
                )
        return class_labels.to(sample.device)

    def _modulation_strength(self, labels: Tensor) -> Tensor:
        """1 for a class and 0 for the null class, (batch,), by a look-up.

        No table of this model is indexed by labels; this one lets the device find a label out of range by itself.
        """
        strengths = torch.ones(self.config.num_class_embeds + 1, 1, device=labels.device)
        strengths[-1] = 0
        return F.embedding(labels, strengths)[:, 0]

    def _stem_input(self, sample: Tensor, self_condition: Tensor | None) -> Tensor:
        if self.config.self_condition:
            earlier = torch.zeros_like(sample) if self_condition is None else self_condition.to(sample.dtype)
            if earlier.shape != sample.shape:
                raise ValueError(
                    f"self_condition has shape {tuple(earlier.shape)}; it takes the sample's, {tuple(sample.shape)}."
                )
            return torch.cat((earlier, sample), dim=1)
        if self_condition is not None:
            raise ValueError("self_condition was given to a model without it; build it with self_condition=True.")
        return sample

    def _check_sample(self, sample: Tensor) -> None:
        channels, factor = self.config.in_channels, self.downsample_factor
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(f"sample has shape {tuple(sample.shape)}; it takes (batch, {channels}, height, width).")
        if sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(
                f"sample is {sample.shape[2]}x{sample.shape[3]}; height and width must be multiples of {factor}."
            )
