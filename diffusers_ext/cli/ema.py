"""`diffusers-ext ema`: a pipeline with an average of weights whose length is chosen after training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..hub.export import export
from ..settings import CheckedSettings, option
from ..settings.recipes import RECIPE_FILE
from ..training.ema import LONGEST_SIGMA_REL
from .shared import ModelCode, load_pipeline


@dataclass
class EmaArguments(CheckedSettings, ModelCode):
    """Average a run's weights over any length, from the snapshots of `--ema_snapshots`."""

    run: str = option(text="Output folder of a finished training run.")
    sigma_rel: float = option(
        text="Length of the average: its standard deviation's share of the training, 0.1, say.",
        above=0,
        below=LONGEST_SIGMA_REL,
    )
    output_dir: str = option(text="Where the pipeline goes.", writes="folder")
    step: int | None = option(None, "Step at which it ends; that of the last snapshot.", at_least=1)


def ema(arguments: EmaArguments) -> None:
    """Write the run's pipeline with the averaged weights, and beside it what they are."""
    from ..training.ema import reconstruct

    run, folder = Path(arguments.run), Path(arguments.output_dir)
    if folder.resolve() == run.resolve():
        raise ValueError(f"output_dir must be another folder than run, got '{folder}'.")
    weights, reconstruction = reconstruct(run, arguments.sigma_rel, arguments.step)
    pipeline = load_pipeline(str(run), "cpu", trust_remote_code=arguments.trust_remote_code)
    replace_weights(pipeline, weights)
    export(pipeline, folder)
    reconstruction.write(folder)
    if (run / RECIPE_FILE).is_file():
        shutil.copyfile(run / RECIPE_FILE, folder / RECIPE_FILE)
    print(f"Pipeline with the {reconstruction} (relative distance from the exact profile) in {folder}")


@torch.no_grad()
def replace_weights(pipeline: Any, weights: dict[str, torch.Tensor]) -> None:
    """Overwrite what was trained: the denoiser, and a text encoder that was trained along.

    Raises:
        ValueError: when the weights are of other networks.
    """
    parameters = dict(pipeline.unet.named_parameters())
    if not weights.keys() <= parameters.keys():
        parts = ("unet", "text_encoder")
        networks = {part: getattr(pipeline, part) for part in parts if getattr(pipeline, part, None) is not None}
        parameters = {f"{part}.{name}": p for part, net in networks.items() for name, p in net.named_parameters()}
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ValueError(f"The run's snapshots and its pipeline are of different networks: {name} does not fit.")
        parameters[name].copy_(value)
