"""Which weights the pipeline in a folder has: as trained, an average tracked on the way, or one made afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

RECIPE = "recipe.yaml"
RECONSTRUCTION = "average.json"


@dataclass(frozen=True)
class Reconstruction:
    """A power-function average of weights, put together from a run's snapshots after the training.

    Attributes:
        sigma_rel: its length, the standard deviation of the profile as a share of the training.
        step: the training step at which it ends.
        error: distance of the profile that was reached from the power function, as a share of the latter's norm.
        snapshots: how many steps' averages it is made of.
        snapshot_sigma_rel: the lengths of those.
    """

    sigma_rel: float
    step: int
    error: float
    snapshots: int
    snapshot_sigma_rel: list[float]

    def __str__(self) -> str:
        return (
            f"power-function average of sigma_rel {self.sigma_rel:g} at step {self.step:,}, reconstructed from "
            f"{self.snapshots} snapshots with an error of {self.error:.2g}"
        )

    def write(self, folder: str | os.PathLike) -> None:
        """Say beside the pipeline in a folder that these are its weights."""
        Path(folder, RECONSTRUCTION).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, folder: str | os.PathLike) -> Reconstruction | None:
        """What a folder says of itself, None where its weights are not a reconstruction.

        Raises:
            ValueError: when what it says can't be read.
        """
        path = Path(folder, RECONSTRUCTION)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"'{path}' is not what `diffusers-ext ema` writes.") from None


def weights_of(folder: str | os.PathLike) -> str:
    """The kind of weights in a pipeline's folder: `raw`, `EMA`, the sentence of a `Reconstruction`, or `unknown`.

    Raises:
        ValueError: as `Reconstruction.of`.
    """
    recipe = Path(folder, RECIPE)
    if (reconstruction := Reconstruction.of(folder)) is not None:
        return str(reconstruction)
    if not recipe.is_file():
        return "unknown"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    return "EMA" if settings.get("use_ema") else "raw"
