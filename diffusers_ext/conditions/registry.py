"""The conditions by name. A new one is a file with its class, and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Condition, GivenCondition, NetworkArguments
from .class_label import ClassCondition
from .image import ImageCondition
from .text import TextCondition
from .user_images import Size
from .vector import VectorCondition

CONDITIONS: dict[str, type[Condition]] = {
    condition.name: condition for condition in (ClassCondition, TextCondition, ImageCondition, VectorCondition)
}


def register(condition: type[Condition]) -> type[Condition]:
    """Make a condition known by its name to training, to pipelines and to model cards; usable as a decorator.

    Raises:
        ValueError: for a class without a name, or one whose name or pipeline arguments another condition has.
    """
    if not condition.name:
        raise ValueError(f"{condition.__name__} has no name; set the class attribute `name`.")
    for other in CONDITIONS.values():
        same_class = (other.__module__, other.__qualname__) == (condition.__module__, condition.__qualname__)
        shared = set(_arguments_of(other)) & set(_arguments_of(condition))
        if not same_class and (other.name == condition.name or shared):
            raise ValueError(
                f"{condition.__name__} has the name or an argument of the condition '{other.name}'; choose another."
            )
    CONDITIONS[condition.name] = condition
    return condition


def condition_class(name: str) -> type[Condition]:
    """The condition of this name. Raises ValueError for an unknown one."""
    if name not in CONDITIONS:
        raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got '{name}'.")
    return CONDITIONS[name]


def given_conditions(pipeline: Any, values: Mapping[str, Any], size: Size) -> tuple[GivenCondition, ...]:
    """The conditions of one call of a pipeline, of every kind, also of those that the call does not give.

    Args:
        pipeline: with `unet`, `config` and, for texts, `text_encoder` and `tokenizer`.
        values: conditions by argument; None means not given.
        size: of the samples, (height, width).

    Raises:
        ValueError: in one sentence, for arguments that no condition has, can't be read, or do not go together.
    """
    values = {name: value for name, value in values.items() if value is not None}
    known = [argument for condition in CONDITIONS.values() for argument in _arguments_of(condition)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"There is no argument {unknown[0]}; conditions are given as {', '.join(known)}.")
    return tuple(GivenCondition(condition.for_pipeline(pipeline), values, size) for condition in CONDITIONS.values())


def conditions_of(pipeline: Any) -> list[Condition]:
    """The conditions that a pipeline's network was built for."""
    return [c.for_pipeline(pipeline) for c in CONDITIONS.values() if c.taken_by(pipeline.unet)]


def arguments_known_to(network: Any, arguments: NetworkArguments) -> NetworkArguments:
    """Those of the arguments that a network was built for."""
    taken = [c for c in CONDITIONS.values() if c.taken_by(network)]
    names = {name for condition in taken for name in (condition.network_argument, *condition.further_network_arguments)}
    return {name: value for name, value in arguments.items() if name in names}


def _arguments_of(condition: type[Condition]) -> list[str]:
    """The pipeline's arguments that belong to a condition."""
    negative = [f"negative_{condition.argument}"] if condition.takes_negative else []
    return [condition.argument, *negative, *condition.further_arguments]
