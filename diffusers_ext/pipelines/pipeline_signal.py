"""SignalPipeline: from noise to one-dimensional signals, such as sounds and time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput

from ..models.lapped import expand
from .call_arguments import check_output_type
from .pipeline_generation import GenerationPipeline


class SignalPipeline(GenerationPipeline):
    """Generation of signals, unconditional and conditional, in the units of the data.

    Args:
        unet: a network called as `unet(sample, timestep, **conditions).sample` with samples (batch, channels, length),
            and with `config.in_channels` and `config.sample_size`, the length.
        signal: what the data were: `sample_rate` in frames per second or None, and the `shift` and `scale` of each
            channel, with which signal = sample * scale + shift; before that, the `band_scale` and `exponent` of
            `models.lapped.expand`, where given.
        scheduler, text_encoder, tokenizer, weak_unet, id2label, condition, conditions: see `GenerationPipeline`.

    Raises:
        ValueError: for a `signal` without as many numbers as there are channels, or a `vae`.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        weak_unet: Any = None,
        id2label: Mapping[Any, str] | None = None,
        condition: str | None = None,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        vae: Any = None,
        signal: Mapping[str, Any] | None = None,
    ):
        if vae is not None:
            raise ValueError("A SignalPipeline takes no vae; it samples signals themselves.")
        super().__init__(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
            id2label=id2label,
            condition=condition,
            conditions=conditions,
        )
        self.register_to_config(signal=_checked_signal(signal, unet))

    @property
    def sample_rate(self) -> int | None:
        """Frames per second of the data, or None for data without a rate."""
        return (self.config.signal or {}).get("sample_rate")

    def in_units_of_data(self, sample: torch.Tensor) -> torch.Tensor:
        """Samples of the network (..., channels, length) in the units of the data, float32."""
        sample, signal = sample.float(), self.config.signal or {}
        if "band_scale" in signal:
            sample = expand(sample, sample.new_tensor(signal["band_scale"]), signal["exponent"])
        if "scale" in signal:
            scale, shift = (sample.new_tensor(signal[name])[:, None] for name in ("scale", "shift"))
            sample = sample * scale + shift
        return sample

    def in_units_of_network(self, signal: Any) -> torch.Tensor:
        """A signal in the units of the data (..., channels, length), as the network sees it: inpainting, bandwidth.

        Raises ValueError for what is no array of numbers, for another number of channels, and for data whose bands were
        scaled one by one.
        """
        try:
            sample = torch.as_tensor(signal).float()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"image must be a signal, a tensor or an array, got {signal!r:.60}.") from None
        entries, channels = self.config.signal or {}, self.unet.config.in_channels
        if sample.ndim not in (2, 3) or sample.shape[-2] != channels:
            raise ValueError(
                f"image has the shape {tuple(sample.shape)}; a signal takes ([n,] channels, length) with {channels} "
                f"channel{'s' if channels != 1 else ''}."
            )
        if "band_scale" in entries:
            raise ValueError("image is not taken by a network of signals that were scaled by bands of frequency.")
        if "scale" in entries:
            scale, shift = (sample.new_tensor(entries[name])[:, None] for name in ("scale", "shift"))
            sample = (sample - shift) / scale
        return sample

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        batch_size: int = 1,
        *,
        length: int | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        num_waveforms_per_prompt: int = 1,
        **options: Any,
    ) -> AudioPipelineOutput | tuple:
        """Generate signals.

        Args:
            batch_size: number of signals; 1, the default, means as many as there are conditions.
            length: frames of a signal; the network's `sample_size` when None.
            latents: starting noise of shape (batch_size, channels, length); sets batch_size and length.
            output_type: `np` or `pt` (float32 in the units of the data), or `latent` (the last sample as the network
                sees it, in float32 or wider); each (batch, channels, length).
            return_dict: give a tuple (audios,) when False.
            num_waveforms_per_prompt: number of signals for each condition, one after the other.
            options: conditions, guidance, steps, `generator`, `eta` and `callback_on_step_end`, by name, as
                `GenerationPipeline` takes them. The condition `image` is a signal in the units of the data, ([n,]
                channels, length): with `mask_image`, (length,) and 1 where to generate anew, for inpainting; of a half,
                a quarter or an eighth of the length for an extension of the bandwidth (`super_resolution_2`, `_4`,
                `_8`).

        Returns:
            `AudioPipelineOutput` with `audios`.

        Raises:
            ValueError, TypeError: one sentence on an argument of the wrong type or range, or on arguments that do not
                fit together.
        """
        check_output_type(output_type, ("np", "pt", "latent"))
        if options.get("image") is not None:
            options["image"] = self.in_units_of_network(options["image"])
        sample, _ = self._generate({"length": length}, batch_size, num_waveforms_per_prompt, latents, **options)
        audios: Any = sample if output_type == "latent" else self.in_units_of_data(sample)
        audios = audios.cpu().numpy() if output_type == "np" else audios
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)


def _checked_signal(signal: Mapping[str, Any] | None, unet: Any) -> dict[str, Any] | None:
    """The entries as a saved configuration keeps them."""
    if signal is None:
        return None
    channels = unet.config.in_channels
    for name in ("shift", "scale"):
        if name in signal and len(signal[name]) != channels:
            raise ValueError(
                f"signal has {len(signal[name])} numbers in {name}, but the network has {channels} channels."
            )
    return dict(signal)
