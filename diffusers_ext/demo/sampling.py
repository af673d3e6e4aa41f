"""One run of a pipeline step by step: the noisy samples, and what the network takes for the clean ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..conditions.class_label import classes_of
from ..pipelines import GenerationPipeline, SignalPipeline
from ..pipelines.batched_generation import starting_noise
from ..schedulers.registry import BETAS, FLOW, SAMPLERS, build_sampler, path_kind, samplers_on

SAVED, DEFAULT = "saved with the model", "default"
NO_CLASS, EVERY_CLASS = "none", "one of each"
MOST_STEPS, MOST_IMAGES = 1000, 16
MOST_FRAMES = 16  # states of a run that are kept


@dataclass(frozen=True)
class Setting:
    """How to sample.

    Attributes:
        sampler: in `registry.SAMPLERS`, or `SAVED`.
        steps: number of steps, 1 to `MOST_STEPS`.
        subsequence: which timesteps are visited, for samplers that take it, or `DEFAULT`.
        guidance_scale: as a pipeline takes it.
    """

    sampler: str = SAVED
    steps: int = 20
    subsequence: str = DEFAULT
    guidance_scale: float = 1.0

    def build(self, saved: Any) -> Any:
        """A scheduler on the noise path of the saved one.

        Raises:
            ValueError: one sentence on a number of steps, a sampler or a subsequence that can't be.
        """
        check_whole("steps", self.steps, 1, MOST_STEPS)
        subsequence = None if self.subsequence == DEFAULT else self.subsequence
        if self.sampler != SAVED:
            if self.sampler not in SAMPLERS:  # a class by its file must not be loaded from a page
                raise ValueError(f"The sampler must be one of {', '.join(SAMPLERS)}, got '{self.sampler}'.")
            return build_sampler(self.sampler, saved.config, subsequence=subsequence)
        if subsequence is not None:
            raise ValueError("A subsequence has no effect on the saved sampler; choose a sampler such as ddim.")
        return saved

    @property
    def label(self) -> str:
        """The setting in a few words."""
        named = "saved sampler" if self.sampler == SAVED else self.sampler
        return named if self.subsequence == DEFAULT else f"{named}, {self.subsequence}"


@dataclass(frozen=True)
class Frame:
    """The state of a run before a step, or after the last.

    Attributes:
        step: number of steps taken.
        timestep: that the network receives next; None at the end.
        sample: x_t in the network's scale.
        x0: the network's estimate of the clean sample; at the end the sample itself, None where nobody asked.
    """

    step: int
    timestep: float | None
    sample: torch.Tensor
    x0: torch.Tensor | None


@dataclass(frozen=True)
class Process:
    """A run.

    Attributes:
        frames: states from the noise to the samples, evenly over the steps.
        steps: number of steps.
        calls: network calls for each sample, without those of the estimates in `frames`.
        stochastic: whether the sampler drew noise of its own.
        seconds: wall time of the run, without that of the estimates.
        scheduler: that made it.
    """

    frames: list[Frame]
    steps: int
    calls: int
    stochastic: bool
    seconds: float
    scheduler: Any

    @property
    def samples(self) -> torch.Tensor:
        """The last state."""
        return self.frames[-1].sample


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ValueError for anything but a whole number in this range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"The number of {name} must be a whole number from {least} to {most}, got {value}.")


def check_seed(seed: Any) -> None:
    """Raise ValueError for anything but a seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**53:
        raise ValueError(f"The seed must be a whole number from 0 to 2^53, got {seed}.")


def class_names(pipeline: Any) -> list[str]:
    """The names, or numbers, of the classes that a pipeline's network knows; empty where it knows none."""
    named = pipeline.config.id2label or {}
    return [str(named.get(str(i), i)) for i in range(classes_of(pipeline.unet, named or None).number)]


def class_labels(pipeline: Any, name: str, count: int) -> list[int] | None:
    """The classes of `count` images: of one name, of each class in turn, or None for no condition.

    Raises:
        ValueError: for a class that the network doesn't know.
    """
    names = class_names(pipeline)
    if name == NO_CLASS:
        return None
    if name == EVERY_CLASS and names:
        return [i % len(names) for i in range(count)]
    if name not in names:
        known = f"it knows {', '.join(names[:20])}" if names else "it is unconditional"
        raise ValueError(f"The model has no class '{name}'; {known}.")
    return [names.index(name)] * count


