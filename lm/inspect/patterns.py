"""Attention's patterns, small enough for a page: of each query the largest probabilities, in steps of 1/255.

A pattern of all layers has L x N x T x S numbers, 270 million at 1,000 tokens of 30 layers of 9 heads. `keep` is what a
tap reads in place of it; `pack` writes it as bytes, of as many keys a query as fit.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ENTRIES = 5_000_000  # probabilities that are read of a text at most
MOST_KEYS, FEW_KEYS = 255, 16  # of a query: as a byte counts them; and what is read of any text
STEPS = 255  # of a probability


class Kept(NamedTuple):
    """Of a pattern [..., T, S]: the `keys` [..., T, k] with the largest probabilities besides the sinks, and those
    `weights` [..., T, k] in steps of 1/255, the largest first; and those of the sinks, `sinks` [..., T, n]."""

    keys: Any
    weights: Any
    sinks: Any


def most_keys(layers: int, heads: int, queries: int, keys: int) -> int:
    """How many keys of each query are read."""
    return min(keys, MOST_KEYS, max(FEW_KEYS, ENTRIES // (layers * heads * queries)))


def keep(pattern: jax.Array, k: int, sinks: Sequence[int]) -> Kept:
    """What a page has of a pattern, [..., T, S]. `sinks` are the keys that are told apart: the first token above all,
    to which heads look that look for nothing (2309.17453)."""
    apart = jnp.asarray(sinks, jnp.int32)
    weights, keys = jax.lax.top_k(pattern.at[..., apart].set(0), k)
    return Kept(keys.astype(jnp.uint16), _steps(weights), _steps(pattern[..., apart]))


def _steps(probabilities: jax.Array) -> jax.Array:
    return jnp.round(probabilities.astype(jnp.float32) * STEPS).astype(jnp.uint8)


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of tokens of one text to those of another, or of the same.

    Args:
      title: what it is called.
      queries, keys: the names of the two texts.
      layers: the number of each layer that has it; others of the model have a state in its place.
      sinks: the keys that are told apart.
      kept: the largest probabilities, of [L, N, T, S]."""

    title: str
    queries: str
    keys: str
    layers: Sequence[int]
    sinks: Sequence[int]
    kept: Kept

    @property
    def k(self) -> int:
        """The most keys of a query."""
        return int(self.kept.keys.shape[-1])

    def described(self) -> dict[str, Any]:
        """All but the probabilities."""
        L, N, T, _ = self.kept.keys.shape
        places = dict(layers=list(self.layers), sinks=list(self.sinks), heads=N, length=T)
        return dict(title=self.title, queries=self.queries, keys=self.keys, **places)

    def plain(self) -> list[Any]:
        """[L][N][T] lists of (key, probability), the sinks' among them, the largest first."""
        keys, weights, sinks = (np.asarray(a) for a in self.kept)
        L, N, T, _ = keys.shape

        def row(*at: int) -> list[tuple[int, float]]:
            return self._row(keys[at], weights[at], sinks[at])

        return [[[row(i, n, t) for t in range(T)] for n in range(N)] for i in range(L)]

    def _row(self, keys: np.ndarray, weights: np.ndarray, sinks: np.ndarray) -> list[tuple[int, float]]:
        pairs = [*zip(self.sinks, sinks.tolist(), strict=True), *zip(keys.tolist(), weights.tolist(), strict=True)]
        return [(key, round(steps / STEPS, 3)) for key, steps in sorted(pairs, key=lambda pair: -pair[1]) if steps]


def pack(attention: Attention, k: int) -> bytes:
    """Of at most k keys a query: how many [L, N, T]; the sinks' steps [L, N, T, n]; then of all that are counted, in
    that order, the low bytes of their distances back from the query, the high bytes, and the steps. A distance is query
    less key, modulo 2^16."""
    keys, weights, sinks = (np.asarray(a) for a in attention.kept)
    keys, weights = keys[..., :k], weights[..., :k]
    there = weights > 0
    distances = (np.arange(keys.shape[2])[:, None] - keys.astype(np.int64))[there].astype(np.uint16)
    planes = (there.sum(-1), sinks, distances & 255, distances >> 8, weights[there])
    return b"".join(plane.astype(np.uint8).tobytes() for plane in planes)


def pack_all(attentions: Sequence[Attention], limit: int) -> tuple[list[bytes], int]:
    """Each packed, and how many keys a query they have: as many as leave them within `limit` bytes when they are
    deflated, and at least one."""
    k = max([one.k for one in attentions], default=1)
    while True:
        packed = [pack(one, k) for one in attentions]
        if k == 1 or len(zlib.compress(b"".join(packed), 6)) <= limit:
            return packed, k
        k = max(1, k * 3 // 4)
