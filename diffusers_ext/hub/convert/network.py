"""Which network a file's weights belong to, and that network with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...files import one_line
from ...models import PRESETS
from .checkpoint import listed_names
from .layouts import SAME, Shapes, State
from .sources import FAMILIES, SOURCES


def detect_architecture(weights: State) -> str:
    """The key of `SOURCES` whose network has these weights.

    Raises:
        ValueError: if no family fits, or if several projects of a family do.
    """
    family = _family(weights)
    if family is None:
        raise ValueError(
            f"No known network has these weights: the file's keys are {listed_names(weights)}. Known networks "
            f"are those of {', '.join(SOURCES)}."
        )
    fitting = [name for name, source in SOURCES.items() if source.family == family]
    if len(fitting) > 1:
        shape = FAMILIES[family].config(Shapes(weights))
        same = ("base_channels", "channel_multipliers")
        exact = [name for name in fitting if all(PRESETS[name].config[key] == shape[key] for key in same)]
        if len(exact) != 1:
            raise ValueError(
                f"The weights fit {' and '.join(fitting)}, which compute different functions with them; choose one "
                "with architecture."
            )
        fitting = exact
    return fitting[0]


def checked(architecture: str, weights: State) -> str:
    """The architecture, if it is a key of `SOURCES` and the weights are not those of another family."""
    if architecture not in SOURCES:
        raise ValueError(f"architecture must be one of {', '.join(SOURCES)}, got '{architecture}'.")
    family = _family(weights)
    if family not in (None, SOURCES[architecture].family):
        fitting = [name for name, source in SOURCES.items() if source.family == family]
        raise ValueError(f"The weights are those of {' or '.join(fitting)}, and '{architecture}' was asked for.")
    return architecture


def _family(weights: State) -> str | None:
    return next((name for name, family in FAMILIES.items() if family.fits(weights)), None)


def build_from_weights(
    architecture: str, weights: State, options: Mapping[str, Any] | None = None, num_train_timesteps: int | None = None
) -> Any:
    """The model of one of `SOURCES` with these weights in float32; its size follows from their shapes.

    Args:
        architecture: a key of `SOURCES`.
        weights: the network's state dict, under its own names.
        options: entries of the configuration that override those found from the weights.
        num_train_timesteps: T, on which two of the networks depend.

    Raises:
        ValueError: one sentence that lists all unknown keys, missing keys and wrong shapes, or names a size that our
            class does not support.
    """
    preset, source = PRESETS[architecture], SOURCES[architecture]
    family = FAMILIES[source.family]
    config = {**preset.config, **source.model, **family.config(Shapes(weights))}
    if num_train_timesteps is not None and source.family == "guided":
        config["label_shift"] = float(num_train_timesteps + 100)
    if num_train_timesteps is not None and source.family == "simple":
        config["num_train_timesteps"] = num_train_timesteps
    try:
        with torch.device("meta"):
            model = preset.model_class(**{**config, **(options or {})})
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{preset.model_class.__name__} can't be built with {dict(options or {})}: {reason}."
        ) from None
    ours = translate(architecture, weights, model)
    model.load_state_dict(
        {key: value.float().clone(memory_format=torch.contiguous_format) for key, value in ours.items()}, assign=True
    )
    return model.eval()


def translate(architecture: str, weights: State, model: Any) -> State:
    """The state dict of `model` from weights under the names and in the layouts of their project; errors as above."""
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
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys)
        raise ValueError(f"The file does not fit the network of '{architecture}': {listed}.")
