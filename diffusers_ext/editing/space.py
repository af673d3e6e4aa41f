"""Images and signals as a user has them, and as the network sees them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, ImagePipelineOutput

from ..conditions.base import config_entry
from ..conditions.user_images import Size, image_tensor, mask_tensor
from ..models.lapped import compress, expand
from ..pipelines.call_arguments import check_output_type
from ..pipelines.guidance import dtype_of
from ..pipelines.latent_space import LatentSpace
from ..pipelines.pipeline_generation import as_output_type
from ..pipelines.pipeline_signal import SignalPipeline
from ..schedulers.tensors import working_dtype


class PixelSpace:
    """Images in [0, 1] as scale * sample + shift of what a network generates.

    Attributes:
        size: that the data must have, or None where the network has no `sample_size`.
        is_affine: whether data are scale * sample + shift; False for an autoencoder's latents and spectral signals.
        scale, shift: numbers, or tensors that broadcast over samples.
    """

    noun, dims = "image", 2
    output_types: tuple[str, ...] = ("pil", "np", "pt", "latent")
    is_affine = True

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        low, high = getattr(pipeline.scheduler, "data_range", (-1.0, 1.0))
        self.scale: Any = 1 / (high - low)
        self.shift: Any = -low / (high - low)

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of channels that data may have."""
        own = config_entry(self.pipeline.unet, "in_channels")
        return (own,) if own else (1, 3)

    @property
    def size(self) -> Size | None:
        own = config_entry(self.pipeline.unet, "sample_size")
        return None if own is None else (own,) * self.dims if isinstance(own, int) else tuple(own)

    def read(self, argument: str, data: Any) -> torch.Tensor:
        """What a user gives, as a tensor (n, channels, height, width) in [0, 1] on the network's device.

        Raises:
            ValueError: in one sentence, for another size, range or number of channels, or no image.
        """
        size = self.size or _size_of(data)
        return self._placed(image_tensor(argument, data, self.channels, size))

    def read_mask(self, argument: str, mask: Any, data: torch.Tensor) -> torch.Tensor:
        """1 where a mask is white, 0 elsewhere, for data of `read`: (1 or n, 1, height, width). Errors as `read`."""
        found = mask_tensor(argument, mask, tuple(data.shape[2:])).to(data)
        if len(found) not in (1, len(data)):
            raise ValueError(f"{argument} holds {len(found)} masks for {len(data)} {self.noun}s; give one or as many.")
        return found

    def _placed(self, data: torch.Tensor) -> torch.Tensor:
        dtype = working_dtype(dtype_of(self.pipeline.unet), data.dtype)
        return data.to(device=self.pipeline.device, dtype=dtype)

    def encode(self, data: torch.Tensor) -> torch.Tensor:
        """What the network would generate for these data."""
        return (data - self.shift) / self.scale

    def decode(self, sample: torch.Tensor) -> torch.Tensor:
        """The data of samples, not bounded; gradients pass."""
        return sample * self.scale + self.shift

    def sample_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask of the data for samples: 1 where a sample's entry belongs to the mask at all."""
        return mask

    def sample_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of samples for data of a shape."""
        return data_shape

    def output(self, data: torch.Tensor, output_type: str, return_dict: bool = True) -> Any:
        """The pipeline's output; data are bounded by [0, 1]."""
        images: Any = data if output_type == "latent" else as_output_type(data.float().clamp(0, 1), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_output_type(self, output_type: str) -> None:
        """Raise ValueError for an unknown one."""
        check_output_type(output_type, self.output_types)


class AutoencoderSpace(PixelSpace):
    """Images whose latents a network generates."""

    is_affine = False

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.latents = LatentSpace(pipeline.vae)

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.latents.image_channels,)

    @property
    def size(self) -> Size | None:
        own = super().size
        return None if own is None else tuple(length * self.latents.factor for length in own)

    def encode(self, data: torch.Tensor) -> torch.Tensor:
        return self.latents.encode(data * 2 - 1)[0]

    def decode(self, sample: torch.Tensor) -> torch.Tensor:
        return self.latents.decode_with_gradients(sample) / 2 + 0.5

    def sample_mask(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(mask, self.latents.factor)

    def sample_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (data_shape[0], self.latents.channels, *self.latents.size_of(tuple(data_shape[2:])))


class SignalSpace(PixelSpace):
    """Signals in the units of the data."""

    noun, dims = "signal", 1
    output_types = ("np", "pt", "latent")

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        signal = pipeline.config.signal or {}
        column = {name: torch.tensor(signal[name])[:, None] for name in ("scale", "shift") if name in signal}
        self.scale, self.shift = (
            value if isinstance(value, float) else value.to(pipeline.device)
            for value in (column.get("scale", 1.0), column.get("shift", 0.0))
        )

    def read(self, argument: str, data: Any) -> torch.Tensor:
        signals = torch.stack([torch.as_tensor(each) for each in data]) if isinstance(data, list | tuple) else data
        signals = torch.as_tensor(signals)
        signals = signals[None] if signals.ndim == 2 else signals
        wanted = (config_entry(self.pipeline.unet, "in_channels"), *(self.size or (None,)))
        fits = signals.ndim == 3 and all(w in (None, s) for w, s in zip(wanted, signals.shape[1:]))
        if not fits or not signals.is_floating_point() or not signals.isfinite().all():
            shape = ", ".join(str(length or "any") for length in wanted)
            raise ValueError(
                f"{argument} must be finite numbers of shape ([n,] {shape}), got {signals.dtype} "
                f"{tuple(signals.shape)}."
            )
        return self._placed(signals)

    def read_mask(self, argument: str, mask: Any, data: torch.Tensor) -> torch.Tensor:
        found = torch.as_tensor(mask).to(data)
        if found.shape[-1:] != data.shape[-1:] or found.ndim > 3:
            raise ValueError(
                f"{argument} has shape {tuple(found.shape)}; it must be ([[n,] 1,] {data.shape[-1]}), as long "
                "as the signal."
            )
        return (found.reshape(-1, 1, found.shape[-1]) if found.ndim < 3 else found).ge(0.5).to(data)

    def output(self, data: torch.Tensor, output_type: str, return_dict: bool = True) -> Any:
        audios: Any = data.cpu().numpy() if output_type == "np" else data
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)


