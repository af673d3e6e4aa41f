"""Networks for images and signals, one architecture per file, and their named configurations."""

from .presets import PRESETS, Preset, build_model
from .unet_1d import SignalUNet1DModel
from .unet_adm import ADMUNet2DModel
from .unet_annotated import AnnotatedUNet2DModel
from .unet_attention import AttentionUNet2DModel
from .unet_guided import GuidedUNet2DModel
from .unet_simple import SimpleUNet2DModel
from .unet_toy import ToyUNet2DModel

__all__ = [
    "PRESETS",
    "ADMUNet2DModel",
    "AnnotatedUNet2DModel",
    "AttentionUNet2DModel",
    "GuidedUNet2DModel",
    "Preset",
    "SignalUNet1DModel",
    "SimpleUNet2DModel",
    "ToyUNet2DModel",
    "build_model",
]
