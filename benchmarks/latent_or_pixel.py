"""Latent diffusion beside pixel diffusion in the same total minutes, the autoencoder and its latents included.

    python benchmarks/latent_or_pixel.py --features DIR --train_data_dir photos.zip --seconds 1800
    python benchmarks/latent_or_pixel.py --features DIR --dataset_name CIFAR --condition class --classifier DIR \
        --autoencoder_recipe cifar10-autoencoder --latent_recipe cifar10-latent --pixel_recipe images32

`--features` is a classifier's folder (`diffusers-ext classifier train`); its features compare samples of both with the
same real images of `--split`. The pixel model is trained for `--seconds`. The autoencoder gets
`--autoencoder_share` of them; what it and encoding leave is the latent model's. Images a second are of training the
two diffusion models. `--output_dir` keeps runs, evaluations and samples, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from time_to_quality import ONLY_TRAIN, check_kept, without_pictures

from diffusers_ext.cli import main as command
from diffusers_ext.training import Trainer, TrainingArguments

KINDS = ("pixel", "latent")


class Comparison:
    """Trains and measures both in one folder."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.folder = arguments, Path(arguments.output_dir)
        given = {"dataset_name": arguments.dataset_name, "train_data_dir": arguments.train_data_dir}
        self.data = {name: value for name, value in given.items() if value is not None}

    def train(self, name: str, recipe: str, seconds: float, **changes: Any) -> dict[str, float]:
        """Seconds of encoding and of training, steps, images a second. A run that is there is not trained again."""
        folder = self.folder / name
        file = folder / "comparison.json"
        if file.is_file():
            return json.loads(file.read_text())
        settings: dict[str, Any] = {
            **self.data,
            "seed": self.arguments.seed,
            "num_epochs": 10**5,
            "output_dir": str(folder),
            **ONLY_TRAIN,
            **changes,
        }
        prepared = 0.0
        if "vae" in changes:  # encoding fills a cache and is paid for by fewer steps
            began = time.perf_counter()
            Trainer(TrainingArguments.from_recipe(recipe, max_train_seconds=seconds, **settings))
            prepared = time.perf_counter() - began
        arguments = TrainingArguments.from_recipe(recipe, max_train_seconds=seconds - prepared, **settings)
        trainer = without_pictures(Trainer(arguments))
        trainer.train()
        state = trainer.state
        known = {
            "prepared": prepared,
            "seconds": state.seconds,
            "steps": state.global_step,
            "images_per_second": state.global_step * arguments.train_batch_size / state.seconds,
        }
        file.write_text(json.dumps(known))
        return known

    def both(self) -> dict[str, dict[str, Any]]:
        """Train an autoencoder, the model of its latents, and the model of pixels."""
        arguments = self.arguments
        condition = {} if arguments.condition == "none" else {"condition": arguments.condition}
        share = arguments.seconds * arguments.autoencoder_share
        first = self.train("autoencoder", arguments.autoencoder_recipe, share)
        left = arguments.seconds - first["prepared"] - first["seconds"]
        vae = str(self.folder / "autoencoder")
        options = json.loads(arguments.latent_options)
        latent = self.train("latent", arguments.latent_recipe, left, vae=vae, **condition, **options)
        pixel_options = json.loads(arguments.pixel_options)
        pixel = self.train("pixel", arguments.pixel_recipe, arguments.seconds, **condition, **pixel_options)
        return {"pixel": pixel, "latent": latent, "autoencoder": first}

    def evaluation(self, kind: str) -> dict[str, Any]:
        """The report of `diffusers-ext evaluate`, and a picture beside it."""
        arguments, folder = self.arguments, self.folder / kind
        output = folder / "comparison-evaluation.json"
        common = ["--model", str(folder), "--num_inference_steps", str(arguments.steps), "--dtype", arguments.dtype]
        guided = [] if arguments.condition == "none" else ["--guidance_scale", str(arguments.guidance_scale)]
        if not output.is_file():
            data = [word for name, value in self.data.items() for word in (f"--{name}", value)]
            measured = ["--features", arguments.features, "--split", arguments.split]
            measured += ["--num_images", str(arguments.samples)]
            if arguments.classifier is not None:
                measured += ["--classifier", arguments.classifier]
            if command(["evaluate", *common, *guided, *data, *measured, "--output", str(output)]) != 0:
                raise SystemExit(1)
        picture = folder / "comparison.png"
        if not picture.is_file():
            labels = ["--class_labels", "all"] if arguments.condition == "class" else []
            command(["sample", *common, *guided, *labels, "--num_images", "40", "--output", str(picture)])
        return json.loads(output.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", required=True, help="folder of a classifier, whose features compare samples")
    parser.add_argument("--classifier", help="folder of a classifier of the data's classes")
    parser.add_argument("--dataset_name")
    parser.add_argument("--train_data_dir")
    parser.add_argument("--split", default="train")
    parser.add_argument("--condition", default="none")
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--autoencoder_recipe", default="landscape-autoencoder")
    parser.add_argument("--autoencoder_share", type=float, default=0.28, help="of the seconds")
    parser.add_argument("--pixel_recipe", default="images64")
    parser.add_argument("--latent_recipe", default="landscape-latent")
    parser.add_argument("--pixel_options", default="{}", help="JSON of settings that differ from the recipe")
    parser.add_argument("--latent_options", default="{}", help="JSON of settings that differ from the recipe")
    parser.add_argument("--seconds", type=float, default=1800.0, help="of each side, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dtype", default="bfloat16", help="of sampling")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output_dir", required=True, help="keep the runs here")
    comparison = Comparison(parser.parse_args())
    check_kept(comparison.folder, comparison.arguments)
    torch.set_num_threads(comparison.arguments.threads)
    runs = comparison.both()
    print("\n| model | images/s | steps | Frechet distance | real images | class accuracy | 1,000 samples |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        report = comparison.evaluation(kind)
        ours, real = report["measures"]["samples"], report["measures"]["real_images"]
        seconds = 1000 * report["samples"]["seconds"] / comparison.arguments.samples
        accuracy = f"{100 * ours['class_accuracy']:.1f} %" if "class_accuracy" in ours else ""
        print(
            f"| {kind} | {runs[kind]['images_per_second']:.1f} | {runs[kind]['steps']:,} | "
            f"{ours['frechet_distance']:.3f} | {real['frechet_distance']:.3f} | {accuracy} | {seconds:.0f} s |"
        )
    factor = runs["latent"]["images_per_second"] / runs["pixel"]["images_per_second"]
    print(f"A training image of the latent model costs {factor:.2f} times less.")
    spent, encoding = runs["autoencoder"], runs["latent"]["prepared"]
    print(f"Autoencoder: {spent['seconds']:.0f} s, {spent['steps']:,} steps; encoding: {encoding:.0f} s")


if __name__ == "__main__":
    main()
