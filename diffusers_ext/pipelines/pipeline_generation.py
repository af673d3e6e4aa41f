"""GenerationPipeline: from noise to images with any network and any scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class GenerationPipeline(DiffusionPipeline):
    """Unconditional generation.

    Args:
        unet: a network called as `unet(sample, timestep).sample`, with `config.in_channels` and `config.sample_size`.
        scheduler: any scheduler of this package or of diffusers.
    """

    model_cpu_offload_seq = "unet"  # type: ignore[assignment]
    _callback_tensor_inputs = ["latents"]
    unet: Any
    scheduler: Any

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of network evaluations of the latest call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            batch_size: number of images.
            num_inference_steps: number of steps; 50, or all that the scheduler has when it has fewer, unless this or
                `timesteps` is given.
            generator: source of all randomness, one or a list of one per image.
            eta: passed to schedulers whose `step` takes it (DDIM): 0 deterministic, 1 as DDPM.
            timesteps: strictly decreasing times to visit, for schedulers that take a list.
            height, width: image size; the network's `sample_size` when None.
            latents: starting noise of shape (batch_size, channels, height, width); sets batch_size and size.
            output_type: `pil`, `np` (float in [0, 1], (batch, height, width, channels)), `pt` (float in [0, 1],
                (batch, channels, height, width)) or `latent` (as the scheduler left it).
            return_dict: give a tuple (images,) when False.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step; a dictionary
                it returns replaces `latents`.
            callback_on_step_end_tensor_inputs: the tensors it is given; `latents` is the only choice.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: for arguments that do not fit together, in one sentence.
        """
        self._check_inputs(
            batch_size, generator, height, width, latents, output_type, callback_on_step_end_tensor_inputs
        )
        device = self._execution_device
        self.unet.eval()
        self._set_timesteps(num_inference_steps, timesteps, device)
        sample = self._prepare_latents(batch_size, height, width, generator, latents, device)
        step_arguments = self._accepted(self.scheduler.step, generator=generator, eta=eta)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_output = self.unet(self.scheduler.scale_model_input(sample, t), t).sample
                sample = self.scheduler.step(model_output, t, sample, **step_arguments).prev_sample
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": sample}) or {}
                    sample = changed.pop("latents", sample)
                progress_bar.update()
        images = self._decode(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_inputs(
        self,
        batch_size: int,
        generator: Any,
        height: int | None,
        width: int | None,
        latents: torch.Tensor | None,
        output_type: str,
        callback_tensors: Sequence[str],
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got '{output_type}'.")
        channels = self.unet.config.in_channels
        if latents is not None and (latents.ndim != 4 or latents.shape[1] != channels):
            raise ValueError(f"latents must have shape (batch, {channels}, height, width), got {tuple(latents.shape)}.")
        count = batch_size if latents is None else latents.shape[0]
        for name, value in (("height", height), ("width", width)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"A list of generators needs one per image: got {len(generator)} for {count} images.")
        unknown = sorted(set(callback_tensors) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, got {unknown}."
            )

    def _set_timesteps(
        self, num_inference_steps: int | None, timesteps: Sequence[int] | None, device: torch.device
    ) -> None:
        scheduler = self.scheduler
        if timesteps is None:
            if num_inference_steps is None:
                num_inference_steps = min(50, scheduler.config.num_train_timesteps)
            if num_inference_steps < 1:
                raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}.")
            scheduler.set_timesteps(num_inference_steps, device=device)
            return
        if num_inference_steps is not None:
            raise ValueError("Give either num_inference_steps or timesteps, not both.")
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(scheduler).__name__} does not take a list of timesteps.")
        scheduler.set_timesteps(timesteps=list(timesteps), device=device)

    def _prepare_latents(
        self,
        batch_size: int,
        height: int | None,
        width: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        dtype = self.unet.dtype
        if latents is None:
            size = self.unet.config.sample_size
            default_height, default_width = (size, size) if isinstance(size, int) else size
            shape = (
                batch_size,
                self.unet.config.in_channels,
                default_height if height is None else height,
                default_width if width is None else width,
            )
            if hasattr(self.scheduler, "sample_prior"):
                return self.scheduler.sample_prior(shape, generator=generator, device=device, dtype=dtype)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device=device, dtype=dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    @staticmethod
    def _accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        """The arguments that were given and that `function` takes: schedulers differ in what their steps accept."""
        parameters = inspect.signature(function).parameters
        return {name: value for name, value in arguments.items() if value is not None and name in parameters}

    def _decode(self, sample: torch.Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return sample
        low, high = getattr(self.scheduler, "data_range", (-1.0, 1.0))
        images = ((sample.float() - low) / (high - low)).clamp(0, 1)
        if output_type == "pt":
            return images
        array = VaeImageProcessor.pt_to_numpy(images)
        return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)
