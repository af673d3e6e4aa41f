"""Training with the noise paired to the images, or with augmentation that the network is told, for docs/results.md:

    python benchmarks/objective_trials.py TRIAL --dataset_name DIR --output_dir DIR [--recipe cifar10] [--settings JSON]

- `plain`: the recipe as it is.
- `paired`: the noise of a batch is permuted among its images so that the sum of squared distances is least (Pooladian
  et al. 2023, arXiv:2304.14772; Li et al. 2024, arXiv:2406.12303).
- `paired-in-class`: the same among the images of one class, so that the noise of every class stays normal.
- `augmented`: with `--probability` an image is flipped, scaled, rotated and moved, and the network gets the numbers of
  that change as its `vector`, so that samples without the numbers are not augmented (Karras et al. 2022,
  arXiv:2206.00364, appendix F.2). The saved network has no such input, though `recipe.yaml` names it.

The recipe must have classes and the plain diffusion objective.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.training import TrainingArguments, train
from diffusers_ext.training.building import make_objective

# Flip, log2 of the scale, angle in radians, shifts as parts of half the picture.
AUGMENTATION_NUMBERS = 5


class Paired:
    """`objective` with the noise of a batch permuted among its images, or among those of each class."""

    def __init__(self, objective: DiffusionObjective, in_class: bool):
        self.objective, self.in_class = objective, in_class

    def __call__(self, net: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        if not net.training:
            return self.objective(net, batch, generator)
        x0 = batch["samples"]
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        costs = torch.cdist(x0.flatten(1), noise.flatten(1)).square()
        if self.in_class:
            labels = net.conditions["class_labels"]
            costs = costs.masked_fill(labels[:, None] != labels, 1e9)
        noise = noise[torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=x0.device)]
        return self.objective.losses(net, x0, noise, self.objective.draw_timesteps(len(x0), generator, x0.device))


class Augmented:
    """`objective` on images that are augmented with some probability, and a network that is told how."""

    def __init__(self, objective: DiffusionObjective, probability: float):
        self.objective, self.probability = objective, probability

    def __call__(self, net: Any, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        if not net.training:
            return self.objective(net, batch, generator)
        x0 = batch["samples"]
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        times = self.objective.draw_timesteps(len(x0), generator, x0.device)
        numbers = self._draw(len(x0), generator, x0.device)
        moved = F.grid_sample(
            x0,
            F.affine_grid(_matrices(numbers), list(x0.shape), align_corners=False),
            padding_mode="reflection",
            align_corners=False,
        )
        plain = torch.rand(len(x0), generator=generator, device=x0.device) >= self.probability
        x0 = torch.where(plain[:, None, None, None], x0, moved)
        told = numbers.masked_fill(plain[:, None], torch.nan)
        return self.objective.losses(net, x0, noise, times, vector=told)

    def _draw(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        numbers = torch.randn(count, AUGMENTATION_NUMBERS, generator=generator, device=device)
        scales = numbers.new_tensor([1, 0.2, 0.15, 0.125, 0.125])
        return torch.cat([(numbers[:, :1] > 0).float(), numbers[:, 1:] * scales[1:]], 1)


def _matrices(numbers: Tensor) -> Tensor:
    """From the places of the augmented picture to those of the picture, (batch, 2, 3)."""
    flip, scale, angle, right, down = numbers.unbind(1)
    cos, sin, shrink = angle.cos(), angle.sin(), 2**-scale
    mirror = 1 - 2 * flip
    rows = [torch.stack([mirror * shrink * cos, -mirror * shrink * sin, right], 1)]
    rows.append(torch.stack([shrink * sin, shrink * cos, down], 1))
    return torch.stack(rows, 1)


def without_numbers(network: Any) -> Any:
    """The same network for samples that are not augmented, without the input for the numbers."""
    config = {**network.config, "vector_dim": None}
    plain = type(network).from_config({name: value for name, value in config.items() if not name.startswith("_")})
    weights = network.state_dict()
    null = weights["vector_embedding.null"]
    kept = {name: value for name, value in weights.items() if not name.startswith("vector_embedding.")}
    kept["class_embedding.weight"] = kept["class_embedding.weight"] + null  # both are added to the time's
    plain.load_state_dict(kept)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=["plain", "paired", "paired-in-class", "augmented"])
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_train_seconds", type=float, default=420)
    parser.add_argument("--settings", type=json.loads, default={}, help="further settings of the recipe, as JSON")
    parser.add_argument("--probability", type=float, default=0.5, help="probability of an augmentation")
    flags = parser.parse_args()

    settings = {
        "dataset_name": flags.dataset_name,
        "output_dir": flags.output_dir,
        "max_train_seconds": flags.max_train_seconds,
        "validation_steps": 10**6,
        "checkpointing_steps": 10**6,
        **flags.settings,
    }
    if flags.trial == "augmented":
        options = TrainingArguments.from_recipe(flags.recipe, **settings).model_options
        options = json.loads(options) if isinstance(options, str) else options or {}
        settings["model_options"] = {**options, "vector_dim": AUGMENTATION_NUMBERS}
    args = TrainingArguments.from_recipe(flags.recipe, **settings)
    plain = make_objective(args, None)
    if args.condition != "class" or type(plain) is not DiffusionObjective or args.dequantize:
        parser.error("the recipe must have classes and the plain diffusion objective.")
    trials: dict[str, Any] = {
        "plain": plain,
        "paired": Paired(plain, in_class=False),
        "paired-in-class": Paired(plain, in_class=True),
        "augmented": Augmented(plain, flags.probability),
    }
    pipeline = train(args, objective=trials[flags.trial])
    if flags.trial == "augmented":
        without_numbers(pipeline.unet).save_pretrained(f"{flags.output_dir}/unet")


if __name__ == "__main__":
    main()
