"""`diffusers-ext edit ...`: invert, interpolate, vary, inpaint and restore images or signals with a saved pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..conditions import CONDITIONS
from ..editing import EditingPipeline, LinearOperator, blur, down_sampling, grey, masking, random_projection
from ..editing.inversion import SOLVERS
from ..editing.pipeline import METHODS, options_of
from ..modalities import modality_of_pipeline
from ..settings import make_settings_class, option
from .edit_data import MASKS, edited_data, listed_files
from .real_images import RealDataArguments, real_and_baseline
from .sampler_options import OneSampler
from .shared import DTYPE_CHOICES, DTYPE_HELP, ModelCode, load_pipeline, progress_bar, run_folder

# An image is what is edited here, not what the network is conditioned on.
_CONDITIONS = [condition for name, condition in CONDITIONS.items() if name != "image"]
_FLAGS = {name: flag for condition in _CONDITIONS for name, flag in condition.flags.items()}
_ConditionFlags: Any = make_settings_class("_ConditionFlags", _FLAGS, __name__)

OPERATORS = ("mask", "down_sampling", "blur", "grey", "random_projection")


@dataclass
class EditArguments(OneSampler, RealDataArguments, _ConditionFlags, ModelCode):
    """What all edits take."""

    POSITIONAL: ClassVar[str] = "model"

    model: str = option(text="Folder or Hub name of a pipeline, or the name of a recipe: what was trained by it.")
    images: list[str] = option(
        [],
        "Files or folders of what to edit: images, cropped and resized, or signals, cropped or padded; held-out ones "
        "of the data set if none.",
    )
    num_images: int = option(4, "Number of held-out images or signals.", at_least=1, at_most=10_000_000)
    guidance_scale: float = option(1.0, "0 unconditional, 1 conditional, above 1 more so.", at_least=0)
    num_inference_steps: int = option(50, "Sampling steps.", at_least=1, at_most=100_000)
    seed: int = option(0, "Seed of all randomness.", at_least=0)
    output: str = option("edit.png", "The picture to write.", writes=".png .jpg .jpeg .webp .bmp .tif .tiff")
    images_dir: str | None = option(
        None, "Also write each result as a file into this folder: PNG, or WAV or NPY of signals.", writes="folder"
    )
    gif: str | None = option(None, "Also write the sampling process of images here.", writes=".gif")
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

    mask: str = option("box", f"Where to repaint: {', '.join(MASKS)}, or a file, white (1) where to repaint.")


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
    numbers: int = option(200, "Of a random_projection, for each image or signal.", at_least=1)
    noise_std: float = option(
        0.0, "Standard deviation of the noise, in units of the data; images lie in [0, 1].", at_least=0
    )
    step_size: float = option(1.0, "Of dps.", at_least=0)
    data_variance: float = option(1.0, "Of the network's samples, which pigdm weighs against the noise.", above=0)
    iterations: int = option(1, "Of pigdm at each step; more fit the measurement better, and take longer.", at_least=1)


class _Edit:
    """One run of a command: the model, data (n, channels, *size) as `EditingPipeline` takes them, and GIF frames."""

    def __init__(self, arguments: EditArguments):
        self.arguments = arguments
        arguments.check_sampler()
        place = (run_folder(arguments.model), arguments.device, arguments.dtype, arguments.trust_remote_code)
        self.editor = EditingPipeline(load_pipeline(*place))
        self.pipeline = self.editor.pipeline
        arguments.put_sampler_into(self.pipeline)
        self.pipeline.set_progress_bar_config(**progress_bar(leave=False))
        self.kind = edited_data(self.pipeline)
        if arguments.gif is not None and self.kind.noun != "image":
            raise ValueError(f"gif shows images, and this pipeline makes {self.kind.noun}s; use images_dir.")
        self.files = listed_files(arguments.images, self.kind)
        data, self.where = self._data()
        self.data = data.to(self.pipeline.device)
        self.generator = torch.Generator().manual_seed(arguments.seed)
        self.frames: list[torch.Tensor] = []
        self.began = time.perf_counter()

    def _data(self) -> tuple[torch.Tensor, str]:
        """(what is edited, where it is from)."""
        if self.files:
            return self.kind.of_files(self.files), "files"
        arguments, modality = self.arguments, modality_of_pipeline(self.pipeline)
        options = modality.data_options(self.pipeline)
        if not (arguments.dataset_name or arguments.train_data_dir) and options.get("channels") != 1:
            raise ValueError("Give images, train_data_dir or dataset_name: the embedded data are grey digits.")
        real, _ = real_and_baseline(arguments, arguments.num_images, options, None)
        return self.kind.of_samples(modality.real(real.data, real.indices.tolist())), real.split

    def call(self, count: int | None = None) -> dict[str, Any]:
        """The arguments that all edits take, for `count` samples."""
        return {
            "num_inference_steps": self.arguments.num_inference_steps,
            "guidance_scale": self.arguments.guidance_scale,
            "generator": self.generator,
            "output_type": "pt",
            "callback_on_step_end": self._keep if self.arguments.gif else None,
            **_conditions(self.arguments, self.pipeline, count or len(self.data)),
        }

    def _keep(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        self.frames.append(modality_of_pipeline(pipeline).frame(pipeline, tensors["latents"]))
        return {}

    def mask(self) -> torch.Tensor:
        """1 where to repaint."""
        assert isinstance(self.arguments, MaskArguments)
        return self.kind.mask(self.arguments.mask, self.files).to(self.data)

    def without(self, mask: torch.Tensor) -> torch.Tensor:
        """The data with what is not known made grey, or silent."""
        return torch.where(mask > 0, self.kind.hidden, self.data)

    def finish(
        self, columns: Mapping[str, torch.Tensor], what: str, results: Sequence[str], measured: Sequence[str] = ()
    ) -> None:
        """Write the picture, a column each and a row for each of the data, files of `results`, and the GIF.

        Prints times, and how near `measured` are to the data.
        """
        from .. import figures

        seconds, arguments, noun = time.perf_counter() - self.began, self.arguments, self.kind.noun
        self.kind.draw(columns, arguments.output)
        count = len(self.data)
        counted = f"{count} {noun}{'s' * (count > 1)} ({self.where})"
        print(f"{what} of {counted}: {seconds:.1f} s, {seconds / count:.2f} s each")
        for name in measured:
            print(f"{name:14} {self.kind.closeness} {self.kind.decibels(columns[name], self.data).mean():.2f} dB")
        print(f"Picture in {arguments.output}")
        if arguments.images_dir is not None:
            folder = Path(arguments.images_dir)
            written = torch.stack([self.kind.written(columns[name]) for name in results], dim=1).flatten(0, 1)
            modality_of_pipeline(self.pipeline).write_each(written, folder, self.pipeline)
            print(f"{len(written)} results in {folder}")
        if arguments.gif is not None:
            chosen = figures.evenly(self.frames, 100)
            figures.save_gif(chosen, arguments.gif, duration_ms=round(1000 / arguments.fps))
            print(f"The process in {arguments.gif}, {len(chosen)} pictures")


def edit_invert(arguments: InvertArguments) -> None:
    """Write images, their noise and what is sampled from it."""
    run = _Edit(arguments)
    noise = run.editor.invert(run.data, arguments.solver, **run.call())
    if arguments.latents is not None:
        from safetensors.torch import save_file

        save_file({"latents": noise.contiguous().cpu()}, arguments.latents)
    again = _result(run.editor.reconstruct(run.data, arguments.solver, **run.call()))
    columns = {run.kind.noun: run.data, "noise": run.kind.noise(noise), "reconstructed": again}
    run.finish(columns, f"Inversion by {arguments.solver}", ["reconstructed"], ["reconstructed"])


def edit_interpolate(arguments: InterpolateArguments) -> None:
    """Write a row of images from each image to the next."""
    run = _Edit(arguments)
    if len(run.data) < 2:
        raise ValueError(f"interpolate needs at least two {run.kind.noun}s.")
    call, count = run.call(1) | {"callback_on_step_end": None}, arguments.num_between
    rows = [
        _result(run.editor.interpolate(first[None], second[None], count, arguments.solver, **call))
        for first, second in zip(run.data[:-1], run.data[1:])
    ]
    between = torch.stack(rows, dim=1)  # (count, rows, channels, *size)
    run.frames = [run.kind.written(column) for column in between]
    names = [f"{place / (count - 1):.2f}" for place in range(count)]
    columns = {"first": run.data[:-1], **dict(zip(names, between)), "second": run.data[1:]}
    run.finish(columns, "Interpolation", names)


def edit_vary(arguments: VaryArguments) -> None:
    """Write variations at each strength."""
    run = _Edit(arguments)
    varied = {
        f"strength {strength:g}": _result(run.editor.vary(run.data, strength, **run.call()))
        for strength in arguments.strengths
    }
    run.finish({run.kind.noun: run.data, **varied}, "Variations", list(varied))


def edit_inpaint(arguments: InpaintArguments) -> None:
    """Write images, what is known of them, and the inpainted ones."""
    run = _Edit(arguments)
    mask = run.mask()
    options = arguments.resamplings, arguments.jump_length
    painted = _result(run.editor.inpaint(run.data, mask, *options, **run.call()))
    columns = {run.kind.noun: run.data, "known": run.without(mask), "inpainted": painted}
    run.finish(columns, "Inpainting", ["inpainted"], ["inpainted"])


def edit_restore(arguments: RestoreMeasuredArguments) -> None:
    """Write images, what was measured of them, and the restored ones."""
    run = _Edit(arguments)
    operator = _operator(arguments, run)
    exact = operator(run.data)
    noise = torch.randn(exact.shape, generator=run.generator)
    measured = exact + arguments.noise_std * noise.to(exact)
    options = {name: getattr(arguments, name) for name in options_of(arguments.method)}
    restored = run.editor.restore(
        measured,
        operator,
        arguments.noise_std,
        arguments.method,
        tuple(run.data.shape[1:]),
        options,
        **run.call(),
    )
    columns = {run.kind.noun: run.data, "measured": _plain_estimate(operator, measured, run)}
    columns["restored"] = _result(restored)
    title = f"{arguments.operator} restored by {arguments.method}"
    run.finish(columns, title, ["restored"], ["measured", "restored"])


def _result(output: Any) -> torch.Tensor:
    """The images or signals of an edit's output, on the CPU."""
    return (output.audios if hasattr(output, "audios") else output.images).cpu()


