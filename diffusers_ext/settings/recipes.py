"""Recipes: YAML files of settings. Those of the package are used by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..files import one_line
from .declaration import SettingsError
from .parsing import closest

RECIPE_FILE = "recipe.yaml"  # what a training run leaves beside its pipeline
ABOUT = "about"
BASE = "recipe"  # in a recipe: the recipe of the package whose settings it changes
_LARGEST_FILE = 2**20  # bytes
_DEEPEST = 8  # levels of lists and mappings
_NULL_TAG = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read.

    Args:
        name: of the file, without its suffix.
        settings: by name, a text, a list of texts or a dictionary; None for "not given".
        about: `description`, `time` and `data` of the recipes in the package.
        own: names of the settings in the file itself; the others are of the recipe that it begins with.
    """

    name: str
    settings: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def shipped_recipes() -> list[Recipe]:
    """The recipes in the package."""
    return [read_recipe(_shipped(name)) for name in recipe_names()]


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a recipe in the package.

    Raises:
        FileNotFoundError: one sentence when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in recipe_names():
        return _shipped(str(name))
    stem = path.stem if path.suffix in (".yaml", ".yml") else str(name)
    near = closest(stem, recipe_names()) or f"; the package's recipes are {', '.join(recipe_names())}."
    raise FileNotFoundError(f"There is no recipe '{name}'{near}")


def read_recipe(name: str | Path) -> Recipe:
    """Read a recipe. Values are left as they are written, so that they are read as flags are.

    A recipe with the line `recipe: NAME` has the settings of that recipe of the package, with its own in their place.

    Raises:
        SettingsError, FileNotFoundError: one sentence on what is wrong with the file.
    """
    if not str(name).strip():
        raise SettingsError("recipe takes a YAML file or the name of a recipe, got nothing.")
    path = find_recipe(name)
    root = _root(path)
    settings: dict[str, Any] = {}
    for key, value in root.value if root is not None else ():
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"Recipe '{path}' must hold `name: value` lines.")
        if key.value in settings:
            raise SettingsError(f"Recipe '{path}' sets {key.value} twice.")
        settings[key.value] = _value(path, key.value, value)
    about = settings.pop(ABOUT, None) or {}
    if not isinstance(about, dict):
        raise SettingsError(f"Recipe '{path}' must hold a mapping under `{ABOUT}`.")
    base = _base(path, settings)
    return Recipe(path.stem, {**base, **settings}, {str(k): str(v) for k, v in about.items()}, frozenset(settings))


def _base(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the recipe that this one begins with, if it names one; takes the name out of `settings`."""
    name = settings.pop(BASE, None)
    if name is None:
        return {}
    if name not in recipe_names():  # no files: a recipe out of a folder from the Hub would choose what is read
        near = closest(str(name), recipe_names()) or "."
        raise SettingsError(f"Recipe '{path}' begins with '{name}', which is no recipe of the package{near}")
    return read_recipe(_shipped(name)).settings


def read_typed(path: Path) -> dict[str, Any]:
    """The settings in a YAML file in the types that YAML gives them; none if there is no file, or a link in its place.

    Raises:
        SettingsError: one sentence on what is wrong with the file.
    """
    root = None if path.is_symlink() or not path.is_file() else _root(path)
    return {} if root is None else _constructed(path, "settings", root)


def read_nested(path: Path) -> dict[str, Any]:
    """A YAML file of mappings that hold settings: scalars as texts, null as None, the settings' own mappings typed.

    Raises:
        SettingsError: one sentence on what is wrong with the file.
    """
    root = _root(path)
    return {} if root is None else _nested(path, root, 0)


def _nested(path: Path, node: yaml.Node, depth: int) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_nested(path, entry, depth) for entry in node.value]
    if not isinstance(node, yaml.MappingNode) or depth > 1:  # a value of a setting, such as model_options
        return _value(path, "a setting", node)
    content: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"'{path}' must hold `name: value` lines.")
        if key.value in content:
            raise SettingsError(f"'{path}' sets {key.value} twice.")
        content[key.value] = _nested(path, value, depth + 1)
    return content


def _folder() -> Any:
    return files("diffusers_ext") / "recipes"


def _shipped(name: str) -> Path:
    """The file of a recipe of the package, whatever lies in the working directory."""
    return Path(str(_folder() / f"{name}.yaml"))


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which can blow up a small file, and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (`*name`) are not taken")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"lists and mappings nest deeper than {_DEEPEST} levels")
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self.depth -= 1
        return node


def _root(path: Path) -> yaml.MappingNode | None:
    """The mapping that the file holds; None for an empty file."""
    with path.open("rb") as file:
        raw = file.read(_LARGEST_FILE + 1)
    if len(raw) > _LARGEST_FILE:
        raise SettingsError(f"Recipe '{path}' is larger than {_LARGEST_FILE // 2**20} MiB, so it is none.")
    try:
        loader = _Loader(raw.decode("utf-8-sig"))
        node = loader.get_single_node()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"Recipe '{path}' is not valid YAML: {one_line(error)}.") from None
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG):
        return None
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "text"
        raise SettingsError(f"Recipe '{path}' must hold `name: value` lines, got a {kind}.")
    return node


def _value(path: Path, name: str, node: yaml.Node) -> Any:
    """A scalar as its text, None for null, a list as the list of its texts, a mapping with its types."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == _NULL_TAG else node.value
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(entry, yaml.ScalarNode) for entry in node.value):
            raise SettingsError(f"Recipe '{path}': {name} must be a list of plain values.")
        return [entry.value for entry in node.value]
    return _constructed(path, name, node)


def _constructed(path: Path, name: str, node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise SettingsError(f"Recipe '{path}': {name}: {one_line(error)}.") from None
    finally:
        loader.dispose()


def as_values(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values in the types of the settings, those that are given.

    Raises:
        SettingsError: one sentence on a name that is no setting, or on a value of a wrong type.
    """
    values = {}
    for name, written in recipe.settings.items():
        if name not in settings:
            raise SettingsError(f"Unknown setting '{name}' in recipe '{recipe.name}'{_near(name, list(settings))}")
        if written is not None:
            values[name] = _typed(settings[name], written)
    return values


def _near(name: str, known: Sequence[str]) -> str:
    return closest(name, known) or "; --help-all lists the settings."


def _typed(setting: Any, written: Any) -> Any:
    if isinstance(written, dict):
        return setting.checked(written)
    if isinstance(written, list):
        return setting.checked([setting.from_text(text) for text in written] if setting.many else written)
    value = setting.from_text(written)
    return setting.checked([value] if setting.many else value)
