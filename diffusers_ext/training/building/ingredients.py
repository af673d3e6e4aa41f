"""What a run trains, and on what: data, condition, network, objective, and the pipeline around the network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin

from ...conditions import Condition
from ...data.base import TrainingData
from ...data.signals import is_bounded
from ..arguments import TrainingArguments
from ..autoencoding import TrainableAutoencoder, set_scale
from ..conditioning import Conditioning
from ..latents import vae_of
from ..plain import PlainNetwork
from ..run import Ingredients
from .condition import make_condition, make_conditioning
from .data import load_data
from .network import make_network, model_entries, output_channels, sample_size
from .objective import make_objective
from .scheduler import check_sampling, make_scheduler


def make_ingredients(
    args: TrainingArguments,
    accelerator: Accelerator,
    model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    objective: Any = None,
    condition: Condition | None = None,
) -> Ingredients:
    """Data first; then what depends on them, in turn: condition, network, objective.

    Raises:
        ValueError, FileNotFoundError: one sentence on a setting that can't be.
    """
    condition = make_condition(args, condition)
    data, held_out = load_data(args, accelerator, train_dataset, eval_dataset, condition)
    conditioning = make_conditioning(args, condition, data, held_out)
    unet = make_network(args, model, data, conditioning)
    names = {"model": _class_name(unet), "objective": args.objective if objective is None else _class_name(objective)}
    if objective is None:
        objective = make_objective(args, unet)
    _check_objective(objective)
    network = conditioning.wrap(unet)
    pipeline_of = partial(_pipeline_of, args, conditioning, data)
    if args.task != "autoencoder":  # fails now rather than after the training
        check_sampling(args, pipeline_of(network).scheduler, output_channels(args, 1))
    return Ingredients(data, held_out, conditioning, network, objective, pipeline_of, names)


def _pipeline_of(args: TrainingArguments, conditioning: Conditioning, data: TrainingData, network: Any) -> Any:
    """A pipeline around what is trained; an autoencoder itself, with the scale of its latents."""
    if isinstance(network, TrainableAutoencoder):
        set_scale(network.vae, data)
        return network.vae
    unet, vae, entries = conditioning.unet(network), vae_of(data), model_entries(args, conditioning)
    scheduler = make_scheduler(args, unet, is_bounded(data))
    if not isinstance(unet, ModelMixin):
        return conditioning.pipeline(PlainNetwork(unet, data.channels, data.size, **entries), scheduler, vae)
    missing = {"in_channels": data.channels, "sample_size": sample_size(data), **entries}
    missing = {name: value for name, value in missing.items() if getattr(unet.config, name, None) is None}
    if missing:  # a network of the user's; kept in its configuration, and so in the saved pipeline
        unet.register_to_config(**missing)
    return conditioning.pipeline(network, scheduler, vae)


def _check_objective(objective: Any) -> None:
    """Raise ValueError for an object that can't be called, and for weights that no optimizer would see."""
    if isinstance(objective, type) or not callable(objective):
        name = objective.__name__ if isinstance(objective, type) else type(objective).__name__
        raise ValueError(f"objective must be a function or an object that is called as one, got the class {name}.")
    if isinstance(objective, torch.nn.Module) and any(p.requires_grad for p in objective.parameters()):
        raise ValueError(
            f"The objective {type(objective).__name__} has weights of its own, and only those of the network are "
            "trained; make them a part of the network, or freeze them with requires_grad_(False)."
        )


def _class_name(thing: Any) -> str:
    """The name of an object's class, or of a function."""
    return getattr(thing, "__qualname__", type(thing).__qualname__)
