"""The network of a run: the user's, one by name or configuration, or an autoencoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from diffusers.models.modeling_utils import ModelMixin

from ...conditions import CONDITIONS
from ...data.base import TrainingData
from ...data.transforms import size_text
from ...files import one_line
from ...models import PRESETS, build_model
from ...models.autoencoders import AUTOENCODERS, build_autoencoder
from ...objectives.registry import OBJECTIVES, declared
from ...pipelines.latent_space import LatentSpace
from ...schedulers.named_objects import is_name_of_object, load_object
from ..arguments import LEARNED_RANGE, MODELS, TrainingArguments, json_option, read_config
from ..autoencoding import TrainableAutoencoder
from ..conditioning import Conditioning
from ..latents import vae_of
from ..weights import uncompiled
from .start import network_started_from

DEFAULT_AUTOENCODER = "ae-4x"

# The network of diffusers' unconditional example.
_UNET2D_CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
# Entries of a configuration that say what a network is conditioned on.
_CONDITIONED_ON = {entry: c.noun for c in CONDITIONS.values() for entry in c.network_entries}
_CONDITIONED_ON |= {entry: "a second time" for name in OBJECTIVES for entry in declared(name, "network_entries")}
_CONDITIONED_ON |= {entry: "guidance" for name in OBJECTIVES for entry in declared(name, "conditional_entries")}


def make_network(args: TrainingArguments, model: Any, data: TrainingData, conditioning: Conditioning) -> Any:
    """The network to train, of the user or by the settings.

    Args:
        model: the user's, or None.
        data: whose samples it takes.
        conditioning: whose entries its configuration needs.

    Raises:
        ValueError, FileNotFoundError: one sentence on a name, file or option that does not fit.
    """
    if args.task == "autoencoder":
        model = _make_autoencoder(args, data) if model is None else model
        _switch_on(args, model)
        return TrainableAutoencoder(model)
    if model is None:
        network = _make_model(args, data, model_entries(args, conditioning))
    elif isinstance(model, torch.nn.Module):
        network = uncompiled(model)
    else:
        of_class = f"the class {model.__name__}; give an instance" if isinstance(model, type) else type(model).__name__
        raise ValueError(f"model must be a torch module, got {of_class}.")
    if model is not None or is_name_of_object(args.model):
        _check_call(network, conditioning)
    _check_size(network, data)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"The network {type(network).__name__} has no parameter to train.")
    _switch_on(args, network)
    return network


def model_entries(args: TrainingArguments, conditioning: Conditioning) -> dict[str, Any]:
    """Entries of the network's configuration that its condition and the objective need."""
    entries = {**conditioning.model_entries, **declared(args.objective, "network_entries")}
    if conditioning.condition is not None:
        settings = declared(args.objective, "conditional_entries")
        given = {entry: getattr(args, setting) for entry, setting in settings.items()}
        entries |= {entry: value for entry, value in given.items() if value is not None}
    return entries


def sample_size(data: TrainingData) -> Any:
    """`sample_size` of a configuration: one length when all are equal, else a list."""
    return data.size[0] if len(set(data.size)) == 1 else list(data.size)


def output_channels(args: TrainingArguments, channels: int) -> int:
    """Channels of the network's output for samples of `channels`: twice as many for a learned variance."""
    return 2 * channels if args.variance_type == LEARNED_RANGE else channels


def _switch_on(args: TrainingArguments, network: Any) -> None:
    """What the network can do by itself, where the settings ask for it."""
    for wanted, method in (
        (args.gradient_checkpointing, "enable_gradient_checkpointing"),
        (args.enable_xformers_memory_efficient_attention, "enable_xformers_memory_efficient_attention"),
    ):
        if wanted and not hasattr(network, method):
            raise ValueError(f"{type(network).__name__} has no {method}; leave the setting out.")
        if wanted:
            getattr(network, method)()


