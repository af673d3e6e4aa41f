"""The tensors of the network in a trainer's file: averaged weights if there are any, else those as trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..safe_loading import read_tensors
from .layouts import State

FILE_TYPES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# Entries with a network's weights, the likeliest first.
RAW_ENTRIES = ("model", "state_dict", "model_state_dict", "unet", "net", "network", "weights")
# What wraps the names of a network: DDP, torch.compile, averages, diffusion classes.
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "online_model.", "model.", "unet.", "net.", "diffusion_model.")
# Tables of a diffusion process and counters of an average, which stand in state dicts beside the network.
TABLES = {
    *("betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev"),
    *("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("loss_weight", "p2_loss_weight"),
    *("initted", "step", "n_averaged", "num_updates", "decay"),
}
_AVERAGE = re.compile(r"(^|_)(ema\d*|averaged?|avg|shadow|polyak|swa)(_|$)")
# Entries that hold tensors of other kinds, or weights that an average has set aside.
_OTHER = re.compile(r"opt|sched|scaler|rng|backup|collected|hyper|config|callback|loops")
_DEEPEST = 3


@dataclass(frozen=True)
class Checkpoint:
    """The weights that were found in a file.

    Attributes:
        weights: tensors by the names in the file, wrappers and tables included.
        chosen: the entry that holds them, such as `ema.shadow`.
        averaged: whether they are averages over the training.
        others: the other entries with weights.
    """

    weights: State
    chosen: str
    averaged: bool
    others: tuple[str, ...]

    def __str__(self) -> str:
        kind = "averaged (EMA) weights" if self.averaged else "weights as trained"
        others = f"; weights are also in {', '.join(self.others)}" if self.others else ""
        return f"{kind}, from {self.chosen}{others}"


def read_checkpoint(path: Path, ema: bool = True) -> Checkpoint:
    """Find the network's weights in a file.

    Args:
        path: a file of one of `FILE_TYPES`.
        ema: take averaged weights if the file has any; False takes those as trained.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: one sentence, if the file can't be read or has no weights of the wanted kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder '{path}'.")
    if path.suffix not in FILE_TYPES:
        raise ValueError(f"'{path}' is not a checkpoint file; its name must end in one of {', '.join(FILE_TYPES)}.")
    content = read_tensors(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a state dict or the dictionary of a trainer.")
    return _chosen(list(_entries(content)), content, path, ema)


def unwrap(state: State, ema: bool = True) -> tuple[State, State]:
    """(the network's tensors under its own names, the tables beside them).

    A prefix is removed if most keys have it. A key without it stays as it is, and will be reported as unknown.

    Raises:
        ValueError: if weights as trained are wanted and all are averaged.
    """
    tables: State = {}
    averaged, others = _split(state)
    if averaged and not ema and not _has_network(others):
        raise ValueError("The file has averaged (EMA) weights only, and weights as trained were asked for.")
    if averaged:
        state = {**averaged, **{k: v for k, v in others.items() if _is_table(k, v)}} if ema else others
    while True:
        tables.update({key: value for key, value in state.items() if _is_table(key, value)})
        state = {key: value for key, value in state.items() if key not in tables}
        prefix = _common_prefix(state)
        if prefix is None:
            return state, tables
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def listed_names(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:6]) + (f" and {len(texts) - 6} more" if len(texts) > 6 else "") or "none"


# --- entries of a file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """Weights at a place in a file: by name, or as a list in the order of the network's parameters."""

    path: tuple[str, ...]
    weights: State | list[Tensor]

    @property
    def averaged(self) -> bool:
        return any(_AVERAGE.search(name.lower()) for name in self.path)

    @property
    def name(self) -> str:
        return "`" + ".".join(self.path) + "`" if self.path else "the file itself"

    @property
    def rank(self) -> tuple[int, int]:
        """What to prefer: shallow entries, and usual names."""
        name = self.path[-1] if self.path else ""
        return len(self.path), RAW_ENTRIES.index(name) if name in RAW_ENTRIES else len(RAW_ENTRIES)