def sampler_names(pipeline: Any) -> list[str]:
    """The samplers on the noise path of a pipeline, that of the saved scheduler first."""
    return [SAVED, *samplers_on(path_kind(pipeline.scheduler.config))]


def check_pipeline(pipeline: Any) -> None:
    """Raise ValueError for a pipeline that this page can't show."""
    if not isinstance(pipeline, GenerationPipeline) or isinstance(pipeline, SignalPipeline):
        kind = type(pipeline).__name__
        raise ValueError(f"The demo shows images of a GenerationPipeline of this package, and this is a {kind}.")


def follow(
    pipeline: Any, setting: Setting, count: int, seed: int, estimates: bool = True, **conditions: Any
) -> Process:
    """Sample `count` images and keep states on the way. Runs with the same seed start from the same noise.

    Works on a copy of the pipeline, so that other threads may use the same one.

    Args:
        pipeline: a `GenerationPipeline`.
        setting: the sampler.
        count: number of samples.
        seed: of the starting noise and of the sampler's own.
        estimates: whether to compute the estimates of x0, a network call for each frame.
        conditions: as the pipeline's call takes them.

    Raises:
        ValueError: one sentence on a setting or a condition that can't be.
    """
    saved, pipeline = pipeline.scheduler, copy.copy(pipeline)
    pipeline.scheduler = setting.build(saved)
    generator = torch.Generator().manual_seed(seed)
    noise = starting_noise(pipeline, count, generator)
    before = generator.get_state()
    times: list[float] = []
    states: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        times.append(float(timestep))
        states.append(tensors["latents"].clone())
        return {}

    call = {"guidance_scale": setting.guidance_scale, "output_type": "latent", **conditions}
    began = time.perf_counter()
    pipeline(latents=noise, num_inference_steps=setting.steps, generator=generator, callback_on_step_end=keep, **call)
    seconds = time.perf_counter() - began
    scale = _starting_scale(pipeline.scheduler, setting.steps)
    states.insert(0, noise.to(states[0]) * scale)
    frames = []
    for step in _evenly(len(states)):
        if step == len(times):
            frames.append(Frame(step, None, states[step], states[step]))
            continue
        state = states[step] * _network_scale(pipeline.scheduler, scale, times[step])
        x0 = _estimate(pipeline, saved, state, times[step], call) if estimates else None
        frames.append(Frame(step, times[step], state, x0))
    calls = len(times) * (1 if setting.guidance_scale in (0, 1) else 2)
    stochastic = not torch.equal(before, generator.get_state())
    return Process(frames, len(times), calls, stochastic, seconds, pipeline.scheduler)


def _evenly(count: int) -> list[int]:
    """At most `MOST_FRAMES` of `count` places, with the first and the last."""
    return sorted({round(place) for place in torch.linspace(0, count - 1, min(count, MOST_FRAMES)).tolist()})


def _starting_scale(scheduler: Any, steps: int) -> float:
    """What a pipeline multiplies noise of variance 1 by to start."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _network_scale(scheduler: Any, starting_scale: float, timestep: float) -> float:
    """From a sampler's scale to the network's: on a path with betas, some of diffusers' divide their samples by alpha.

    Such a scheduler starts at sigma / alpha.
    """
    if path_kind(scheduler.config) != BETAS or starting_scale == 1:
        return 1.0
    return float(scheduler.alphas_cumprod[round(timestep)]) ** 0.5


def _estimate(pipeline: Any, saved: Any, state: torch.Tensor, timestep: float, call: dict[str, Any]) -> torch.Tensor:
    """The network's estimate of x0, guided as the run: where one deterministic step from here to the data leads."""
    single, config = copy.copy(pipeline), saved.config
    single.scheduler = build_sampler("ddim", config)
    if path_kind(config) == FLOW:
        place: float = timestep / config["num_train_timesteps"]
    elif config.get("continuous"):
        place = timestep / config.get("timestep_scale", 1.0)
    else:
        place = round(timestep)
    scheduler = copy.deepcopy(single.scheduler)
    scheduler.set_timesteps(timesteps=[place])
    return single(latents=state / float(scheduler.init_noise_sigma), timesteps=[place], **call).images


def pictures(pipeline: Any, frames: Sequence[Frame], scheduler: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(the noisy samples, the estimates) of each frame as images in [-1, 1]."""
    found = []
    for frame in frames:
        x0 = frame.sample if frame.x0 is None else frame.x0
        found.append(tuple(2 * pipeline.to_images(each, scheduler).cpu() - 1 for each in (frame.sample, x0)))
    return found  # type: ignore[return-value]
