"""`diffusers-ext sweep`: what a guidance scale gives in class accuracy and takes in diversity."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .. import figures
from ..evaluation.comparison import write_csv
from ..settings import option
from .evaluate import Bench, SamplingArguments, prepare
from .shared import bar


@dataclass
class SweepArguments(SamplingArguments):
    """Guidance scales against classifier accuracy and diversity: a figure and a table."""

    guidance_scales: list[float] = option([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0], "Scales.", at_least=0)
    output_dir: str = option("sweep", "Where sweep.png, sweep.csv and sweep.json go.", writes="folder")


def sweep(arguments: SweepArguments) -> None:
    """Sample at every scale from the same starting noise with the same conditions, and measure."""
    if arguments.classifier is None:
        raise ValueError("classifier must name a classifier, which a sweep measures class accuracy with.")
    scales = sorted(set(arguments.guidance_scales))
    if not scales:
        raise ValueError("guidance_scales takes one number or several, got none.")
    bench = prepare(arguments)
    if bench.labels is None:
        raise ValueError(
            f"A sweep needs data with classes, and {bench.real_images.data.description} has none."
            if bench.asked
            else f"A sweep needs a conditional network, and that of '{arguments.model}' has no condition."
        )
    if len(bench.labels.unique()) == len(bench.labels):
        raise ValueError(
            f"A sweep measures the diversity within classes, which needs two samples of a class; num_images "
            f"{bench.num_images} gives one of each, so use more."
        )
    baseline = bench.baseline_measures()
    rows = [measured(bench, scale) for scale in bar(scales, "Scales")]
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv([*rows, {"guidance_scale": "real images", **baseline}], folder / "sweep.csv")
    report = {**bench.settings, "measures": {"samples": rows, "real_images": baseline}}
    (folder / "sweep.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part = "" if arguments.guidance_interval is None else " from {:g} to {:g}".format(*arguments.guidance_interval)
    figures.plot_guidance_sweep(
        scales,
        [row["class_accuracy"] for row in rows],
        [row["diversity"] for row in rows],
        folder / "sweep.png",
        real_accuracy=baseline["class_accuracy"],
        title=f"Guidance{part}: {bench.num_images:,} samples a scale, {bench.options['num_inference_steps']} steps",
    )
    print(
        f"real {bench.modality.noun}: class accuracy {100 * baseline['class_accuracy']:.2f} % of {len(bench.real):,}, "
        f"Frechet distance of the real-data baseline {baseline['frechet_distance']:.4f}"
    )
    print(f"Figure and table in {folder}")


def measured(bench: Bench, scale: float) -> dict[str, Any]:
    """Every measure of the samples at this scale; printed in a line as soon as it is known."""
    measures, seconds = bench.measures(scale)
    row = {"guidance_scale": scale, "num_images": bench.num_images, "seconds": round(seconds, 2), **measures}
    tqdm.write(
        f"guidance {scale:5.2f}: class accuracy {100 * row['class_accuracy']:6.2f} %, "
        f"diversity {row['diversity']:.3f}, Frechet {row['frechet_distance']:.4f}, "
        f"{bench.num_images:,} samples in {seconds:.1f} s"
    )
    return row
