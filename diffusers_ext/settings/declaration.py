"""How a setting is declared, and what is checked of its value.

A settings class is a dataclass whose fields are declared with `option`:

    @dataclass
    class Arguments:
        num_images: int = option(64, "Number of images.", at_least=1)
        dtype: str = option("float32", "Precision of the network.", choices=("float32", "bfloat16"))

`check(arguments)` raises one sentence for the first value of a wrong type or out of range. The same declarations serve
the command line (`parsing`), recipes (`recipes`), warnings (`effect`) and help.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .needs import Need

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
LARGEST_INT64 = 2**63 - 1
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
# What a resumed run does about a setting with another value than before.
REFUSED, NAMED, FREE = "refused", "named", "free"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class SettingsError(ValueError):
    """One sentence on a setting: what is wrong, what was received, what to do."""


@dataclass(frozen=True)
class Group:
    """Settings that `--help` shows together: `group(default, help, ...)` declares one.

    `dataclasses.replace` gives a part of a group, with other needs.

    Args:
        name, title: as `--help` calls it.
        needs: what all of its settings need to have an effect, before their own needs.
        on_resume: of every setting of the group that does not declare its own.
    """

    name: str
    title: str
    needs: tuple[Need, ...] = field(default=(), compare=False)
    on_resume: str = field(default=FREE, compare=False)
    order: int = field(default_factory=itertools.count().__next__)

    def __call__(self, default: Any, text: str, **more: Any) -> Any:
        own = more.pop("needs", ())
        return option(
            default, text, group=self, needs=(*self.needs, *(own if isinstance(own, tuple) else (own,))), **more
        )


@dataclass(frozen=True)
class Setting:
    """One setting, as `option` declared it.

    Args:
        name: name of the field, of the flag and of the recipe's key.
        kind: int, float, bool or str.
        default: value when nothing is given; `dataclasses.MISSING` when one must be given.
        text: help: what it does, its unit, when to change it.
        optional: None is a value.
        many: the value is a list.
        choices: the values there are; a callable gives them when they are first asked for.
        or_class: beside the choices, a class of the user's is a value, as `module:Class` or `path/to/file.py:Class`.
        at_least, above, at_most, below: bounds of a number.
        json: a text that holds a JSON object; a dictionary is taken too.
        secret: a token, which is left out of messages and of the object's `repr`.
        writes: the value is a place to write to: "folder", or the suffixes that a file may have, ".png .gif".
        group: where `--help` shows it.
        short: whether plain `--help` shows it.
        needs: what it needs to have an effect; the first need that is not met gives the warning.
        on_resume: what happens when a run is resumed with another value. "refused": the weights would lose their
            meaning; "named": a warning, for the run goes on differently; "free": nothing. The group's when not given.
        replaced_by: the Python argument that takes its place where the user gives an object.
    """

    name: str
    kind: type
    default: Any
    text: str
    optional: bool = False
    many: bool = False
    choices: tuple[str, ...] | Callable[[], Iterable[str]] | None = None
    or_class: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    json: bool = False
    secret: bool = False
    writes: str | None = None
    group: Group | None = None
    short: bool = False
    needs: tuple[Need, ...] = ()
    on_resume: str = FREE
    replaced_by: str = ""

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is dataclasses.MISSING

    def allowed(self) -> tuple[str, ...] | None:
        """The values there are, or None when there is no list of them."""
        return tuple(self.choices()) if callable(self.choices) else self.choices

    # --- values -------------------------------------------------------------------------------------------------------

    def from_text(self, text: str) -> Any:
        """The value that a flag or a recipe spells. Raises SettingsError when it spells none."""
        if self.kind is str:
            return text
        if self.kind is bool:
            if text.lower() not in _TRUE + _FALSE:
                raise self._wrong_type(text)
            return text.lower() in _TRUE
        try:
            return self.kind(text)
        except ValueError:
            raise self._wrong_type(text) from None

    def checked(self, value: Any) -> Any:
        """The value in the setting's own type. Raises SettingsError for a wrong type or a value out of range."""
        if value is None and self.optional:
            return None
        if self.many:
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise SettingsError(f"{self.name} must be a list, got {_shown(value)}.")
            return [self._checked_one(entry) for entry in value]
        return self._checked_one(value)

    def _checked_one(self, value: Any) -> Any:
        value = self._converted(value)
        allowed = self.allowed()
        if allowed is not None and value not in allowed and not (self.or_class and _names_class(value)):
            own = " or module:Class" if self.or_class else ""
            raise SettingsError(f"{self.name} must be one of {', '.join(allowed)}{own}, got '{value}'.")
        if self.kind is str:
            return self._checked_text(value)
        if self.kind is not bool:
            self._check_range(value)
        return value

    def _converted(self, value: Any) -> Any:
        """The value as an `int`, `float`, `bool` or `str`, where no meaning is lost."""
        if self.json and isinstance(value, Mapping):
            try:
                return json.dumps(value)
            except (TypeError, ValueError):
                raise SettingsError(f"{self.name} must hold what JSON can hold, got {_shown(value)}.") from None
        if self.kind is str and isinstance(value, str | os.PathLike):
            value = os.fspath(value)
            return os.fsdecode(value)
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind in (int, float) and not isinstance(value, str | bytes | bool):
            try:
                return operator.index(value) if self.kind is int else float(value)
            except (TypeError, ValueError, OverflowError):
                raise self._wrong_type(value) from None
        raise self._wrong_type(value)

    def _checked_text(self, value: str) -> str:
        if self.secret:
            return value
        if not value.strip() and self.default != value:
            raise SettingsError(f"{self.name} must not be empty; leave it out to take its default.")
        if "\0" in value:
            raise SettingsError(f"{self.name} must not contain a null character, got {_shown(value)}.")
        if self.json:
            json_option(self.name, value)
        return value

    def _check_range(self, value: float) -> None:
        bounds = (
            (self.at_least, operator.ge, "at least"),
            (self.above, operator.gt, "greater than"),
            (self.at_most, operator.le, "at most"),
            (self.below, operator.lt, "below"),
        )
        given = [(bound, holds, words) for bound, holds, words in bounds if bound is not None]
        broken = [each for each in given if not each[1](value, each[0])]
        if broken:
            shown = broken if self.kind is int else given
            wanted = " and ".join(f"{words} {_shown_bound(bound)}" for bound, _, words in shown)
            raise SettingsError(f"{self.name} must be {wanted}, got {_shown(value)}.")
        if self.kind is float and not abs(value) <= LARGEST_FLOAT32:
            raise SettingsError(f"{self.name} must be a finite number that float32 can hold, got {value}.")
        if self.kind is int and abs(value) > LARGEST_INT64:
            raise SettingsError(f"{self.name} must fit into 64 bits, got a number of {len(str(abs(value)))} digits.")

    def _wrong_type(self, value: Any) -> SettingsError:
        got = "another type" if self.secret else _shown(value)
        return SettingsError(f"{self.name} must be {_KINDS[self.kind]}, got {got}.")


