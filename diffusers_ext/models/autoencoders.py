"""Small autoencoders for latent diffusion: diffusers' own classes, which load without this package.

The channels are few, so that a CPU can train them, and the groups of the normalisation fit them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny

from ..files import one_line


@dataclass(frozen=True)
class AutoencoderPreset:
    """An autoencoder's class and configuration.

    Args:
        model_class: of diffusers.
        config: for colour images.
        parameter_count: at this configuration.
        factor: pixels along one side for each entry of a latent.
    """

    model_class: Any
    config: Mapping[str, Any]
    parameter_count: int
    factor: int


def _kl(channels: tuple[int, ...], latent_channels: int) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "force_upcast": False,
        "sample_size": 64,
    }


def _tiny(channels: tuple[int, ...], latent_channels: int) -> dict[str, Any]:
    blocks = (1, *(2,) * (len(channels) - 1))
    return {
        "in_channels": 3,
        "out_channels": 3,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels[::-1],
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": blocks[::-1],
        "latent_channels": latent_channels,
    }


AUTOENCODERS: dict[str, AutoencoderPreset] = {
    "ae-2x": AutoencoderPreset(AutoencoderKL, _kl((32, 64), 4), 624_839, 2),
    "ae-4x": AutoencoderPreset(AutoencoderKL, _kl((16, 32, 64), 4), 648_375, 4),
    "ae-8x": AutoencoderPreset(AutoencoderKL, _kl((16, 32, 64, 64), 8), 951_739, 8),
    "ae-tiny-2x": AutoencoderPreset(AutoencoderTiny, _tiny((32, 32), 4), 188_999, 2),
    "ae-tiny-4x": AutoencoderPreset(AutoencoderTiny, _tiny((32, 32, 32), 4), 318_407, 4),
    "ae-tiny-8x": AutoencoderPreset(AutoencoderTiny, _tiny((32, 32, 32, 32), 8), 450_123, 8),
}


def build_autoencoder(name: str, channels: int = 3, **overrides: Any) -> Any:
    """The freshly initialised autoencoder of a preset.

    Args:
        name: in `AUTOENCODERS`.
        channels: of the images.
        overrides: in place of entries of its configuration.

    Raises ValueError for a name that is not in AUTOENCODERS, and for an override that its class can't take.
    """
    if name not in AUTOENCODERS:
        raise ValueError(f"There is no autoencoder preset {name!r}; choose one of {', '.join(AUTOENCODERS)}.")
    preset = AUTOENCODERS[name]
    known = preset.model_class._get_init_keys(preset.model_class)
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{preset.model_class.__name__} takes no {', '.join(unknown)}.")
    for entry, value in overrides.items():
        if type(preset.config.get(entry)) is int and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{entry} must be a whole number of at least 1, got {value!r}.")
    config = {**preset.config, "in_channels": channels, "out_channels": channels, **overrides}
    try:
        return preset.model_class(**config)
    except Exception as error:  # diffusers checks few of its options: any of them fails somewhere inside, by any error
        name, reason = preset.model_class.__name__, one_line(error)
        raise ValueError(f"{name} can't be built with these options: {reason}.") from error
