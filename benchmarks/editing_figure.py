"""One picture of all edits of held-out images: a row a method, a column an image.

python benchmarks/editing_figure.py --model outputs/digits --output digits.png
python benchmarks/editing_figure.py --model outputs/images64 --train_data_dir landscapes.zip --output landscapes.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from editing_table import held_out, loaded

from diffusers_ext import EditingPipeline
from diffusers_ext.editing import blur, down_sampling, grey, masking
from diffusers_ext.evaluation.metrics import peak_signal_to_noise_ratio
from diffusers_ext.figures import comparison_grid

Images = torch.Tensor


def main() -> None:
    """Edit and draw; print what the rows are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--dataset_name", help="the embedded digits if no data are given")
    parser.add_argument("--train_data_dir")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--resamplings", type=int, default=5)
    parser.add_argument("--data_variance", type=float, default=1.0, help="of PiGDM")
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of the names of the rows to draw")
    arguments = parser.parse_args()
    images, _ = held_out(arguments)
    rows: dict[str, Images] = {}
    for name, found, is_measured in edited(EditingPipeline(loaded(arguments.model)), images, arguments):
        decibels = peak_signal_to_noise_ratio(found.float().clamp(0, 1) * 2 - 1, images * 2 - 1).mean()
        name = f"{name}, {decibels:.1f} dB" if is_measured else name
        print(name, flush=True)
        rows[name] = found.float().clamp(0, 1) * 2 - 1
    comparison_grid(list(rows), [""] * len(images), [list(row) for row in rows.values()], arguments.output)


def edited(
    editor: EditingPipeline, images: Images, arguments: argparse.Namespace
) -> Iterator[tuple[str, Images, bool]]:
    """(name, images, whether they should be the originals) of each row."""
    size, count = images.shape[-2:], len(images)
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": arguments.num_inference_steps, "output_type": "pt", "generator": generator}
    mask = torch.zeros(size)
    mask[size[0] // 4 : -(size[0] // 4), size[1] // 4 : -(size[1] // 4)] = 1
    yield "held-out images", images, False
    if _wanted("inversion", arguments):
        yield "their noise", editor.invert(images, **call) / 6 + 0.5, False
        yield "reconstructed", editor.reconstruct(images, **call).images, True
        yield "first to second", editor.interpolate(images[:1], images[1:2], count, **call).images, False
    for strength in (0.4, 0.7) if _wanted("SDEdit", arguments) else ():
        yield f"SDEdit, strength {strength:g}", editor.vary(images, strength, **call).images, False
    if _wanted("RePaint", arguments):
        yield "known", torch.where(mask > 0, 0.5, images), False
        yield "RePaint", editor.inpaint(images, mask, arguments.resamplings, **call).images, True
    operators = {"mask": masking(1 - mask), "mean of 4 x 4": down_sampling(4), "blur": blur(1.5)}
    for name, operator in {**operators, **({"grey": grey()} if images.shape[1] == 3 else {})}.items():
        if not _wanted(name, arguments):
            continue
        exact = operator(images)
        y = exact + 0.01 * torch.randn(exact.shape, generator=generator)
        if name == "mean of 4 x 4":
            yield "mean of 4 x 4, bicubic", F.interpolate(y, size, mode="bicubic"), True
        elif name != "mask":
            yield name, y.expand_as(images), True
        given = {"data_variance": arguments.data_variance}
        restored = editor.restore(y, operator, 0.01, "pigdm", tuple(images.shape[1:]), given, **call).images
        yield f"{name}, PiGDM", restored, True


def _wanted(name: str, arguments: argparse.Namespace) -> bool:
    return any(part in name for part in arguments.methods)


if __name__ == "__main__":
    main()
