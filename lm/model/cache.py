"""What a model remembers of the tokens that it has read, so that decoding reads each only once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp

from lm.model.scoring import Mask, Scoring
from lm.sharding.tracing import constrain

Arrays = tuple[jax.Array, ...]
AXES = ("cache_batch", "kv_heads", None, "head_dim")  # of what a layer keeps of each token, or of its state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The cache of a whole model: each layer's own, and how far each row is.

    - `layers`: slot -> what the slot's mixer keeps, a tuple of one tree a layer where layers are unrolled, else one
      tree of arrays stacked over the slot's layers.
    - `length` [B]: the tokens of each row so far; the int 0 before the first call, which then reads no cache.
    - `encoder_segments` [B, S]: those of the encoder's tokens, once they were read.
    - `size`: the most tokens a row can have."""

    layers: dict[str, Any]
    length: jax.Array | int = 0
    encoder_segments: jax.Array | None = None
    size: int = field(default=0, metadata=dict(static=True))

    def take(self, rows: jax.Array) -> "Cache":
        """The cache whose row i is row rows[i] of this one, which has read tokens; rows may come several times."""
        assert not isinstance(self.length, int)
        layers = {
            name: jax.tree.map(partial(jnp.take, indices=rows, axis=0 if isinstance(slot, list) else 1), slot)
            for name, slot in self.layers.items()
        }
        segments = None if self.encoder_segments is None else self.encoder_segments[rows]
        return Cache(layers, self.length[rows], segments, self.size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenCache:
    """What one layer keeps of each token: arrays [B, K, S, H], heads first, each with a K and an H of its own. Token p
    of a row is at place p, or in a `ring` at p mod S: a windowed layer keeps its last S tokens. With `layer` it is that
    one of arrays stacked over layers, of which the new tokens alone are written."""

    arrays: Arrays
    ring: bool = field(default=False, metadata=dict(static=True))
    layer: jax.Array | None = None

    @classmethod
    def empty(
        cls, rows: int, length: int, window: int, sizes: Sequence[tuple[int, int]], dtype: Any, **others: Any
    ) -> Self:
        """Room for `length` tokens a row, of which only the last `window` are read (0: all), in arrays of `sizes`
        (K, H); `others` are fields of a subclass."""
        places = min(length, window or length)
        arrays = tuple(jnp.zeros((rows, K, places, H), dtype) for K, H in sizes)
        return cls(arrays, ring=0 < window < length, **others)

    @property
    def size(self) -> int:
        """S, the places of a row."""
        return self.arrays[0].shape[-2]

    @property
    def own(self) -> Arrays:
        """The arrays [B, K, S, H] of this layer."""
        if self.layer is None:
            return self.arrays
        return tuple(jax.lax.dynamic_index_in_dim(a, self.layer, keepdims=False) for a in self.arrays)

    def positions(self, length: jax.Array) -> jax.Array:
        """The tokens [B, S] at each place, of rows of `length` [B] tokens; negative where there is none yet."""
        last = length[:, None] - 1
        return last - (last - jnp.arange(self.size)) % self.size

    def write(self, new: Arrays, mask: Mask) -> Self:
        """This cache with the `new` arrays [B, T, K, H] behind the mask's offset; padding is on the right."""
        (B, T), offset = new[0].shape[:2], mask.offset
        if isinstance(offset, int) and T <= self.size:
            places: Any = (slice(None), slice(None), slice(offset, offset + T))
            new = _heads_first(new)
        elif T == 1 or not self.ring:  # indexed by two arrays apart, the places come first: [B, T, K, H], as in `new`
            rows, at = jnp.arange(B)[:, None], _by_row(offset, B)[:, None] + jnp.arange(T)
            at = at % self.size if self.ring else at
            if mask.query_segments is not None:  # a place beyond the end is dropped
                at = jnp.where(mask.query_segments > 0, at, self.size)
            places = rows, slice(None), at
        else:
            return self._roll(_heads_first(new), offset, mask)
        return self._set(places, new)

    def _set(self, places: Any, new: Arrays) -> Self:
        """This cache with `new` arrays at these places of the layer's."""
        stacked = self.layer is not None
        at = (self.layer, *places) if stacked else places
        axes = ("layers", *AXES) if stacked else AXES
        pairs = zip(self.arrays, new, strict=True)
        return replace(self, arrays=tuple(constrain(old.at[at].set(a.astype(old.dtype)), *axes) for old, a in pairs))

    def _roll(self, new: Arrays, offset: jax.Array | int, mask: Mask) -> Self:
        """The last of what is kept and `new` [B, K, T, H], where several tokens may share a place."""
        start = _by_row(offset, new[0].shape[0])
        wanted = self.positions(start + _real(mask, new[0].shape[2], len(start))) - start[:, None]  # [B, S]
        at = jnp.clip(wanted, 0)[:, None, :, None]
        arrays = (
            jnp.where((wanted >= 0)[:, None, :, None], jnp.take_along_axis(a.astype(old.dtype), at, axis=2), old)
            for old, a in zip(self.own, new, strict=True)
        )
        return self._set((), tuple(arrays)) if self.layer is not None else replace(self, arrays=tuple(arrays))

    def read_before(self, new: Arrays, scoring: Scoring) -> tuple[Arrays, Arrays, tuple[Scoring, Scoring], Self]:
        """What `read` gives in one, in two parts: what is kept, the `new` arrays heads first, the scorings of the keys
        of both, and the cache with the new. For few tokens, without a bias by distance."""
        B, T = new[0].shape[:2]
        offset = _by_row(scoring.mask.offset, B)
        scorings = scoring.at(self.positions(offset)), scoring.at(offset[:, None] + jnp.arange(T))
        return self.own, _heads_first(new), scorings, self.write(new, scoring.mask)

    def read(self, new: Arrays, scoring: Scoring) -> tuple[Arrays, Scoring, Self]:
        """What the queries of `new` tokens read: the arrays [B, K, S, H] with the new ones [B, T, K, H] behind what is
        kept, the scoring for these keys, and the cache with them."""
        after = self.write(new, scoring.mask)
        if not self.ring:
            return after.own, scoring, after
        B, T = new[0].shape[:2]
        offset = _by_row(scoring.mask.offset, B)
        if T == 1:
            return after.own, scoring.at(after.positions(offset + 1)), after
        positions = jnp.concatenate([self.positions(offset), offset[:, None] + jnp.arange(T)], axis=1)
        pairs = zip(self.own, _heads_first(new), strict=True)
        both = tuple(jnp.concatenate([old, a.astype(old.dtype)], axis=2) for old, a in pairs)
        return both, scoring.at(positions), after


def _heads_first(arrays: Arrays) -> Arrays:
    return tuple(a.transpose(0, 2, 1, 3) for a in arrays)


def _by_row(offset: jax.Array | int, rows: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (rows,))


def _real(mask: Mask, T: int, rows: int) -> jax.Array:
    """How many of T tokens are no padding, [B]."""
    segments = mask.query_segments
    return jnp.full((rows,), T) if segments is None else (segments > 0).sum(1)
