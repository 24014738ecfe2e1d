"""Randomness by name: the generator of (seed, what for, which one), so that nothing random depends on what was drawn
before."""

import hashlib

import numpy as np


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """The generator that belongs to `seed` and `words`: Philox (Salmon et al. 2011, "Parallel random numbers: as easy
    as 1, 2, 3") with a key of its own."""
    key = hashlib.sha256(repr((int(seed), *words)).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
