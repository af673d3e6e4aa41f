"""The settings of a training run: one table, in a file per topic.

Each setting stands here once, with its default, type, choices, range, help and what it needs to have an effect. The
checks, the warnings about settings without an effect, `--help` and the recipes derive from that.

A condition brings its own settings and needs no edit here: its class in `diffusers_ext.conditions.registry` declares

    settings = {
        "vector_columns": {"type": list[str] | None, "default": None, "text": "Columns with the numbers."},
    }

as keyword arguments of `diffusers_ext.settings.option` with the annotation as `type`. They become fields of
`TrainingArguments`, flags and recipe keys, are shown by `--help condition`, and are refused when the condition is
another one. `"on_resume": "refused"` refuses to resume a run with another value. An optional static method
`check_settings(arguments)` raises ValueError for values that don't fit together.
An objective in `diffusers_ext.objectives.registry` declares its settings in the same way.
"""

from .brought import BroughtOptions
from .data import DataOptions
from .network import ConditionOptions, NetworkOptions
from .objective import LEARNED_RANGE, ObjectiveOptions
from .optimisation import OptimisationOptions
from .output import EvaluationOptions, OutputOptions

__all__ = [
    "LEARNED_RANGE",
    "BroughtOptions",
    "ConditionOptions",
    "DataOptions",
    "EvaluationOptions",
    "NetworkOptions",
    "ObjectiveOptions",
    "OptimisationOptions",
    "OutputOptions",
]
