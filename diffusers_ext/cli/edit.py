"""`diffusers-ext edit ...`: invert, interpolate, vary, inpaint and restore images with a saved pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image, ImageOps

from ..conditions import CONDITIONS
from ..editing import EditingPipeline, LinearOperator, blur, down_sampling, grey, masking, random_projection
from ..editing.inversion import SOLVERS
from ..editing.pipeline import METHODS
from ..evaluation.metrics import peak_signal_to_noise_ratio
from ..modalities import modality_of_pipeline
from ..pipelines import SignalPipeline
from ..pipelines.batched_generation import image_shape
from ..settings import make_settings_class, option
from .real_images import RealDataArguments, real_and_baseline
from .sampler_options import OneSampler
from .shared import DTYPE_CHOICES, DTYPE_HELP, load_pipeline, progress_bar, run_folder

# An image is what is edited here, not what the network is conditioned on.
_CONDITIONS = [condition for name, condition in CONDITIONS.items() if name != "image"]
_FLAGS = {name: flag for condition in _CONDITIONS for name, flag in condition.flags.items()}
_ConditionFlags: Any = make_settings_class("_ConditionFlags", _FLAGS, __name__)

MASKS = ("box", "left", "top", "frame")
OPERATORS = ("mask", "down_sampling", "blur", "grey", "random_projection")

Columns = dict[str, torch.Tensor]


@dataclass
class EditArguments(OneSampler, RealDataArguments, _ConditionFlags):
    """What all edits take."""

    POSITIONAL: ClassVar[str] = "model"

    model: str = option(text="Folder or Hub name of a pipeline, or the name of a recipe: what was trained by it.")
    images: list[str] = option(
        [], "Files of the images to edit, cropped to a square and resized; held-out images of the data set if none."
    )
    num_images: int = option(4, "Number of held-out images.", at_least=1, at_most=10_000_000)
    guidance_scale: float = option(1.0, "0 unconditional, 1 conditional, above 1 more so.", at_least=0)
    num_inference_steps: int = option(50, "Sampling steps.", at_least=1, at_most=100_000)
    seed: int = option(0, "Seed of all randomness.", at_least=0)
    output: str = option("edit.png", "The picture to write.", writes=".png .jpg .jpeg .webp .bmp .tif .tiff")
    images_dir: str | None = option(None, "Also write each result as a file into this folder.", writes="folder")
    gif: str | None = option(None, "Also write the sampling process here.", writes=".gif")
    fps: float = option(12.5, "Pictures a second of the GIF; viewers show 50 at most.", above=0, at_most=50)
    device: str | None = option(None, "cpu, cuda, mps; the best there is if not given.")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPE_CHOICES)


@dataclass
class SolverArguments(EditArguments):
    """What edits by inversion take."""

    solver: str = option(
        "heun",
        "Of the probability flow: heun has second order, ddim first.",
        choices=SOLVERS,
    )


@dataclass
class InvertArguments(SolverArguments):
    """Find the noise that images come from, and sample from it again."""

    latents: str | None = option(None, "Also write the noise here, as a tensor `latents`.", writes=".safetensors")


@dataclass
class InterpolateArguments(SolverArguments):
    """Images between real ones, each and the next: inverted, and interpolated on the sphere."""

    num_between: int = option(8, "Images of each row, both ends among them.", at_least=2, at_most=1000)


@dataclass
class VaryArguments(EditArguments):
    """Variations of images: noised to middle levels and sampled from there (SDEdit)."""

    strengths: list[float] = option(
        [0.2, 0.4, 0.6, 0.8],
        "Shares of the sampling steps that are taken; 1 keeps little of the image.",
        above=0,
        at_most=1,
    )


@dataclass
class MaskArguments(EditArguments):
    """What edits with a mask take."""

    mask: str = option("box", f"Where to repaint: {', '.join(MASKS)}, or a file, white where to repaint.")


@dataclass
class InpaintArguments(MaskArguments):
    """Paint a part of images anew (RePaint)."""

    resamplings: int = option(10, "How often each step is taken; more agree better, and take longer.", at_least=1)
    jump_length: int = option(1, "Steps that are repeated at a time.", at_least=1)


@dataclass
class RestoreMeasuredArguments(MaskArguments):
    """Restore images from simulated measurements y = A x + noise."""

    operator: str = option("down_sampling", "A.", choices=OPERATORS)
    method: str = option("pigdm", "pigdm, or dps with its step_size.", choices=tuple(METHODS))
    factor: int = option(4, "Of down_sampling.", at_least=2)
    blur_std: float = option(1.5, "Standard deviation of the blur in pixels.", above=0)
    numbers: int = option(200, "Of a random_projection of each image.", at_least=1)
    noise_std: float = option(0.0, "Standard deviation of the noise; images lie in [0, 1].", at_least=0)
    step_size: float = option(1.0, "Of dps.", at_least=0)
    data_variance: float = option(1.0, "Of the network's samples, for pigdm.", above=0)


class _Edit:
    """One run of a command: the model, the images (n, channels, height, width) in [0, 1], and the frames of a GIF."""

    def __init__(self, arguments: EditArguments):
        self.arguments = arguments
        arguments.check_sampler()
        pipeline = load_pipeline(run_folder(arguments.model), arguments.device, arguments.dtype)
        if isinstance(pipeline, SignalPipeline):
            raise ValueError("edit shows images, and this pipeline makes signals; use diffusers_ext.EditingPipeline.")
        self.editor = EditingPipeline(pipeline)
        self.pipeline = self.editor.pipeline
        arguments.put_sampler_into(self.pipeline)
        self.pipeline.set_progress_bar_config(**progress_bar(leave=False))
        self.images, self.where = _images(arguments, self.pipeline)
        self.generator = torch.Generator().manual_seed(arguments.seed)
        self.frames: list[torch.Tensor] = []
        self.began = time.perf_counter()

    def call(self, count: int | None = None) -> dict[str, Any]:
        """The arguments that all edits take, for `count` images."""
        return {
            "num_inference_steps": self.arguments.num_inference_steps,
            "guidance_scale": self.arguments.guidance_scale,
            "generator": self.generator,
            "output_type": "pt",
            "callback_on_step_end": self._keep if self.arguments.gif else None,
            **_conditions(self.arguments, self.pipeline, count or len(self.images)),
        }

    def _keep(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        modality = modality_of_pipeline(pipeline)
        self.frames.append(modality.frame(pipeline, tensors["latents"]))
        return {}

    def finish(self, columns: Mapping[str, torch.Tensor], what: str, results: Sequence[str] = ()) -> None:
        """Write the picture, a column each and a row an image, single files and the GIF; print times and PSNR."""
        from .. import figures

        seconds, arguments = time.perf_counter() - self.began, self.arguments
        shown = {name: (images.float().cpu().clamp(0, 1) * 2 - 1) for name, images in columns.items()}
        count = min(len(images) for images in shown.values())
        cells = [[images[row] for images in shown.values()] for row in range(count)]
        figures.comparison_grid([""] * count, list(shown), cells, arguments.output)
        each = seconds / len(self.images)
        print(f"{what} of {len(self.images)} images ({self.where}): {seconds:.1f} s, {each:.2f} s an image")
        for name in results:
            decibels = peak_signal_to_noise_ratio(shown[name], shown["image"])
            print(f"{name:14} PSNR {decibels.mean():.2f} dB")
        print(f"Picture in {arguments.output}")
        if arguments.images_dir is not None:
            folder = Path(arguments.images_dir)
            modality_of_pipeline(self.pipeline).write_each(list(shown.values())[-1], folder, self.pipeline)
            print(f"Each result in {folder}")
        if arguments.gif is not None:
            chosen = figures.evenly(self.frames, 100)
            figures.save_gif(chosen, arguments.gif, duration_ms=round(1000 / arguments.fps))
            print(f"The process in {arguments.gif}, {len(chosen)} pictures")


def edit_invert(arguments: InvertArguments) -> None:
    """Write images, their noise and what is sampled from it."""
    run = _Edit(arguments)
    noise = run.editor.invert(run.images, arguments.solver, **run.call())
    if arguments.latents is not None:
        from safetensors.torch import save_file

        save_file({"latents": noise.contiguous().cpu()}, arguments.latents)
    again = run.editor.reconstruct(run.images, arguments.solver, **run.call()).images
    columns = {"image": run.images, "noise": _visible(noise, run.pipeline), "reconstructed": again}
    run.finish(columns, f"Inversion by {arguments.solver}", ["reconstructed"])


def edit_interpolate(arguments: InterpolateArguments) -> None:
    """Write a row of images from each image to the next."""
    run = _Edit(arguments)
    if len(run.images) < 2:
        raise ValueError("interpolate needs at least two images.")
    call, count = run.call(1), arguments.num_between
    pairs = list(zip(run.images[:-1], run.images[1:]))
    rows = [
        run.editor.interpolate(first[None], second[None], count, arguments.solver, **call).images
        for first, second in pairs
    ]
    between = torch.stack(rows).cpu()
    run.frames = [between[:, place] * 2 - 1 for place in range(count)]
    names = ["first", *(f"{place / (count - 1):.2f}" for place in range(count)), "second"]
    columns = [run.images[:-1], *between.unbind(1), run.images[1:]]
    run.finish(dict(zip(names, columns)), "Interpolation")


def edit_vary(arguments: VaryArguments) -> None:
    """Write variations at each strength."""
    run = _Edit(arguments)
    columns = {"image": run.images}
    for strength in arguments.strengths:
        columns[f"strength {strength:g}"] = run.editor.vary(run.images, strength, **run.call()).images
    run.finish(columns, "Variations")


def edit_inpaint(arguments: InpaintArguments) -> None:
    """Write images, what is known of them, and the inpainted ones."""
    run = _Edit(arguments)
    mask = _mask(arguments.mask, run.images)
    options = arguments.resamplings, arguments.jump_length
    painted = run.editor.inpaint(run.images, mask, *options, **run.call()).images
    columns = {"image": run.images, "known": _with_grey(run.images, mask), "inpainted": painted}
    run.finish(columns, "Inpainting", ["inpainted"])


def edit_restore(arguments: RestoreMeasuredArguments) -> None:
    """Write images, what was measured of them, and the restored ones."""
    run = _Edit(arguments)
    operator = _operator(arguments, run.images)
    exact = operator(run.images)
    noise = torch.randn(exact.shape, generator=run.generator)
    measured = exact + arguments.noise_std * noise.to(exact)
    names = {"pigdm": "data_variance", "dps": "step_size"}
    options = {names[arguments.method]: getattr(arguments, names[arguments.method])}
    restored = run.editor.restore(
        measured,
        operator,
        arguments.noise_std,
        arguments.method,
        tuple(run.images.shape[1:]),
        options,
        **run.call(),
    ).images
    columns = {"image": run.images}
    simple = _plain_estimate(arguments, operator, measured, run.images)
    if simple is not None:
        columns["measured"] = simple
    columns["restored"] = restored
    run.finish(columns, f"{arguments.operator} restored by {arguments.method}", list(columns)[1:])


def _images(arguments: EditArguments, pipeline: Any) -> tuple[torch.Tensor, str]:
    """(images in [0, 1] of the network's size, where they are from)."""
    channels, height, width = image_shape(pipeline)
    if not arguments.images:
        options = {"channels": channels, "resolution": height}
        real, _ = real_and_baseline(arguments, arguments.num_images, options, None)
        return torch.cat(list(real.batches())).to(pipeline.device) / 2 + 0.5, real.split
    from ..conditions.user_images import image_tensor
    from ..data.opening import open_image_file

    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels, "RGB")
    opened = [open_image_file(file, "image").convert(mode) for file in arguments.images]
    fitted = [ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS) for image in opened]
    return image_tensor("image", fitted, (channels,), (height, width)).to(pipeline.device), "files"


