"""What is to be run: a base recipe, changes to it, and seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..settings import Recipe, SettingsError, read_nested, settings_of
from ..settings.recipes import as_values
from ..training import TrainingArguments

KEYS = ("recipe", "output_dir", "settings", "grid", "changes", "seeds")
# Settings that say where and how a run is written, not what it computes.
_PLACES = (
    "output_dir overwrite_output_dir resume_from_checkpoint hub_token hub_model_id hub_private_repo push_to_hub "
    "local_rank debug logger logging_dir logging_steps save_figures checkpointing_steps checkpoints_total_limit "
    "save_model_epochs cache_dir"
)
_LONGEST_NAME = 80  # characters of a folder's name


@dataclass
class Experiment:
    """One configuration, run once for each seed.

    Attributes:
        recipe: a YAML file or the name of a recipe; None begins with the defaults.
        settings: changes to it that all experiments of the study have, by setting.
        changes: those that make this experiment, by setting.
        seeds: of the runs.
        note: a remark that goes into the table.
        objects: what `Trainer` takes besides settings: model, train_dataset, eval_dataset, objective, callbacks,
            condition. Such an experiment runs in this process.
    """

    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    note: str = ""
    objects: dict[str, Any] = field(default_factory=dict)

    def label(self) -> str:
        """The changes in words: "learning_rate 0.001, schedule cosine"."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.changes.items()) or self.note or "base"

    def arguments(self, seed: int, output_dir: str | Path = "unused") -> TrainingArguments:
        """The settings of the run with this seed. Raises ValueError for a setting that can't be."""
        given = {**self.settings, **self.changes, "seed": seed, "output_dir": str(output_dir)}
        known = settings_of(TrainingArguments)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SettingsError(f"There is no setting '{unknown[0]}'.")
        if self.recipe is None:
            return TrainingArguments(**given)
        return TrainingArguments.from_recipe(self.recipe, **given)

    def run_name(self, seed: int) -> str:
        """Name of the run's folder: the changes, the seed, and six digits that change with any setting."""
        settings = {name: value for name, value in asdict(self.arguments(seed)).items() if name not in _PLACES.split()}
        objects = {name: _described(value) for name, value in self.objects.items()}
        digest = hashlib.sha256(json.dumps([settings, objects], sort_keys=True, default=str).encode()).hexdigest()
        words = re.sub(r"[^\w.+-]+", "-", self.label()).strip("-.")[:_LONGEST_NAME]
        return f"{words}_seed-{seed}_{digest[:6]}"


def read_study(path: str | Path) -> tuple[list[Experiment], str]:
    """(the experiments of a YAML file, its output folder).

    The file's keys: `recipe`, a file or the name of a recipe; `output_dir`; `settings`, common to all; `grid`, a
    mapping of settings to lists, of which every combination is an experiment; `changes`, a list of mappings of settings
    (with an optional `note` each); `seeds`, a list. With both `grid` and `changes`, every change meets every
    combination of the grid.

    Raises:
        ValueError, FileNotFoundError: one sentence on what is wrong with the file or a setting in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no study '{path}'.")
    content = read_nested(path)
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise SettingsError(f"Study '{path}' has an unknown key '{unknown[0]}'; it takes {', '.join(KEYS)}.")
    common = _values(path, "settings", content.get("settings") or {})
    experiments = [
        Experiment(content.get("recipe"), common, {**change, **point}, _seeds(path, content.get("seeds")), note)
        for change, note in _changes(path, content.get("changes"))
        for point in _grid(path, content.get("grid") or {})
    ]
    return experiments, str(content.get("output_dir") or Path("studies") / path.stem)


def _values(path: Path, key: str, written: Any) -> dict[str, Any]:
    if not isinstance(written, Mapping):
        raise SettingsError(f"Study '{path}': {key} must hold `name: value` lines.")
    for name in ("seed", "output_dir"):
        if name in written:
            own = {"seed": "seeds", "output_dir": "output_dir"}[name]
            raise SettingsError(f"Study '{path}': give {name} by the study's own `{own}`, not under {key}.")
    return as_values(Recipe(path.stem, dict(written)), settings_of(TrainingArguments))


def _changes(path: Path, written: Any) -> list[tuple[dict[str, Any], str]]:
    if written is None:
        return [({}, "")]
    if not isinstance(written, list) or not all(isinstance(entry, Mapping) for entry in written) or not written:
        raise SettingsError(f"Study '{path}': changes must be a list of mappings, such as `- {{schedule: cosine}}`.")
    split = [(dict(entry), str(entry.get("note") or "")) for entry in written]
    return [(_values(path, "changes", {k: v for k, v in entry.items() if k != "note"}), note) for entry, note in split]


def _grid(path: Path, written: Any) -> list[dict[str, Any]]:
    if not isinstance(written, Mapping) or not all(isinstance(v, list) and v for v in written.values()):
        raise SettingsError(f"Study '{path}': grid must map settings to lists, such as `schedule: [linear, cosine]`.")
    points = itertools.product(*([(name, value) for value in values] for name, values in written.items()))
    return [_values(path, "grid", dict(point)) for point in points]


def _seeds(path: Path, written: Any) -> list[int]:
    if written is None:
        return [0]
    entries = written if isinstance(written, list) else [written]
    try:
        seeds = [int(entry) for entry in entries]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SettingsError(f"Study '{path}': seeds must be a list of different whole numbers, got {written!r}.")
    return seeds


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _described(value: Any) -> str:
    """An object in words that are the same in the next process, for the digest of a run."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_described, value))
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{type(value).__module__}.{type(value).__qualname__}{size}"
