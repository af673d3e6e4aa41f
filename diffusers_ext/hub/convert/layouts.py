"""What the families share: layouts of parameters, shapes by key, renaming."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]


class Layout(NamedTuple):
    """How a file stores a parameter.

    Attributes:
        shape: the shape in the file, from the shape of our parameter.
        read: our parameter, from the tensor in the file and the part: 0, 1, 2 for queries, keys, values.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[[Tensor, int], Tensor]


def heads_qkv(heads: int) -> Layout:
    """A 1x1 convolution to queries, keys and values, which are stored head by head."""

    def read(value: Tensor, part: int) -> Tensor:
        return value[:, :, 0, 0].unflatten(0, (heads, 3, -1))[:, part].flatten(0, 1)

    return Layout(lambda s: (3 * s[0], s[1], 1, 1), read)


SAME = Layout(lambda s: s, lambda v, _: v)
POINTWISE = Layout(lambda s: (*s, 1, 1), lambda v, _: v[:, :, 0, 0])
POINTWISE_QKV = Layout(lambda s: (3 * s[0], s[1], 1, 1), lambda v, part: v[:, :, 0, 0].chunk(3)[part])
STACKED_QKV = Layout(lambda s: (3 * s[0], *s[1:]), lambda v, part: v.chunk(3)[part])
PIXELS_IN_CHANNELS = Layout(lambda s: (s[0], 4 * s[1], 1, 1), lambda v, _: v.unflatten(1, (-1, 2, 2))[..., 0, 0])
GAIN = Layout(lambda s: (1, *s, 1, 1), lambda v, _: v.flatten())
TOKENS_LAST = Layout(lambda s: (*s[:-2], s[-1], s[-2]), lambda v, _: v.transpose(-1, -2))
# The vector of a label is added to that of the time, so the null label is a vector of zeros.
WITHOUT_NULL = Layout(lambda s: (s[0] - 1, *s[1:]), lambda v, _: torch.cat([v, torch.zeros_like(v[:1])]))


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by key; a missing key raises a ValueError that names it."""

    def __init__(self, weights: State):
        super().__init__({key: tuple(value.shape) for key, value in weights.items()})

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise ValueError(f"'{key}' is missing from the file, and the size of the network follows from it.")

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern's group matches in a key."""
        found = (re.match(pattern, key) for key in self)
        return 1 + max((int(match[1]) for match in found if match), default=-1)


def renamed(key: str, rules: Sequence[tuple[str, Any]]) -> str:
    """The key after every rule, (regular expression, replacement), in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def names_by(rules: Sequence[tuple[str, Any]]) -> Callable[[Any, State], Callable[[str], str]]:
    """`Family.names` of a family in which the rules alone say what the file calls a parameter."""
    return lambda config, weights: lambda key: renamed(key, rules)


def multiples(widths: Sequence[int], base: int) -> tuple[int, ...]:
    """Channel multipliers of levels of these widths. Raises ValueError for a width that is no multiple of `base`."""
    if any(width % base for width in widths):
        raise ValueError(f"The levels are {', '.join(map(str, widths))} wide; they must be multiples of {base}.")
    return tuple(width // base for width in widths)


def channels(first: int, last: int, self_condition: bool = True) -> dict[str, Any]:
    """Input and output channels of a network, from those of its first and last convolution.

    Twice as many in as out is self-conditioning, twice as many out as in a learned variance.
    """
    if self_condition and first == 2 * last:
        return {"in_channels": last, "out_channels": last, "self_condition": True}
    if last not in (first, 2 * first):
        raise ValueError(
            f"The network takes {first} channels and gives {last}; set in_channels, out_channels and self_condition in "
            "model_options."
        )
    return {"in_channels": first, "out_channels": last}


class Family(NamedTuple):
    """How the weights of a family of networks become ours.

    Attributes:
        fits: whether a state dict is of this family, from its keys.
        config: entries of our network's configuration, from the shapes in the file.
        names: from our configuration and the file's weights, the function from our key to the file's.
        layouts: from our configuration, (pattern of our key, layout) for parameters that are stored differently; none
            by default.
    """

    fits: Callable[[State], bool]
    config: Callable[[Shapes], dict[str, Any]]
    names: Callable[[Any, State], Callable[[str], str]]
    layouts: Callable[[Any], list[tuple[str, Layout]]] = lambda config: []


def modules(weights: Mapping[str, Any]) -> set[str]:
    """The first parts of all keys."""
    return {key.split(".")[0] for key in weights}
