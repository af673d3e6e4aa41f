"""Settings that were given and have no effect: a warning for each, or an error where they contradict one another."""

from __future__ import annotations

from typing import Any

from .declaration import Need, SettingsError, settings_of

FLAG, RECIPE = "flag", "recipe"  # where a setting was given


def without_effect(settings: Any) -> list[str]:
    """A sentence on each group of settings that were given and change nothing.

    `settings.given` says where each setting was given. A recipe's settings that a flag makes ineffective are left out.

    Raises:
        SettingsError: when a flag among them contradicts another setting.
    """
    unmet: dict[Need, list[str]] = {}
    for name, setting in settings_of(type(settings)).items():
        for need in setting.needs:
            if _asked(settings, name, need.switches) and not need.met(settings):
                unmet.setdefault(need, []).append(name)
                break
    sentences = []
    for need, names in unmet.items():
        sentence = f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect: {need.reason}."
        if need.contradiction and FLAG in map(settings.given.get, names):
            raise SettingsError(sentence)
        sentences.append(sentence)
    return sentences


def _asked(settings: Any, name: str, switches: tuple[str, ...]) -> bool:
    """Whether a setting was given and is on, and not only by a recipe that a flag has changed."""
    given = settings.given
    if name not in given or getattr(settings, name) is False or getattr(settings, name) is None:
        return False
    return given[name] == FLAG or FLAG not in map(given.get, switches)
