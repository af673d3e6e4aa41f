"""Flow maps at one, two and four network calls, beside the same network trained by flow matching for the same time.

    python benchmarks/flow_maps.py --classifier DIR [--dataset_name DIR] [--seeds 0 1 2] [--seconds 300]

Both are trained from nothing by `--max_train_seconds`: the recipe mnist-flow-map, and the recipe mnist-classes on the
same path (rectified_flow, prediction_type flow, ode-euler). One classifier and one code measure all samples: how many
are the class asked for, and their Frechet distance from as many test images by the classifier's features, also as a
multiple of that of other real images. A call is one evaluation of the network by the sampler; with guidance the flow
evaluates twice the images in each, and the flow map does not. The defaults of both scales are those that did best of a
few. Timings are of this machine, with so many `--threads` in
training and `--timing_threads` in sampling.

With `--output_dir` runs are kept, and those that are there already are not trained again: seeds may be run one by one.
`--picture FILE` draws digits of the first seed, a row for each number of calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from time_to_quality import BATCH_SIZE, CLASSES, FASTER_DTYPE, ONLY_TRAIN, Exam, check_kept, without_pictures

from diffusers_ext.figures.images import image_grid
from diffusers_ext.pipelines.batched_generation import generate_images
from diffusers_ext.training import Trainer, TrainingArguments

FLOW = {"schedule": "rectified_flow", "prediction_type": "flow", "sampler": "ode-euler"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow map": ("mnist-flow-map", {}),
    "flow matching": ("mnist-classes", FLOW),
}
# Arguments that a kept run or measure does not depend on, or that are in its name.
FREE = (
    "output_dir", "picture", "timing_threads", "seeds", "kinds", "calls", "flow_calls", "num_samples", "guidance_scale",
    "flow_guidance_scale",
)  # fmt: skip
TARGET_ACCURACY, TARGET_FACTOR, TARGET_SECONDS, TIMED = 0.95, 2.0, 3.0, 2000


class Contest:
    """Trains and measures; what was measured is kept beside a run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments, self.folder = arguments, folder
        self._exam: Exam | None = None

    @property
    def exam(self) -> Exam:
        if self._exam is None:
            self._exam = Exam(self.arguments)
        return self._exam

    def run_folder(self, kind: str, seed: int) -> Path:
        return self.folder / f"{kind.replace(' ', '-')}-{seed}"

    def trained(self, kind: str, seed: int) -> dict[str, Any]:
        """What is known of a run, which is trained if it is not there."""
        folder = self.run_folder(kind, seed)
        file = folder / "flow_maps.json"
        if file.is_file():
            return json.loads(file.read_text())
        recipe, changes = KINDS[kind]
        settings = TrainingArguments.from_recipe(
            recipe,
            dataset_name=self.arguments.dataset_name,
            seed=seed,
            max_train_seconds=self.arguments.seconds,
            num_epochs=10**4,
            mixed_precision=self.arguments.mixed_precision,
            output_dir=str(folder),
            **ONLY_TRAIN,
            **changes,
        )
        trainer = without_pictures(Trainer(settings))
        trainer.train()
        steps, seconds = trainer.state.global_step, trainer.state.seconds
        known = {"steps": steps, "seconds": seconds, "batch": settings.train_batch_size, "measures": {}}
        file.write_text(json.dumps(known))
        return known

    def pipeline(self, kind: str, seed: int) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(str(self.run_folder(kind, seed)))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def measured(self, kind: str, seed: int, calls: list[int]) -> dict[str, Any]:
        """A run with (accuracy, Frechet distance, that of real images) for every number of calls."""
        known = self.trained(kind, seed)
        scale, number = self._scale(kind), self.arguments.num_samples
        for count in calls:
            key = f"{count} calls, guidance {scale:g}, {number} samples"
            if key not in known["measures"]:
                sample = self._sampler(kind, self.pipeline(kind, seed), count)
                grade = self.exam.measure(sample, number, time.perf_counter())
                self.exam.tell(f"{kind}, {count} calls", seed, known["steps"], known["seconds"], grade)
                known["measures"][key] = (grade.accuracy, grade.frechet, self.exam.baseline)
                (self.run_folder(kind, seed) / "flow_maps.json").write_text(json.dumps(known))
        keys = (f"{count} calls, guidance {scale:g}, {number} samples" for count in calls)
        return {**known, "measures": [known["measures"][key] for key in keys]}

    def _scale(self, kind: str) -> float:
        return self.arguments.guidance_scale if kind == "flow map" else self.arguments.flow_guidance_scale

    def _sampler(self, kind: str, pipeline: Any, count: int) -> Any:
        numbers = iter(range(10**6))
        options: dict[str, Any] = {"num_inference_steps": count, "guidance_scale": self._scale(kind)}
        return lambda labels: generate_images(pipeline, len(labels), labels, len(labels), next(numbers), **options)

    def seconds_of_sampling(self, seed: int) -> float:
        """Of `TIMED` digits by one call each, the best of three times."""
        pipeline = self.pipeline("flow map", seed)
        labels, times = torch.arange(TIMED) % CLASSES, []
        options: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": self.arguments.guidance_scale}
        torch.set_num_threads(self.arguments.timing_threads)
        with torch.autocast("cpu", torch.bfloat16, self.arguments.sampling_dtype == "bfloat16"):
            for _ in range(3):
                began = time.perf_counter()
                generate_images(pipeline, TIMED, labels, BATCH_SIZE, 0, **options)
                times.append(time.perf_counter() - began)
        torch.set_num_threads(self.arguments.threads)
        return min(times)

    def draw(self, seed: int, calls: list[int], file: str) -> None:
        """A row of ten digits for each number of calls, from the same noise."""
        pipeline, labels = self.pipeline("flow map", seed), torch.arange(2 * CLASSES) % CLASSES
        rows = [self._sampler("flow map", pipeline, count)(labels) for count in calls]
        image_grid(torch.cat(rows), columns=2 * CLASSES).save(file)


