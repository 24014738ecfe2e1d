"""What a model remembers of the tokens that it has read, so that decoding reads each only once."""

from dataclasses import dataclass, field
from typing import Any

import jax


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
