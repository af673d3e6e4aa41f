"""A command line as settings, and settings as help. Every program of the package reads its command line here."""

from __future__ import annotations

import difflib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from .declaration import Setting, SettingsError, settings_of

_FLAG = re.compile(r"--[A-Za-z]")
_WIDEST = 110
_SHOWN = 40  # characters of choices beside a flag
_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "[true|false]"}


class HelpRequested(Exception):
    """`--help`, `--help-all` or `--help GROUP` was given; the message is the text to print."""


def parse(
    settings_class: type, words: Sequence[str], usage: str, extra: Sequence[Setting] = ()
) -> tuple[dict[str, Any], list[str]]:
    """(the values that the words give by name, the words that belong to no flag).

    Flags are `--name value`, `--name=value`, `--name` alone for a switch, and `--name a b c` for a list; dashes in a
    name may stand for underscores. `--name none` takes back an optional number, such as a limit of a recipe.

    Args:
        settings_class: a dataclass of `option` fields.
        words: the command line without the program's name.
        usage: how the program is called, for the help.
        extra: flags besides the class's settings.

    Raises:
        HelpRequested: with the help to print.
        SettingsError: one sentence on a flag that there is not, or on a value of a wrong type.
    """
    known = {**{setting.name: setting for setting in extra}, **settings_of(settings_class)}
    _offer_help(settings_class, words, usage, extra)
    values: dict[str, Any] = {}
    others: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word == "-" or _is_number(word):
            others.append(word)
            continue
        name, equals, text = word.lstrip("-").partition("=")
        setting = known.get(name.replace("-", "_")) if word.startswith("--") else None
        if setting is None:
            raise SettingsError(_unknown_flag(word.partition("=")[0], list(known)))
        values[setting.name] = _value(setting, [text] if equals else None, queue)
    return values, others


def build(settings_class: type, values: dict[str, Any]) -> Any:
    """The settings object. Raises SettingsError for a setting that must be given and is not, or for a wrong value."""
    missing = [name for name, s in settings_of(settings_class).items() if s.required and name not in values]
    if missing:
        raise SettingsError(f"{' and '.join(f'--{name}' for name in missing)} must be given.")
    return settings_class(**values)


def closest(word: str, known: Sequence[str]) -> str:
    """The known word that is most like this one, as the end of a sentence; empty when none is like it."""
    found = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), known, 1, 0.6)
    return f"Unknown flag {flag}{f'; did you mean --{near[0]}?' if near else '; --help-all lists all of them.'}"


def _value(setting: Setting, given: list[str] | None, queue: list[str]) -> Any:
    if given is None:
        given = []
        while queue and not _FLAG.match(queue[0]) and (setting.many or not given):
            if setting.kind is bool and queue[0].lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
                break
            given.append(queue.pop(0))
    if not given and setting.kind is bool and not setting.many:
        return True
    if not given:
        raise SettingsError(f"{setting.name} needs a value: {_metavar(setting)}.")
    if setting.optional and setting.kind is not str and [text.lower() for text in given] == ["none"]:
        return None
    entries = [setting.from_text(text) for text in given]
    return setting.checked(entries if setting.many else entries[0])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# --- help -------------------------------------------------------------------------------------------------------------


def _offer_help(settings_class: type, words: Sequence[str], usage: str, extra: Sequence[Setting]) -> None:
    """Raise HelpRequested when a word asks for it."""
    for place, word in enumerate(words):
        if word == "--help-all":
            raise HelpRequested(help_text(settings_class, usage, extra, "all"))
        if word in ("-h", "--help"):
            following = words[place + 1] if place + 1 < len(words) else ""
            group = "" if following.startswith("-") else following
            raise HelpRequested(help_text(settings_class, usage, extra, group))


def help_text(settings_class: type, usage: str, extra: Sequence[Setting] = (), group: str = "") -> str:
    """What `--help` prints: the settings people change first, by group; all of them for "all", or one group.

    Raises:
        SettingsError: for a group that there is not.
    """
    settings = [*_own_first(settings_class), *extra]
    groups = sorted({s.group for s in settings if s.group is not None}, key=lambda each: each.order)
    names = [each.name for each in groups]
    if group not in ("", "all", *names):
        raise SettingsError(f"There is no group of settings '{group}'; the groups are {', '.join(names) or 'none'}.")
    lines = [f"usage: {usage}", "", *_wrapped(_summary(settings_class), ""), ""]
    brief = group == "" and any(s.short for s in settings)
    for each in [None, *groups]:
        if group not in ("", "all") and (each is None or each.name != group):
            continue
        shown = [s for s in settings if s.group == each and (s.short or each is None or not brief)]
        if shown:
            title = "" if each is None else f"{each.title} (--help {each.name})" if brief else each.title
            lines += [*([f"{title}:"] if title else []), *(line for s in shown for line in _entry(s)), ""]
    if brief:
        count = len(settings)
        lines.append(
            f"These are the settings that people change first. All {count}: --help-all. One group: --help GROUP."
        )
    return "\n".join(lines).rstrip()


def _own_first(settings_class: type) -> list[Setting]:
    """The settings for the help: those that must be given, the class's own, then those of its bases."""
    own = inspect.get_annotations(settings_class)
    return sorted(settings_of(settings_class).values(), key=lambda each: (not each.required, each.name not in own))


def _summary(settings_class: type) -> str:
    return (settings_class.__doc__ or "").strip().split("\n\n")[0]


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), max(_width(), 60), initial_indent=indent, subsequent_indent=indent)


def _entry(setting: Setting) -> Iterator[str]:
    flag = f"  --{setting.name} {_metavar(setting)}"
    text = f"{setting.text}{_unshown_choices(setting)}{_default(setting)}"
    if len(flag) < 34:
        lines = _wrapped(text, " " * 36)
        yield flag.ljust(36) + lines[0].strip() if lines else flag
        yield from lines[1:]
    else:
        yield flag
        yield from _wrapped(text, " " * 36)


def _unshown_choices(setting: Setting) -> str:
    """The choices that neither the metavar nor the text shows."""
    allowed = setting.allowed() or ()
    if len("|".join(allowed)) <= _SHOWN or all(choice in setting.text for choice in allowed):
        return ""
    return f" One of {', '.join(allowed)}."


def _metavar(setting: Setting) -> str:
    allowed = setting.allowed()
    if allowed is not None and len("|".join(allowed)) <= _SHOWN:
        word = "{" + "|".join(allowed) + "}"
    else:
        word = "JSON" if setting.json else _METAVARS[setting.kind]
    return f"{word} ..." if setting.many else word


def _default(setting: Setting) -> str:
    if setting.required:
        return " [required]"
    if setting.default is None or setting.default is False or setting.default == "":
        return ""
    value = setting.default
    return f" [{' '.join(map(str, value)) if isinstance(value, list) else value}]"
