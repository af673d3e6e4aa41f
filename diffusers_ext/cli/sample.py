"""`diffusers-ext sample`: a picture of samples, and each as a file, under a condition or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..conditions import CONDITIONS
from ..pipelines import SignalPipeline
from ..pipelines.batched_generation import samples_of
from ..pipelines.call_arguments import default_steps
from ..settings import CheckedSettings, make_settings_class, option
from .sampler_options import OneSampler
from .shared import (
    DTYPE_CHOICES,
    DTYPE_HELP,
    GuidedSteps,
    ModelCode,
    bar,
    load_checkpoint,
    load_pipeline,
    progress_bar,
    settings_of_run,
)

_FLAGS = {name: flag for condition in CONDITIONS.values() for name, flag in condition.flags.items()}
_ConditionFlags: Any = make_settings_class("_ConditionFlags", _FLAGS, __name__)


@dataclass
class SampleArguments(OneSampler, CheckedSettings, _ConditionFlags, GuidedSteps, ModelCode):
    """Sample images or signals from a saved pipeline."""

    POSITIONAL: ClassVar[str] = "model"

    model: str | None = option(
        None, "Folder or Hub name of a pipeline, or the name of a recipe: what was trained by it (`sample ddpm`)."
    )
    checkpoint: str | None = option(
        None,
        "In place of a model: a `checkpoint-N` folder of a run, or a file of weights of another project "
        "(denoising-diffusion-pytorch, ...), which is converted in memory.",
    )
    architecture: str | None = option(
        None, "Preset of the network in a file of another project, where several fit its weights."
    )
    num_images: int | None = option(
        None,
        "Number of samples; if not given, 64, or about as many with equally many for each of several conditions.",
        at_least=1,
        at_most=10_000_000,
    )
    guidance_scale: float | None = option(
        None,
        "0 unconditional, 1 conditional, above 1 more so; that of the run's recipe, or 1, if not given.",
        at_least=0,
    )
    num_inference_steps: int | None = option(
        None,
        "Sampling steps; if not given those of the run's recipe, or else 50, or 4 with FlowMapScheduler.",
        at_least=1,
        at_most=100_000,
    )
    batch_size: int = option(64, "Samples at a time.", at_least=1, at_most=10_000_000)
    seed: int = option(0, "Seed of all randomness.", at_least=0)
    output: str = option("samples.png", "The picture to write.", writes=".png .jpg .jpeg .webp .bmp .tif .tiff")
    images_dir: str | None = option(
        None, "Also write each sample as a file of its own into this folder: .png, or .wav for sounds.", writes="folder"
    )
    gif: str | None = option(None, "Also write the reverse process of images here.", writes=".gif")
    fps: float = option(12.5, "Pictures a second of the GIF; viewers show 50 at most.", above=0, at_most=50)
    frames: int | None = option(
        None, "Pictures of the GIF, evenly over the sampling steps; one for each step if not given.", at_least=1
    )
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPE_CHOICES)


def sample(arguments: SampleArguments) -> None:
    """Write a grid of samples, and a GIF of how they came about when asked."""
    arguments.check_sampler(arguments.model or arguments.checkpoint)
    arguments.interval()
    pipeline = _loaded(arguments)
    conditions, shared, columns = _conditions(arguments, pipeline)
    generator = torch.Generator().manual_seed(arguments.seed)
    if arguments.gif is not None and isinstance(pipeline, SignalPipeline):
        raise ValueError("gif shows images, and this pipeline makes signals; leave it out.")
    samples: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    number = arguments.num_images or 0
    starts = range(0, number, arguments.batch_size)
    if len(starts) > 1:
        pipeline.set_progress_bar_config(**progress_bar(leave=False))
    for start in bar(starts, "Batches") if len(starts) > 1 else starts:
        count = min(arguments.batch_size, number - start)
        keep = state_keeper(states) if arguments.gif is not None and start == 0 else None
        result = pipeline(
            batch_size=count,
            num_inference_steps=arguments.num_inference_steps,
            generator=generator,
            output_type="pt",
            callback_on_step_end=keep,
            **{name: values[start : start + count] for name, values in conditions.items()},
            **shared,
        )
        samples.append(samples_of(result))
    _write(arguments, pipeline, torch.cat(samples), states, columns)


def _loaded(arguments: SampleArguments) -> Any:
    """The pipeline; settings that were not given become those of its run."""
    if (arguments.model is None) == (arguments.checkpoint is None):
        raise ValueError("Give a model, by folder, Hub name or recipe, or a --checkpoint: one of both.")
    if arguments.checkpoint is None and arguments.architecture is not None:
        raise ValueError("architecture has no effect without a --checkpoint.")
    if arguments.checkpoint is not None:
        recipe, place = settings_of_run(arguments.checkpoint), (arguments.checkpoint, arguments.device)
        pipeline = load_checkpoint(*place, arguments.dtype, arguments.architecture)
    else:
        folder = arguments.model or ""
        recipe = settings_of_run(folder)
        pipeline = load_pipeline(folder, arguments.device, arguments.dtype, arguments.trust_remote_code)
    own_sampler = arguments.sampler in (None, recipe.get("sampler"))
    arguments.put_sampler_into(pipeline)
    steps = recipe.get("ddpm_num_inference_steps") if own_sampler else None
    longest = getattr(pipeline.scheduler.config, "num_train_timesteps", 1000)
    of_run = min(int(steps), longest) if steps else default_steps(pipeline.scheduler)
    arguments.num_inference_steps = arguments.num_inference_steps or of_run
    own = not any(getattr(arguments, name) is not None for name in _FLAGS) and arguments.guidance_scale is None
    if own and recipe.get("condition") == "class":  # a row for each class says more than the null condition
        arguments.class_labels = [str(number) for number in range(len(pipeline.config.id2label or {}))] or None
    if arguments.guidance_scale is None and any(getattr(arguments, name) is not None for name in _FLAGS):
        arguments.guidance_scale = float(recipe.get("guidance_scale") or 1.0)
    return pipeline


def _write(
    arguments: SampleArguments,
    pipeline: Any,
    samples: torch.Tensor,
    states: Sequence[torch.Tensor],
    columns: int | None,
) -> None:
    """Write the picture, single files and the GIF of the `states` after each step, as asked for."""
    from .. import figures
    from ..modalities import modality_of_pipeline

    modality = modality_of_pipeline(pipeline)
    modality.draw(samples, Path(arguments.output), pipeline, columns)
    print(f"{len(samples)} {modality.noun} in {arguments.output}")
    if arguments.images_dir is not None:
        modality.write_each(samples, Path(arguments.images_dir), pipeline)
        print(f"Each of them in {arguments.images_dir}")
    if arguments.gif is not None:
        chosen = [modality.frame(pipeline, state) for state in figures.evenly(states, arguments.frames)]
        figures.save_gif(chosen, arguments.gif, duration_ms=round(1000 / arguments.fps), columns=columns)
        print(f"The reverse process in {arguments.gif}, {len(chosen)} pictures")


def _conditions(arguments: SampleArguments, pipeline: Any) -> tuple[dict[str, list[Any]], dict[str, Any], int | None]:
    """(a condition for each image, arguments that hold for all images, images a row of the grid).

    Raises ValueError for conditions that the pipeline can't take.
    """
    rows: dict[str, list[Any]] = {}
    shared: dict[str, Any] = {}
    for condition in (kind.for_pipeline(pipeline) for kind in CONDITIONS.values()):
        values = {name: getattr(arguments, name) for name in condition.flags if getattr(arguments, name) is not None}
        for_rows, for_all = condition.from_command_line(values, pipeline, _opened)
        rows |= {name: entries for name, entries in for_rows.items() if entries}
        shared |= for_all
    if len({len(entries) for entries in rows.values()}) > 1:
        raise ValueError(f"{' and '.join(rows)} must be as many, to be given together.")
    number = len(next(iter(rows.values()), []))
    if arguments.num_images is None:
        arguments.num_images = max(64 // max(number, 1), 1) * max(number, 1)
    if number > arguments.num_images:
        raise ValueError(f"num_images is {arguments.num_images}, fewer than the {number} conditions.")
    columns = -(-arguments.num_images // number) if number > 1 else None
    each = columns or arguments.num_images
    conditions = {
        name: [entry for entry in entries for _ in range(each)][: arguments.num_images]
        for name, entries in rows.items()
    }
    if conditions or shared:
        shared["guidance_scale"] = 1.0 if arguments.guidance_scale is None else arguments.guidance_scale
        arguments.check_interval(shared["guidance_scale"])
        shared |= arguments.interval()
    elif arguments.guidance_scale not in (None, 1):
        raise ValueError(f"guidance_scale needs a condition: {', '.join(_FLAGS)}.")
    elif arguments.guidance_interval is not None:
        raise ValueError(f"guidance_interval needs a condition: {', '.join(_FLAGS)}.")
    return conditions, shared, columns


def _opened(argument: str, path: str) -> Any:
    """The image in a file."""
    from ..data.opening import open_image_file

    return open_image_file(path, argument)


def state_keeper(states: list[torch.Tensor]) -> Callable[..., dict[str, Any]]:
    """A callback that appends the network's sample after every step."""

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        states.append(tensors["latents"].to("cpu", copy=True))
        return {}

    return keep