def _conditions(arguments: EditArguments, pipeline: Any, count: int) -> dict[str, Any]:
    """The model's conditions: one for all samples, or one for each."""
    found: dict[str, Any] = {}
    for condition in (kind.for_pipeline(pipeline) for kind in _CONDITIONS):
        values = {name: getattr(arguments, name) for name in condition.flags if getattr(arguments, name) is not None}
        rows, shared = condition.from_command_line(values, pipeline, _no_images)
        found |= {name: entries[0] if len(entries) == 1 else entries for name, entries in rows.items() if entries}
        found |= shared
        for name, entries in rows.items():
            if len(entries) not in (0, 1, count):
                raise ValueError(f"{name} takes one entry, or one for each of {count} samples, got {len(entries)}.")
    return found


def _no_images(argument: str, path: str) -> Any:
    raise ValueError(f"{argument} takes no images here.")


def _operator(arguments: RestoreMeasuredArguments, run: _Edit) -> LinearOperator:
    make: dict[str, Callable[[], LinearOperator]] = {
        "mask": lambda: masking(1 - run.mask()),
        "down_sampling": lambda: down_sampling(arguments.factor),
        "blur": lambda: blur(arguments.blur_std),
        "grey": grey,
        "random_projection": lambda: random_projection(
            arguments.numbers, tuple(run.data.shape[1:]), seed=arguments.seed
        ),
    }
    return make[arguments.operator]()


def _plain_estimate(operator: LinearOperator, measured: torch.Tensor, run: _Edit) -> torch.Tensor:
    """What can be seen in a measurement: its interpolation for down-sampling, the pseudo-inverse of a projection."""
    if operator.name == "down_sampling":
        return run.kind.resized(measured)
    if operator.name == "mask":
        return torch.where(run.mask() > 0, run.kind.hidden, measured)
    if operator.name == "random_projection" and operator.pseudo_inverse is not None:
        return operator.pseudo_inverse(measured)
    return measured.expand_as(run.data)
