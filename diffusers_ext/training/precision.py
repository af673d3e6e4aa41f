"""How a step is computed: precision, memory format, attention, compiled blocks; measured, when that is left open."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0


def resolve_mixed_precision(wanted: str | None) -> str | None:
    """`auto` becomes what the machine multiplies natively: bf16, or fp16 on older GPUs, or no; others stay.

    None stays None, which leaves the choice to Accelerate's launcher.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available():
        return "no"
    return "bf16" if cpu_multiplies_bf16() else "no"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bfloat16 matrix or dot-product instructions; without them bf16 is slower than float32."""
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if features:
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )


# Up to this many tokens attention is the plain product instead of the fused kernel; None is each module's default.
ATTENTIONS = {"": None, "plain": 1024, "fused": 0, "float32": None}
# Scores of one call, batch x heads x queries x keys, that may be kept for the backward pass: about 400 MB with softmax.
MOST_SCORES = 2**26


class PlainAttnProcessor(AttnProcessor):
    """Diffusers' attention as plain products on a CPU, where these may train faster; fused where they are large."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttnProcessor`; `hidden_states` is (batch, channels, height, width) or (batch, tokens, channels)."""
        queries = hidden_states.shape[2:].numel() if hidden_states.ndim == 4 else hidden_states.shape[1]
        keys = queries if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        few = max(queries, keys) <= (ATTENTIONS["plain"] or 0)
        small = len(hidden_states) * attn.heads * queries * keys <= MOST_SCORES
        masked = attention_mask is not None and attention_mask.dtype == torch.bool  # which the plain kind can't add
        plain = hidden_states.device.type == "cpu" and few and small and not masked
        attend: Any = super().__call__ if plain else AttnProcessor2_0()
        result: torch.Tensor = attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return result


class Float32AttnProcessor(AttnProcessor2_0):
    """Diffusers' attention in float32 inside a step in half precision, where heads of few numbers train several times
    faster on a CPU. Weights in half precision are left as they are."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttnProcessor2_0`; the result has the dtype of `hidden_states`."""
        dtype = attn.to_q.weight.dtype
        told = None if encoder_hidden_states is None else encoder_hidden_states.to(dtype)
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(dtype)
        with torch.autocast(hidden_states.device.type, enabled=False):
            result: torch.Tensor = super().__call__(attn, hidden_states.to(dtype), told, attention_mask, temb)
        return result.to(hidden_states.dtype)


# The processor that takes the place of diffusers' default one.
_PROCESSORS: dict[str, type] = {"plain": PlainAttnProcessor, "float32": Float32AttnProcessor}


@dataclass(frozen=True)
class Mode:
    """How the steps of a run are computed; what they compute is the same up to rounding.

    Attributes:
        precision: no, bf16 or fp16; None leaves it to Accelerate's launcher.
        channels_last: memory format of images and weights.
        attention: one of `ATTENTIONS`.
        compiled: whether the network's repeated blocks are.
    """

    precision: str | None = "no"
    channels_last: bool = False
    attention: str = ""
    compiled: bool = False

    def __str__(self) -> str:
        parts = [
            {"no": "fp32", None: "the launcher's precision"}.get(self.precision, self.precision),
            "channels-last" if self.channels_last else "contiguous",
            f"{self.attention} attention" if self.attention else "",
            "compiled blocks" if self.compiled else "",
        ]
        return ", ".join(part for part in parts if part)

    def apply(self, network: Any) -> None:
        """Bring the network into this mode, but for its precision, which is Accelerate's or autocast's."""
        network.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        set_attention(network, self.attention)
        if self.compiled:
            compile_blocks(network)


def cast_weights(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a network's weights a dtype, but for the modules that its class keeps in float32.

    `to` of diffusers' networks converts those as well, and warns of them even where there are none.
    """
    torch.nn.Module.to(network, dtype)
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    for name, part in network.named_modules():
        if name.rpartition(".")[2] in kept:
            part.float()


def set_attention(network: torch.nn.Module, attention: str) -> None:
    """Choose how this network's attention is computed on CPUs: by one of `ATTENTIONS`, "" for each module's default.

    Of diffusers' attention modules, those whose processor is not the default one keep it.
    """
    for part in _parts_with_setting(network):
        part.set_plain_attention(ATTENTIONS[attention])
    for part in _parts_with_processor(network):
        processor: Any = _PROCESSORS.get(attention, AttnProcessor2_0)()
        part.set_processor(processor)


def attentions_of(network: torch.nn.Module, autocast: bool = False) -> list[str]:
    """The names of `ATTENTIONS` that change how this network is computed, with autocast to half precision or without.

    The kind of each module's default is left out.
    """
    if _parts_with_setting(network):
        return ["plain", "fused"]
    if not _parts_with_processor(network):
        return []
    return ["plain", "float32"] if autocast else ["plain"]


def _parts_with_setting(network: torch.nn.Module) -> list[Any]:
    """The attention modules that choose between a plain product and the fused kernel."""
    return [part for part in network.modules() if hasattr(part, "set_plain_attention")]


def _parts_with_processor(network: torch.nn.Module) -> list[Attention]:
    """Diffusers' attention modules with their default processor, or the one that `set_attention` gave them.

    Its plain processor can't normalise queries and keys, so modules that do are left out.
    """
    parts = [part for part in network.modules() if isinstance(part, Attention)]
    plain = [part for part in parts if getattr(part, "norm_q", None) is None and getattr(part, "norm_k", None) is None]
    return [part for part in plain if type(part.processor) in (AttnProcessor2_0, *_PROCESSORS.values())]


def repeated_blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts that the network's models name as worth compiling by themselves."""
    names = {name for part in network.modules() for name in getattr(part, "_repeated_blocks", None) or ()}
    return [part for part in network.modules() if type(part).__name__ in names]


def compile_blocks(network: torch.nn.Module) -> None:
    """Compile the repeated blocks: in far less time than the whole network, and nearly to the same effect."""
    options: dict[str, Any] = {"dynamic": False}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = 64  # a U-Net has more shapes of blocks than torch's limit of 8
    for block in repeated_blocks(network):  # diffusers 0.33 has no `compile_repeated_blocks`
        block.compile(**options)


def as_loaded(network: torch.nn.Module) -> None:
    """Undo every mode: contiguous, each model's own attention, nothing compiled."""
    Mode(None).apply(network)
    for block in repeated_blocks(network):
        block._compiled_call_impl = None
