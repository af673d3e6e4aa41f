"""Inpainting and super-resolution of held-out images by an unconditional model, beside what needs no model.

    python benchmarks/editing_table.py --model outputs/digits --classifier outputs/classifier --num_images 64

Prints a table: PSNR, the share of images that the classifier names right, and seconds and memory of an image.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline

from diffusers_ext import EditingPipeline
from diffusers_ext.cli.shared import load_classifier
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.randomness import permutation
from diffusers_ext.editing import down_sampling, masking
from diffusers_ext.evaluation.metrics import peak_signal_to_noise_ratio

Images = torch.Tensor


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--resamplings", type=int, default=5)
    parser.add_argument("--step_size", type=float, default=10.0, help="of DPS; fewer steps need larger ones")
    parser.add_argument("--noise_std", type=float, default=0.01)
    arguments = parser.parse_args()
    data = load_image_data("embedded", split="test")
    chosen = permutation(0, 0, len(data))[: arguments.num_images].tolist()
    images, labels = data.__getitems__(chosen)["samples"] / 2 + 0.5, data.labels[chosen]
    classifier = load_classifier(arguments.classifier, "cpu")
    pipeline = DiffusionPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    print(f"{len(images)} held-out digits, {arguments.num_inference_steps} steps, {classifier.description()}")
    print("| task | method | PSNR, dB | named right | s an image |\n|---|---|---|---|---|")
    for (task, method), restore in methods(EditingPipeline(pipeline), images, arguments).items():
        began = time.perf_counter()
        found = restore().float().clamp(0, 1)
        seconds = (time.perf_counter() - began) / len(images)
        decibels = peak_signal_to_noise_ratio(found * 2 - 1, images * 2 - 1)
        psnr = f"{decibels.mean():.1f}"
        with torch.no_grad():
            right = (classifier(found * 2 - 1).argmax(1) == labels).float().mean()
        print(f"| {task} | {method} | {psnr} | {right:.0%} | {seconds:.3f} |", flush=True)
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def methods(editor: EditingPipeline, images: Images, arguments: argparse.Namespace) -> dict[tuple[str, str], Callable]:
    """(task, method) -> what gives the images."""
    height, width = images.shape[-2:]
    mask = torch.zeros(height, width)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    keep, small, noise_std = masking(1 - mask), down_sampling(4), arguments.noise_std
    measured = {operator.name: with_noise(operator(images), noise_std) for operator in (keep, small)}
    mean = images[..., mask == 0].mean()
    call = {"num_inference_steps": arguments.num_inference_steps, "output_type": "pt"}

    def restored(operator: object, method: str, **options: float) -> Images:
        y = measured[operator.name]  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(0)
        return editor.restore(y, operator, noise_std, method, options=options, generator=generator, **call).images

    def repainted(resamplings: int) -> Images:
        return editor.inpaint(images, mask, resamplings, generator=torch.Generator().manual_seed(0), **call).images

    def bicubic() -> Images:
        return torch.nn.functional.interpolate(measured[small.name], (height, width), mode="bicubic")

    many = arguments.resamplings
    return {
        ("none", "the images themselves"): lambda: images,
        ("inpainting, a box of half the sides", "mean of the known pixels"): lambda: torch.where(
            mask > 0, mean, images
        ),
        ("inpainting", "RePaint, 1 resampling"): lambda: repainted(1),
        ("inpainting", f"RePaint, {many} resamplings"): lambda: repainted(many),
        ("inpainting", "PiGDM"): lambda: restored(keep, "pigdm"),
        ("super-resolution x4", "bicubic"): bicubic,
        ("super-resolution x4", "PiGDM"): lambda: restored(small, "pigdm"),
        ("super-resolution x4", "DPS"): lambda: restored(small, "dps", step_size=arguments.step_size),
    }


def with_noise(exact: Images, noise_std: float) -> Images:
    """A measurement with noise."""
    return exact + noise_std * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
