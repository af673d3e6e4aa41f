"""Settings that were given and have no effect: a warning for each, or an error where they contradict one another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from .declaration import SettingsError, settings_of
from .needs import Need

FLAG, RECIPE = "flag", "recipe"  # where a setting was given


def without_effect(settings: Any, objects: Collection[str] = ()) -> list[str]:
    """A sentence on each group of settings that were given and change nothing.

    `settings.given` says where each setting was given. A recipe's settings that a flag makes ineffective are left out.

    Args:
        settings: an object of a settings class.
        objects: the Python arguments that were given in the place of settings; see `Setting.replaced_by`.

    Raises:
        SettingsError: when a flag among them contradicts another setting.
    """
    declared = settings_of(type(settings))
    replaced = {name: setting.replaced_by for name, setting in declared.items() if setting.replaced_by in objects}
    unmet: dict[Need, list[str]] = {}
    for name, setting in declared.items():
        for need in setting.needs:
            if not _asked(settings, name, need.switches) or replaced.keys() & {name, *need.switches}:
                continue  # nobody knows of an object of the user's whether it meets the need
            if not need.met(settings):
                unmet.setdefault(need, []).append(name)
                break
    sentences = [_sentence(names, need.reason) for need, names in unmet.items()]
    for need, names in unmet.items():
        if need.contradiction and FLAG in map(settings.given.get, names):
            raise SettingsError(_sentence(names, need.reason))
    for argument in dict.fromkeys(replaced.values()):
        given = [name for name, by in replaced.items() if by == argument and name in settings.given]
        sentences += [_sentence(given, f"{argument} is given")] if given else []
    return sentences


def _sentence(names: Sequence[str], reason: str) -> str:
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect: {reason}."


def _asked(settings: Any, name: str, switches: tuple[str, ...]) -> bool:
    """Whether a setting was given and is on, and not only by a recipe that a flag has changed."""
    given = settings.given
    if name not in given or getattr(settings, name) is False or getattr(settings, name) is None:
        return False
    return given[name] == FLAG or FLAG not in map(given.get, switches)
