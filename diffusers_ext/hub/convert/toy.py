"""The toy network of Diffusion Playground, whose modules may have any names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from .layouts import Family, Shapes, State

_TOY_ORDER = [f"{pair}.conv{i}" for pair in ("down1", "down2", "mid", "up2", "up1") for i in (1, 2)]


def _toy_modules(shapes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
    """The names of ten 3x3 convolutions with biases, in the order of their use; None for other weights.

    A file of torch.save keeps the order in which the modules were made, a safetensors file sorts them by name.
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


def _toy_config(shapes: Shapes) -> dict[str, Any]:
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
    modules = dict(zip(_TOY_ORDER, _toy_modules(Shapes(weights)) or ()))
    return lambda key: modules.get(key.rpartition(".")[0], "?") + "." + key.rpartition(".")[2]


TOY = Family(lambda weights: _toy_modules(Shapes(weights)) is not None, _toy_config, _toy_names)