def _names_class(text: str) -> bool:
    source, _, name = text.rpartition(":")
    return bool(source) and name.isidentifier()


def option(default: Any = dataclasses.MISSING, text: str = "", **declared: Any) -> Any:
    """A field of a settings class; `declared` are the arguments of `Setting`. A list or dictionary is copied."""
    metadata = {"help": text, **declared}
    shown = not declared.get("secret", False)
    if default is dataclasses.MISSING:
        return field(metadata=metadata, kw_only=True, repr=shown)
    if isinstance(default, list):
        return field(default_factory=functools.partial(list, default), metadata=metadata)
    return field(default=default, metadata=metadata, repr=shown)


def settings_of(settings_class: Any) -> dict[str, Setting]:
    """The settings of a settings class by name, in the order of their declaration."""
    return _settings_of(settings_class)


@functools.cache
def _settings_of(settings_class: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(settings_class)
    return {each.name: _setting(each, hints[each.name]) for each in dataclasses.fields(settings_class)}


def check(settings: Any) -> None:
    """Put every value into its own type. Raises SettingsError for the first that is wrong."""
    for name, setting in settings_of(type(settings)).items():
        setattr(settings, name, setting.checked(getattr(settings, name)))


def check_places(settings: Any) -> None:
    """Raise SettingsError for the first place that can't be written to. Creates nothing."""
    for name, setting in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if setting.writes is not None and value is not None:
            _check_place(name, Path(value), setting.writes)


def _check_place(name: str, path: Path, kind: str) -> None:
    if kind == "folder" and path.exists() and not path.is_dir():
        raise SettingsError(f"{name} must be a folder, and '{path}' is a file.")
    if kind != "folder" and path.is_dir():
        raise SettingsError(f"{name} must be a file, and '{path}' is a folder.")
    if kind != "folder" and path.suffix.lower() not in kind.split():
        raise SettingsError(f"{name} must end in {' or '.join(kind.split())}, got '{path}'.")
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if there != path and not there.is_dir():
        raise SettingsError(f"{name} '{path}' can't be made: '{there}' is a file.")
    if not os.access(there, os.W_OK):
        raise SettingsError(f"{name} '{path}' can't be written: no permission to write to '{there}'.")


class CheckedSettings:
    """Base of settings classes whose values are checked when they are made.

    Raises:
        SettingsError: on construction, one sentence on the first setting that can't be.
    """

    def __post_init__(self) -> None:
        check(self)


def make_settings_class(name: str, declared: Mapping[str, Mapping[str, Any]], module: str) -> type:
    """A settings class from plain dictionaries, for code that can't import this package's `option`.

    Args:
        name: of the class.
        declared: by setting, the arguments of `option` with its annotation as `type`:
            `{"label_column": {"type": str | None, "default": None, "text": "Column with the classes."}}`.
        module: where the class belongs.
    """
    fields = []
    for setting, arguments in declared.items():
        rest = {key: value for key, value in arguments.items() if key != "type"}
        fields.append((setting, arguments["type"], option(**rest)))
    return dataclasses.make_dataclass(name, fields, namespace={"__module__": module})


def _setting(declared: dataclasses.Field, hint: Any) -> Setting:
    default = declared.default
    if declared.default_factory is not dataclasses.MISSING:
        default = declared.default_factory()
    options = {key: value for key, value in declared.metadata.items() if key != "help"}
    needs = options.pop("needs", ())
    options.setdefault("on_resume", options["group"].on_resume if options.get("group") is not None else FREE)
    if options["on_resume"] not in (REFUSED, NAMED, FREE):
        raise ValueError(f"on_resume of {declared.name} must be refused, named or free, got {options['on_resume']!r}.")
    parts = (
        typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else ()
    )
    optional = type(None) in parts
    kind = next((part for part in parts if part is not type(None)), hint)
    many = typing.get_origin(kind) is list
    if many:
        (kind,) = typing.get_args(kind)
    return Setting(
        declared.name,
        kind,
        default,
        declared.metadata.get("help", ""),
        optional,
        many,
        needs=(needs,) if isinstance(needs, Need) else tuple(needs),
        **options,
    )


def json_option(name: str, text: str | None) -> dict[str, Any]:
    """The dictionary in a JSON setting; empty when it was not given. Raises SettingsError unless it is one."""
    try:
        value = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SettingsError(f"{name} must be a JSON object such as '{{\"s\": 0.008}}', got {_shown(text)}.")
    return value


def _shown_bound(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _shown(value: Any) -> str:
    """The value in a message: short, and on one line."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = " ".join(repr(value).split()) if not isinstance(value, int) or abs(value) <= LARGEST_INT64 else "too large"
    return text if len(text) <= 80 else f"{text[:77]}..."
