"""The annotated family: U-SURF, Diffusion Playground, denoising-diffusion-pytorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .layouts import (
    GAIN,
    PIXELS_IN_CHANNELS,
    POINTWISE,
    POINTWISE_QKV,
    TOKENS_LAST,
    Family,
    Layout,
    Shapes,
    State,
    channels,
    modules,
    multiples,
    renamed,
)


def _is_annotated(weights: State) -> bool:
    return {"init_conv", "downs", "ups"} <= modules(weights)


def _is_guided(weights: State) -> bool:
    return _is_annotated(weights) and bool(modules(weights) & {"mid_block3", "mid_block4"})


def _is_wrapped(weights: State) -> bool:
    """Whether attention stands inside of modules `fn.fn`, as in the post that the first two projects follow."""
    return any(".fn.fn." in key for key in weights)


def _annotated_config(shapes: Shapes) -> dict[str, Any]:
    base, first, kernel, _ = shapes["init_conv.weight"]
    time_channels, waves = shapes["time_mlp.1.weight"]
    if waves != base:
        raise ValueError(
            f"The time MLP takes {waves} numbers and the first convolution is {base} wide; they must be equal: neither "
            "init_dim nor learned or random Fourier features are supported."
        )
    return {
        "base_channels": base,
        "channel_multipliers": multiples(_annotated_widths(shapes), base),
        "stem_kernel_size": kernel,
        "time_embed_dim": time_channels,
        **channels(first, shapes["final_conv.weight"][0]),
        **_annotated_attention(shapes),
    }


def _annotated_widths(shapes: Shapes) -> list[int]:
    levels = shapes.count(r"downs\.(\d+)\.")
    lower = [f"downs.{i}.3.1.weight" for i in range(levels - 1)] + [f"downs.{levels - 1}.3.weight"]
    return [shapes[key][0] for key in lower]


def _annotated_attention(shapes: Shapes) -> dict[str, Any]:
    """Kind per level, heads and memory tokens; without memory tokens, heads are assumed to be 32 wide."""
    levels = shapes.count(r"downs\.(\d+)\.")
    kinds = tuple(
        "linear" if _attention_prefix(shapes, i) + "to_out.0.weight" in shapes else "full" for i in range(levels)
    )
    middle = "mid_attn." if "mid_attn.to_qkv.weight" in shapes else "mid_attn.fn.fn."
    inner = shapes[f"{middle}to_qkv.weight"][0] // 3
    memory = shapes.get("mid_attn.mem_kv")
    heads, tokens, width = (inner // 32, 0, 32) if memory is None else memory[1:]
    return {
        "level_attention": kinds,
        "attention_heads": heads,
        "attention_head_dim": width,
        "num_memory_kv": tokens,
        "block_norm": "rms" if "mid_block1.block1.norm.g" in shapes else "group",
    }


def _attention_prefix(shapes: Shapes, level: int) -> str:
    plain = f"downs.{level}.2."
    return plain if any(key.startswith(f"{plain}to_") for key in shapes) else f"{plain}fn.fn."


def _guided_config(shapes: Shapes) -> dict[str, Any]:
    """As the annotated one, without the options that our guided class does not have."""
    config = _annotated_config(shapes)
    kept = ("base_channels", "channel_multipliers", "in_channels", "out_channels", "self_condition")
    known = {key: config[key] for key in (*kept, "attention_heads", "attention_head_dim") if key in config}
    return {**known, "class_conditioning": "bottleneck"}


_ANNOTATED_NAMES = (
    (r"^stem\.", "init_conv."),
    (r"^time_embedding\.0\.", "time_mlp.1."),
    (r"^time_embedding\.2\.", "time_mlp.3."),
    (r"^class_block1\.", "mid_block3."),
    (r"^class_block2\.", "mid_block4."),
    (r"^final_block\.", "final_res_block."),
    (r"^conv_out\.", "final_conv."),
    (r"^(down|up)_levels\.(\d+)\.blocks\.(\d)\.", r"\1s.\2.\3."),
    (r"^(down|up)_levels\.(\d+)\.attention\.", r"\1s.\2.2."),
    (r"^(down|up)_levels\.(\d+)\.resample\.(conv\.)?", lambda m: f"{m[1]}s.{m[2]}.3." + ("1." if m[3] else "")),
    (r"\.time_proj\.", ".mlp.1."),
    (r"\.conv([12])\.", r".block\1.proj."),
    (r"\.norm([12])\.", r".block\1.norm."),
    (r"\.shortcut\.", ".res_conv."),
    (r"\.to_[qkv]\.", ".to_qkv."),
    (r"\.norm_out\.", ".to_out.1."),
    (r"\.gain$", ".g"),
    (r"\.memory_kv$", ".mem_kv"),
)


def _annotated_names(config: Any, weights: State) -> Callable[[str], str]:
    last = len(config.channel_multipliers) - 1
    full = {"mid_attn"}
    for i, kind in enumerate(config.get("level_attention") or ()):
        full |= {f"downs.{i}.2", f"ups.{last - i}.2"} if kind == "full" else set()
    wrapped = any(".fn.fn." in key for key in weights)

    def name(key: str) -> str:
        key = renamed(key, _ANNOTATED_NAMES)
        key = re.sub(r"^downs\.(\d+)\.3\.", lambda m: m[0] if int(m[1]) == last else f"{m[0]}1.", key)
        attention = re.match(r"((?:downs|ups)\.\d+\.2|mid_attn)\.(.*)", key)
        if attention is None:
            return key
        module, rest = attention.groups()
        if module in full:
            rest = rest.replace("to_out.0.", "to_out.")
        inside = ("fn." if rest.startswith("norm.") else "fn.fn.") if wrapped else ""
        return f"{module}.{inside}{rest}"

    return name


def _annotated_layouts(config: Any) -> list[tuple[str, Layout]]:
    last = len(config.channel_multipliers) - 1
    kinds = config.get("level_attention") or ()
    linear = [rf"^down_levels\.{i}\.attention\.memory_kv$" for i, kind in enumerate(kinds) if kind == "linear"]
    linear += [rf"^up_levels\.{last - i}\.attention\.memory_kv$" for i, kind in enumerate(kinds) if kind == "linear"]
    return [
        (r"\.to_[qkv]\.weight$", POINTWISE_QKV),
        (r"\.to_out\.0\.weight$", POINTWISE),
        (r"\.gain$", GAIN),
        *((rf"^down_levels\.{i}\.resample\.weight$", PIXELS_IN_CHANNELS) for i in range(last)),
        *((pattern, TOKENS_LAST) for pattern in linear),
    ]


ANNOTATED = Family(
    lambda weights: _is_annotated(weights) and not _is_guided(weights) and _is_wrapped(weights),
    _annotated_config,
    _annotated_names,
    _annotated_layouts,
)
PACKAGE = Family(
    lambda weights: _is_annotated(weights) and not _is_guided(weights) and not _is_wrapped(weights),
    _annotated_config,
    _annotated_names,
    _annotated_layouts,
)
GUIDED = Family(_is_guided, _guided_config, _annotated_names, _annotated_layouts)