def _entries(content: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[_Entry]:
    """All places with weights, at most `_DEEPEST` levels down."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if _has_network(tensors) or (tensors and not path):
        yield _Entry(path, tensors)
    for key, value in content.items():
        inner = (*path, str(key))
        if _OTHER.search(str(key).lower()) or len(inner) > _DEEPEST:
            continue
        if isinstance(value, Mapping):
            yield from _entries(value, inner)
        elif _is_list_of_weights(value):
            yield _Entry(inner, list(value))


def _is_list_of_weights(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(item, Tensor) for item in value)


def _chosen(entries: list[_Entry], content: Mapping[Any, Any], path: Path, ema: bool) -> Checkpoint:
    averaged = sorted((entry for entry in entries if entry.averaged), key=lambda entry: entry.rank)
    raw = sorted((entry for entry in entries if not entry.averaged), key=lambda entry: entry.rank)
    raw = [entry for entry in raw if isinstance(entry.weights, dict)]
    if len(raw) > 1:  # a counter beside the entries of a trainer is no network
        raw = [entry for entry in raw if isinstance(entry.weights, dict) and _has_network(entry.weights)] or raw
    wanted = averaged if ema and averaged else raw
    if not wanted:
        if averaged:
            raise ValueError(f"'{path}' has averaged (EMA) weights only, and weights as trained were asked for.")
        raise ValueError(
            f"'{path}' has no weights: its entries are {listed_names(content)}. It must be a state dict, or have one "
            f"under {', '.join(('ema', *RAW_ENTRIES))}."
        )
    entry = wanted[0]
    weights = entry.weights if isinstance(entry.weights, dict) else _named(entry.weights, entry.name, raw, path)
    names = raw[0].weights if raw else {}
    if entry not in raw[:1] or _split(weights)[0]:
        weights = _with_dots(weights, names if isinstance(names, dict) else {})
    others = tuple(other.name for other in entries if other is not entry)
    return Checkpoint(weights, entry.name, entry.averaged or (ema and bool(_split(weights)[0])), others)


def _named(averages: list[Tensor], where: str, raw: Sequence[_Entry], path: Path) -> State:
    """Averages in the order of the parameters, under the names of the weights as trained.

    torch-ema and score_sde keep them so. Buffers have no average, and are taken as trained.
    """
    names = raw[0].weights if raw else {}
    assert isinstance(names, dict)
    parameters = {key: value for key, value in names.items() if not _is_buffer(key, value)}
    if [value.shape for value in parameters.values()] != [value.shape for value in averages]:
        raise ValueError(
            f"'{path}' has averaged weights without names in {where}, {len(averages)} tensors that don't "
            f"match the {len(parameters)} parameters of {raw[0].name if raw else 'the file'}; ask for the weights as "
            "trained instead (ema=False, or --weights raw)."
        )
    return {**names, **dict(zip(parameters, averages))}


def _with_dots(weights: State, raw: State) -> State:
    """Give averages that were stored without the dots of their names (latent-diffusion's LitEma) the names of `raw`."""
    averaged, others = _split(weights)
    known = _names_without_dots(others if averaged else raw)
    renamed = {}
    for key, value in weights.items():
        prefix, name = (key.partition(".")[0] + ".", key.partition(".")[2]) if key in averaged else ("", key)
        is_average = key in averaged or not averaged
        renamed[prefix + known[name] if is_average and name in known else key] = value
    return renamed


def _names_without_dots(weights: State) -> dict[str, str]:
    """Name by the name without dots, with and without the wrappers' prefixes."""
    known: dict[str, str] = {}
    while True:
        known.update({key.replace(".", ""): key for key in weights if "." in key})
        prefix = _common_prefix(weights)
        if prefix is None:
            return known
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}


def _is_buffer(key: str, value: Tensor) -> bool:
    last = key.rpartition(".")[2]
    return last in TABLES or last.startswith(("running_", "num_batches")) or not value.is_floating_point()


# --- names in a state dict --------------------------------------------------------------------------------------------


def _is_table(key: str, value: Tensor) -> bool:
    return key in TABLES and value.ndim < 2


def _split(state: State) -> tuple[State, State]:
    """(averages, the rest) of one state dict, distinguished by the first parts of the names."""
    named = {key for key in state if any(_AVERAGE.search(part.lower()) for part in key.split(".")[:2])}
    averaged = {key: value for key, value in state.items() if key in named}
    if not _has_network(averaged):
        return {}, state
    return averaged, {key: value for key, value in state.items() if key not in averaged}


def _has_network(state: State) -> bool:
    return any(value.ndim > 1 for value in state.values())


def _common_prefix(state: State) -> str | None:
    """A wrapper's prefix that more than half of the keys have."""
    counts: dict[str, int] = {}
    for key in state:
        first, dot, _ = key.partition(".")
        if dot and (f"{first}." in PREFIXES or _AVERAGE.search(first.lower())):
            counts[f"{first}."] = counts.get(f"{first}.", 0) + 1
    return next((prefix for prefix, count in counts.items() if 2 * count > len(state)), None)
