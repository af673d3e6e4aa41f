"""Classes as a user names them, and the class that stands for none."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

# Names listed in a message; a data set may have thousands.
_NAMES_SHOWN = 10


class Classes(NamedTuple):
    """The classes that a network knows.

    Attributes:
        number: how many, 0 where it knows none.
        null: index that stands for no class, None where there is no such index.
        required: whether the network must be given labels, because leaving them out does not mean the null class.
    """

    number: int
    null: int | None
    required: bool


def classes_of(unet: Any, id2label: Mapping[str, str] | None = None) -> Classes:
    """The classes of a network of this package or of diffusers.

    Networks of this package have one embedding more than classes, and `config.num_class_embeds` is its index. Those of
    diffusers have just that many; the last of them is the null class where `id2label` names one class less.
    """
    count = getattr(unet.config, "num_class_embeds", None)
    if count is None:
        return Classes(0, None, required=False)
    rows = getattr(getattr(unet, "class_embedding", None), "num_embeddings", None)
    if rows != count:
        return Classes(count, count, required=False)
    if id2label is not None and len(id2label) == count - 1:
        return Classes(count - 1, count - 1, required=True)
    return Classes(count, None, required=True)


def class_indices(argument: str, labels: Any, classes: Classes, names: Mapping[str, int]) -> torch.Tensor | None:
    """Labels as a user gives them, as indices of shape (n,) on the CPU; None stays None.

    Args:
        argument: what a message calls them.
        labels: one integer or name, a list of them, or an integer tensor or array of shape () or (n,).
        classes: of the network; the null class may be asked for by its index.
        names: from the name of a class to its index.

    Raises:
        ValueError: for an unknown name, an index out of range, or anything else.
    """
    if labels is None:
        return None
    if classes.number == 0:
        raise ValueError(f"{argument} were given, but the network knows no classes (num_class_embeds is not set).")
    if isinstance(labels, torch.Tensor | np.ndarray):
        if labels.ndim > 1:
            raise ValueError(f"{argument} take one integer an image, got shape {tuple(labels.shape)}.")
        labels = labels.tolist()
    entries = labels if isinstance(labels, list | tuple) else [labels]
    if not entries:
        raise ValueError(f"{argument} are an empty list; give one label an image.")
    return torch.tensor([_class_index(argument, entry, classes, names) for entry in entries])


def _class_index(argument: str, label: Any, classes: Classes, names: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"{argument} name an unknown class '{label}'; {_known(names)}.")
        label = names[label]
    try:
        index = operator.index(label)
    except TypeError:
        index = None
    if index is None or isinstance(label, bool):
        raise ValueError(f"{argument} take integers or names of classes, got {label!r}.")
    highest = classes.number - 1 if classes.null is None else classes.null
    if not 0 <= index <= highest:
        none = "" if classes.null is None else f", and {classes.null} for none"
        raise ValueError(f"{argument} hold {index}; this network knows the classes 0 to {classes.number - 1}{none}.")
    return index


def _known(names: Mapping[str, int]) -> str:
    if not names:
        return "this pipeline has no names of classes (id2label), so give integers"
    shown = list(names)[:_NAMES_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"the names are {', '.join(shown)}{more}"
