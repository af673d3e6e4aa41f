"""GenerationPipeline: from noise to images with any network and any scheduler, under a condition or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from ..conditions.base import ClassCondition, Condition, PictureCondition, TextCondition, arguments_known_to
from ..conditions.image import Size, check_condition_name
from .guidance import GuidedNetwork, check_guidance

# Bytes, that of memory which PyTorch allocates itself.
ALIGNMENT = 64

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Generators = torch.Generator | list[torch.Generator] | None


class GenerationPipeline(DiffusionPipeline):
    """Unconditional and conditional generation.

    Args:
        unet: a network called as `unet(sample, timestep, **conditions).sample`, with `config.in_channels` and
            `config.sample_size`; the conditions are those that the call was given.
        scheduler: any scheduler of this package or of diffusers.
        text_encoder, tokenizer: of transformers, for networks that take `encoder_hidden_states`.
        weak_unet: a weaker network for the same task. Guidance then leads away from it (autoguidance) instead of from
            the null condition; `pipeline.weak_unet = None` gives classifier-free guidance back.
        id2label: names of the classes, index -> name; the indices may be strings, as in a saved configuration.
        condition: name of the image condition that the network was trained with, in `IMAGE_CONDITIONS`; None where
            there is none, or where the condition is an image as it is.

    Raises:
        ValueError: for an `id2label` that is no such dictionary, or an unknown `condition`.
    """

    # weak_unet takes turns with unet; outside the sequence it stays on the device for the whole walk.
    model_cpu_offload_seq = "text_encoder->unet"  # type: ignore[assignment]
    _optional_components: Any = ["text_encoder", "tokenizer", "weak_unet"]
    _callback_tensor_inputs = ["latents"]
    config: Any  # diffusers types it as a bare dict
    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    weak_unet: Any

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        weak_unet: Any = None,
        id2label: Mapping[Any, str] | None = None,
        condition: str | None = None,
    ):
        super().__init__()
        check_condition_name(condition)
        for network in (unet, text_encoder, weak_unet):
            _align_weights(network)
        self.register_modules(
            unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, weak_unet=weak_unet
        )
        self.register_to_config(id2label=_checked_names(id2label), condition=condition)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline of the components of another; any network will do, where diffusers looks for its exact type."""
        networks = {name: pipeline.components.get(name) for name in ("unet", "weak_unet")}
        given = {name: network for name, network in networks.items() if network is not None}
        return super().from_pipe(pipeline, **{**given, **kwargs})

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """What the arguments are checked against when loading: nothing, for any network and any scheduler will do.

        diffusers before 0.35 can't read annotations that are strings, and fails where this has no answer.
        """
        return dict.fromkeys(inspect.signature(cls.__init__).parameters, (inspect.Signature.empty,))

    @property
    def labels(self) -> dict[str, int]:
        """The index of each class that has a name."""
        return {name: int(index) for index, name in (self.config.id2label or {}).items()}

    @property
    def guidance_scale(self) -> float:
        """That of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call needed both the null and the conditional prediction of the network."""
        return self._guidance_scale not in (0, 1) and self.weak_unet is None

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the latest call, each on one prediction of the network, guided or not."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        num_inference_steps: int | None = None,
        generator: Generators = None,
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

        A condition given once holds for all images; a list of n conditions makes n images. One that the network could
        take and is not given is the null condition. With several conditions, guidance leads away from all of them
        being null.

        Args:
            batch_size: number of images; 1, the default, means as many as there are conditions.
            class_labels: an index, a name out of `id2label`, a list of them or an integer tensor.
            prompt: a text or a list of them.
            image: what the network's image condition (`condition`) is made of, one or a list: PIL images, arrays
                (height, width, channels) or tensors (channels, height, width), floats in [0, 1]. Of the size of the
                result; for super-resolution of the small size.
            mask_image: for inpainting, white where to repaint, in the same forms.
            negative_prompt, negative_class_labels: take the place of the null condition in guidance.
            guidance_scale: w >= 0 of null + w * (conditional - null). 0 is the null prediction, 1 the conditional, and
                above 1 the condition is exaggerated at the cost of variety. The two are formed in one call of the
                network, with twice the images, while memory allows. With `weak_unet`: w of weak + w * (conditional -
                weak).
            guidance_interval: (start, stop) as shares of the walk, 0 <= start <= stop <= 1: guided where start <= share
                < stop, the conditional prediction elsewhere (Kynkaanniemi et al. 2024, arXiv:2404.07724).
            guidance_rescale: 0 to 1, how far the guided prediction's standard deviation is drawn back to the
                conditional's (Lin et al. 2023, arXiv:2305.08891, eq. 15-16); without effect at the scales 0 and 1.
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
        self._check_inputs(batch_size, height, width, latents, output_type, callback_on_step_end_tensor_inputs)
        check_guidance(guidance_scale, guidance_interval, guidance_rescale)
        self._guidance_scale = guidance_scale
        for network in (self.unet, self.weak_unet, self.text_encoder):
            if network is not None:
                network.eval()
        device = self._execution_device
        size = self._size(height, width, latents)
        conditions = (
            ClassCondition(self.unet, self.config.id2label, class_labels, negative_class_labels),
            TextCondition(self.unet, self.tokenizer, self.text_encoder, prompt, negative_prompt),
            PictureCondition(self.unet, self.config.condition, image, mask_image, size),
        )
        batch_size = _common_count(batch_size, latents, conditions)
        _check_generators(generator, batch_size)
        network = self._guided(conditions, batch_size, device, guidance_interval, guidance_rescale)
        self._set_timesteps(num_inference_steps, timesteps, device)
        sample = self._prepare_latents(batch_size, size, generator, latents, device)
        step_arguments = self._accepted(self.scheduler.step, generator=generator, eta=eta)
        self._num_timesteps = len(self.scheduler.timesteps)
        # diffusers' flow-matching schedulers have no such method: on their path the input is the sample itself.
        scale = getattr(self.scheduler, "scale_model_input", lambda sample, t: sample)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_output = network(scale(sample, t), t, i / self._num_timesteps)
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
        height: int | None,
        width: int | None,
        latents: torch.Tensor | None,
        output_type: str,
        callback_tensors: Sequence[str],
    ) -> None:
        if not isinstance(batch_size, Integral):
            raise ValueError(f"batch_size must be an integer, got {batch_size!r}; conditions are given by name.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got '{output_type}'.")
        channels = self.unet.config.in_channels
        if latents is not None and (latents.ndim != 4 or latents.shape[1] != channels):
            raise ValueError(f"latents must have shape (batch, {channels}, height, width), got {tuple(latents.shape)}.")
        for name, value in (("height", height), ("width", width)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        unknown = sorted(set(callback_tensors) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, got {unknown}."
            )

    def _size(self, height: int | None, width: int | None, latents: torch.Tensor | None) -> Size:
        """(height, width) of the images."""
        if latents is not None:
            return latents.shape[2], latents.shape[3]
        size = self.unet.config.sample_size
        default_height, default_width = (size, size) if isinstance(size, int) else size
        return default_height if height is None else height, default_width if width is None else width

    def _guided(
        self,
        conditions: Sequence[Condition],
        count: int,
        device: torch.device,
        interval: Sequence[float],
        rescale: float,
    ) -> GuidedNetwork:
        """The network under these conditions, as far as the scale needs them encoded."""
        scale, weak_unet = self._guidance_scale, self.weak_unet
        _check_guided(conditions, scale, weak_unet)
        conditional: dict[str, torch.Tensor] = {}
        reference: dict[str, torch.Tensor] = {}
        for condition in conditions:
            conditional |= condition.conditional(count, device)
            if scale != 1 and weak_unet is None:
                reference |= condition.null(count, device)
        if weak_unet is not None:
            reference = arguments_known_to(weak_unet, conditional)
        return GuidedNetwork(self.unet, conditional, reference, scale, interval, rescale, weak_unet)

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
        size: Size,
        generator: Generators,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        dtype = self.unet.dtype
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, *size)
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


