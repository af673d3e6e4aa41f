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

from .class_conditions import class_indices, classes_of
from .guidance import GuidedNetwork, check_guidance

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
        condition: name of the image condition that the network was trained with.

    Raises:
        ValueError: for an `id2label` that is no such dictionary.
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
        self.register_modules(
            unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, weak_unet=weak_unet
        )
        self.register_to_config(id2label=_checked_names(id2label), condition=condition)

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
        """Number of predictions of the latest call: network evaluations, counting a guided one as one."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
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
        take and is not given is the null condition.

        Args:
            batch_size: number of images; 1, the default, means as many as there are conditions.
            class_labels: an index, a name out of `id2label`, a list of them or an integer tensor.
            negative_class_labels: takes the place of the null class in guidance.
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
        labels, negative_labels = self._read_labels(class_labels, negative_class_labels)
        given = {"class_labels": labels}
        negative = {"negative_class_labels": negative_labels}
        self._check_conditions(given, negative, guidance_scale)
        batch_size = _common_count(batch_size, latents, {**given, **negative})
        _check_generators(generator, batch_size)
        with_null = guidance_scale != 1 and self.weak_unet is None
        conditional, reference = self._class_arguments(labels, negative_labels, batch_size, device, with_null)
        if self.weak_unet is not None:
            reference = _known_to(self.weak_unet, conditional)
        network = GuidedNetwork(
            self.unet, conditional, reference, guidance_scale, guidance_interval, guidance_rescale, self.weak_unet
        )
        self._guidance_scale = guidance_scale
        self._set_timesteps(num_inference_steps, timesteps, device)
        sample = self._prepare_latents(batch_size, height, width, generator, latents, device)
        step_arguments = self._accepted(self.scheduler.step, generator=generator, eta=eta)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_output = network(self.scheduler.scale_model_input(sample, t), t, i / self._num_timesteps)
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

    def _check_conditions(self, given: Mapping[str, Any], negative: Mapping[str, Any], scale: float) -> None:
        for name, value in negative.items():
            positive = name.removeprefix("negative_")
            if value is not None and given[positive] is None:
                raise ValueError(f"{name} was given without {positive}, whose null it would take the place of.")
            if value is not None and self.weak_unet is not None:
                raise ValueError(f"{name} was given, but this pipeline's guidance leads away from its weak_unet.")
        if scale not in (0, 1) and self.weak_unet is None and all(value is None for value in given.values()):
            raise ValueError(f"guidance_scale {scale} needs a condition, one of {', '.join(given)}.")

    # conditions

    def _read_labels(self, class_labels: Any, negative_labels: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        classes, names = classes_of(self.unet, self.config.id2label), self.labels
        return (
            class_indices("class_labels", class_labels, classes, names),
            class_indices("negative_class_labels", negative_labels, classes, names),
        )

    def _class_arguments(
        self,
        labels: torch.Tensor | None,
        negative: torch.Tensor | None,
        count: int,
        device: torch.device,
        with_null: bool,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(the classes, and what stands for none when asked for) as arguments of the network."""
        classes = classes_of(self.unet, self.config.id2label)
        null = negative if negative is not None or classes.null is None else torch.tensor([classes.null])
        if labels is None:
            if not classes.required:
                return {}, {}
            if null is None:
                raise ValueError(f"class_labels are missing, and this {type(self.unet).__name__} has no null class.")
            labels = null
        if with_null and null is None:
            raise ValueError(
                f"Guidance at scale {self._guidance_scale} needs a null class, and this {type(self.unet).__name__} has "
                "none; take guidance_scale 1, negative_class_labels or a weak_unet."
            )
        given = {"class_labels": labels.to(device).expand(count)}
        return given, {"class_labels": null.to(device).expand(count)} if with_null and null is not None else {}

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


def _checked_names(id2label: Mapping[Any, str] | None) -> dict[str, str] | None:
    """The names under string keys, as JSON keeps them."""
    if id2label is None:
        return None
    if not isinstance(id2label, Mapping) or not all(str(index).isdecimal() for index in id2label):
        raise ValueError(f"id2label must be a dictionary from class indices to names, got {id2label!r}.")
    return {str(index): str(name) for index, name in id2label.items()}


def _common_count(batch_size: int, latents: torch.Tensor | None, conditions: Mapping[str, Any]) -> int:
    """The number of images: conditions given once hold for all."""
    counts = {name: len(value) for name, value in conditions.items() if value is not None and len(value) > 1}
    if latents is not None:
        counts = {"latents": len(latents), **counts}
    elif batch_size > 1:
        counts = {"batch_size": batch_size, **counts}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"The number of images is not the same everywhere: {listed}.")
    return next(iter(counts.values()), 1)


def _check_generators(generator: Generators, count: int) -> None:
    if isinstance(generator, list) and len(generator) != count:
        raise ValueError(f"A list of generators needs one per image: got {len(generator)} for {count} images.")


def _known_to(network: Any, arguments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the arguments that the network was built for."""
    config = network.config
    built_for = {"class_labels": getattr(config, "num_class_embeds", None) is not None}
    return {name: value for name, value in arguments.items() if built_for[name]}
