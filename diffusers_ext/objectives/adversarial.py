"""An adversarial loss for autoencoders: a small network that tells patches of images from those of reconstructions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

from .autoencoder import AutoencoderObjective
from .network import ConditionedNetwork
from .randomness import BatchGenerator, seed_of

LEARNING_RATE = 4e-4
LARGEST_SCALE = 1e4


class PatchDiscriminator(nn.Module):
    """One logit for each patch of an image, high for real ones (Isola et al. 2017, arXiv:1611.07004, section 3.2).

    Args:
        channels: of the images.
        width: channels after the first of its four convolutions. A logit sees 22x22 pixels, and there is one for each
            4x4 of them.
    """

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 1, height / 4, width / 4) of images (batch, channels, height, width)."""
        logits: torch.Tensor = self.layers(images)
        return logits


class AdversarialAutoencoderObjective(AutoencoderObjective):
    """`AutoencoderObjective` plus an adversarial loss of patches, which makes reconstructions sharp.

    Between two steps of the autoencoder the discriminator learns by the hinge loss, with Adam. An image's adversarial
    loss is scaled so that its gradient at the reconstruction has `adversarial_weight` times the norm of the
    reconstruction error's, as Esser et al. 2021 (arXiv:2012.09841, eq. 7) do with gradients at the last layer. The
    discriminator is a part of checkpoints, and isn't saved with the autoencoder.

    Args:
        loss, kl_weight: as for `AutoencoderObjective`.
        adversarial_weight: above 0.
        adversarial_start: training batches before the discriminator begins.
        channels: of the images.
        seed: of the discriminator's weights.
    """

    def __init__(
        self,
        loss: str = "l1",
        kl_weight: float = 1e-6,
        adversarial_weight: float = 0.5,
        adversarial_start: int = 500,
        channels: int = 3,
        seed: int = 0,
    ):
        super().__init__(loss, kl_weight)
        if not adversarial_weight > 0:
            raise ValueError(f"adversarial_weight must be above 0, got {adversarial_weight:g}.")
        self.adversarial_weight, self.adversarial_start, self._batches = adversarial_weight, adversarial_start, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "discriminator"))
            self.discriminator = PatchDiscriminator(channels)
        self._optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.9))

    def __call__(
        self, net: ConditionedNetwork, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        """Loss of every image, shape (batch,), float32; without the adversarial part in evaluation mode."""
        images = batch["samples"]
        output = self.reconstruct(net, images, generator)
        output.sample = output.sample.float()  # its gradient would be too small for half precision
        losses = self.losses(images, output)
        if not (net.training and torch.is_grad_enabled()):
            return losses
        self._batches += 1
        if self._batches <= self.adversarial_start:
            return losses
        self._move(images.device)
        self._learn(images, output.sample.detach(), shared=isinstance(generator, BatchGenerator))
        return losses + self._adversarial(losses, output.sample)

    def _adversarial(self, losses: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Scaled adversarial losses (batch,); their gradients reach the reconstructions and not the discriminator."""
        (of_error,) = torch.autograd.grad(losses.sum(), reconstructions, retain_graph=True)
        seen = reconstructions.detach().float().requires_grad_()
        # A copy: the counter of operations can't follow a module whose input is a leaf.
        adversarial = -self.discriminator(seen.clone()).flatten(1).mean(1)
        (gradient,) = torch.autograd.grad(adversarial.sum(), seen)
        norms = [term.float().flatten(1).norm(dim=1) for term in (of_error, gradient)]
        scale = self.adversarial_weight * (norms[0] / norms[1].clamp_min(1e-12)).clamp_max(LARGEST_SCALE)
        linear = scale * (gradient * reconstructions).flatten(1).sum(1)  # has the gradient of scale * adversarial
        return linear + (scale * adversarial - linear).detach()

    def _learn(self, real: torch.Tensor, fake: torch.Tensor, shared: bool) -> None:
        """One step of the discriminator, on the batches of all processes if they are `shared`."""
        logits_real, logits_fake = self.discriminator(real), self.discriminator(fake)
        loss = (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()) / 2
        self._optimizer.zero_grad()
        loss.backward()
        if shared and torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in (parameter.grad for parameter in self.discriminator.parameters()):
                if gradient is not None:
                    torch.distributed.all_reduce(gradient)
                    gradient /= torch.distributed.get_world_size()
        self._optimizer.step()

    def _move(self, device: torch.device) -> None:
        if next(self.discriminator.parameters()).device != device:
            self.discriminator.to(device)
            self._optimizer.load_state_dict(self._optimizer.state_dict())  # moves what Adam remembers, too

    def state_dict(self) -> dict[str, Any]:
        """The discriminator's weights, what Adam remembers, and the batches so far."""
        weights = {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        remembered = self._optimizer.state_dict()["state"]
        adam = {f"adam.{i}.{key}": value for i, entries in remembered.items() for key, value in entries.items()}
        return {"batches": self._batches, **weights, **adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._batches = int(state["batches"])
        prefix = "discriminator."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self.discriminator.load_state_dict(weights)
        remembered: dict[int, dict[str, Any]] = {}
        for name, value in state.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                remembered.setdefault(int(number), {})[key] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": remembered})
