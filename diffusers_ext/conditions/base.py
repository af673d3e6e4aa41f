"""The base class of what a network can be conditioned on, and a condition as one call of a pipeline gives it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .user_images import Size

NetworkArguments = dict[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]


def setting(kind: Any, default: Any, text: str, **declared: Any) -> dict[str, Any]:
    """An entry of `Condition.settings` or `Condition.flags`: type, default, help and what `settings.option` takes."""
    return {"type": kind, "default": default, "text": text, **declared}


class PythonCode(str):
    """An expression that a model card shows as it is; it holds nothing that a file of the model says as text."""


class Condition:
    """One kind of information that a network is conditioned on: a few numbers for each sample, unless overridden.

    Training and `GenerationPipeline` use the same class. A condition of your own is a subclass with a `name`, in the
    simplest case nothing else: the data have a column of that name, the network a keyword argument of that name, and
    the pipeline takes the argument `name=`. Give an instance to the trainer, or `conditions.register` the class.

    Attributes:
        name: what `--condition` calls it, and its key in the registry.
        noun: what messages call it, with its article.
        argument: the pipeline's argument; its null condition in guidance can be replaced by `negative_{argument}`.
        further_arguments: other arguments of the pipeline that belong to it.
        column: the key in a batch of training data.
        network_argument: the network's keyword argument.
        further_network_arguments: other keyword arguments of the network that belong to it.
        network_entries: entries of the network's configuration that say that it was built for this condition. Without
            any, the network's signature says so.
        null_value: stands for "no condition" in each entry of the network's argument.
        takes_negative: whether the pipeline takes `negative_{argument}`.
        settings: training settings that the constructor takes by name, each from `setting`.
        flags: flags of the command line that samples, likewise.
        figure_images: samples in the picture of a finished run.
        adjective: how a model card's summary begins, with its article.
        task: the Hub's name for what a pipeline with this condition does.
    """

    name: str = ""
    noun: str = ""
    argument: str = ""
    further_arguments: tuple[str, ...] = ()
    column: str = ""
    network_argument: str = ""
    further_network_arguments: tuple[str, ...] = ()
    network_entries: tuple[str, ...] = ()
    null_value: float = 0.0
    takes_negative: bool = True
    settings: Mapping[str, Mapping[str, Any]] = {}
    flags: Mapping[str, Mapping[str, Any]] = {}
    figure_images: int = 64
    adjective: str = ""
    task: str = "unconditional-image-generation"

    width: int | None = None  # numbers for each sample, where `prepare` found out
    unet: Any = None  # of the pipeline that `for_pipeline` was given

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for attribute in ("argument", "column", "network_argument"):
            if not getattr(cls, attribute):
                setattr(cls, attribute, cls.name)
        cls.noun = cls.noun or f"a {cls.name}"
        cls.adjective = cls.adjective or f"A {cls.name}-conditional"

    # training

    @staticmethod
    def check_settings(arguments: Any) -> None:
        """Raise ValueError, in one sentence, for training settings that contradict one another."""

    def column_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `load_image_data` that name the columns to read."""
        return {"number_columns": [self.column]}

    def prepare(self, data: Any, seed: int = 0, token: str | None = None) -> None:
        """Measure the training data, and build what depends on them.

        Args:
            data: the training data, as `TrainingData` describes them.
            seed: of random initial weights.
            token: the Hub's, for what is loaded from there.

        Raises:
            ValueError: one sentence on what the data lack.
        """
        if self.column not in data.columns:
            found = ", ".join(data.columns) or "none"
            raise ValueError(f"condition {self.name} needs a column '{self.column}' of numbers; the data have {found}.")
        self.width = data.columns[self.column].shape[1]

    @property
    def model_entries(self) -> dict[str, Any]:
        """Entries that the network's configuration needs."""
        return {}

    def adopt(self, held_out: Any) -> None:
        """Make conditions of held-out data mean the same as in the training data. Raises ValueError if they can't."""
        if self.column not in held_out.columns:
            raise ValueError(f"{held_out.description} has no column '{self.column}', and the training data have.")

    def wrap(self, unet: Any) -> Any:
        """What is trained: the network, and whatever is trained along with it."""
        return unet

    def unet_of(self, network: Any) -> Any:
        """The network in what `wrap` returned."""
        return network

    def inputs(
        self, batch: Batch, data: Any, dropped: torch.Tensor, generator: torch.Generator, before: int
    ) -> dict[str, Any]:
        """The network's keyword arguments for a batch of training data.

        Args:
            batch: on the network's device.
            data: the data that the batch is from.
            dropped: bool (batch,) on the CPU; these samples get the null condition.
            generator: for random conditions, the same on all processes.
            before: samples of the global batch that come before this one, on other processes.
        """
        values = batch[self.column]
        chosen = dropped.to(values.device).reshape(-1, *(1,) * (values.ndim - 1))
        return {self.network_argument: values.masked_fill(chosen, self.null_value)}

    def pipeline_parts(self, network: Any) -> dict[str, Any]:
        """Arguments of `GenerationPipeline` besides the network and the scheduler, for a `network` that `wrap` made."""
        width = {} if self.width is None else {"width": self.width}
        return {"conditions": {self.name: {**self.state(), **width}}}

    def state(self) -> dict[str, Any]:
        """Arguments of the constructor that rebuild the condition for sampling: texts and numbers alone."""
        return {}

    def examples(self, data: Any, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Arguments of a pipeline call that makes about `count` samples, with conditions of `data`."""
        return self.of_samples(data, spread(len(data), count), generator)

    def of_samples(self, data: Any, indices: list[int], generator: torch.Generator) -> dict[str, Any]:
        """Arguments of a pipeline call that makes samples with the conditions of some of `data`.

        Each argument has an entry for each of `indices`. Raises ValueError for data without the column.
        """
        if self.column not in data.columns:
            raise ValueError(
                f"{data.description} has no column '{self.column}', from which samples get the condition {self.name}; "
                f"override {type(self).__name__}.of_samples where it comes from elsewhere."
            )
        return {self.argument: data.columns[self.column][indices]}

    # sampling

    @classmethod
    def for_pipeline(cls, pipeline: Any) -> Condition:
        """The condition of a pipeline's network."""
        saved = dict((getattr(pipeline.config, "conditions", None) or {}).get(cls.name, {}))
        width = saved.pop("width", None)
        condition = cls(**saved)
        condition.width = width
        condition.unet = pipeline.unet
        return condition

    @classmethod
    def taken_by(cls, network: Any) -> bool:
        """Whether a network was built for this condition."""
        if cls.network_entries:
            return any(config_entry(network, entry) is not None for entry in cls.network_entries)
        return has_argument(network, cls.network_argument)

    def check(self, values: Mapping[str, Any]) -> None:
        """Check the arguments of a call against one another and the network.

        Args:
            values: by argument; those that were not given are left out.

        Raises:
            ValueError: in one sentence.
        """
        negative = f"negative_{self.argument}"
        if negative in values and self.argument not in values:
            raise ValueError(f"{negative} goes with {self.argument}, which is missing.")
        if self.argument in values and not self.taken_by(self.unet):
            raise ValueError(f"{self.argument} was given, but {self.refusal()}.")

    def refusal(self) -> str:
        """Why the network can't take this condition, as the end of a sentence."""
        entry = f" ({self.network_entries[0]} is not set)" if self.network_entries else ""
        return f"the network takes no {self.noun.partition(' ')[2]}{entry}"

    def read(self, argument: str, values: Mapping[str, Any], size: Size) -> Any:
        """One entry for each sample, or one for all: a tensor or a list.

        Args:
            argument: which of `values` to read, `argument` or `negative_{argument}`.
            values: the arguments of the call that were given.
            size: of the samples, (height, width).

        Raises:
            ValueError: in one sentence, for a value that can't be read.
        """
        return self.number_rows(argument, values[argument], self.width)

    def number_rows(self, argument: str, value: Any, width: int | None) -> torch.Tensor:
        """Numbers as a user gives them, float32 (n, width): one row for all samples, or a row for each.

        One number is a row of width 1. A flat list holds one number for each sample when `width` is None or 1, and one
        row otherwise.
        """
        try:
            rows = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{argument} takes numbers, got {value!r:.60}.") from None
        if rows.ndim < 2:
            rows = rows.reshape(1, -1) if rows.ndim and width not in (None, 1) else rows.reshape(-1, 1)
        if rows.numel() == 0 or (width is not None and rows.shape[1:] != (width,)):
            wanted = f"{width} numbers" if width != 1 else "one number"
            raise ValueError(f"{argument} takes {wanted} for each sample, got shape {tuple(rows.shape)}.")
        if not rows.isfinite().all():
            raise ValueError(f"{argument} takes finite numbers, got {value!r:.60}.")
        return rows

    def encode(self, entries: Any, count: int, device: torch.device) -> NetworkArguments:
        """The network's arguments for `count` samples, from what `read` returned."""
        return {self.network_argument: entries.to(device).expand(count, *entries.shape[1:])}

    def null(self, entries: Any, count: int, device: torch.device) -> NetworkArguments:
        """The null condition under the same names as that of `entries`."""
        given = self.encode(entries, count, device)
        return {name: torch.full_like(value, self.null_value) for name, value in given.items()}

    def absent(self, count: int, device: torch.device) -> NetworkArguments:
        """The network's arguments when a call gives no condition; none if leaving them out means the null condition."""
        if self.width is None:
            return {}
        return {self.network_argument: torch.full((count, self.width), self.null_value, device=device)}

    # the command line and the model card

    def from_command_line(
        self, values: Mapping[str, Any], pipeline: Any, open_image: Callable[[str, str], Any]
    ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """(arguments with an entry for each row of the grid, arguments that hold for all samples).

        Args:
            values: by flag; those that were not given are left out.
            pipeline: the one to call.
            open_image: opens an image, from the flag's name and a path.

        Raises:
            ValueError: one sentence on a value that can't be read.
        """
        return {self.argument: [_numbers(self.argument, text) for text in values.get(self.argument, ())]}, {}

    @classmethod
    def saved_in(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> bool:
        """Whether a saved pipeline has this condition.

        Args:
            network: the network's configuration.
            index: the contents of `model_index.json`.
        """
        entries = [network.get(entry) for entry in cls.network_entries]
        return cls.name in (index.get("conditions") or {}) or any(entry not in (None, 0) for entry in entries)

    @classmethod
    def call_example(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call that a model card shows: plain values or `PythonCode`; parameters as for `saved_in`."""
        return {cls.argument: [0.5, 1.0]}

    @classmethod
    def card_facts(cls, network: Mapping[str, Any], index: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Rows of a model card's table about the condition, (title, text); parameters as for `saved_in`."""
        return []


class GivenCondition:
    """A condition as one call of a pipeline gives it.

    Args:
        condition: of the pipeline, from `for_pipeline`.
        values: all conditions' arguments that the call was given.
        size: of the samples, (height, width).

    Attributes:
        given: one entry for each sample, or one for all; None if the call has no such condition.
        negative: entries that take the null condition's place, likewise.

    Raises:
        ValueError: in one sentence, for arguments that can't be read or do not go together.
    """

    def __init__(self, condition: Condition, values: Mapping[str, Any], size: Size):
        self.condition = condition
        condition.check(values)
        self.given = self._read(self.argument, values, size)
        self.negative = self._read(f"negative_{self.argument}", values, size)

    @property
    def argument(self) -> str:
        """The pipeline's argument."""
        return self.condition.argument

    def _read(self, argument: str, values: Mapping[str, Any], size: Size) -> Any:
        return self.condition.read(argument, values, size) if argument in values else None

    def counts(self) -> dict[str, int]:
        """The number of entries of each argument that was given."""
        named = {self.argument: self.given, f"negative_{self.argument}": self.negative}
        return {name: len(entries) for name, entries in named.items() if entries is not None}

    def conditional(self, count: int, device: torch.device) -> NetworkArguments:
        """The network's arguments for `count` samples; none if leaving them out means the null condition."""
        if self.given is None:
            return self.condition.absent(count, device)
        return self.condition.encode(self.given, count, device)

    def null(self, count: int, device: torch.device) -> NetworkArguments:
        """The null condition, or what takes its place, under the same names."""
        if self.given is None:
            return self.condition.absent(count, device)
        if self.negative is not None:
            return self.condition.encode(self.negative, count, device)
        return self.condition.null(self.given, count, device)


def spread(length: int, count: int) -> list[int]:
    """`count` indices spread evenly over 0 ... length - 1."""
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long().tolist()


def config_entry(network: Any, entry: str) -> Any:
    """An entry of a network's configuration; None for 0, and for a network without the entry or a configuration."""
    config = getattr(network, "config", None)
    value = config.get(entry) if isinstance(config, Mapping) else getattr(config, entry, None)
    return value or None


def has_argument(network: Any, argument: str) -> bool:
    """Whether a network's `forward` has an argument of this name, or that of the `network` that it wraps."""
    wrapped = getattr(network, "network", None)
    parameters = inspect.signature(getattr(network, "forward", network)).parameters
    return argument in parameters or (wrapped is not None and has_argument(wrapped, argument))


def _numbers(argument: str, text: str) -> Sequence[float]:
    """`0.5,1` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{argument} takes numbers with commas between them, got '{text}'.") from None