def _check_call(network: torch.nn.Module, conditioning: Conditioning) -> None:
    """Raise ValueError for a network of the user's that can't be called with a timestep and the run's condition."""
    condition = conditioning.condition
    argument = {} if condition is None or not condition.network_argument else {condition.network_argument: None}
    try:
        inspect.signature(network.forward).bind_partial(None, None, **argument)
    except TypeError:
        wanted = ", ".join(["sample", "timestep", *(f"{name}=..." for name in argument)])
        raise ValueError(
            f"The forward of {type(network).__name__} must take ({wanted}), got {inspect.signature(network.forward)}."
        ) from None


def _check_size(network: Any, data: TrainingData) -> None:
    """Raise ValueError for samples of a size that the network does not divide."""
    factor = getattr(network, "downsample_factor", 1)
    if isinstance(factor, int) and any(length % factor for length in data.size):
        remedy = "an autoencoder that scales down less, " if vae_of(data) is not None else ""
        raise ValueError(
            f"{type(network).__name__} needs sizes that are multiples of {factor}, and the samples are "
            f"{size_text(data.size)}; take another resolution, {remedy}or fewer levels or a smaller patch_size of the "
            "network."
        )


# --- by the settings --------------------------------------------------------------------------------------------------


def _make_model(args: TrainingArguments, data: TrainingData, entries: Mapping[str, Any]) -> Any:
    """The freshly initialised network; `entries` of its configuration are what condition and objective need."""
    torch.manual_seed(args.seed)
    channels, outputs = data.channels, output_channels(args, data.channels)
    size = sample_size(data)
    options = _combined(entries, json_option("model_options", args.model_options))
    shape = {"in_channels": channels, "out_channels": outputs, "sample_size": size}
    if args.init_from is not None:
        model = network_started_from(args.init_from, {"sample_size": size, **options}, args.prediction_type)
    elif args.model_config_name_or_path is not None:
        config = UNet2DModel.load_config(args.model_config_name_or_path)
        model = _from_config({"_class_name": "UNet2DModel", **config}, {"sample_size": size, **options})
    elif is_name_of_object(args.model):
        return _own_model(args.model, shape, entries, options)
    elif args.model == "unet2d":
        model = _from_config({**_UNET2D_CONFIG, **shape}, options)
    elif args.model in PRESETS:
        defaults = declared(args.objective, "network_defaults")
        model = _from_preset(args.model, len(data.size), shape, entries, {**defaults, **options})
    else:
        model = _from_config(read_config(args.model, MODELS), {"sample_size": size, **options})
    _check_shape(model, channels, outputs, size)
    return model


