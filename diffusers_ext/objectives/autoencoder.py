"""The loss of an autoencoder: how far reconstructions are from the images, and how far latents are from a Gaussian."""

from __future__ import annotations

from typing import Any

import torch

from .diffusion import LOSSES
from .network import ConditionedNetwork
from .randomness import randn_shared


class AutoencoderObjective:
    """The mean error of a pixel, and `kl_weight` times the KL divergence of the latents divided by the pixels' number.

    This is the loss of Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G, without its perceptual part,
    divided by the number of pixel values of an image; 1e-6 there is 1e-6 here. The codebook of a `VQModel` has a loss
    of its own (van den Oord et al. 2017, arXiv:1711.00937, eq. 3). `AdversarialAutoencoderObjective` adds the
    adversarial part.

    Args:
        loss: one of `LOSSES`.
        kl_weight: of the divergence from a standard normal distribution; has no effect on an encoder that is not
            random.
    """

    def __init__(self, loss: str = "l1", kl_weight: float = 1e-6):
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be at least 0, got {kl_weight:g}.")
        self._loss, self.kl_weight = LOSSES[loss], kl_weight

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Loss of every image, shape (batch,), float32."""
        images = batch["samples"]
        return self.losses(images, self.reconstruct(net, images, generator))

    def reconstruct(self, net: ConditionedNetwork, images: torch.Tensor, generator: torch.Generator) -> Any:
        """What `net.module(images, draw)` gives, where `draw(shape)` gives the noise of the latents.

        It must be an object with `.sample`, the reconstructions, and `.kl` (batch,) or None. It may have `.codebook`,
        a loss that is added as it is.
        """
        return net.module(images, lambda shape: randn_shared(tuple(shape), generator, images.device))

    def losses(self, images: torch.Tensor, output: Any) -> torch.Tensor:
        """Loss of every image, shape (batch,), float32, from what `reconstruct` gave."""
        losses = self._loss(output.sample.float(), images, reduction="none").flatten(1).mean(1)
        if output.kl is not None and self.kl_weight:
            losses = losses + self.kl_weight / images[0].numel() * output.kl.float()
        codebook = getattr(output, "codebook", None)
        return losses if codebook is None else losses + codebook.float()
