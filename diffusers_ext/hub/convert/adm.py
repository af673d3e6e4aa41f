"""The ADM network of generative_pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .layouts import POINTWISE, Family, Shapes, State, channels, heads_qkv, modules, multiples, renamed


def _adm_config(shapes: Shapes) -> dict[str, Any]:
    base, in_channels = shapes["down_blocks.0.0.weight"][:2]
    widths: list[list[int]] = [[]]
    attend: set[int] = set()
    for i in range(1, shapes.count(r"down_blocks\.(\d+)\.")):
        if f"down_blocks.{i}.0.op.weight" in shapes:
            widths.append([])
            continue
        widths[-1].append(shapes[f"down_blocks.{i}.0.conv1.2.weight"][0])
        if f"down_blocks.{i}.1.qkv.weight" in shapes:
            attend.add(2 ** (len(widths) - 1))
    if len({len(level) for level in widths}) != 1 or any(len(set(level)) != 1 for level in widths):
        raise ValueError(f"The blocks are {widths} wide; all levels must have the same number, each of one width.")
    return {
        "base_channels": base,
        "channel_multipliers": multiples([level[0] for level in widths], base),
        "layers_per_level": len(widths[0]),
        "attention_resolutions": tuple(sorted(attend)),
        **channels(in_channels, shapes["out.2.weight"][0], self_condition=False),
    }


_ADM_NAMES = (
    (r"\.norm1\.", ".conv1.0."),
    (r"\.conv1\.(weight|bias)$", r".conv1.2.\1"),
    (r"\.time_proj\.", ".time_emb.1."),
    (r"\.norm2\.", ".conv2.0."),
    (r"\.conv2\.(weight|bias)$", r".conv2.3.\1"),
    (r"\.to_[qkv]\.", ".qkv."),
    (r"\.to_out\.0\.", ".proj."),
)


def _adm_prefixes(config: Any) -> dict[str, str]:
    """The file's prefix for each of our modules: the file counts all blocks in a row, we count them per level."""
    levels, layers = len(config.channel_multipliers), config.layers_per_level
    prefixes = {
        "time_embedding.": "time_embed.",
        "conv_in.": "down_blocks.0.0.",
        "mid_stage.block.": "middle_block.0.",
        "mid_stage.attention.": "middle_block.1.",
        "mid_block.": "middle_block.2.",
        "norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    for i in range(levels):
        start = 1 + i * (layers + 1)
        for j in range(layers):
            prefixes[f"down_stages.{i}.{j}.block."] = f"down_blocks.{start + j}.0."
            prefixes[f"down_stages.{i}.{j}.attention."] = f"down_blocks.{start + j}.1."
        prefixes[f"downsamples.{i}."] = f"down_blocks.{start + layers}.0.op."
        start = i * (layers + 1)
        for j in range(layers + 1):
            prefixes[f"up_stages.{i}.{j}.block."] = f"up_blocks.{start + j}.0."
            prefixes[f"up_stages.{i}.{j}.attention."] = f"up_blocks.{start + j}.1."
        attends = 2 ** (levels - 1 - i) in config.attention_resolutions
        prefixes[f"upsamples.{i}."] = f"up_blocks.{start + layers}.{2 if attends else 1}."
    return prefixes


def _adm_names(config: Any, weights: State) -> Callable[[str], str]:
    prefixes = _adm_prefixes(config)

    def name(key: str) -> str:
        prefix = next(prefix for prefix in prefixes if key.startswith(prefix))
        return prefixes[prefix] + renamed("." + key.removeprefix(prefix), _ADM_NAMES)[1:]

    return name


ADM = Family(
    lambda weights: {"down_blocks", "middle_block", "up_blocks"} <= modules(weights),
    _adm_config,
    _adm_names,
    lambda c: [(r"\.to_[qkv]\.weight$", heads_qkv(c.attention_heads)), (r"\.to_out\.0\.weight$", POINTWISE)],
)
