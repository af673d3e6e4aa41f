"""Other projects' checkpoints in: a file of weights, or a diffusers folder, becomes a `GenerationPipeline`.

A file holds a bare state dict or what a trainer saved around one. Three questions are answered from it, in this order:

1. Which tensors are the network's? Entries such as `ema` and `model`, and prefixes such as `ema_model.model.`, are
   taken off; the tables of a diffusion process (`betas`, ...) are set aside.
2. Which network is it, and of which size? The names tell the family and the shapes tell the configuration. What
   weights can't tell (heads, groups, a defect the project trained with) is as in the project: `SOURCES`.
3. Which noise, and which prediction? From the tables where there are any, else as the project trains.

A family is three functions of this file: a configuration from shapes, the file's name for each of our parameters, and
the layouts in which the file keeps those that differ. Missing, unknown and misshapen keys follow from comparing the two
sides, and are told in the file's own names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models import PRESETS
from ..pipelines import GenerationPipeline
from ..schedulers import AncestralDDPMScheduler, MixScheduler, NoisePath, SubsequenceDDIMScheduler
from .safe_loading import read_tensors

State = dict[str, Tensor]

FILE_TYPES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
SAMPLERS = {"ddpm": AncestralDDPMScheduler, "ddim": SubsequenceDDIMScheduler}


@dataclass(frozen=True)
class Source:
    """What the weights of a project can't tell: its network's hidden options, and how it samples."""

    family: str
    model: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


_BETA = {"variance_type": "fixed_large", "clip_sample": False}
_BETA_TILDE = {"variance_type": "fixed_small", "clip_sample": False}
_BETA_TILDE_CLAMPED = {"variance_type": "fixed_small", "clip_sample": True}

# Defects that weights were trained with are kept here: without them the same weights compute another function.
SOURCES = {
    "usurf-unet": Source("annotated", {"weight_standardization": "inverted"}, _BETA),
    "usurf-guided-unet": Source("guided", {"weight_standardization": "inverted"}, _BETA),
    "playground-ddpm": Source("annotated", {}, {**_BETA_TILDE, "schedule_options": {"clip": [1e-4, 0.9999]}}),
    "playground-toy": Source("toy"),
    "denoising-diffusion-pytorch": Source("package", {}, _BETA_TILDE_CLAMPED),
    "generative-pytorch-adm": Source("adm", {"attention_scale": 10.0}, _BETA_TILDE_CLAMPED),
    "ddpm-accelerate-attention": Source("attention", {}, _BETA),
    "ict1022-simple": Source("simple", {"raw_time": True}, _BETA_TILDE),
}


def convert(
    path: str | Path,
    architecture: str | None = None,
    *,
    ema: bool = True,
    schedule: str | None = None,
    num_train_timesteps: int | None = None,
    beta_start: float | None = None,
    beta_end: float | None = None,
    schedule_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    sample_size: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    sampler: str = "ddpm",
) -> GenerationPipeline:
    """The pipeline of another project's checkpoint; `save_pretrained` of the result saves it.

    Args:
        path: a file of weights (`FILE_TYPES`), or a folder of diffusers' `UNet2DModel` or of a pipeline around one.
            Nothing but tensors and plain containers is ever unpickled.
        architecture: a key of `SOURCES`; detected when None and the file leaves no doubt.
        ema: take averaged weights where the file has them; False takes the raw ones.
        schedule, num_train_timesteps, beta_start, beta_end, schedule_options: the noise path, as in `NoisePath`, where
            it is other than the file's tables or its project's habit say.
        prediction_type: what the network predicts, where the same holds of it.
        sample_size: height and width the pipeline makes when not told; the project's own when None.
        model_options: entries of the network's configuration that override what was found.
        sampler: scheduler of the pipeline, `ddpm` or `ddim`.

    Raises:
        FileNotFoundError: when there is nothing at `path`.
        ValueError: one sentence on a file that can't be read or does not fit, or on what must be asked for.
    """
    path = Path(path)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got '{sampler}'.")
    if sample_size is not None and sample_size < 1:
        raise ValueError(f"sample_size must be at least 1, got {sample_size}.")
    asked = {
        "beta_schedule": schedule,
        "num_train_timesteps": num_train_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "schedule_options": schedule_options,
        "prediction_type": prediction_type,
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    if path.is_dir():
        if architecture is not None or model_options:
            raise ValueError("architecture and model_options are for files; a diffusers folder says them itself.")
        return _from_folder(path, asked, sample_size, sampler)
    weights, tables = unwrap(read_weights(path, ema), ema)
    architecture = detect_architecture(weights) if architecture is None else _checked(architecture, weights)
    settings = _scheduler_settings(architecture, tables, asked)
    options = {**(model_options or {}), **({} if sample_size is None else {"sample_size": sample_size})}
    model = build_from_weights(architecture, weights, options, settings.get("num_train_timesteps"))
    return GenerationPipeline(model, _scheduler(architecture, model, settings, sampler))


# --- files ------------------------------------------------------------------------------------------------------------

# Where trainers keep a network's weights inside a file.
EMA_ENTRIES = ("ema", "ema_model", "ema_state_dict", "model_ema")
RAW_ENTRIES = ("model", "state_dict", "model_state_dict", "unet", "net", "network", "weights")


def read_weights(path: Path, ema: bool = True) -> State:
    """The state dict in a file, prefixes and tables still in it; errors as `convert`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or folder '{path}'.")
    if path.suffix not in FILE_TYPES:
        raise ValueError(f"'{path}' is not a checkpoint file; it takes one of {', '.join(FILE_TYPES)}.")
    return _find_state_dict(read_tensors(path), path, ema)


