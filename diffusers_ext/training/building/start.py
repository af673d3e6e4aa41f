"""`--init_from`: a network that starts with the architecture and the weights of a trained one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...files import one_line
from ..pretrained import load_pretrained

logger = logging.getLogger(__name__)


def network_started_from(name: str, entries: Mapping[str, Any], prediction_type: str) -> Any:
    """A network like the one of a saved pipeline, with its weights, and with other entries in its configuration.

    An input that the trained network lacks starts without an effect where its last layer starts at zero, as a second
    time, a scale of guidance and classes do.

    Args:
        name: the folder of a run or of a network, or a pipeline's name on the Hub.
        entries: of the configuration.
        prediction_type: of the run. A warning says so if the saved pipeline's network predicts something else.

    Raises:
        ValueError, FileNotFoundError: one sentence on a network that can't be loaded, or weights that don't fit.
    """
    source = _loaded(name)
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    try:
        network: Any = type(source).from_config({**config, **entries})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"init_from '{name}': its network can't be built for this run: {one_line(error)}") from error
    own, weights = network.state_dict(), source.state_dict()
    left = sorted(weights.keys() - own.keys())
    if left:
        raise ValueError(f"init_from '{name}': its network takes what this run has not; '{left[0]}' is left over.")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            had, needed = tuple(value.shape), tuple(own[key].shape)
            raise ValueError(f"init_from '{name}': '{key}' has shape {had}, but this run needs {needed}.")
    network.load_state_dict(weights, strict=False)
    if "class_embedding.weight" in own.keys() - weights.keys():
        torch.nn.init.zeros_(network.class_embedding.weight)
    saved = _saved_prediction_type(Path(name))
    if saved not in (None, prediction_type):
        logger.warning(f"init_from '{name}' predicts {saved}, and this run trains {prediction_type}.")
    return network


def _saved_prediction_type(folder: Path) -> Any:
    """The prediction type of a pipeline's folder; None where it is not known."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return config.get("prediction_type") if isinstance(config, dict) else None


def _loaded(name: str) -> Any:
    folder = Path(name)
    inside = {} if (folder / "config.json").is_file() else {"subfolder": "unet"}
    if folder.is_dir() and not (folder / inside.get("subfolder", "") / "config.json").is_file():
        raise FileNotFoundError(
            f"init_from '{name}' has no network: neither config.json nor unet/config.json is there."
        )
    return load_pretrained("init_from", name, **inside)
