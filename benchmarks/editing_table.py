"""Inpainting and super-resolution of held-out images by an unconditional model, beside models trained for it.

    python benchmarks/editing_table.py --model outputs/digits --classifier outputs/classifier \\
        --conditional outputs/digits-inpainting outputs/digits-super-resolution

Prints a table: PSNR, the share of images that the classifier names right, seconds of processor time an image, and the
memory that all images together take beyond what the process has before. Conditional models are those of `--condition
image` with `--image_condition inpainting` and `super_resolution_4`. Mean and standard error are over seeds of the
sampling noise, for the same images. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from diffusers_ext import EditingPipeline
from diffusers_ext.cli.shared import load_classifier
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.randomness import permutation
from diffusers_ext.editing import blur, down_sampling, grey, masking
from diffusers_ext.evaluation.metrics import peak_signal_to_noise_ratio

Images = torch.Tensor
Restore = Callable[[torch.Generator], Images]


class Row(NamedTuple):
    """A method on a task; `is_random` where it depends on the sampling noise."""

    task: str
    method: str
    restore: Restore
    is_random: bool = True


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    images, labels = held_out(arguments)
    classifier = None if arguments.classifier is None else load_classifier(arguments.classifier, "cpu")
    named = "" if classifier is None else f", {classifier.description()}"
    print(f"{len(images)} images, {arguments.num_inference_steps} steps, {arguments.num_seeds} seeds{named}")
    print("| task | method | PSNR, dB | named right, % | s an image | memory, MiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for row in rows(images, arguments):
        if not any(part in row.method for part in arguments.methods):
            continue
        before, measured, began = resident("VmRSS", forget_peak=True), [], time.process_time()
        for seed in range(arguments.num_seeds if row.is_random else 1):
            found = row.restore(torch.Generator().manual_seed(seed)).float().clamp(0, 1)
            measured.append(_measures(found, images, labels, classifier))
        seconds = (time.process_time() - began) / len(images) / len(measured)
        psnr, right = zip(*measured)
        named = "" if classifier is None else with_error(right, "{:.0f}", "{:.1f}")
        cost = f"{seconds:.2f} | {resident('VmHWM') - before:.0f}" if row.is_random else " | "
        print(f"| {row.task} | {row.method} | {with_error(psnr)} | {named} | {cost} |", flush=True)


def resident(kind: str, forget_peak: bool = False) -> float:
    """MiB of this process in memory: now (VmRSS), or at most since the peak was forgotten (VmHWM)."""
    if forget_peak:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that memory of an earlier row counts again
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0]) / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--classifier", help="without one, PSNR alone is measured")
    parser.add_argument("--conditional", nargs="*", default=[], help="models trained for a task")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of the names of the rows to measure")
    parser.add_argument("--dataset_name", help="the embedded digits if no data are given")
    parser.add_argument("--train_data_dir")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--resamplings", type=int, default=5)
    parser.add_argument("--step_size", type=float, default=10.0, help="of DPS; fewer steps need larger ones")
    parser.add_argument("--data_variance", type=float, default=1.0, help="of PiGDM")
    parser.add_argument("--noise_std", type=float, default=0.01)
    return parser.parse_args()


def held_out(arguments: argparse.Namespace) -> tuple[Images, torch.Tensor | None]:
    """(images of the test split in [0, 1], their classes)."""
    network = json.loads((Path(arguments.model) / "unet" / "config.json").read_text())
    data = load_image_data(
        arguments.dataset_name,
        None,
        arguments.train_data_dir,
        "test",
        resolution=network["sample_size"],
        center_crop=True,
    )
    chosen = permutation(0, 0, len(data))[: arguments.num_images].tolist()
    return data.__getitems__(chosen)["samples"] / 2 + 0.5, None if data.labels is None else data.labels[chosen]


def _measures(found: Images, images: Images, labels: torch.Tensor | None, classifier: Any) -> tuple[float, float]:
    """(PSNR in decibels, percentage that is named right)."""
    decibels = peak_signal_to_noise_ratio(found * 2 - 1, images * 2 - 1).mean().item()
    if classifier is None:
        return decibels, float("nan")
    with torch.no_grad():
        return decibels, 100 * (classifier(found * 2 - 1).argmax(1) == labels).float().mean().item()


def with_error(values: tuple[float, ...], form: str = "{:.2f}", error_form: str = "{:.2f}") -> str:
    """The mean, and the standard error over seeds."""
    measured = torch.tensor(values, dtype=torch.float64)
    mean = form.format(measured.mean())
    return mean if len(values) < 2 else f"{mean} ± {error_form.format(measured.std() / len(values) ** 0.5)}"


def rows(images: Images, arguments: argparse.Namespace) -> Iterator[Row]:
    """The methods, task by task."""
    editor = EditingPipeline(loaded(arguments.model))
    conditional = {pipeline.config.condition: pipeline for pipeline in map(loaded, arguments.conditional)}
    call = {"num_inference_steps": arguments.num_inference_steps, "output_type": "pt"}
    noise_std, size = arguments.noise_std, images.shape[-2:]
    mask = torch.zeros(size)
    mask[size[0] // 4 : -(size[0] // 4), size[1] // 4 : -(size[1] // 4)] = 1

    def posterior(operator: Any, y: Images) -> dict[str, Restore]:
        options = {
            "PiGDM": ("pigdm", {"data_variance": arguments.data_variance}),
            f"DPS, step size {arguments.step_size:g}": ("dps", {"step_size": arguments.step_size}),
        }
        return {
            name: lambda generator, method=method, given=given: (
                editor.restore(
                    y, operator, noise_std, method, tuple(images.shape[1:]), given, generator=generator, **call
                ).images
            )
            for name, (method, given) in options.items()
        }

    def trained(name: str, **given: Images) -> dict[str, Restore]:
        if name not in conditional:
            return {}
        return {"trained for it": lambda generator: conditional[name](generator=generator, **given, **call).images}

    yield Row("none", "the images themselves", lambda generator: images, False)
    task = "inpainting, a box of half the sides"
    mean = images[..., mask == 0].mean()
    yield Row(task, "mean of the known pixels", lambda generator: torch.where(mask > 0, mean, images), False)
    for many in sorted({1, arguments.resamplings}):
        yield Row(
            task,
            f"RePaint, {many} resampling{'s' * (many > 1)}",
            lambda generator, many=many: editor.inpaint(images, mask, many, generator=generator, **call).images,
        )
    keep = masking(1 - mask)
    repainted = {
        **posterior(keep, with_noise(keep(images), noise_std)),
        **trained("inpainting", image=images, mask_image=mask),
    }
    for name, restore in repainted.items():
        yield Row(task, name, restore)
    small = down_sampling(4)
    y = with_noise(small(images), noise_std)
    task = f"super-resolution x4, noise {noise_std:g}"
    yield Row(task, "bicubic", lambda generator: F.interpolate(y, size, mode="bicubic"), False)
    enlarged = {**posterior(small, y), **trained("super_resolution_4", image=y.clamp(0, 1))}
    for name, restore in enlarged.items():
        yield Row(task, name, restore)
    others = {"deblurring, Gaussian of 1.5 pixels": blur(1.5)} | (
        {"colours of grey": grey()} if images.shape[1] == 3 else {}
    )
    for task, operator in others.items():
        y = with_noise(operator(images), noise_std)
        yield Row(task, "the measurement itself", lambda generator, y=y: y.expand_as(images), False)
        for name, restore in posterior(operator, y).items():
            yield Row(task, name, restore)


def loaded(model: str) -> Any:
    """The pipeline in a folder, without a progress bar."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_noise(exact: Images, noise_std: float) -> Images:
    """A measurement with noise."""
    return exact + noise_std * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