def _conditions(arguments: EditArguments, pipeline: Any, count: int) -> dict[str, Any]:
    """The model's conditions: one for all images, or one for each."""
    found: dict[str, Any] = {}
    for condition in (kind.for_pipeline(pipeline) for kind in _CONDITIONS):
        values = {name: getattr(arguments, name) for name in condition.flags if getattr(arguments, name) is not None}
        rows, shared = condition.from_command_line(values, pipeline, _no_images)
        found |= {name: entries[0] if len(entries) == 1 else entries for name, entries in rows.items() if entries}
        found |= shared
        for name, entries in rows.items():
            if len(entries) not in (0, 1, count):
                raise ValueError(f"{name} takes one entry, or one for each of {count} images, got {len(entries)}.")
    return found


def _no_images(argument: str, path: str) -> Any:
    raise ValueError(f"{argument} takes no images here.")


def _mask(name: str, images: torch.Tensor) -> torch.Tensor:
    """(height, width), 1 where to repaint."""
    height, width = images.shape[-2:]
    if name not in MASKS:
        from ..data.opening import open_image_file

        opened = open_image_file(name, "mask").convert("L").resize((width, height), Image.Resampling.NEAREST)
        return torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8).reshape(height, width) / 255
    mask = torch.zeros(height, width)
    places: dict[str, Callable[[], Any]] = {
        "box": lambda: mask[height // 4 : -(height // 4), width // 4 : -(width // 4)],
        "left": lambda: mask[:, : width // 2],
        "top": lambda: mask[: height // 2],
        "frame": lambda: mask,
    }
    places[name]().fill_(1)
    if name == "frame":
        mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 0
    return mask


def _with_grey(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask.to(images) >= 0.5, 0.5, images)


def _operator(arguments: RestoreMeasuredArguments, images: torch.Tensor) -> LinearOperator:
    make: dict[str, Callable[[], LinearOperator]] = {
        "mask": lambda: masking((_mask(arguments.mask, images) < 0.5).to(images)),
        "down_sampling": lambda: down_sampling(arguments.factor),
        "blur": lambda: blur(arguments.blur_std),
        "grey": grey,
        "random_projection": lambda: random_projection(arguments.numbers, tuple(images.shape[1:]), seed=arguments.seed),
    }
    return make[arguments.operator]()


def _plain_estimate(
    arguments: RestoreMeasuredArguments, operator: LinearOperator, measured: torch.Tensor, images: torch.Tensor
) -> torch.Tensor | None:
    """The measurement as an image of full size: bicubic for down-sampling, the pseudo-inverse for a projection."""
    if arguments.operator == "down_sampling":
        size = tuple(images.shape[-2:])
        return torch.nn.functional.interpolate(measured, size, mode="bicubic", align_corners=False).clamp(0, 1)
    if arguments.operator == "mask":
        return _with_grey(measured, _mask(arguments.mask, images))
    if arguments.operator == "random_projection" and operator.pseudo_inverse is not None:
        return operator.pseudo_inverse(measured).clamp(0, 1)
    return measured.expand_as(images).clamp(0, 1)


def _visible(noise: torch.Tensor, pipeline: Any) -> torch.Tensor:
    """Noise of variance 1 as an image in [0, 1]; of latents, the first channels, enlarged."""
    channels, height, width = image_shape(pipeline)
    image = (noise.float() / 6 + 0.5).clamp(0, 1)
    if image.shape[1:] == (channels, height, width):
        return image
    image = image[:, :1].expand(-1, channels, -1, -1)
    return torch.nn.functional.interpolate(image, (height, width))
