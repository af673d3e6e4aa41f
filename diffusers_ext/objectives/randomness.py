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


class BatchGenerator(torch.Generator):
    """The generator of a global batch that several processes share, each with equally many samples.

    What is drawn from the generator itself differs from process to process, so that no two of them train on the same
    noise. What is drawn from `shared` is equal on all of them. The functions below draw the numbers of the global batch
    from `shared` and take this process's part, so that several processes see what one process would see.

    Attributes:
        shared: a generator in the same state on all processes.
        num_processes: how many processes share the batch.
        process_index: which part of the batch is this process's.
    """

    shared: torch.Generator
    num_processes: int = 1
    process_index: int = 0


def batch_generator_of(
    *keys: int | str, num_processes: int = 1, process_index: int = 0, device: str | torch.device = "cpu"
) -> BatchGenerator:
    """A `BatchGenerator` seeded by the keys, and by the process where its numbers are its own."""
    generator = BatchGenerator(device=device)
    generator.manual_seed(seed_of(*keys, "process", process_index))
    generator.shared = generator_of(*keys, device=device)
    generator.num_processes, generator.process_index = num_processes, process_index
    return generator


def shared_of(generator: torch.Generator) -> torch.Generator:
    """The generator whose numbers are equal on all processes; a plain `torch.Generator` is taken as such."""
    return generator.shared if isinstance(generator, BatchGenerator) else generator


def draw_shared(
    count: int, generator: torch.Generator, draw: Callable[[int, torch.Generator], torch.Tensor], dim: int = 0
) -> torch.Tensor:
    """Random numbers for this process's `count` samples, out of those for the global batch.

    Args:
        count: samples of this process.
        generator: a `BatchGenerator`, or a plain `torch.Generator` when there is one process.
        draw: gives random numbers for a number of samples from a generator.
        dim: dimension of the samples in what `draw` gives.
    """
    if not isinstance(generator, BatchGenerator):
        return draw(count, generator)
    whole = draw(count * generator.num_processes, generator.shared)
    return whole.narrow(dim, generator.process_index * count, count)


def randn_shared(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Standard normal numbers of `shape` (batch, ...), float32; see `draw_shared`."""
    return draw_shared(shape[0], generator, lambda n, g: torch.randn((n, *shape[1:]), generator=g, device=device))


def rand_shared(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1) of `shape` (batch, ...), float32; see `draw_shared`."""
    return draw_shared(shape[0], generator, lambda n, g: torch.rand((n, *shape[1:]), generator=g, device=device))
