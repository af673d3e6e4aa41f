"""EditingPipeline: invert, mix, vary, repair and restore data with a model that was trained for none of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..pipelines import GenerationPipeline
from .dps import DPSScheduler
from .inpaint import RepaintScheduler
from .interpolate import slerp
from .inversion import FlowScheduler
from .levels import ListedPath
from .operators import as_operator
from .pigdm import PiGDMScheduler
from .posterior import PosteriorScheduler
from .space import space_of
from .vary import from_the_middle

# Methods of `restore`. A new one is a file with its class, and its line here.
METHODS: dict[str, type[PosteriorScheduler]] = {method.name: method for method in (DPSScheduler, PiGDMScheduler)}

_GUIDANCE = {"guidance_scale": 1.0, "guidance_interval": (0.0, 1.0), "guidance_rescale": 0.0}


@dataclass
class Call:
    """The arguments that all edits take; see `EditingPipeline`."""

    num_inference_steps: int | None = None
    generator: Any = None
    eta: float | None = None
    output_type: str | None = None
    return_dict: bool = True
    callback_on_step_end: Callable[..., dict[str, Any]] | None = None
    guidance: tuple[Any, ...] = tuple(_GUIDANCE.values())
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Call:
        """The call with these arguments; those of no other name are conditions."""
        own = {name for name in cls.__dataclass_fields__ if name not in ("guidance", "conditions")}
        return cls(
            **{name: value for name, value in arguments.items() if name in own},
            guidance=tuple(arguments.get(name, default) for name, default in _GUIDANCE.items()),
            conditions={name: value for name, value in arguments.items() if name not in own | set(_GUIDANCE)},
        )


class EditingPipeline:
    """Edits with any unconditional or conditional diffusion model, in pixels or latents, of images or signals.

    All edits take these arguments besides their own: `num_inference_steps` (as in the pipeline's call), the
    model's conditions (`class_labels`, ...) with `guidance_scale`, `guidance_interval` and `guidance_rescale`,
    `generator`, `eta`, `callback_on_step_end`, `output_type` (`pil`, `np`, `pt` or `latent`; `np` or `pt` for signals)
    and `return_dict`, all as in the pipeline's own call. Results are what that call returns: `.images`, or `.audios`.

    Images are PIL images, arrays or tensors in [0, 1] of the network's size, one or several; signals are tensors in the
    units of the data, ([n,] channels, length).

    Args:
        model: a `GenerationPipeline` or `SignalPipeline`, an unconditional pipeline of diffusers (`DDPMPipeline`,
            `DDIMPipeline`, `LDMPipeline`), or a network called as `network(sample, timestep)`.
        scheduler: of this package or of diffusers; the pipeline's own if None. A network alone needs one.

    Attributes:
        pipeline: the `GenerationPipeline` or `SignalPipeline` whose sampling loop is used.

    Raises:
        ValueError: for a model that is neither, or a network without a scheduler.
    """

    def __init__(self, model: Any, scheduler: Any = None):
        self.pipeline = _as_generation_pipeline(model, scheduler)
        if scheduler is not None and self.pipeline is model:
            self.pipeline = type(model).from_pipe(model, scheduler=scheduler)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> EditingPipeline:
        """The model in a folder or on the Hub; options as for `DiffusionPipeline.from_pretrained`."""
        from diffusers import DiffusionPipeline

        return cls(DiffusionPipeline.from_pretrained(name, **options))

    def to(self, *place: Any, **options: Any) -> EditingPipeline:
        """Move the model; arguments as for `DiffusionPipeline.to`."""
        self.pipeline.to(*place, **options)
        return self

    # inversion

    @torch.no_grad()
    def invert(self, image: Any, solver: str = "heun", **call: Any) -> torch.Tensor:
        """The noise that the probability flow leads to an image from, of about variance 1: `(n, channels, *size)`.

        `pipeline(latents=...)` with a deterministic sampler, such as DDIM, leads back.

        Args:
            image: one or several, or signals.
            solver: `heun`, of second order, or `ddim`, of first; see `inversion.FlowScheduler`.
            call: see `EditingPipeline`.

        Raises:
            ValueError: in one sentence, for what does not fit the model, and a path that does not end at noise.
        """
        given, space = Call.of(call), space_of(self.pipeline)
        return self._flow(space.encode(space.read("image", image)), solver, True, given)

    @torch.no_grad()
    def reconstruct(self, image: Any, solver: str = "heun", **call: Any) -> Any:
        """Images after inversion and sampling along the same steps; arguments and errors as `invert`."""
        given, space = Call.of(call), space_of(self.pipeline)
        noise = self._flow(space.encode(space.read("image", image)), solver, True, given)
        return self._output(self._flow(noise, solver, False, given), given)

    @torch.no_grad()
    def interpolate(self, image: Any, other: Any, num_images: int = 8, solver: str = "heun", **call: Any) -> Any:
        """Images between two real ones: both are inverted, and their noise is interpolated on the sphere.

        Args:
            image, other: one image each.
            num_images: at least 2, both ends among them.
            solver: as in `invert`.
            call: see `EditingPipeline`. A condition is that of both images.

        Raises:
            ValueError: as `invert`, and for several images.
        """
        if not isinstance(num_images, int) or num_images < 2:
            raise ValueError(f"num_images must be an integer of at least 2, got {num_images!r}.")
        given, space = Call.of(call), space_of(self.pipeline)
        ends = [space.read(name, value) for name, value in (("image", image), ("other", other))]
        if any(len(end) != 1 for end in ends):
            raise ValueError(f"interpolate takes two single {space.noun}s, got {len(ends[0])} and {len(ends[1])}.")
        noise = self._flow(space.encode(torch.cat(ends)), solver, True, given)
        shares = torch.linspace(0, 1, num_images, dtype=torch.float64).tolist()
        between = torch.cat([slerp(noise[:1], noise[1:], share) for share in shares])
        return self._output(self._flow(between, solver, False, given), given)

    def _flow(self, sample: torch.Tensor, solver: str, upwards: bool, call: Call) -> torch.Tensor:
        path = self._path(call)
        return self._follow(FlowScheduler(path, solver, upwards, sample), sample, call)

    # sampling that starts at an image, or keeps a part of it

    @torch.no_grad()
    def vary(self, image: Any, strength: float = 0.5, **call: Any) -> Any:
        """Variations of images: noised to a middle level and sampled from there, by the model's own sampler (SDEdit).

        Args:
            image: one or several, or signals.
            strength: above 0, at most 1: the share of the sampling steps that are taken. At 1 little of the image is
                left.
            call: see `EditingPipeline`.

        Raises:
            ValueError: in one sentence, for what does not fit the model, and a strength outside its range.
        """
        given, space = Call.of(call), space_of(self.pipeline)
        sample = space.encode(space.read("image", image))
        scheduler = from_the_middle(self.pipeline.prepared_scheduler(given.num_inference_steps), strength)
        start = scheduler.noised(sample, self._noise(sample, given))
        return self._output(self._follow(scheduler, start, given), given)

    @torch.no_grad()
    def inpaint(self, image: Any, mask_image: Any, resamplings: int = 10, jump_length: int = 1, **call: Any) -> Any:
        """Images with a part painted anew; the rest comes back exactly (RePaint).

        Args:
            image: one or several, or signals.
            mask_image: white (1) where to repaint, of the image's size.
            resamplings: how often each step is taken, with noise added in between, at least 1. More make the parts
                agree better, and take as much longer.
            jump_length: steps that are repeated at a time, at least 1.
            call: see `EditingPipeline`; `eta` has no effect.

        Raises:
            ValueError: in one sentence, for what does not fit the model or the image, a mask that is all black, and
                numbers below 1.
        """
        given, space = Call.of(call), space_of(self.pipeline)
        data = space.read("image", image)
        mask = space.read_mask("mask_image", mask_image, data)
        if not mask.any():
            raise ValueError("mask_image marks nothing to repaint; it must be white (1) there.")
        known = space.encode(data)
        clips = getattr(self.pipeline.scheduler.config, "clip_sample", False)
        bound = float(getattr(self.pipeline.scheduler.config, "clip_sample_range", None) or 1.0)
        scheduler = RepaintScheduler(
            self._path(given), known, space.sample_mask(mask), resamplings, jump_length, bound if clips else None
        )
        sample = self._follow(scheduler, scheduler.start(given.generator), given)
        return self._output(sample, given, lambda found: torch.where(mask > 0, found, data.to(found)))

    # inverse problems

    @torch.no_grad()
    def restore(
        self,
        measurement: torch.Tensor,
        operator: Any,
        noise_std: float = 0.0,
        method: str = "pigdm",
        shape: tuple[int, ...] | None = None,
        options: Mapping[str, Any] | None = None,
        **call: Any,
    ) -> Any:
        """Samples of what was measured: images x in [0, 1] with measurement = A x + noise, or signals likewise.

        Args:
            measurement: (n, ...), of the shape that A gives.
            operator: A, a `LinearOperator` (`editing.operators` has ready ones), or a function that PyTorch can
                differentiate; `dps` takes functions that are not linear.
            noise_std: standard deviation of the measurement's noise, at least 0.
            method: `pigdm` (linear A, no latents) or `dps`; see `PiGDMScheduler` and `DPSScheduler`.
            shape: `(channels, *size)` of x, for a network that does not say it.
            options: of the method: `data_variance` or `step_size`.
            call: see `EditingPipeline`. The sampler is the model's own.

        Raises:
            ValueError: in one sentence, for a measurement of another shape, an operator that lacks what the method
                needs, and values out of range.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        for name in options or {}:
            if name not in options_of(method):
                raise ValueError(f"'{name}' is no option of {method}; it has {', '.join(options_of(method))}.")
        given, space, known = Call.of(call), space_of(self.pipeline), as_operator(operator)
        measurement = self._measured(measurement, known, shape)
        sample_shape = space.sample_shape((len(measurement), *self._data_shape(shape)))
        scheduler = METHODS[method](
            self.pipeline.prepared_scheduler(given.num_inference_steps),
            space,
            known,
            measurement,
            noise_std,
            **(options or {}),
        )
        like = torch.empty(sample_shape, device=self.pipeline.device, dtype=measurement.dtype)
        start = self._noise(like, given) * getattr(scheduler, "init_noise_sigma", 1.0)
        return self._output(self._follow(scheduler, start, given), given)

    def _data_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        space = space_of(self.pipeline)
        if shape is not None:
            return tuple(shape)
        if space.size is None or len(space.channels) > 1:
            raise ValueError(f"The network does not say the size of its {space.noun}s; give shape=(channels, *size).")
        return (space.channels[0], *space.size)

    def _measured(self, measurement: Any, operator: Any, shape: tuple[int, ...] | None) -> torch.Tensor:
        """The measurement on the network's device, of the operator's shape and finite."""
        if not isinstance(measurement, torch.Tensor) or not measurement.is_floating_point() or measurement.ndim < 2:
            found = tuple(measurement.shape) if isinstance(measurement, torch.Tensor) else type(measurement).__name__
            raise ValueError(f"measurement must be a tensor of floating-point numbers (n, ...), got {found}.")
        if not measurement.isfinite().all():
            raise ValueError("measurement must be finite numbers, got NaN or infinity.")
        measurement = measurement.to(self.pipeline.device)
        zeros = torch.zeros((1, *self._data_shape(shape)), device=measurement.device, dtype=measurement.dtype)
        expected = tuple(operator(zeros).shape[1:])
        if tuple(measurement.shape[1:]) != expected:
            raise ValueError(
                f"measurement has shape {tuple(measurement.shape)}, but '{operator.name}' gives (n, "
                f"{', '.join(map(str, expected))}) of {tuple(zeros.shape[1:])}."
            )
        return measurement

    # the sampling loop

    def _path(self, call: Call) -> ListedPath:
        return ListedPath(self.pipeline.prepared_scheduler(call.num_inference_steps))

    @staticmethod
    def _noise(like: torch.Tensor, call: Call) -> torch.Tensor:
        return randn_tensor(like.shape, generator=call.generator, device=like.device, dtype=like.dtype)

    def _follow(self, scheduler: Any, sample: torch.Tensor, call: Call) -> torch.Tensor:
        return self.pipeline.follow(
            scheduler, sample, call.conditions, call.guidance, call.generator, call.eta, call.callback_on_step_end
        )

    def _output(
        self, sample: torch.Tensor, call: Call, change: Callable[[torch.Tensor], torch.Tensor] = lambda data: data
    ) -> Any:
        """The result, after `change` of the data of samples."""
        space = space_of(self.pipeline)
        output_type = call.output_type or space.output_types[0]
        space.check_output_type(output_type)
        data = sample if output_type == "latent" else change(space.decode(sample))
        self.pipeline.maybe_free_model_hooks()
        return space.output(data, output_type, call.return_dict)


def options_of(method: str) -> list[str]:
    """Names of the options of a method of `restore`."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _as_generation_pipeline(model: Any, scheduler: Any) -> Any:
    """The pipeline of this package for a model; see `EditingPipeline`."""
    if isinstance(model, GenerationPipeline):
        return model
    unet = getattr(model, "unet", None)
    if unet is not None and hasattr(model, "scheduler"):
        autoencoder = getattr(model, "vae", None) or getattr(model, "vqvae", None)
        if getattr(model, "text_encoder", None) is not None:
            raise ValueError(
                f"{type(model).__name__} is a text-to-image pipeline; EditingPipeline takes unconditional ones."
            )
        return GenerationPipeline(unet=unet, scheduler=scheduler or model.scheduler, vae=autoencoder)
    if not callable(model):
        raise ValueError(f"model must be a pipeline with unet and scheduler, or a network, got {type(model).__name__}.")
    if scheduler is None:
        raise ValueError(
            f"{type(model).__name__} is a network without a scheduler; give EditingPipeline its scheduler."
        )
    return GenerationPipeline(unet=model, scheduler=scheduler)