def report(rows: dict[str, list[dict[str, Any]]], calls: dict[str, list[int]], seconds: float | None) -> None:
    """A Markdown table, and the three verdicts."""
    print("\n| network | calls | accuracy | Frechet distance | times real images | by seed |")
    print("|---|---|---|---|---|---|")
    means: dict[tuple[str, int], tuple[float, float]] = {}
    for kind, runs in rows.items():
        for place, count in enumerate(calls[kind]):
            accuracies, distances, baselines = zip(*(run["measures"][place] for run in runs))
            accuracy, distance = statistics.mean(accuracies), statistics.mean(distances)
            means[kind, count] = accuracy, distance
            print(
                f"| {kind} | {count} | {100 * accuracy:.1f} % | {distance:.3f} | {distance / baselines[0]:.1f} | "
                f"{', '.join(f'{each:.3f}' for each in distances)} |"
            )
    for kind, runs in rows.items():
        milliseconds = statistics.mean(1000 * run["seconds"] / run["steps"] for run in runs)
        steps = ", ".join(str(run["steps"]) for run in runs)
        print(f"{kind}: {milliseconds:.0f} ms a training step of {runs[0]['batch']} images; steps: {steps}")
    if ("flow map", 1) not in means:
        return
    accuracy, distance = means["flow map", 1]
    if ("flow matching", 25) in means:
        factor = distance / means["flow matching", 25][1]
        print(f"One call has {factor:.2f} times the Frechet distance of 25: {_verdict(factor <= TARGET_FACTOR)}")
    print(f"One call is the class asked for in {100 * accuracy:.1f} %: {_verdict(accuracy >= TARGET_ACCURACY)}")
    if seconds is not None:
        print(f"{TIMED:,} digits at one call take {seconds:.2f} s: {_verdict(seconds < TARGET_SECONDS)}")


def _verdict(met: bool) -> str:
    return "meets the target" if met else "misses the target"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classifier", required=True, help="folder of a classifier (`diffusers-ext classifier train`)")
    parser.add_argument("--dataset_name", default="embedded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, each")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4], help="of the flow map")
    parser.add_argument("--flow_calls", type=int, nargs="+", default=[1, 4, 25], help="of the flow")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="of the flow map")
    parser.add_argument("--flow_guidance_scale", type=float, default=1.5, help="of the flow")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampling_dtype", choices=("float32", "bfloat16"), default=FASTER_DTYPE)
    parser.add_argument("--mixed_precision", default="auto", help="of training")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timing_threads", type=int, default=2, help="0 leaves the timing out")
    parser.add_argument("--picture", help="file of a picture")
    parser.add_argument("--output_dir", help="keep the runs here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.output_dir or temporary)
        check_kept(folder, arguments, FREE)
        contest = Contest(arguments, folder)
        calls = {"flow map": arguments.calls, "flow matching": arguments.flow_calls}
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in arguments.kinds}
        for seed in arguments.seeds:
            for kind, runs in rows.items():
                runs.append(contest.measured(kind, seed, calls[kind]))
        with_map = "flow map" in rows
        timed = contest.seconds_of_sampling(arguments.seeds[0]) if with_map and arguments.timing_threads else None
        if with_map:
            report(rows, calls, timed)
        if arguments.picture is not None:
            contest.draw(arguments.seeds[0], arguments.calls, arguments.picture)


if __name__ == "__main__":
    main()
