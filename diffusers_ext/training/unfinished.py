"""Sampling from the checkpoint of a run: each holds a description of the pipeline around its weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
from safetensors.torch import load_file

from ..hub.registration import LIBRARY
from ..pipelines import GenerationPipeline
from .autoencoding import TrainableAutoencoder
from .checkpoint import STATE, CheckpointError, verify

_MODULES = ("models", "schedulers")
_PARTS = ("id2label", "condition", "conditions")
# Settings that say how a run samples, which samples of its checkpoints take up.
SAMPLING = ("condition", "guidance_scale", "sampler", "ddpm_num_inference_steps")


class PipelineDescription:
    """The configurations of a run's pipeline, as a part that a checkpoint keeps; a resumed run makes them anew.

    Args:
        pipeline_of: gives the pipeline around a network, without wrappers.
        network: that is trained.
        average: name of the checkpoint's part that is evaluated and saved in place of the raw weights, or None.
        sampling: the run's settings of the names in `SAMPLING`.
    """

    def __init__(
        self, pipeline_of: Callable[[Any], Any], network: Any, average: str | None, sampling: Mapping[str, Any]
    ):
        self._pipeline_of, self._network, self._average = pipeline_of, network, average
        self._sampling = sampling

    def state_dict(self) -> dict[str, Any]:
        """The configurations; empty for a pipeline that can't be built again from them."""
        if isinstance(self._network, TrainableAutoencoder):  # samples nothing, and its scale takes a pass over the data
            return {}
        pipeline = self._pipeline_of(self._network)
        alone = pipeline.unet is self._network and getattr(pipeline, "vae", None) is None
        if not alone or not hasattr(pipeline.unet, "to_json_string") or type(pipeline.unet).__module__ == "__main__":
            return {}
        return {
            "unet": _configuration(pipeline.unet),
            "scheduler": _configuration(pipeline.scheduler),
            "parts": {name: pipeline.config[name] for name in _PARTS if pipeline.config.get(name) is not None},
            "average": self._average,
            "sampling": dict(self._sampling),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is to be taken up."""

    def start_afresh(self) -> None:
        """A checkpoint without a description can be resumed all the same."""


def pipeline_of_checkpoint(folder: str | Path) -> GenerationPipeline:
    """The pipeline of a run as it was at a checkpoint: its averaged weights where the run keeps an average.

    Args:
        folder: `checkpoint-N` in the output folder of a run.

    Raises:
        CheckpointError: in one sentence, for a folder that is no checkpoint, is damaged or can't be sampled.
    """
    folder = Path(folder)
    verify(folder)
    values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    description = values.get("pipeline")
    if not description:
        raise CheckpointError(
            f"Checkpoint '{folder}' can't be sampled by itself: its network comes with a text encoder, an autoencoder "
            "or code of its own; sample the pipeline that the run saves."
        )
    network, weights = _built(description["unet"]), load_file(folder / "model.safetensors")
    if description["average"] is not None:
        weights |= load_file(folder / f"{description['average']}.safetensors")
    network.load_state_dict(weights)
    return GenerationPipeline(network.eval(), _built(description["scheduler"]), **description["parts"])


def sampling_of_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The settings of the names in `SAMPLING` that the run of a `checkpoint-N` has; none where they are not known."""
    try:
        return dict(json.loads(Path(folder, STATE).read_text(encoding="utf-8"))["pipeline"]["sampling"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _configuration(part: Any) -> Mapping[str, Any]:
    return json.loads(part.to_json_string())


def _built(configuration: Mapping[str, Any]) -> Any:
    """A network or scheduler of this package or of diffusers, from its configuration: no other code is run."""
    name = configuration["_class_name"]
    for module in _MODULES:
        found = getattr(importlib.import_module(f"{LIBRARY}.{module}"), name, None)
        if found is not None:
            return found.from_config(dict(configuration))
    found = getattr(diffusers, name, None)
    if found is None or not hasattr(found, "from_config"):
        raise CheckpointError(
            f"'{name}' is no class of this package or of diffusers, so the checkpoint can't be sampled."
        )
    return found.from_config(dict(configuration))