class SpectralSpace(SignalSpace):
    """Signals of the normalization `spectral`, whose coefficients in time and frequency a network sees compressed."""

    is_affine = False

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        signal = pipeline.config.signal
        self.band_scale, self.exponent = torch.tensor(signal["band_scale"]), signal["exponent"]

    def encode(self, data: torch.Tensor) -> torch.Tensor:
        return compress(super().encode(data), self.band_scale.to(data), self.exponent)

    def decode(self, sample: torch.Tensor) -> torch.Tensor:
        return super().decode(expand(sample, self.band_scale.to(sample), self.exponent))

    def sample_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Wider by two blocks on each side: coefficients of a block and the next reach there, around the circle."""
        reach = 2 * self.band_scale.shape[-1]
        around = torch.cat([mask[..., -reach:], mask, mask[..., :reach]], dim=-1)
        return torch.nn.functional.max_pool1d(around, 2 * reach + 1, stride=1)


def space_of(pipeline: Any) -> PixelSpace:
    """The space of a pipeline's data."""
    if isinstance(pipeline, SignalPipeline):
        return SpectralSpace(pipeline) if "band_scale" in (pipeline.config.signal or {}) else SignalSpace(pipeline)
    return PixelSpace(pipeline) if pipeline.vae is None else AutoencoderSpace(pipeline)


def _size_of(data: Any) -> Size:
    """(height, width) of the first of some images."""
    first = data[0] if isinstance(data, list | tuple) and data else data
    if isinstance(first, torch.Tensor):
        return tuple(first.shape[-2:])
    if hasattr(first, "size") and isinstance(first.size, tuple):  # PIL
        return first.size[::-1]
    shape = getattr(first, "shape", (0, 0))
    return tuple(shape[-3:-1]) if len(shape) > 2 else tuple(shape)
