"""The latents of an autoencoder as a diffusion model sees them: shifted to mean 0 and scaled to variance 1.

Shift and scale stand here alone. The encoder's side is used when a model is trained, the decoder's when it samples; the
autoencoder itself applies neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

# Encoding and decoding take far more memory than sampling, the more the larger the images.
DECODED_AT_ONCE = 16  # images at most
PIXELS_AT_ONCE = 512 * 512


class LatentSpace:
    """An autoencoder of diffusers with the shift and the scale of its configuration.

    A model sees z = (latent - shift) * scale. `latents_mean` and `latents_std`, one number for each channel, or else
    `shift_factor` are the shift, and the scale is `scaling_factor / latents_std`, each 1 or 0 where it is missing.

    Args:
        vae: whose `encode` gives an object with `.latent_dist` (a Gaussian), `.latents` or `.latent`, and whose
            `decode` gives one with `.sample`.

    Attributes:
        channels: of a latent.
        image_channels: of an image.
        factor: pixels of an image along one side for each entry of a latent.

    Raises:
        ValueError: for a network that is no such autoencoder, or that has no scale.
    """

    def __init__(self, vae: Any):
        config = getattr(vae, "config", None)
        if config is None or not (hasattr(vae, "encode") and hasattr(vae, "decode")):
            raise ValueError(f"vae must be an autoencoder of diffusers, got {type(vae).__name__}.")
        if config.get("scaling_factor") is None and config.get("latents_std") is None:
            raise ValueError(
                f"The configuration of the vae ({type(vae).__name__}) has neither scaling_factor nor latents_std; set "
                "scaling_factor to 1 / the standard deviation of its latents."
            )
        channels = config.get("vq_embed_dim") or config.get("latent_channels")
        if not channels:
            raise ValueError(f"vae is of a class that can't be used here: {type(vae).__name__} has no latent_channels.")
        self.vae = vae
        self.channels = int(channels)
        self.image_channels = int(config.get("in_channels") or 3)
        self.factor = down_sampling(config)

    def _shift_and_scale(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.vae.config
        shift, std = config.get("latents_mean"), config.get("latents_std")
        if shift is None:
            shift = config.get("shift_factor") or 0.0
        scale = config.get("scaling_factor")
        return _column(shift, like), (1.0 if scale is None else scale) / _column(1.0 if std is None else std, like)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(mean, standard deviation) of the normalised latents of images (batch, channels, height, width) in [-1, 1].

        The deviation is None for an encoder that is not random. In float32.
        """
        mean, std = encoded(self.vae, images.to(self.vae.dtype))
        shift, scale = self._shift_and_scale(mean)
        return (mean - shift) * scale, None if std is None else std * scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, at_once: int | None = None) -> torch.Tensor:
        """Images (batch, channels, height, width) in [-1, 1], float32, of normalised latents.

        They are decoded `at_once` at a time; when None, at most `DECODED_AT_ONCE`, and fewer large ones.
        """
        return self.decode_with_gradients(latents, at_once)

    def decode_with_gradients(self, latents: torch.Tensor, at_once: int | None = None) -> torch.Tensor:
        """The same, where gradients pass."""
        if at_once is None:
            at_once = number_at_once([side * self.factor for side in latents.shape[2:]], DECODED_AT_ONCE)
        shift, scale = self._shift_and_scale(latents)
        parts = (latents / scale + shift).to(self.vae.dtype).split(at_once)
        return torch.cat([self.vae.decode(part).sample.float() for part in parts])

    def size_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the latents of images of `size`. Raises ValueError for images that they don't divide."""
        for name, length in zip(("height", "width"), size):
            if length % self.factor:
                below = length - length % self.factor
                near = f"{below} or {below + self.factor}" if below else f"{self.factor}"
                raise ValueError(
                    f"{name} must be divisible by {self.factor}, the down-sampling of the vae, got {length}; use "
                    f"{near}."
                )
        return tuple(length // self.factor for length in size)


def number_at_once(size: Iterable[int], most: int) -> int:
    """How many images of a size to encode or decode at a time: at most `most`, and `PIXELS_AT_ONCE`, but one."""
    return max(1, min(most, PIXELS_AT_ONCE // math.prod(size)))


def encoded(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(mean, standard deviation or None) of an autoencoder's own latents of images, in float32."""
    output = vae.encode(images)
    if hasattr(output, "latent_dist"):
        return output.latent_dist.mean.float(), output.latent_dist.std.float()
    for name in ("latents", "latent"):
        if hasattr(output, name):
            return getattr(output, name).float(), None
    raise ValueError(f"The encode of {type(vae).__name__} gives neither latent_dist nor latents nor latent.")


def _column(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A number, or one for each channel, that broadcasts over latents."""
    return torch.as_tensor(value, dtype=torch.float32, device=like.device).reshape(-1, 1, 1)


def down_sampling(config: Mapping[str, Any]) -> int:
    """Pixels along one side for each entry of a latent, from the configuration of an autoencoder."""
    for name in ("spatial_compression_ratio", "scale_factor_spatial"):
        if isinstance(config.get(name), int):
            return int(config[name])
    names = ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels")
    levels = next((config[name] for name in names if config.get(name)), None)
    if levels is None:
        raise ValueError(f"The down-sampling of {config.get('_class_name')} is not in its configuration.")
    return int(2 ** (len(levels) - 1))
