"""Random generators by name: each is a function of (seed, purpose, index), so that no draw depends on those before."""

import hashlib

import numpy as np


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of `seed` and `names`: Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
    keyed by their hash."""
    key = hashlib.sha256(repr((int(seed), *names)).encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
