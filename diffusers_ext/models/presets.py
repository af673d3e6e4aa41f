"""Named models: one for each source system at its own configuration, and `small`, our default for training on a CPU.

`parameter_count` is that of the original class at that configuration; the schedule and the prediction type are those
its project trains with; the recipes in train/ spell them out.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from .unet_1d import SignalUNet1DModel
from .unet_adm import ADMUNet2DModel
from .unet_annotated import AnnotatedUNet2DModel
from .unet_attention import AttentionUNet2DModel
from .unet_guided import GuidedUNet2DModel
from .unet_simple import SimpleUNet2DModel
from .unet_toy import ToyUNet2DModel


@dataclass(frozen=True)
class Preset:
    """A model class with the configuration, size and training hints of the system it comes from.

    `beta_schedule` is None where the system does not noise with betas.
    """

    model_class: type[ModelMixin]
    config: Mapping[str, Any]
    parameter_count: int
    source: str = "diffusers_ext"
    beta_schedule: str | None = "cosine"
    num_train_timesteps: int = 1000
    prediction_type: str = "v_prediction"

    @property
    def betas(self) -> tuple[float, float] | None:
        """The ends of the schedule, where it lies between two betas."""
        return (1e-4, 0.02) if self.beta_schedule == "linear" else None

    @property
    def dims(self) -> int:
        """Number of sizes of a sample: 2 for images, 1 for signals."""
        return getattr(self.model_class, "dims", 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *size) of a sample."""
        return (self.config["in_channels"], *(self.config["sample_size"],) * self.dims)


PRESETS: dict[str, Preset] = {
    "small": Preset(
        AnnotatedUNet2DModel,
        {
            "sample_size": 28,
            "in_channels": 1,
            "base_channels": 64,
            "channel_multipliers": (1, 2),
            "layers_per_level": 1,
            "stem_kernel_size": 3,
            "patch_size": 2,
            "norm_num_groups": 8,
            "weight_standardization": None,
            "level_attention": (None, None),
            "mid_attention": "full",
            "upsample_type": "transposed",
            "zero_init_output": True,
        },
        parameter_count=2_012_164,
    ),
    "small-adm": Preset(
        ADMUNet2DModel,
        {
            "sample_size": 32,
            "in_channels": 3,
            "base_channels": 64,
            "channel_multipliers": (1, 2),
            "layers_per_level": 1,
            "attention_resolutions": (2,),
            "patch_size": 2,
        },
        parameter_count=2_804_428,
    ),
    "speech": Preset(
        SignalUNet1DModel,
        {
            "sample_size": 4608,
            "in_channels": 1,
            "base_channels": 128,
            "channel_multipliers": (2, 3, 3),
            "layers_per_level": 1,
            "attention_resolutions": (4,),
            "patch_size": 64,
            "lapped_patches": True,
            "input_skip": True,
            "input_gate": True,
            "norm_num_groups": 16,
        },
        parameter_count=17_883_393,
    ),
    "series": Preset(
        SignalUNet1DModel,
        {
            "sample_size": 128,
            "in_channels": 1,
            "base_channels": 64,
            "channel_multipliers": (1, 1, 2),
            "layers_per_level": 1,
            "attention_resolutions": (2, 4),
            "norm_num_groups": 16,
        },
        parameter_count=1_605_569,
    ),
    "usurf-unet": Preset(
        AnnotatedUNet2DModel,
        {"sample_size": 32, "in_channels": 1, "base_channels": 32, "channel_multipliers": (1, 2, 4, 8)},
        parameter_count=9_191_553,
        source="U-SURF (annotated diffusion)",
        beta_schedule="linear",
        num_train_timesteps=300,
        prediction_type="epsilon",
    ),
    "usurf-guided-unet": Preset(
        GuidedUNet2DModel,
        {
            "sample_size": 32,
            "in_channels": 1,
            "num_class_embeds": 10,
            "class_conditioning": "bottleneck",
            "label_shift": 400.0,
        },
        parameter_count=11_686_017,
        source="U-SURF (guided)",
        beta_schedule="linear",
        num_train_timesteps=300,
        prediction_type="epsilon",
    ),
    "generative-pytorch-adm": Preset(
        ADMUNet2DModel,
        {"sample_size": 28, "in_channels": 1, "base_channels": 128, "channel_multipliers": (1, 2, 2)},
        parameter_count=24_514_817,
        source="generative_pytorch",
        beta_schedule="linear",
        prediction_type="epsilon",
    ),
    "playground-toy": Preset(
        ToyUNet2DModel,
        {"sample_size": 28, "in_channels": 1},
        parameter_count=203_777,
        source="Diffusion Playground (toy)",
        beta_schedule=None,
        num_train_timesteps=20,
        prediction_type="sample",
    ),
    "playground-ddpm": Preset(
        AnnotatedUNet2DModel,
        {
            "sample_size": 28,
            "in_channels": 1,
            "base_channels": 28,
            "channel_multipliers": (1, 2, 4),
            "level_attention": ("linear", "linear", "linear"),
        },
        parameter_count=2_020_257,
        source="Diffusion Playground (DDPM)",
        num_train_timesteps=300,
        prediction_type="scaled_epsilon",
    ),
    "ddpm-accelerate-attention": Preset(
        AttentionUNet2DModel,
        {"sample_size": 64, "in_channels": 3},
        parameter_count=23_332_739,
        source="ddpm_accelerate (README)",
        beta_schedule="linear",
        prediction_type="epsilon",
    ),
    "denoising-diffusion-pytorch": Preset(
        AnnotatedUNet2DModel,
        {
            "sample_size": 64,
            "in_channels": 3,
            "base_channels": 64,
            "channel_multipliers": (1, 2, 4, 8),
            "stem_kernel_size": 7,
            "block_norm": "group",
            "norm_num_groups": 8,
            "weight_standardization": None,
            "level_attention": ("linear", "linear", "linear", "full"),
            "attention_norm": "rms",
            "num_memory_kv": 4,
        },
        parameter_count=35_719_555,
        source="ddpm_accelerate (denoising-diffusion-pytorch 1.11; block_norm='rms' for 2.x: 35,711,491)",
        beta_schedule="sigmoid_alpha_bar",
    ),
    "ict1022-simple": Preset(
        SimpleUNet2DModel,
        {"sample_size": 32, "in_channels": 3},
        parameter_count=2_377_215,
        source="ict1022 notebook",
        beta_schedule="linear",
        prediction_type="epsilon",
    ),
}


def build_model(name: str, **overrides: Any) -> ModelMixin:
    """The freshly initialised model of preset `name`, with `overrides` in place of entries of its configuration.

    Raises ValueError for a name that is not in PRESETS and for an override its class does not take.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no model preset {name!r}; it takes one of {', '.join(sorted(PRESETS))}.")
    preset = PRESETS[name]
    known = [key for key in inspect.signature(preset.model_class).parameters if key != "kwargs"]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"{preset.model_class.__name__} takes no {', '.join(unknown)}; it takes {', '.join(known)}.")
    return preset.model_class(**{**preset.config, **overrides})
