"""What a transformer reads: the tokens of a batch and whatever else belongs to them, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.model.scoring import Mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """`tokens` [B, T] int32, and arrays of that shape beside them, or None:

    - `positions`: of each token in its text; by default its index in the row, behind what a cache holds.
    - `segments`: tokens see one another within a segment alone; 0 is padding. With a cache, padding is on the right.
    - `blocks`: whole numbers; the tokens of a segment that have the same one above 0 see one another, later ones too:
      an image's, or a prefix (prefix-LM). Behind a cache, a block is all within these tokens.
    - `token_types`: the kind of each token (BERT's segments).
    - `images`: the images of each row, [B, I, size, size, C] of whole numbers up to 255, which stand in their order
      where the tokens are the model's `image_token`; what a row has fewer is ignored.
    - `encoder`: what the encoder reads, where there is one; its tokens are [B, S].
    - `zigzag`: the tokens are in the order of lm/model/context.py's `zigzag_shard`."""

    tokens: jax.Array
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    blocks: jax.Array | None = None
    token_types: jax.Array | None = None
    encoder: "Inputs | None" = None
    images: jax.Array | None = None
    zigzag: bool = field(default=False, metadata=dict(static=True))

    @classmethod
    def of(cls, batch: Any, zigzag: bool = False) -> "Inputs":
        """The inputs in a batch of a data set, tokens [B, T] alone as inputs, and inputs as they are."""
        if isinstance(batch, Inputs):
            return batch
        if not isinstance(batch, Mapping):
            return cls(jnp.asarray(batch))
        encoder = None
        if "encoder_tokens" in batch:
            positions, segments = batch.get("encoder_positions"), batch["encoder_segment_ids"]
            encoder = cls(batch["encoder_tokens"], positions, segments)
        positions, segments, prefix, types = map(batch.get, ("positions", "segment_ids", "prefix", "token_types"))
        blocks = None if prefix is None else prefix.astype(jnp.int32)
        return cls(batch["tokens"], positions, segments, blocks, types, encoder, batch.get("images"), zigzag)

    def mask(self, causal: bool, offset: jax.Array | int = 0) -> Mask:
        """Who sees whom among the tokens; behind `offset` [B] tokens of a cache, which are all of one segment."""
        cached = not isinstance(offset, int)
        if cached:
            return Mask(self.segments, None, offset, causal=causal, zigzag=self.zigzag, ahead=self._ahead())
        return Mask(self.segments, self.segments, offset, self.blocks, self.blocks, causal, zigzag=self.zigzag)

    def _ahead(self) -> jax.Array | None:
        """How many tokens of its block come after each, [B, T]; None where there are no blocks."""
        if self.blocks is None:
            return None
        blocks = self.blocks if self.segments is None else jnp.where(self.segments > 0, self.blocks, 0)
        index = jnp.arange(blocks.shape[1])
        same = (blocks[:, :, None] == blocks[:, None, :]) & (blocks > 0)[:, :, None]
        return jnp.where(same, index - index[:, None], 0).max(-1)


class EncoderOutput(NamedTuple):
    """What a decoder reads of its encoder: the hidden states [B, S, D] (None where a cache has their keys and values),
    and who may look at them."""

    x: jax.Array | None
    mask: Mask
