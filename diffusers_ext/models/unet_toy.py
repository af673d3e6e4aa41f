"""A ten-convolution denoiser that sees no time: the first network of Diffusion Playground."""

from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .layers import DenoisingNetwork


class ToyConvPair(nn.Module):
    """Two 3x3 convolutions, each followed by SiLU."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv2(F.silu(self.conv1(x))))


class ToyUNet2DModel(DenoisingNetwork):
    """Predicts the clean image x0 in [0, 1] from a corrupted one; no norm, no time input, SiLU even at the output.

    Pairs of 3x3 convolutions at full, half and quarter size, max-pooling down, nearest neighbour up, and skips that are
    *added*.  The timestep is accepted so that pipelines and trainers can treat it as any other model, and not used.

    Args:
        sample_size: height (and width) the model is trained at; any multiple of 4 is accepted.
        in_channels: channels of the image.
        out_channels: channels predicted; None for `in_channels`.
        widths: channels at full and at lower sizes.
    """

    _no_split_modules: Any = ["ToyConvPair"]
    _repeated_blocks = ["ToyConvPair"]
    downsample_factor = 4  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = 28,
        in_channels: int = 1,
        out_channels: int | None = None,
        widths: tuple[int, int] = (32, 64),
    ):
        super().__init__()
        out_channels = self._own_out_channels(out_channels)
        narrow, wide = widths
        self.down1 = ToyConvPair(in_channels, narrow, narrow)
        self.down2 = ToyConvPair(narrow, wide, wide)
        self.mid = ToyConvPair(wide, wide, wide)
        self.up2 = ToyConvPair(wide, wide, narrow)
        self.up1 = ToyConvPair(narrow, narrow, out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts (batch, out_channels, height, width); `timestep` is ignored, and `class_labels` are refused."""
        if class_labels is not None:
            raise ValueError("class_labels were given to ToyUNet2DModel, which takes no condition.")
        self._check_sample(sample)
        full = self._run(self.down1, sample)
        half = self._run(self.down2, F.max_pool2d(full, 2))
        x = self._run(self.mid, F.max_pool2d(half, 2))
        x = self._run(self.up2, F.interpolate(x, scale_factor=2.0, mode="nearest") + half)
        x = self._run(self.up1, F.interpolate(x, scale_factor=2.0, mode="nearest") + full)
        return UNet2DOutput(sample=x) if return_dict else (x,)