def _find_state_dict(content: Any, path: Path, ema: bool) -> State:
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; it takes a state dict or a trainer's dictionary.")
    names = (*EMA_ENTRIES, *RAW_ENTRIES) if ema else RAW_ENTRIES
    for name in names:
        if isinstance(content.get(name), Mapping) and _tensors(content[name]):
            return _tensors(content[name])
    if not _tensors(content):
        raise ValueError(
            f"'{path}' holds no weights that can be told: its entries are {_listed(map(str, content))}; it takes a "
            f"state dict, or one under {', '.join(names)}."
        )
    return _tensors(content)


def _tensors(content: Mapping[Any, Any]) -> State:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


# What wraps a network's names, outermost or innermost: DDP, torch.compile, EMA, diffusion classes.
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "online_model.", "model.", "unet.", "net.", "diffusion_model.")

# The tables of a diffusion process, and an average's counters: in state dicts, but not of the network.
TABLES = {
    *("betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev"),
    *("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("loss_weight", "p2_loss_weight"),
    *("initted", "step", "n_averaged", "num_updates"),
}


def unwrap(state: State, ema: bool = True) -> tuple[State, State]:
    """(the network's tensors under its own names, the tables beside them).

    A prefix is taken off when most keys carry it; a key without it stays as it is, to be told as unknown.

    Raises:
        ValueError: when raw weights are asked for and all are averaged.
    """
    tables: State = {}
    state = _one_copy(state, ema)
    while True:
        tables.update({key: value for key, value in state.items() if key in TABLES and value.ndim < 2})
        state = {key: value for key, value in state.items() if key not in tables}
        prefix = next((p for p in PREFIXES if 2 * sum(key.startswith(p) for key in state) > len(state)), None)
        if prefix is None:
            return state, tables
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def _one_copy(state: State, ema: bool) -> State:
    """Of averaged and raw weights side by side the ones that are wanted."""
    averaged = {key: value for key, value in state.items() if key.startswith("ema_model.")}
    if ema:
        return averaged or state
    raw = {key: value for key, value in state.items() if key not in averaged and key not in TABLES}
    if averaged and not raw:
        raise ValueError("The file holds averaged (EMA) weights only, and raw ones were asked for.")
    return {key: value for key, value in state.items() if key not in averaged}


# --- which network ----------------------------------------------------------------------------------------------------


def detect_architecture(weights: State) -> str:
    """The key of `SOURCES` whose network these weights are.

    Raises:
        ValueError: when no family fits, or when several of a family do.
    """
    family = _family(weights)
    if family is None:
        raise ValueError(
            f"No known network has these weights: the file's keys are {_listed(weights)}; the networks are those of "
            f"{', '.join(SOURCES)}."
        )
    fitting = [name for name, source in SOURCES.items() if source.family == family]
    if len(fitting) > 1:
        shape = _annotated_config(_Shapes(weights))
        same = ("base_channels", "channel_multipliers")
        exact = [name for name in fitting if all(PRESETS[name].config[key] == shape[key] for key in same)]
        if len(exact) != 1:
            raise ValueError(
                f"The weights fit {' and '.join(fitting)}, which compute different functions of them; say which as "
                "architecture."
            )
        fitting = exact
    return fitting[0]


def _checked(architecture: str, weights: State) -> str:
    if architecture not in SOURCES:
        raise ValueError(f"There is no architecture '{architecture}'; it takes one of {', '.join(SOURCES)}.")
    family = _family(weights)
    if family not in (None, SOURCES[architecture].family):
        fitting = [name for name, source in SOURCES.items() if source.family == family]
        raise ValueError(f"The weights are those of {' or '.join(fitting)}, and '{architecture}' was asked for.")
    return architecture


def _family(weights: State) -> str | None:
    modules = {key.split(".")[0] for key in weights}
    if {"init_conv", "downs", "ups"} <= modules:
        if modules & {"mid_block3", "mid_block4"}:
            return "guided"
        return "annotated" if any(".fn.fn." in key for key in weights) else "package"
    if {"down_blocks", "middle_block", "up_blocks"} <= modules:
        return "adm"
    if {"inc", "bot1", "outc"} <= modules:
        return "attention"
    if {"conv1", "mid_conv1", "final"} <= modules:
        return "simple"
    return "toy" if _toy_modules(_Shapes(weights)) else None


def build_from_weights(
    architecture: str, weights: State, options: Mapping[str, Any] | None = None, num_train_timesteps: int | None = None
) -> Any:
    """The model of one of `SOURCES`, of the size its weights tell, holding them in float32.

    Args:
        architecture: a key of `SOURCES`.
        weights: the network's state dict, under its own names.
        options: entries of the configuration that override what the weights tell.
        num_train_timesteps: T, which two of the networks know.

    Raises:
        ValueError: one sentence that lists all unknown keys, missing keys and wrong shapes, or tells a size that our
            class does not have.
    """
    preset, source = PRESETS[architecture], SOURCES[architecture]
    family = FAMILIES[source.family]
    config = {**preset.config, **source.model, **family.config(_Shapes(weights))}
    if num_train_timesteps is not None and source.family == "guided":
        config["label_shift"] = float(num_train_timesteps + 100)
    if num_train_timesteps is not None and source.family == "simple":
        config["num_train_timesteps"] = num_train_timesteps
    try:
        with torch.device("meta"):
            model = preset.model_class(**{**config, **(options or {})})
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{preset.model_class.__name__} can't be built with {dict(options or {})}: {told}.") from None
    ours = translate(architecture, weights, model)
    model.load_state_dict(
        {key: value.float().clone(memory_format=torch.contiguous_format) for key, value in ours.items()}, assign=True
    )
    return model.eval()


def translate(architecture: str, weights: State, model: Any) -> State:
    """Our state dict for `model` from the weights under their project's names and in its layouts; errors as above."""
    family = FAMILIES[SOURCES[architecture].family]
    name_of, layouts = family.names(model.config, weights), family.layouts(model.config)
    expected: dict[str, tuple[int, ...]] = {}
    plan = []
    for key, parameter in model.state_dict().items():
        layout = next((layout for pattern, layout in layouts if re.search(pattern, key)), SAME)
        expected[name_of(key)] = layout.shape(tuple(parameter.shape))
        part = re.search(r"\.to_([qkv])\.", key)
        plan.append((key, name_of(key), layout, "qkv".index(part[1]) if part else 0))
    _check_keys(architecture, weights, expected)
    return {key: layout.read(weights[theirs], part) for key, theirs, layout, part in plan}


def _check_keys(architecture: str, weights: State, expected: dict[str, tuple[int, ...]]) -> None:
    faults = {
        "unknown": [key for key in weights if key not in expected],
        "missing": [key for key in expected if key not in weights],
        "wrong shapes": [
            f"{key} is {tuple(weights[key].shape)} and should be {shape}"
            for key, shape in expected.items()
            if key in weights and tuple(weights[key].shape) != shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
        raise ValueError(f"The file does not fit the network of '{architecture}': {told}.")


def _listed(names: Any, most: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


# --- layouts ----------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a file keeps a parameter: its shape there from ours, and ours (of parts q, k, v the i-th) from its tensor."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[[Tensor, int], Tensor]


def _heads_qkv(heads: int) -> Layout:
    """A 1x1 convolution to q, k and v in which each head's three lie together."""

    def read(value: Tensor, part: int) -> Tensor:
        return value[:, :, 0, 0].unflatten(0, (heads, 3, -1))[:, part].flatten(0, 1)

    return Layout(lambda s: (3 * s[0], s[1], 1, 1), read)


SAME = Layout(lambda s: s, lambda v, _: v)
POINTWISE = Layout(lambda s: (*s, 1, 1), lambda v, _: v[:, :, 0, 0])
POINTWISE_QKV = Layout(lambda s: (3 * s[0], s[1], 1, 1), lambda v, part: v[:, :, 0, 0].chunk(3)[part])
STACKED_QKV = Layout(lambda s: (3 * s[0], *s[1:]), lambda v, part: v.chunk(3)[part])
PIXELS_IN_CHANNELS = Layout(lambda s: (s[0], 4 * s[1], 1, 1), lambda v, _: v.unflatten(1, (-1, 2, 2))[..., 0, 0])
GAIN = Layout(lambda s: (1, *s, 1, 1), lambda v, _: v.flatten())
TOKENS_LAST = Layout(lambda s: (*s[:-2], s[-1], s[-2]), lambda v, _: v.transpose(-1, -2))
# A label's vector is added to the time's, so that having none is the zero vector.
WITHOUT_NULL = Layout(lambda s: (s[0] - 1, *s[1:]), lambda v, _: torch.cat([v, torch.zeros_like(v[:1])]))


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes by key; a key that the size depends on and that is not there is told as such."""

    def __init__(self, weights: State):
        super().__init__({key: tuple(value.shape) for key, value in weights.items()})

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise ValueError(f"'{key}' is missing from the file, and without it the network's size can't be told.")

    def count(self, pattern: str) -> int:
        """One more than the largest number that stands in place of the pattern's group."""
        found = (re.match(pattern, key) for key in self)
        return 1 + max((int(match[1]) for match in found if match), default=-1)


def _renamed(key: str, rules: Sequence[tuple[str, Any]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _multiples(widths: Sequence[int], base: int) -> tuple[int, ...]:
    if any(width % base for width in widths):
        raise ValueError(f"The levels are {', '.join(map(str, widths))} wide; they must be multiples of {base}.")
    return tuple(width // base for width in widths)


def _channels(first: int, last: int, self_condition: bool = True) -> dict[str, Any]:
    """Channels from those of the first and the last convolution.

    Half as many out is self-conditioning, twice as many a learned variance.
    """
    if self_condition and first == 2 * last:
        return {"in_channels": last, "out_channels": last, "self_condition": True}
    if last not in (first, 2 * first):
        raise ValueError(
            f"The network takes {first} channels and gives {last}; say in_channels, out_channels and self_condition as "
            "model_options."
        )
    return {"in_channels": first, "out_channels": last}


# --- the annotated family: U-SURF, Diffusion Playground, denoising-diffusion-pytorch ----------------------------------


def _annotated_config(shapes: _Shapes) -> dict[str, Any]:
    base, first, kernel, _ = shapes["init_conv.weight"]
    time_channels, waves = shapes["time_mlp.1.weight"]
    if waves != base:
        raise ValueError(
            f"The time MLP takes {waves} numbers and the first convolution is {base} wide; they must be equal: neither "
            "init_dim nor learned or random Fourier features are supported."
        )
    return {
        "base_channels": base,
        "channel_multipliers": _multiples(_annotated_widths(shapes), base),
        "stem_kernel_size": kernel,
        "time_embed_dim": time_channels,
        **_channels(first, shapes["final_conv.weight"][0]),
        **_annotated_attention(shapes),
    }


def _annotated_widths(shapes: _Shapes) -> list[int]:
    levels = shapes.count(r"downs\.(\d+)\.")
    lower = [f"downs.{i}.3.1.weight" for i in range(levels - 1)] + [f"downs.{levels - 1}.3.weight"]
    return [shapes[key][0] for key in lower]


def _annotated_attention(shapes: _Shapes) -> dict[str, Any]:
    """Kinds by level, heads and memory; without memory nothing tells the heads, and the width of one is 32."""
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


def _attention_prefix(shapes: _Shapes, level: int) -> str:
    plain = f"downs.{level}.2."
    return plain if any(key.startswith(f"{plain}to_") for key in shapes) else f"{plain}fn.fn."


def _guided_config(shapes: _Shapes) -> dict[str, Any]:
    """As the annotated one, less what our guided class has no option for; a file that needs one will not fit it."""
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
    (r"^(down|up)_levels\.(\d+)\.block1\.", r"\1s.\2.0."),
    (r"^(down|up)_levels\.(\d+)\.block2\.", r"\1s.\2.1."),
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
        key = _renamed(key, _ANNOTATED_NAMES)
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


# --- generative_pytorch -----------------------------------------------------------------------------------------------


def _adm_config(shapes: _Shapes) -> dict[str, Any]:
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
        raise ValueError(f"The levels' blocks are {widths} wide; each level must have as many, of one width.")
    return {
        "base_channels": base,
        "channel_multipliers": _multiples([level[0] for level in widths], base),
        "layers_per_level": len(widths[0]),
        "attention_resolutions": tuple(sorted(attend)),
        **_channels(in_channels, shapes["out.2.weight"][0], self_condition=False),
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
    """Their prefix of each of our modules: they count blocks and samplings through, we count inside levels."""
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
        return prefixes[prefix] + _renamed("." + key.removeprefix(prefix), _ADM_NAMES)[1:]

    return name


def _adm_layouts(config: Any) -> list[tuple[str, Layout]]:
    return [(r"\.to_[qkv]\.weight$", _heads_qkv(config.attention_heads)), (r"\.to_out\.0\.weight$", POINTWISE)]


# --- ddpm_accelerate's README -----------------------------------------------------------------------------------------


def _attention_config(shapes: _Shapes) -> dict[str, Any]:
    width, in_channels = shapes["inc.double_conv.0.weight"][:2]
    downs = [shapes[f"down{i}.maxpool_conv.2.double_conv.0.weight"][0] for i in (1, 2, 3)]
    classes = shapes.get("label_emb.weight")
    return {
        "down_widths": (width, *downs),
        "mid_width": shapes["bot1.double_conv.0.weight"][0],
        "up_widths": tuple(shapes[f"up{i}.conv.1.double_conv.3.weight"][0] for i in (1, 2, 3)),
        "time_embed_dim": shapes["down1.emb_layer.1.weight"][1],
        "num_class_embeds": None if classes is None else classes[0],
        **_channels(in_channels, shapes["outc.weight"][0], self_condition=False),
    }


_ATTENTION_NAMES = (
    (r"^class_embedding\.", "label_emb."),
    (r"^conv_in\.", "inc.double_conv."),
    (r"^conv_out\.", "outc."),
    (r"^mid\.(\d)\.", lambda m: f"bot{int(m[1]) + 1}.double_conv."),
    (r"^(down|up)_transformers\.(\d)\.", lambda m: f"sa{int(m[2]) + (1 if m[1] == 'down' else 4)}."),
    (r"^downs\.(\d)\.conv([12])\.", lambda m: f"down{int(m[1]) + 1}.maxpool_conv.{m[2]}.double_conv."),
    (r"^ups\.(\d)\.conv([12])\.", lambda m: f"up{int(m[1]) + 1}.conv.{int(m[2]) - 1}.double_conv."),
    (r"^(down|up)s\.(\d)\.time_proj\.", lambda m: f"{m[1]}{int(m[2]) + 1}.emb_layer.1."),
    (r"^(.*double_conv)\.conv1\.", r"\1.0."),
    (r"^(.*double_conv)\.norm1\.", r"\1.1."),
    (r"^(.*double_conv)\.conv2\.", r"\1.3."),
    (r"^(.*double_conv)\.norm2\.", r"\1.4."),
    (r"^(sa\d)\.norm1\.", r"\1.ln."),
    (r"^(sa\d)\.norm2\.", r"\1.ff_self.0."),
    (r"^(sa\d)\.linear1\.", r"\1.ff_self.1."),
    (r"^(sa\d)\.linear2\.", r"\1.ff_self.3."),
    (r"\.attention\.to_out\.0\.", ".mha.out_proj."),
    (r"\.attention\.to_[qkv]\.", ".mha.in_proj_"),
)


def _attention_names(config: Any, weights: State) -> Callable[[str], str]:
    return lambda key: _renamed(key, _ATTENTION_NAMES)


def _attention_layouts(config: Any) -> list[tuple[str, Layout]]:
    return [(r"\.to_[qkv]\.", STACKED_QKV), (r"^class_embedding\.", WITHOUT_NULL)]


# --- ict1022's notebook, and Diffusion Playground's toy ---------------------------------------------------------------


def _simple_config(shapes: _Shapes) -> dict[str, Any]:
    return {
        "widths": tuple(shapes[f"conv{i}.weight"][0] for i in (1, 2, 3)),
        "time_embed_dim": shapes["time_mlp.0.weight"][0],
        **_channels(shapes["conv1.weight"][1], shapes["final.weight"][0], self_condition=False),
    }


_SIMPLE_NAMES = (
    (r"^time_embedding\.", "time_mlp."),
    (r"^conv_in\.conv\.", "conv1."),
    (r"^down1\.conv\.", "conv2."),
    (r"^down2\.conv\.", "conv3."),
    (r"^mid([12])\.conv\.", r"mid_conv\1."),
    (r"^up([12])\.conv\.", r"up\1."),
    (r"^conv_out\.", "final."),
)


def _simple_names(config: Any, weights: State) -> Callable[[str], str]:
    return lambda key: _renamed(key, _SIMPLE_NAMES)


_TOY_ORDER = [f"{pair}.conv{i}" for pair in ("down1", "down2", "mid", "up2", "up1") for i in (1, 2)]


def _toy_modules(shapes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
    """Names of ten 3x3 convolutions with biases, each as wide as the next one takes, whatever they are called.

    A file written by torch.save keeps the order in which they were made, a safetensors file sorts them by name.
    """
    made = list(dict.fromkeys(key.rpartition(".")[0] for key in shapes))
    counted = sorted(made, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    for modules in (made, counted):
        filters = [shapes.get(f"{name}.weight", ()) for name in modules]
        if len(shapes) != 20 or len(modules) != 10 or any(len(shape) != 4 or shape[2:] != (3, 3) for shape in filters):
            return None
        if all(shape[0] == following[1] for shape, following in pairwise(filters)):
            return modules
    return None


def _toy_config(shapes: _Shapes) -> dict[str, Any]:
    modules = _toy_modules(shapes)
    if modules is None:
        raise ValueError(
            f"The file's {len(shapes)} tensors are not the toy's: ten 3x3 convolutions, each a weight and a bias, in "
            "the order of their use."
        )
    filters = [shapes[f"{name}.weight"] for name in modules]
    return {
        "in_channels": filters[0][1],
        "out_channels": filters[-1][0],
        "widths": (filters[0][0], filters[2][0]),
    }


def _toy_names(config: Any, weights: State) -> Callable[[str], str]:
    modules = dict(zip(_TOY_ORDER, _toy_modules(_Shapes(weights)) or ()))
    return lambda key: modules.get(key.rpartition(".")[0], "?") + "." + key.rpartition(".")[2]


def _no_layouts(config: Any) -> list[tuple[str, Layout]]:
    return []


class Family(NamedTuple):
    """The three functions of a family: configuration from shapes, their name of our key, layouts by our key."""

    config: Callable[[_Shapes], dict[str, Any]]
    names: Callable[[Any, State], Callable[[str], str]]
    layouts: Callable[[Any], list[tuple[str, Layout]]]


FAMILIES = {
    "annotated": Family(_annotated_config, _annotated_names, _annotated_layouts),
    "package": Family(_annotated_config, _annotated_names, _annotated_layouts),
    "guided": Family(_guided_config, _annotated_names, _annotated_layouts),
    "adm": Family(_adm_config, _adm_names, _adm_layouts),
    "attention": Family(_attention_config, _attention_names, _attention_layouts),
    "simple": Family(_simple_config, _simple_names, _no_layouts),
    "toy": Family(_toy_config, _toy_names, _no_layouts),
}


# --- which noise ------------------------------------------------------------------------------------------------------

_PATH_KEYS = ("beta_schedule", "beta_start", "beta_end", "schedule_options", "trained_betas")

# Schedules that need no ends to be told, with the options that projects use.
_FREE_SCHEDULES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("cosine", None),
    ("cosine", {"clip": [1e-4, 0.9999]}),
    ("sigmoid_alpha_bar", None),
)


def detect_noise(tables: State) -> dict[str, Any]:
    """Scheduler settings told by a diffusion process's tables; empty without `betas` and `alphas_cumprod`.

    The schedule is a name of `NoisePath` where one gives the same betas, else the betas themselves.
    """
    betas = _betas(tables)
    if betas is None:
        return {}
    settings = _named_schedule(betas) or {"trained_betas": betas.tolist()}
    prediction_type = _detect_prediction(tables, betas)
    told = {} if prediction_type is None else {"prediction_type": prediction_type}
    return {**settings, **told, "num_train_timesteps": len(betas)}


def _betas(tables: State) -> np.ndarray | None:
    if "betas" in tables:
        return tables["betas"].double().numpy()
    if "alphas_cumprod" not in tables:
        return None
    alphas_cumprod = tables["alphas_cumprod"].double().numpy()
    return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])


def _named_schedule(betas: np.ndarray) -> dict[str, Any] | None:
    """Tables are float32: six digits of the ends, and curves compared to what float32 leaves of them."""
    rescale = 1000 / len(betas)
    ends = [(1e-4, 0.02), (1e-4 * rescale, 0.02 * rescale), tuple(float(f"{beta:.6g}") for beta in betas[[0, -1]])]
    candidates: list[dict[str, Any]] = [
        {"beta_schedule": name, "beta_start": start, "beta_end": end}
        for name in ("linear", "scaled_linear", "exponential", "sigmoid")
        for start, end in ends
    ]
    candidates += [{"beta_schedule": name, "schedule_options": options} for name, options in _FREE_SCHEDULES]
    return next((candidate for candidate in candidates if _same_path(candidate, betas)), None)


def _same_path(candidate: dict[str, Any], betas: np.ndarray) -> bool:
    arguments = {key: value for key, value in candidate.items() if key not in ("beta_schedule", "schedule_options")}
    try:
        path = NoisePath.from_schedule(
            candidate["beta_schedule"], len(betas), options=candidate.get("schedule_options"), **arguments
        )
    except ValueError:
        return False
    near = np.allclose(path.alphas_cumprod, np.cumprod(1 - betas), rtol=0, atol=2e-6)
    return near and np.allclose(path.betas, betas, rtol=1e-3, atol=1e-6)


def _detect_prediction(tables: State, betas: np.ndarray) -> str | None:
    """From the weight of the loss, min(SNR, g) / SNR of the prediction's own unit, with or without the bound g.

    Hang et al. 2023 (arXiv:2303.09556), section 3.4; denoising-diffusion-pytorch keeps it as `loss_weight`.
    """
    if "loss_weight" not in tables or len(tables["loss_weight"]) != len(betas):
        return None
    alphas_cumprod = np.cumprod(1 - betas)
    seen = (alphas_cumprod > 0) & (alphas_cumprod < 1)
    weight, snr = tables["loss_weight"].double().numpy()[seen], (alphas_cumprod / (1 - alphas_cumprod))[seen]
    for prediction_type, unit in (("epsilon", snr**0), ("sample", snr), ("v_prediction", snr / (snr + 1))):
        bounded = weight / unit < 0.99
        bounds = (weight / unit * snr)[bounded]
        if (weight / unit < 1.01).all() and (not len(bounds) or np.ptp(bounds) < 0.01 * bounds.max()):
            return prediction_type
    return None


def _scheduler_settings(architecture: str, tables: State, asked: dict[str, Any]) -> dict[str, Any]:
    """What is asked for, over what the tables tell, over the project's habit."""
    preset, source = PRESETS[architecture], SOURCES[architecture]
    if preset.beta_schedule is None:
        if asked:
            raise ValueError(f"'{architecture}' is sampled without betas; it takes no {', '.join(asked)}.")
        return {}
    habit = {
        "beta_schedule": preset.beta_schedule,
        "num_train_timesteps": preset.num_train_timesteps,
        "prediction_type": preset.prediction_type,
        **source.scheduler,
    }
    if preset.betas is not None:
        habit.update(beta_start=preset.betas[0], beta_end=preset.betas[1])
    return _over(_over(habit, detect_noise(tables)), asked)


def _over(settings: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `newer` in their place; another schedule takes all of the older one's options with it."""
    kept = dict(settings)
    if "beta_schedule" in newer or "trained_betas" in newer:
        kept = {key: value for key, value in settings.items() if key not in _PATH_KEYS}
    betas = kept.get("trained_betas")
    moved = sorted({"beta_start", "beta_end", "schedule_options", "num_train_timesteps"} & newer.keys())
    if betas is not None and moved and newer.get("num_train_timesteps", len(betas)) != len(betas):
        raise ValueError(
            f"The file's noise is a list of {len(betas)} betas; to change {', '.join(moved)} say a schedule."
        )
    return {**kept, **newer}


def _scheduler(architecture: str, model: Any, settings: dict[str, Any], sampler: str) -> Any:
    if PRESETS[architecture].beta_schedule is None:
        return MixScheduler()
    if sampler == "ddim":
        settings = {key: value for key, value in settings.items() if key != "variance_type"}
        # The package's DDIM bounds x0 and derives the noise from it again.
        settings["use_clipped_model_output"] = SOURCES[architecture].family == "package"
    elif model.config.out_channels == 2 * model.config.in_channels:
        settings = {**settings, "variance_type": "learned_range"}
    # From T-1 down, whatever the number of steps: the networks were trained on noise at the end of the path.
    return SAMPLERS[sampler](**settings, timestep_spacing="trailing")


# --- diffusers' folders -----------------------------------------------------------------------------------------------


def _from_folder(path: Path, asked: dict[str, Any], sample_size: int | None, sampler: str) -> GenerationPipeline:
    """A pipeline around the `UNet2DModel` of a folder; its parts are read one by one, so that no code in it runs."""
    from diffusers import UNet2DModel

    inside = (path / "model_index.json").is_file()
    folder = path / "unet" if inside else path
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"'{folder}' holds a {config.get('_class_name')}; of diffusers' networks only UNet2DModel fits."
        )
    scheduler = _folder_scheduler(path / "scheduler" / "scheduler_config.json", asked, sampler)
    model: Any = UNet2DModel.from_pretrained(folder)
    if sample_size is not None:
        model.register_to_config(sample_size=sample_size)
    return GenerationPipeline(model.eval(), scheduler)


def _folder_scheduler(file: Path, asked: dict[str, Any], sampler: str) -> Any:
    config = _read_json(file) if file.is_file() else {}
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        absent = [name for name in ("beta_schedule", "num_train_timesteps", "prediction_type") if name not in asked]
        if absent:
            words = ", ".join(absent).replace("beta_schedule", "schedule")
            raise ValueError(f"Nothing in the folder says its noise; say {words}.")
        return SAMPLERS[sampler](**asked, timestep_spacing="trailing")
    if "beta_schedule" in asked:
        config = {key: value for key, value in config.items() if key not in _PATH_KEYS}
    return SAMPLERS[sampler].from_config(_over(config, asked))


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"'{file.parent}' is no diffusers model: it has no {file.name}.")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"'{file}' is not valid JSON.") from None
