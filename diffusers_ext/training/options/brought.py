"""The settings that conditions and objectives bring, from their registries."""

from collections.abc import Mapping
from typing import Any

from ...conditions.registry import CONDITIONS
from ...objectives.registry import OBJECTIVES
from ...settings import Group, make_settings_class
from ...settings.needs import equal_to
from . import groups, needs


def _brought_by(setting: str, registry: Mapping[str, Any], group: Group) -> dict[str, dict[str, Any]]:
    """The settings that the classes of a registry bring; each needs `setting` to have its class's name.

    Those whose value a conditional network takes (`conditional_entries`) need a condition as well.
    """
    brought: dict[str, dict[str, Any]] = {}
    for name, owner in registry.items():
        need = equal_to(setting, name, contradiction=True)
        for each, arguments in getattr(owner, "settings", {}).items():
            conditional = each in getattr(owner, "conditional_entries", {}).values()
            brought[each] = {"group": group, "needs": (need, needs.CONDITIONAL) if conditional else need, **arguments}
    return brought


BroughtOptions: Any = make_settings_class(
    "BroughtOptions",
    {
        **_brought_by("condition", CONDITIONS, groups.condition),
        **_brought_by("objective", OBJECTIVES, groups.objective),
    },
    __name__,
)
