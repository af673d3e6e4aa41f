"""Settings, each declared once: checks, warnings, the command line, recipes and `--help` follow from that."""

from .declaration import (
    CheckedSettings,
    Group,
    Setting,
    SettingsError,
    check,
    check_places,
    make_settings_class,
    option,
    settings_of,
)
from .effect import without_effect
from .needs import Need
from .parsing import HelpRequested, parse
from .recipes import Recipe, find_recipe, read_nested, read_recipe, shipped_recipes

__all__ = [
    "CheckedSettings",
    "Group",
    "HelpRequested",
    "Need",
    "Recipe",
    "Setting",
    "SettingsError",
    "check",
    "check_places",
    "find_recipe",
    "make_settings_class",
    "option",
    "parse",
    "read_nested",
    "read_recipe",
    "settings_of",
    "shipped_recipes",
    "without_effect",
]
