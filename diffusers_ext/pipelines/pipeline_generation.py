"""GenerationPipeline: from noise to images with any network and any scheduler, under a condition or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from ..conditions.base import GivenCondition
from ..conditions.image_transforms import check_transform_name
from ..conditions.registry import arguments_known_to, given_conditions
from ..conditions.user_images import Size
from ..schedulers.scheduling_flow_map import network_arguments_of
from ..schedulers.swaps import check_path_is_kept, check_start
from ..schedulers.tensors import previous_sample, working_dtype
from .call_arguments import (
    Generators,
    accepted,
    changed_latents,
    check_call,
    check_callback_tensors,
    check_components,
    check_generators,
    check_latents,
    check_output_type,
    check_sizes,
    checked_list,
    checked_steps,
    own_scheduler,
    predicted_x0,
)
from .guidance import GuidedNetwork, check_guidance, dtype_of
from .latent_space import LatentSpace

# Memory that PyTorch allocates itself starts at multiples of this many bytes.
ALIGNMENT = 64


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
        condition: name of the image condition that the network was trained with, in `IMAGE_TRANSFORMS`; None where
            there is none, or where the condition is an image as it is.
        conditions: what further conditions need to know in sampling, by their name: texts and numbers by name.
        vae: an autoencoder of diffusers whose latents the network generates; see `LatentSpace`. Without one, the
            network generates pixels.

    Raises:
        ValueError: for an `id2label` that is no such dictionary, an unknown `condition`, or a `vae` that does not fit
            the network.
    """

    # weak_unet takes turns with unet; outside the sequence it stays on the device for the whole trajectory.
    model_cpu_offload_seq = "text_encoder->unet->vae"  # type: ignore[assignment]
    _optional_components: Any = ["text_encoder", "tokenizer", "weak_unet", "vae"]
    _callback_tensor_inputs = ["latents"]
    config: Any  # diffusers types it as a bare dict
    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    weak_unet: Any
    vae: Any

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
    ):
        super().__init__()
        check_components({"unet": unet, "weak_unet": weak_unet, "text_encoder": text_encoder, "vae": vae}, scheduler)
        check_transform_name(condition)
        _check_vae(vae, unet)
        for network in (unet, text_encoder, weak_unet, vae):
            _align_weights(network)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
            vae=vae,
        )
        self.register_to_config(
            id2label=_checked_names(id2label), condition=condition, conditions=_checked_conditions(conditions)
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along one side for each entry of the network's sample: 1 without a vae."""
        return 1 if self.vae is None else LatentSpace(self.vae).factor

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
    def device(self) -> torch.device:
        """The device of the network, which may be any `nn.Module`."""
        found = getattr(self.unet, "device", None)
        own = next((weight.device for weight in self.unet.parameters()), torch.device("cpu"))
        return found if isinstance(found, torch.device) else own

    @property
    def labels(self) -> dict[str, int]:
        """The index of each class that has a name."""
        return {name: int(index) for index, name in (self.config.id2label or {}).items()}

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call was guided away from the null condition, by two predictions or a flow map's one."""
        return self._guidance_scale not in (0, 1) and self.weak_unet is None

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the latest call, each on one prediction of the network, guided or not."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the current call stops before its next step; a callback sets `pipeline._interrupt = True`."""
        return self._interrupt

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
        num_images_per_prompt: int = 1,
        **conditions: Any,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        A condition given once holds for all images; a list of n conditions makes n images. A condition that the network
        takes and that is not given is the null condition. With several conditions, guidance leads away from all of them
        being null.

        The sample is kept in float32 or wider, whatever the network's dtype: in half precision, rounding after every
        step would add up, and more steps would give a worse result. Each call works on a copy of the scheduler, so
        that several threads or pipelines may share one.

        A network with `config.self_condition` receives the last predicted x0, zeros at the first step (Chen et al.
        2022, arXiv:2208.04202, section 3.2).

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
            guidance_interval: (start, stop) as shares of the sampling steps, 0 <= start <= stop <= 1: guided where
                start <= share < stop, the conditional prediction elsewhere (Kynkaanniemi et al. 2024,
                arXiv:2404.07724).
            guidance_rescale: 0 to 1, how far the guided prediction's standard deviation is drawn back to the
                conditional's (Lin et al. 2023, arXiv:2305.08891, eq. 15-16); without effect at the scales 0 and 1.
            num_inference_steps: number of steps; unless this or `timesteps` is given, 4 with `FlowMapScheduler`, and
                with others 50, or all that the scheduler has when it has fewer.
            generator: source of all randomness, one or a list of one per image.
            eta: passed to schedulers whose `step` takes it (DDIM): 0 deterministic, 1 as DDPM; others ignore it.
            timesteps: strictly decreasing times to visit, for schedulers that take a list.
            height, width: image size in pixels; that of the network's `sample_size` when None.
            latents: starting noise of the network's shape, (batch_size, channels, height, width); sets batch_size and
                size. With a vae, one entry stands for several pixels.
            output_type: `pil`, `np` (float in [0, 1], (batch, height, width, channels)), `pt` (float in [0, 1],
                (batch, channels, height, width)) or `latent` (the last sample, in float32 or wider; with a vae, not
                decoded).
            return_dict: give a tuple (images,) when False.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step. `latents` in
                the dictionary it returns replaces the sample; `pipeline._interrupt = True` ends the call, which returns
                the sample so far.
            callback_on_step_end_tensor_inputs: the tensors it receives; `latents` is the only choice.
            num_images_per_prompt: number of images for each condition, one after the other; with `batch_size`, the
                number of images is their product.
            conditions: further conditions by their argument, such as `vector` (numbers for each image, see
                `VectorCondition`) or the argument of a registered condition of your own; `negative_{argument}` takes
                the place of its null condition.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError, TypeError: one sentence on an argument of the wrong type or range, or on arguments that do not
                fit together.
        """
        check_output_type(output_type, ("pil", "np", "pt", "latent"))
        sample, scheduler = self._generate(
            {"height": height, "width": width},
            batch_size,
            num_images_per_prompt,
            latents,
            guidance_scale,
            guidance_interval,
            guidance_rescale,
            num_inference_steps,
            generator,
            eta,
            timesteps,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            class_labels=class_labels,
            negative_class_labels=negative_class_labels,
            prompt=prompt,
            negative_prompt=negative_prompt,
            image=image,
            mask_image=mask_image,
            **conditions,
        )
        images: Any = (
            sample if output_type == "latent" else as_output_type(self.to_images(sample, scheduler), output_type)
        )
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _generate(
        self,
        sizes: Mapping[str, int | None],
        batch_size: int,
        repeats: int,
        latents: torch.Tensor | None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **conditions: Any,
    ) -> tuple[torch.Tensor, Any]:
        """(the last sample, the scheduler of this call); the arguments are those of `__call__`.

        `sizes` names every size of a sample, None for the network's own; `repeats` counts samples for each condition.
        """
        guidance = (guidance_scale, guidance_interval, guidance_rescale)
        check_sizes(**sizes)
        check_call(batch_size, repeats, eta, callback_on_step_end)
        check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_latents(latents, self.unet.config.in_channels, tuple(sizes))
        check_guidance(*guidance)
        self._begin_call(guidance_scale)
        device = self._execution_device
        size = self._size(sizes, latents)
        given = given_conditions(self, conditions, size)
        count = _common_count(batch_size, latents, given, repeats)
        check_generators(generator, count * repeats)
        network = self._guided(given, guidance, count, repeats, device)
        scheduler = self.prepared_scheduler(num_inference_steps, timesteps, device)
        sample = self._prepare_latents(scheduler, count * repeats, size, generator, latents, device)
        return self._denoise(scheduler, network, sample, generator, eta, callback_on_step_end), scheduler

    def prepared_scheduler(
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        device: torch.device | None = None,
    ) -> Any:
        """A copy of the scheduler with its timesteps set; arguments and errors as in `__call__`."""
        scheduler = own_scheduler(self.scheduler)
        check_path_is_kept(scheduler)
        _set_timesteps(scheduler, num_inference_steps, timesteps, device or self._execution_device)
        check_start(scheduler)
        return scheduler

    @torch.no_grad()
    def follow(
        self,
        scheduler: Any,
        sample: torch.Tensor,
        conditions: Mapping[str, Any] | None = None,
        guidance: tuple[float, Sequence[float], float] = (1.0, (0.0, 1.0), 0.0),
        generator: Generators = None,
        eta: float | None = None,
        callback: Callable[..., dict[str, Any]] | None = None,
    ) -> torch.Tensor:
        """The sampling loop of a call alone: the sample after the last of a scheduler's timesteps.

        A scheduler may have a method `guide(predict, sample, timestep)`. It then returns what its `step` receives as
        the network's output, and calls `predict(sample)` for the output itself, with or without gradients.

        Args:
            scheduler: with its timesteps set.
            sample: where its first timestep starts, `(batch, channels, *size)`; unlike `latents`, it is not scaled.
            conditions: conditions by argument, such as `class_labels`.
            guidance: guidance_scale, guidance_interval and guidance_rescale.
            generator, eta, callback: as in `__call__`.

        Raises:
            ValueError: as `__call__`.
        """
        check_call(1, 1, eta, callback)
        check_guidance(*guidance)
        check_generators(generator, len(sample))
        self._begin_call(guidance[0])
        given = given_conditions(self, conditions or {}, tuple(sample.shape[2:]))
        count, device = _common_count(1, sample, given, 1), self._execution_device
        network = self._guided(given, guidance, count, 1, device)
        sample = sample.to(device=device, dtype=working_dtype(dtype_of(self.unet)))
        return self._denoise(scheduler, network, sample, generator, eta, callback)

    def _begin_call(self, guidance_scale: float) -> None:
        self._guidance_scale, self._interrupt = guidance_scale, False
        for network in (self.unet, self.weak_unet, self.text_encoder, self.vae):
            if network is not None:
                network.eval()

    def _guided(
        self,
        given: Sequence[GivenCondition],
        guidance: tuple[float, Sequence[float], float],
        count: int,
        repeats: int,
        device: torch.device,
    ) -> GuidedNetwork:
        conditional, null = self._network_arguments(given, guidance[0], count, repeats, device)
        from_null = all(condition.negative is None for condition in given)
        return GuidedNetwork(self.unet, conditional, null, *guidance, self.weak_unet, from_null)

    def _denoise(
        self,
        scheduler: Any,
        network: GuidedNetwork,
        sample: torch.Tensor,
        generator: Generators,
        eta: float | None,
        callback: Callable[..., dict[str, Any]] | None,
    ) -> torch.Tensor:
        """The sampling loop: the sample after the last of `scheduler.timesteps`, or after an interruption."""
        # diffusers' flow-matching schedulers have no such method: on their path the input is the sample itself.
        scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        guide = getattr(scheduler, "guide", lambda predict, sample, t: predict(sample))
        step_arguments = accepted(scheduler.step, generator=generator, eta=eta)
        total, x0 = len(scheduler.timesteps), None
        self._num_timesteps = total
        with self.progress_bar(total=total) as progress_bar:
            for i, t in enumerate(scheduler.timesteps):
                if self.interrupt:
                    break
                predict = _prediction_at(network, t, i / total, x0, network_arguments_of(scheduler, i))
                model_output = guide(predict, scale(sample, t), t)
                step = scheduler.step(model_output.to(sample.dtype), t, sample, **step_arguments)
                sample = previous_sample(step)
                if network.takes_x0:
                    x0 = predicted_x0(step, scheduler)
                if callback is not None:
                    sample = changed_latents(callback(self, i, t, {"latents": sample}), sample)
                progress_bar.update()
        return sample

    @torch.no_grad()
    def to_images(self, sample: torch.Tensor, scheduler: Any = None) -> torch.Tensor:
        """Images (batch, channels, height, width) in [0, 1], float32, of what the network generates.

        A vae decodes a few at a time, after its scale and shift have been undone.

        Args:
            sample: shaped as the network's input.
            scheduler: that made it; the pipeline's when None.
        """
        if self.vae is not None:
            low, high = -1.0, 1.0
            offloaded = hasattr(self.vae, "_hf_hook")  # its weights come to this device only when it decodes
            device = self._execution_device if offloaded else self.vae.device
            sample = LatentSpace(self.vae).decode(sample.to(device))
        else:
            low, high = getattr(scheduler or self.scheduler, "data_range", (-1.0, 1.0))
        return ((sample.float() - low) / (high - low)).clamp(0, 1)

    def _size(self, sizes: Mapping[str, int | None], latents: torch.Tensor | None) -> Size:
        """The size of the network's sample, such as (height, width): of the latents, as asked for, or its own."""
        if latents is not None:
            return tuple(latents.shape[2:])
        own = self.unet.config.sample_size
        if own is None and None in sizes.values():
            raise ValueError(f"The network's configuration has no sample_size; set {' and '.join(sizes)}.")
        defaults = [own] * len(sizes) if own is None or isinstance(own, int) else own
        if self.vae is None:
            return tuple(default if size is None else size for size, default in zip(sizes.values(), defaults))
        space = LatentSpace(self.vae)
        return space.size_of(tuple(size or default * space.factor for size, default in zip(sizes.values(), defaults)))

    def _network_arguments(
        self, conditions: Sequence[GivenCondition], scale: float, count: int, repeats: int, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(arguments under the conditions, arguments of the guidance's reference), as far as the scale needs them.

        Each of `count` conditions is encoded once and repeated `repeats` times.
        """
        _check_guided(conditions, scale, self.weak_unet)
        conditional: dict[str, torch.Tensor] = {}
        reference: dict[str, torch.Tensor] = {}
        for condition in conditions:
            conditional |= _repeated(condition.conditional(count, device), repeats)
            if scale != 1 and self.weak_unet is None:
                reference |= _repeated(condition.null(count, device), repeats)
        if self.weak_unet is not None:
            reference = arguments_known_to(self.weak_unet, conditional)
        return conditional, reference

    def _prepare_latents(
        self,
        scheduler: Any,
        count: int,
        size: Size,
        generator: Generators,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """The starting sample (count, channels, *size), in float32 or wider."""
        dtype = working_dtype(dtype_of(self.unet))
        if latents is None:
            shape = (count, self.unet.config.in_channels, *size)
            if hasattr(scheduler, "sample_prior"):
                return scheduler.sample_prior(shape, generator=generator, device=device, dtype=dtype)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device=device, dtype=dtype) * getattr(scheduler, "init_noise_sigma", 1.0)


def _prediction_at(
    network: GuidedNetwork, timestep: Any, progress: float, x0: torch.Tensor | None, step: Mapping[str, float]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network at one step, as a function of its input alone."""
    return lambda sample: network(sample, timestep, progress, x0, step)


def _repeated(arguments: Mapping[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    """Every row of every tensor `times` times, one after the other."""
    if times == 1:
        return dict(arguments)
    return {name: rows.repeat_interleave(times, dim=0) for name, rows in arguments.items()}


def _set_timesteps(
    scheduler: Any, num_inference_steps: int | None, timesteps: Sequence[int] | None, device: torch.device
) -> None:
    if timesteps is None:
        scheduler.set_timesteps(checked_steps(num_inference_steps, scheduler), device=device)
        return
    if num_inference_steps is not None:
        raise ValueError("Give either num_inference_steps or timesteps, not both.")
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(scheduler).__name__} does not take a list of timesteps.")
    scheduler.set_timesteps(timesteps=checked_list(timesteps), device=device)


def as_output_type(images: torch.Tensor, output_type: str) -> Any:
    """Images (batch, channels, height, width) in [0, 1] as `pil`, `np` or `pt`."""
    if output_type == "pt":
        return images
    array = VaeImageProcessor.pt_to_numpy(images)
    return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)


def _check_vae(vae: Any, unet: Any) -> None:
    """Raise ValueError for an autoencoder that can't decode what the network generates."""
    if vae is None:
        return
    channels, known = LatentSpace(vae).channels, getattr(unet.config, "in_channels", None)
    if known is not None and known != channels:
        raise ValueError(f"The latents of the vae have {channels} channels, but the network takes {known}.")


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


def _checked_conditions(conditions: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """The conditions' entries as a saved configuration keeps them."""
    if conditions is None:
        return None
    if not isinstance(conditions, Mapping) or not all(isinstance(entry, Mapping) for entry in conditions.values()):
        raise ValueError(
            f"conditions must be a dictionary of dictionaries by the conditions' names, got {conditions!r}."
        )
    return {str(name): dict(entry) for name, entry in conditions.items()}


def _common_count(
    batch_size: int, latents: torch.Tensor | None, conditions: Sequence[GivenCondition], repeats: int
) -> int:
    """The number of conditions, each with `repeats` images: a condition given once holds for all."""
    given = {name: count for condition in conditions for name, count in condition.counts().items() if count > 1}
    if latents is not None and len(latents) % repeats == 0:
        given = {"latents": len(latents) // repeats, **given}
    elif latents is not None:
        raise ValueError(
            f"latents are for {len(latents)} images, but num_images_per_prompt is {repeats}; give a multiple of it."
        )
    elif batch_size > 1:
        given = {"batch_size": batch_size, **given}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in given.items())
        raise ValueError(f"The number of images is not the same everywhere: {listed}.")
    return next(iter(given.values()), 1)


def _check_guided(conditions: Sequence[GivenCondition], scale: float, weak_unet: Any) -> None:
    """Raise ValueError for guidance towards nothing, and for a negative where no null condition has a part."""
    if weak_unet is not None:
        for condition in conditions:
            if condition.negative is not None:
                name = f"negative_{condition.argument}"
                raise ValueError(f"{name} was given, but this pipeline's guidance leads away from its weak_unet.")
    elif scale not in (0, 1) and all(condition.given is None for condition in conditions):
        names = ", ".join(condition.argument for condition in conditions)
        raise ValueError(f"guidance_scale {scale} needs a condition, one of {names}.")
