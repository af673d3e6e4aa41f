"""The runs of a study side by side: their losses, and samples from the same starting noise."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from .. import figures
from ..training.recording import METRICS_FILE
from .results import records_of
from .running import FINISHED


def finished_runs(study: Path) -> dict[str, Path]:
    """The folders of the finished runs of a study by their changes and seeds, in the order of its table.

    Raises:
        ValueError: when it has none.
    """
    found = {}
    for file in sorted((study / "runs").glob("*.json")):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            if report["status"] == FINISHED:
                found[file.stem] = report["label"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not found:
        raise ValueError(f"'{study}' holds no finished run; `diffusers-ext experiments run STUDY.yaml` makes some.")
    order = _order(study / "results.csv")
    names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    labels = list(found.values())
    shown = {name: found[name] if labels.count(found[name]) == 1 else name for name in names}
    return {label: study / "runs" / name for name, label in shown.items()}


def draw_losses(runs: dict[str, Path], path: Path) -> None:
    """The losses of runs on shared axes. Raises ValueError when none has a loss."""
    figures.plot_experiments({name: [records_of(run / METRICS_FILE)] for name, run in runs.items()}, path)


def _order(table: Path) -> Sequence[str]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [Path(row.get("folder") or "").name for row in csv.DictReader(file)]
