"""Classes as a condition: their numbers and names, and the class that stands for none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .base import Batch, Condition, NetworkArguments, config_entry, has_argument, setting
from .user_images import Size

# Names listed in a message; a data set may have thousands.
_NAMES_SHOWN = 10


class ClassCondition(Condition):
    """The class of each sample, by number; the null class comes after the last.

    Args:
        label_column: column of the data with the classes; None takes `label` or `labels`.

    Attributes:
        id2label: number, as a text, to name, after `prepare` or in `for_pipeline`.
        classes: those of the pipeline's network, in `for_pipeline`.
    """

    name = "class"
    argument = "class_labels"
    column = "labels"
    network_argument = "class_labels"
    network_entries = ("num_class_embeds",)
    figure_images = 100
    settings = {
        "label_column": setting(str | None, None, "Column with the classes; `label` or `labels` when not given."),
    }
    flags = {
        "class_labels": setting(
            list[str] | None,
            None,
            "all, or numbers or names: as many samples of each, a row of the grid for each class.",
        ),
    }

    classes: Classes

    def __init__(self, label_column: str | None = None):
        self.label_column = label_column
        self.id2label: Mapping[str, str] = {}

    def column_arguments(self) -> dict[str, Any]:
        return {"label_column": self.label_column}

    def prepare(self, data: Any, seed: int = 0, token: str | None = None) -> None:
        if data.labels is None:
            raise ValueError(
                "condition class needs classes: a label_column of dataset_name, or a train_data_dir with a folder for "
                "each class."
            )
        if data.labels.min() < 0:
            raise ValueError(f"Classes are numbered from 0, but the data hold {int(data.labels.min())}.")
        self.id2label = {str(i): name for i, name in enumerate(data.label_names or [])}

    @property
    def model_entries(self) -> dict[str, Any]:
        return {"num_class_embeds": len(self.id2label)}

    def adopt(self, held_out: Any) -> None:
        held_out.number_classes_as(list(self.id2label.values()))

    def inputs(
        self, batch: Batch, data: Any, dropped: torch.Tensor, generator: torch.Generator, before: int
    ) -> dict[str, Any]:
        labels = batch["labels"]
        if data.stream is not None and labels.min() < 0:  # other data are checked before training
            raise ValueError("a row of the stream has no class; every sample needs one")
        return {"class_labels": labels.masked_fill(dropped.to(labels.device), len(self.id2label))}

    def pipeline_parts(self, network: Any) -> dict[str, Any]:
        return {"id2label": self.id2label}

    def examples(self, data: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
        """As many of each class, in order, as fit into `count`; the first classes, when there are more than `count`."""
        classes = min(count, len(self.id2label))
        return {"class_labels": [label for label in range(classes) for _ in range(count // classes)]}

    def of_samples(self, data: Any, indices: list[int], generator: torch.Generator) -> dict[str, Any]:
        return {"class_labels": data.labels[indices]}

    @classmethod
    def for_pipeline(cls, pipeline: Any) -> ClassCondition:
        condition = cls()
        condition.unet, condition.id2label = pipeline.unet, pipeline.config.id2label or {}
        condition.classes = classes_of(pipeline.unet, pipeline.config.id2label)
        return condition

    @classmethod
    def taken_by(cls, network: Any) -> bool:
        return super().taken_by(network) or (
            getattr(network, "config", None) is None and has_argument(network, "class_labels")
        )

    def refusal(self) -> str:
        return "the network knows no classes (num_class_embeds is not set)"

    def read(self, argument: str, values: Mapping[str, Any], size: Size) -> torch.Tensor:
        names = {name: int(index) for index, name in self.id2label.items()}
        return class_indices(argument, values[argument], self.classes, names)

    def null(self, entries: torch.Tensor | None, count: int, device: torch.device) -> NetworkArguments:
        if self.classes.null is None:
            raise ValueError(
                f"Guidance needs a null class, and this {type(self.unet).__name__} has none; set guidance_scale to 1, "
                "or give negative_class_labels or a weak_unet."
            )
        return {"class_labels": torch.full((count,), self.classes.null, device=device)}

    def absent(self, count: int, device: torch.device) -> NetworkArguments:
        if not self.classes.required:
            return {}
        if self.classes.null is None:
            raise ValueError(f"class_labels are missing, and this {type(self.unet).__name__} has no null class.")
        return self.null(None, count, device)

    def from_command_line(
        self, values: Mapping[str, Any], pipeline: Any, open_image: Callable[[str, str], Any]
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        words = values.get("class_labels")
        return {"class_labels": [] if words is None else chosen_classes(pipeline, words, {}) or []}, {}

    @classmethod
    def call_example(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
        names = [*(index.get("id2label") or {}).values()] or list(range(int(network.get("num_class_embeds") or 1)))
        return {"class_labels": names[:4]}

    @classmethod
    def card_facts(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [("classes", str(network.get("num_class_embeds")))]


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
    diffusers have just that many; the last of them is the null class where `id2label` names one class less. A network
    without a configuration knows the classes of `id2label`, if it has an argument `class_labels`.
    """
    count = config_entry(unet, "num_class_embeds")
    if count is None:
        # A network without a configuration is given the null class as the number after the last.
        own = getattr(unet, "config", None) is None and has_argument(unet, "class_labels") and id2label
        return Classes(len(id2label), len(id2label), required=True) if own and id2label else Classes(0, None, False)
    rows = getattr(getattr(unet, "class_embedding", None), "num_embeddings", None)
    if rows != count:
        return Classes(count, count, required=False)
    if id2label is not None and len(id2label) == count - 1:
        return Classes(count - 1, count - 1, required=True)
    return Classes(count, None, required=True)


def class_indices(argument: str, labels: Any, classes: Classes, names: Mapping[str, int]) -> torch.Tensor:
    """Labels as a user gives them, as indices of shape (n,) on the CPU.

    Args:
        argument: what a message calls them.
        labels: one integer or name, a list of them, or an integer tensor or array of shape () or (n,).
        classes: of the network; the null class may be asked for by its index.
        names: from the name of a class to its index.

    Raises:
        ValueError: for an unknown name, an index out of range, or anything else.
    """
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


# words of a command line


def chosen_classes(pipeline: Any, words: Sequence[str] | None, names: Mapping[str, int]) -> list[int] | None:
    """Numbers of the classes that `words` name; None for a network without classes.

    Args:
        pipeline: the one to call.
        words: numbers, names or `all`; None for all that there are.
        names: name -> number, beside the pipeline's own names.

    Raises ValueError for an unknown class, or classes given to a network without classes.
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
