"""Counter-based random numbers: hashes of (seed, purpose, epoch, index).

Unlike a generator's stream, they need no state, do not depend on who draws first, and stay the same from one version of
a library to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLIP, CROP, ORDER, SHARDS, OWN_CODE, LATENT = range(6)  # purposes


def counter_hash(*words: Any) -> np.ndarray:
    """A uint64 hash of integers or arrays of them, broadcast against one another: splitmix64, word by word."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        # An array of at least one dimension wraps around in silence; NumPy's scalars would warn.
        state = state ^ np.atleast_1d(np.asarray(word)).astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniforms(seed: int, purpose: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 (B, count), for the keys `epochs` (B,) and `indices` (B,)."""
    bits = counter_hash(seed, purpose, epochs[:, None], indices[:, None], np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The numbers 0 to `count` - 1 in an order that depends on (seed, epoch) only, int64 (count,)."""
    return np.argsort(counter_hash(seed, ORDER, epoch, np.arange(count)), kind="stable")
