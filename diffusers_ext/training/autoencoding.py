"""What is trained with `--task autoencoder`, the scale of its latents, and how good its reconstructions are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..data.base import TrainingData
from ..data.randomness import permutation
from ..evaluation.features import compare_sets, extract
from ..evaluation.metrics import peak_signal_to_noise_ratio, structural_similarity
from ..pipelines.latent_space import encoded, number_at_once

BATCH_SIZE = 32  # images at most that are reconstructed at a time
SCALED_ON = 10_000  # images at most, spread over the training data, whose latents the scale is computed from


@dataclass
class Reconstruction:
    """What a `TrainableAutoencoder` gives.

    Attributes:
        sample: shaped as the images.
        kl: divergence of each image's latents from a standard normal distribution, (batch,), or None.
        codebook: loss of the codebook of a `VQModel`, the mean over the batch, or None.
    """

    sample: torch.Tensor
    kl: torch.Tensor | None = None
    codebook: torch.Tensor | None = None


class TrainableAutoencoder(torch.nn.Module):
    """An autoencoder as one module with a forward pass from images to reconstructions, which training can wrap.

    Args:
        vae: of diffusers, as `LatentSpace` takes it.
    """

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, draw: Callable[[torch.Size], torch.Tensor] | None = None) -> Reconstruction:
        """Reconstructions of images (batch, channels, height, width) in [-1, 1].

        Args:
            images: of the size that the autoencoder divides.
            draw: gives standard normal noise of a shape, for latents that are random; None takes their means.
        """
        vae: Any = self.vae
        output = vae.encode(images)
        if not hasattr(output, "latent_dist"):
            latents = output.latents if hasattr(output, "latents") else output.latent
            decoded = vae.decode(latents)
            return Reconstruction(decoded.sample, codebook=getattr(decoded, "commit_loss", None))
        distribution = output.latent_dist
        latents = distribution.mean
        if draw is not None:
            latents = latents + distribution.std * draw(latents.shape)
        return Reconstruction(vae.decode(latents).sample, distribution.kl())


# --- scale ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def latent_moments(vae: Any, data: TrainingData, most: int = SCALED_ON) -> tuple[float, float]:
    """(mean, standard deviation) of the latents of at most `most` images, spread over the data."""
    total, count = torch.zeros(2, dtype=torch.float64), 0
    for images in images_of(data, most, vae.device):
        mean, std = encoded(vae, images.to(vae.dtype))
        square = mean.double().square() + (0 if std is None else std.double().square())
        total += torch.stack([mean.double().mean(), square.mean()]).cpu() * len(images)
        count += len(images)
    mean_of_all, square_of_all = (total / count).tolist()
    return mean_of_all, max(square_of_all - mean_of_all**2, 0.0) ** 0.5


def set_scale(vae: Any, data: TrainingData) -> None:
    """Write `scaling_factor` = 1 / std and `shift_factor` = mean of the training latents into the configuration."""
    vae.eval()
    mean, std = latent_moments(vae, data)
    replaced = {name: None for name in ("latents_mean", "latents_std") if vae.config.get(name) is not None}
    vae.register_to_config(scaling_factor=1 / max(std, 1e-6), shift_factor=mean, **replaced)


def images_of(data: TrainingData, most: int, device: Any) -> Iterator[torch.Tensor]:
    """Batches of at most `most` images, spread over the data and always the same ones."""
    chosen, batch_size = permutation(0, 0, len(data))[:most], number_at_once(data.size, BATCH_SIZE)
    for start in range(0, len(chosen), batch_size):
        keys = [(int(index), 0) for index in chosen[start : start + batch_size]]
        yield data.__getitems__(keys)["samples"].to(device)


# --- measures -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Reconstructions in [-1, 1] of images on the autoencoder's device, from the means of their latents."""
    parts = images.to(vae.dtype).split(number_at_once(images.shape[2:], BATCH_SIZE))
    means = (encoded(vae, part)[0].to(vae.dtype) for part in parts)
    return torch.cat([vae.decode(mean).sample.float().clamp(-1, 1) for mean in means])


@torch.no_grad()
def measure_reconstructions(
    vae: Any, data: TrainingData, most: int, features: torch.nn.Module | None = None
) -> dict[str, float]:
    """PSNR and SSIM of reconstructions, and distances of features where a network for them is given.

    Args:
        vae: in evaluation mode.
        data: held-out images.
        most: images that are measured, at most half of the data when features are compared.
        features: network whose features are compared. Real images against other real images are measured beside the
            reconstructions, as `frechet_distance_real`.
    """
    size = min(most, len(data) // 2 if features is not None else len(data))
    real = torch.cat([images.cpu() for images in images_of(data, 2 * size if features is not None else size, "cpu")])
    parts = [reconstruct(vae, part.to(vae.device)).cpu() for part in real[:size].split(BATCH_SIZE)]
    fake = torch.cat(parts)
    measures = {
        "reconstruction_samples": float(size),
        "reconstruction_psnr": peak_signal_to_noise_ratio(fake, real[:size]).mean().item(),
        "reconstruction_ssim": structural_similarity(fake, real[:size]).mean().item(),
    }
    if features is None:
        return measures
    sets = {"": fake, "_real": real[size:]}
    own = extract(real[:size].split(BATCH_SIZE), features)
    for suffix, images in sets.items():
        found = compare_sets(extract(images.split(BATCH_SIZE), features), own)
        measures[f"reconstruction_frechet_distance{suffix}"] = found["frechet_distance"]
    return measures