def _from_preset(
    name: str, dims: int, shape: Mapping[str, Any], entries: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    preset = PRESETS[name]
    if preset.dims != dims:
        kinds = {1: "signals", 2: "images"}
        able = [other for other, p in PRESETS.items() if p.dims == dims]
        raise ValueError(
            f"model {name} is for {kinds[preset.dims]}, and the data are "
            f"{kinds.get(dims, f'samples of {dims} sizes')}; choose {', '.join(able) or 'a network of your own'}."
        )
    _check_takes(preset.model_class, entries)
    known = inspect.signature(preset.model_class).parameters
    fitting = {key: value for key, value in shape.items() if key in known}
    return _checked(lambda: build_model(name, **{**fitting, **options}))


def _own_model(
    name: str, shape: Mapping[str, Any], entries: Mapping[str, Any], options: Mapping[str, Any]
) -> torch.nn.Module:
    """A network of the user's own class, with the arguments of its constructor that the run knows and the options."""
    model_class = load_object(name, "model")
    if not (isinstance(model_class, type) and issubclass(model_class, torch.nn.Module)):
        raise ValueError(f"model '{name}' must name a class that derives from torch.nn.Module.")
    parameters = inspect.signature(model_class).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all:
        _check_known(model_class.__name__, set(options) - set(entries), parameters)
    known = {key: value for key, value in shape.items() if key in parameters}
    known |= {key: value for key, value in options.items() if takes_all or key in parameters}
    model: torch.nn.Module = _checked(lambda: model_class(**known))
    return model


def _from_config(config: Any, options: dict[str, Any]) -> Any:
    name = config.get("_class_name") if isinstance(config, dict) else None
    model_class: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
        raise ValueError(f"A model configuration needs the _class_name of a model of diffusers, got {name!r}.")
    _check_takes(model_class, options)
    if model_class.__module__.startswith("diffusers.") and options.get("num_class_embeds") is not None:
        options = {**options, "num_class_embeds": options["num_class_embeds"] + 1}  # diffusers counts the null class
    _check_known(str(name), options, inspect.signature(model_class).parameters)
    from_config: Any = model_class.from_config  # type: ignore[attr-defined]
    return _checked(lambda: from_config({**config, **options}))


def _make_autoencoder(args: TrainingArguments, data: TrainingData) -> Any:
    """A freshly initialised autoencoder: a preset, or by the configuration of one of diffusers."""
    if len(data.size) != 2:
        raise ValueError(f"An autoencoder is trained on images, and the data are not: {data.description}.")
    torch.manual_seed(args.seed)
    name = args.model if "model" in args.given else DEFAULT_AUTOENCODER
    options = json_option("model_options", args.model_options)
    if name in AUTOENCODERS:
        vae = _checked(lambda: build_autoencoder(name, data.channels, **options))
    else:
        vae = _from_config(read_config(name, tuple(AUTOENCODERS)), options)
    if vae.config.get("scaling_factor") is None:  # the run computes it
        vae.register_to_config(scaling_factor=1.0)
    space = LatentSpace(vae)
    if space.image_channels != data.channels:
        raise ValueError(
            f"The autoencoder takes {space.image_channels} channels, but the images have {data.channels}; set "
            "--channels."
        )
    outputs = vae.config.get("out_channels") or data.channels
    if outputs != data.channels:
        raise ValueError(f"The autoencoder gives {outputs} channels, but the images have {data.channels}.")
    space.size_of(data.size)
    return vae


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_takes(model_class: type, entries: Mapping[str, Any]) -> None:
    """Raise ValueError for a class that can't be conditioned on what the `entries` say."""
    known = inspect.signature(model_class).parameters
    for name in entries:
        if name in _CONDITIONED_ON and name not in known:
            able = sorted(
                p for p, preset in PRESETS.items() if name in inspect.signature(preset.model_class).parameters
            )
            raise ValueError(
                f"{model_class.__name__} can't be conditioned on {_CONDITIONED_ON[name]}; choose a model that can: "
                f"{', '.join(able)}."
            )


def _check_known(class_name: str, options: Any, known: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{class_name} takes no {', '.join(unknown)} in model_options.")


def _combined(entries: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Both together. Raises ValueError for an option that contradicts what the condition or the objective needs."""
    for name, value in entries.items():
        if options.get(name, value) != value:
            raise ValueError(f"model_options sets {name} to {options[name]}, but this run needs {value}; leave it out.")
    return {**entries, **options}


def _checked(make: Callable[[], Any]) -> Any:
    """What `make` builds; a configuration that a class can't digest is one sentence."""
    try:
        return make()
    except (TypeError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"The model's configuration can't be built: {one_line(error)}") from error


def _check_shape(model: Any, channels: int, outputs: int, size: Any) -> None:
    config = model.config
    if "in_channels" not in config or "sample_size" not in config:
        raise ValueError(f"{type(model).__name__} is not a U-Net that this script can train.")
    if config.in_channels != channels:
        raise ValueError(f"The model takes {config.in_channels} channels, but the images have {channels}.")
    if config.get("out_channels", channels) != outputs:
        raise ValueError(
            f"The model's output has {config.get('out_channels', channels)} channels, but must have {outputs} for "
            f"images of {channels}; a learned variance (variance_type {LEARNED_RANGE}) takes twice as many."
        )
    if isinstance(model, UNet2DModel):
        halvings = len(config.block_out_channels) - 1
        if any(length % 2**halvings for length in ([size] if isinstance(size, int) else size)):
            raise ValueError(
                f"This UNet2DModel halves the image {halvings} times and needs a resolution divisible by "
                f"{2**halvings}, got {size}; choose another resolution, or fewer levels."
            )