def _align_weights(network: Any) -> None:
    """Copy weights that lie unaligned in memory, as those read from a file may: there a CPU's kernels round otherwise.

    So a loaded pipeline gives the same images, bit for bit, as the one that was saved.
    """
    if not isinstance(network, torch.nn.Module):
        return
    for weight in (*network.parameters(), *network.buffers()):
        if weight.device.type == "cpu" and type(weight.data) is torch.Tensor and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _checked_names(id2label: Mapping[Any, str] | None) -> dict[str, str] | None:
    """The names under string keys, as JSON keeps them."""
    if id2label is None:
        return None
    if not isinstance(id2label, Mapping) or not all(str(index).isdecimal() for index in id2label):
        raise ValueError(f"id2label must be a dictionary from class indices to names, got {id2label!r}.")
    return {str(index): str(name) for index, name in id2label.items()}


def _common_count(batch_size: int, latents: torch.Tensor | None, conditions: Sequence[Condition]) -> int:
    """The number of images: conditions given once hold for all."""
    given = {name: count for condition in conditions for name, count in condition.counts().items() if count > 1}
    if latents is not None:
        given = {"latents": len(latents), **given}
    elif batch_size > 1:
        given = {"batch_size": batch_size, **given}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in given.items())
        raise ValueError(f"The number of images is not the same everywhere: {listed}.")
    return next(iter(given.values()), 1)


def _check_guided(conditions: Sequence[Condition], scale: float, weak_unet: Any) -> None:
    """Raise ValueError for guidance towards nothing, and for a negative where no null condition has a part."""
    if weak_unet is not None:
        for condition in conditions:
            if condition.negative is not None:
                name = f"negative_{condition.argument}"
                raise ValueError(f"{name} was given, but this pipeline's guidance leads away from its weak_unet.")
    elif scale not in (0, 1) and all(condition.given is None for condition in conditions):
        names = ", ".join(condition.argument for condition in conditions)
        raise ValueError(f"guidance_scale {scale} needs a condition, one of {names}.")


def _check_generators(generator: Generators, count: int) -> None:
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"A list of generators needs one per image: got {len(generator)} for {count} images.")
