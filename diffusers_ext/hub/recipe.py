"""Read the recipe that a training run leaves beside its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RECIPE = "recipe.yaml"
_DEEPEST, _LONGEST = 8, 1 << 20


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; none if there is no file, or a link in its place.

    Raises:
        ValueError: one sentence, if the file does not hold settings, or has aliases, deep nesting or more than a
            megabyte: a short file with aliases can stand for more than fits into memory.
    """
    if not path.is_file() or path.is_symlink():
        return {}
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"'{path}' has more than {_LONGEST:,} bytes, which no recipe has.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        _check_events(text, path)
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' must hold settings, one `name: value` per line.")
    return settings


def _check_events(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"'{path}' has a YAML alias (*{event.anchor}); write the value out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"'{path}' is nested more than {_DEEPEST} levels deep.")
