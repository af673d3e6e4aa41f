"""The runs of a study side by side: their losses, and samples from the same starting noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .. import figures
from ..training.recording import METRICS_FILE
from .results import records_of
from .running import FINISHED


def finished_runs(study: Path) -> dict[str, Path]:
    """The folders of the finished runs of a study by their names, in the order of its table.

    Raises:
        ValueError: when it has none.
    """
    reports = {}
    for file in sorted((study / "runs").glob("*.json")):
        try:
            reports[file.stem] = json.loads(file.read_text(encoding="utf-8")).get("status")
        except (OSError, ValueError, AttributeError):
            continue
    found = {name: study / "runs" / name for name, status in reports.items() if status == FINISHED}
    if not found:
        raise ValueError(f"'{study}' holds no finished run; `diffusers-ext experiments run STUDY.yaml` makes some.")
    order = _order(study / "results.csv")
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def draw_losses(runs: dict[str, Path], path: Path) -> None:
    """The losses of runs on shared axes. Raises ValueError when none has a loss."""
    figures.plot_experiments({short_name(name): [records_of(run / METRICS_FILE)] for name, run in runs.items()}, path)


def short_name(name: str) -> str:
    """The name of a run's folder without its digits."""
    return name.rpartition("_")[0].replace("_seed-", ", seed ").replace("_", " ") or name


def _order(table: Path) -> Sequence[str]:
    import csv

    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [Path(row.get("folder") or "").name for row in csv.DictReader(file)]
