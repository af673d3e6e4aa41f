"""Randomness as a function of what it is for: no hidden generator state, so a resumed run draws what it would have."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys; equal keys give equal seeds, on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*keys: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator seeded by `seed_of(*keys)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*keys))
