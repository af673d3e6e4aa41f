"""Randomness as a function of what it is for: no hidden generator state, so a resumed run draws what it would have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys; equal keys give equal seeds, on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*keys: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator seeded by `seed_of(*keys)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*keys))


class SharedGenerator(torch.Generator):
    """The generator of a global batch that several processes share: equal on all of them, so that N equal one.

    Attributes:
        num_processes: how many processes share the batch, each with equally many samples.
        process_index: which part of the batch is this process's.
    """

    num_processes: int = 1
    process_index: int = 0


def shared_generator_of(
    *keys: int | str, num_processes: int = 1, process_index: int = 0, device: str | torch.device = "cpu"
) -> SharedGenerator:
    """A `SharedGenerator` seeded by `seed_of(*keys)`."""
    generator = SharedGenerator(device=device)
    generator.manual_seed(seed_of(*keys))
    generator.num_processes, generator.process_index = num_processes, process_index
    return generator


def draw_shared(
    count: int, generator: torch.Generator, draw: Callable[[int], torch.Tensor], dim: int = 0
) -> torch.Tensor:
    """Random numbers for this process's `count` samples, out of those for the global batch.

    Args:
        count: samples of this process.
        generator: with a `SharedGenerator`, `draw` is called for the samples of all processes; with a plain
            `torch.Generator` there is one process.
        draw: gives random numbers for a number of samples, from `generator`.
        dim: dimension of the samples in what `draw` gives.
    """
    shares = getattr(generator, "num_processes", 1)
    whole = draw(count * shares)
    return whole.narrow(dim, getattr(generator, "process_index", 0) * count, count)


def randn_shared(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Standard normal numbers of `shape` (batch, ...), float32; see `draw_shared`."""
    return draw_shared(
        shape[0], generator, lambda count: torch.randn((count, *shape[1:]), generator=generator, device=device)
    )


def rand_shared(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1) of `shape` (batch, ...), float32; see `draw_shared`."""
    return draw_shared(
        shape[0], generator, lambda count: torch.rand((count, *shape[1:]), generator=generator, device=device)
    )
