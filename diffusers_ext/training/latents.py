"""`--vae`: the autoencoder whose latents a run is trained on, and the data encoded by it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME

from ..data.base import TrainingData
from ..data.latents import LatentCache, LatentData, LatentOptions
from ..evaluation.metrics import peak_signal_to_noise_ratio
from ..files import one_line
from ..pipelines.latent_space import LatentSpace, number_at_once
from .autoencoding import reconstruct
from .pretrained import load_pretrained

logger = logging.getLogger(__name__)

CHECKED = 64  # images whose reconstructions are looked at
FAR = 1.5  # times more or less than the standard deviation of 1 that the noise is scaled for


def load_vae(name: str, token: str | None = None) -> Any:
    """The autoencoder in a folder or on the Hub, in evaluation mode, without gradients.

    Args:
        name: a folder that `save_pretrained` of an autoencoder wrote, or a repository of one.
        token: of the Hub.

    Raises:
        ValueError, FileNotFoundError: one sentence on a folder of another kind, or an autoencoder without a scale.
    """
    folder = Path(name)
    if folder.is_dir():
        _check_folder(folder)
    vae = load_pretrained("vae", name, **({} if folder.is_dir() else {"token": token}))
    LatentSpace(vae)
    return vae.requires_grad_(False).eval()


def _check_folder(folder: Path) -> None:
    if (folder / "model_index.json").is_file():
        parts = [name for name in ("vae", "vqvae") if (folder / name).is_dir()]
        inside = f"; give its autoencoder, '{folder / parts[0]}'" if parts else ", and it has no autoencoder"
        raise ValueError(f"vae '{folder}' is a pipeline{inside}.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"vae '{folder}' has no config.json, so it is not the folder of an autoencoder.")


def vae_hash(vae: Any) -> str:
    """A hash of the weights and the configuration, without the places that it was loaded from."""
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, config], sort_keys=True, default=str).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class LatentEncoder:
    """Encodes data with the autoencoder of a run, and warns of one that does not fit them.

    Args:
        name: as for `load_vae`.
        device: to encode on.
        folder: of the caches; that of the Hub's files when None.
        crops: versions of each training image that is prepared at random.
        mirror: whether training images are mirrored at random.
        max_memory_bytes: above which latents stay on disk.
        least_psnr: reconstructions that are worse are warned about, in decibels.
        token: of the Hub.
        warn: takes a warning.
    """

    def __init__(
        self,
        name: str,
        device: Any,
        folder: str | None = None,
        *,
        crops: int = 1,
        mirror: bool = False,
        max_memory_bytes: int = 2 * 1024**3,
        seed: int = 0,
        least_psnr: float = 0.0,
        token: str | None = None,
        warn: Callable[[str], None] = logger.warning,
    ):
        self.vae = load_vae(name, token).to(device)
        self._hash, self._name, self._least_psnr, self._warn = vae_hash(self.vae), name, least_psnr, warn
        place = Path(folder or HF_HOME) / "latents"
        self._options = LatentOptions(place, crops, mirror, max_memory_bytes, seed)

    def __call__(self, images: TrainingData, training: bool = True) -> LatentData:
        """The latents of images; those of held-out images are neither cropped at random nor mirrored.

        Raises:
            ValueError: for what are no images, for images of other channels than the autoencoder's or of a size that it
                does not divide, and for an autoencoder that can't encode them.
        """
        space = LatentSpace(self.vae)
        if len(images.size) != 2:
            raise ValueError(f"vae encodes images, and the data are not: {images.description}.")
        if space.image_channels != images.channels:
            raise ValueError(
                f"vae '{self._name}' takes images of {space.image_channels} channels, but the data have "
                f"{images.channels}; set --channels {space.image_channels}."
            )
        shape = (space.channels, *space.size_of(images.size))
        self._check_shape(space, images, shape)
        options = self._options
        if not training:
            options = LatentOptions(options.folder, max_memory_bytes=options.max_memory_bytes, seed=options.seed)
        cache = LatentCache(images, self._hash, options)
        arrays = cache.arrays(lambda batch: self._encode(space, batch), shape)
        data = LatentData(images, arrays, options, cache.key, (self.vae, Path(self._name).name))
        if training:
            self._check(data)
        return data

    def _check_shape(self, space: LatentSpace, images: TrainingData, shape: tuple[int, ...]) -> None:
        """Raise ValueError for an autoencoder of other data, such as videos, and for latents of an unexpected shape."""
        try:
            mean, _ = self._encode(space, images[0]["samples"][None])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(f"vae '{self._name}' can't encode these images: {one_line(error)[:300]}.") from error
        if mean.shape[1:] != shape:
            found, expected = ("x".join(map(str, each)) for each in (mean.shape[1:], shape))
            raise ValueError(f"vae '{self._name}' gives latents of {found}, and its config.json says {expected}.")

    @torch.no_grad()
    def _encode(self, space: LatentSpace, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts = images.split(number_at_once(images.shape[2:], len(images)))
        means, deviations = zip(*(space.encode(part.to(self.vae.device)) for part in parts))
        return torch.cat(means), None if deviations[0] is None else torch.cat(deviations)

    def _check(self, data: LatentData) -> None:
        spread = data.spread()
        if not 1 / FAR < spread < FAR:
            config = self.vae.config
            self._warn(
                f"The latents of vae '{self._name}' have a standard deviation of {spread:.3g} instead of 1, which the "
                f"noise is scaled for; set scaling_factor in its config.json to "
                f"{(config.get('scaling_factor') or 1.0) / max(spread, 1e-9):.4g}."
            )
        images = data.images.__getitems__([(index, 0) for index in range(min(CHECKED, len(data)))])["samples"]
        images = images.to(self.vae.device)
        psnr = peak_signal_to_noise_ratio(reconstruct(self.vae, images), images).mean().item()
        if psnr < self._least_psnr:
            self._warn(
                f"vae '{self._name}' reconstructs the training images with a PSNR of {psnr:.1f} dB, below "
                f"{self._least_psnr:g} (min_psnr); samples can't be sharper than its reconstructions."
            )


def pixels(data: Any) -> TrainingData:
    """The images behind latents; other data as they are."""
    return data.images if isinstance(data, LatentData) else data


def vae_of(data: Any) -> Any:
    """The autoencoder that encoded the data, or None."""
    return data.vae if isinstance(data, LatentData) else None
