"""Which weights the pipeline in a folder has: as trained, averaged during training, or averaged afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..settings.recipes import RECIPE_FILE, read_typed

RECONSTRUCTION = "average.json"


@dataclass(frozen=True)
class Reconstruction:
    """A power-function average of weights, reconstructed from the snapshots of a run after training.

    Attributes:
        sigma_rel: its length: standard deviation of the weighting profile, relative to the length of training.
        step: the training step at which it ends.
        error: distance between the reconstructed profile and the power function, relative to the norm of the latter.
        snapshots: number of snapshots used.
        snapshot_sigma_rel: the lengths of the averages in them.
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
        """Record in a folder that the pipeline there has these weights."""
        Path(folder, RECONSTRUCTION).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, folder: str | os.PathLike) -> Reconstruction | None:
        """The record in a folder; None if its weights are not a reconstruction.

        Raises:
            ValueError: if the record can't be read.
        """
        path = Path(folder, RECONSTRUCTION)
        if not path.is_file() or path.is_symlink():
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
    recipe = Path(folder, RECIPE_FILE)
    if (reconstruction := Reconstruction.of(folder)) is not None:
        return str(reconstruction)
    if not recipe.is_file():
        return "unknown"
    return "EMA" if read_typed(recipe).get("use_ema") else "raw"
