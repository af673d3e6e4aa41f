"""`--class_labels all|5|cat ...`: which classes a command asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..conditions.class_label import classes_of


def chosen_classes(pipeline: Any, words: Sequence[str] | None, names: Mapping[str, int]) -> list[int] | None:
    """Numbers of the classes that `words` name; None for a network without classes.

    Args:
        pipeline: whose network is asked.
        words: numbers, names or `all`; None for all that there are.
        names: name -> number, beside the pipeline's own names.

    Raises ValueError for an unknown class, or classes asked of a network that has none.
    """
    number = classes_of(pipeline.unet, pipeline.config.id2label).number
    if number == 0:
        if words:
            raise ValueError(f"class_labels were given ({' '.join(words)}), but the network knows no classes.")
        return None
    if not words or list(words) == ["all"]:
        return list(range(number))
    return [_class_number(word, number, {**names, **pipeline.labels}) for word in words]


def _class_number(word: str, number: int, names: Mapping[str, int]) -> int:
    found = names.get(word, int(word) if word.isdecimal() else -1)
    if not 0 <= found < number:
        known = f" or a name among {', '.join(names)}" if names else ""
        raise ValueError(f"class_labels takes all, 0 to {number - 1}{known}, got '{word}'.")
    return found
