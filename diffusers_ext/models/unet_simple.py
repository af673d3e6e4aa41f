"""A small U-Net whose only knowledge of time is one vector added at its bottleneck: the ict1022 notebook's network."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import DenoisingNetwork, batched_timesteps, over_positions


class SimpleConvBlock(nn.Module):
    """One convolution, 3x3 or (transposed) 4x4 of stride 2, and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, transposed: bool = False):
        super().__init__()
        if transposed:
            self.conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class SimpleUNet2DModel(DenoisingNetwork):
    """Predicts from a noisy image and its timestep with three widths, two strides, no norm and no attention.

    Args:
        sample_size: height (and width) the model is trained at; any multiple of 4 is accepted.
        in_channels: channels of the image.
        out_channels: channels predicted; None for `in_channels`.
        widths: channels at full, half and quarter size.
        time_embed_dim: width of the time MLP's two layers.
        num_train_timesteps: what a timestep is divided by, so that the MLP sees numbers in [0, 1].
        raw_time: feed the timestep undivided, as the source project does; for its weights only.
        num_class_embeds: number of classes, None for none; index `num_class_embeds` is the null class.
        vector_dim: how many real numbers the network is conditioned on, None for none. A row of NaN in `vector` stands
            for no numbers.
        vector_mean, vector_std: what the numbers are normalised with, one of each per number; None for 0 and 1.
    """

    _no_split_modules: Any = ["SimpleConvBlock"]
    _repeated_blocks = ["SimpleConvBlock"]
    downsample_factor = 4  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        widths: tuple[int, int, int] = (64, 128, 256),
        time_embed_dim: int = 100,
        num_train_timesteps: int = 1000,
        raw_time: bool = False,
        num_class_embeds: int | None = None,
        vector_dim: int | None = None,
        vector_mean: tuple[float, ...] | None = None,
        vector_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        out_channels = self._own_out_channels(out_channels)
        narrow, middle, wide = widths
        self.time_embedding = nn.Sequential(
            nn.Linear(1, time_embed_dim), nn.SiLU(), nn.Linear(time_embed_dim, time_embed_dim)
        )
        self._embed_conditions(time_embed_dim)
        self.time_proj = nn.Linear(time_embed_dim, wide)
        self.conv_in = SimpleConvBlock(in_channels, narrow)
        self.down1 = SimpleConvBlock(narrow, middle, stride=2)
        self.down2 = SimpleConvBlock(middle, wide, stride=2)
        self.mid1 = SimpleConvBlock(wide, wide)
        self.mid2 = SimpleConvBlock(wide, wide)
        self.up1 = SimpleConvBlock(wide, middle, transposed=True)
        self.up2 = SimpleConvBlock(2 * middle, narrow, transposed=True)
        self.conv_out = nn.Conv2d(2 * narrow, out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        vector: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width); `DenoisingNetwork` describes the arguments."""
        self._check_sample(sample)
        full = self._run(self.conv_in, sample)
        half = self._run(self.down1, full)
        x = self._run(self.down2, half)
        x = x + over_positions(self._embed(sample, timestep, class_labels, vector), x)
        x = self._run(self.mid2, self._run(self.mid1, x))
        x = torch.cat((self._run(self.up1, x), half), dim=1)
        x = torch.cat((self._run(self.up2, x), full), dim=1)
        x = self.conv_out(x)
        return UNet2DOutput(sample=x) if return_dict else (x,)

    def _embed(
        self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """The bottleneck's vector, (batch, widths[2])."""
        timesteps = batched_timesteps(timestep, sample)
        if not self.config.raw_time:
            timesteps = timesteps / self.config.num_train_timesteps
        embedding = self.time_embedding(timesteps[:, None].to(sample.dtype))
        return self.time_proj(self._with_conditions(embedding, class_labels, vector))
