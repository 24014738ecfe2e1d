"""Log-probabilities of whole sequences in packed rows, by segment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sequences(NamedTuple):
    """Of both sides of each pair, [..., 2]: the sum of its targets' log-probabilities (nats), and their number."""

    logprobs: jax.Array
    lengths: jax.Array

    @property
    def means(self) -> jax.Array:
        """The mean log-probability of a target."""
        return self.logprobs / jnp.maximum(self.lengths, 1)


def by_side(values: jax.Array, segment_ids: jax.Array, pairs: int) -> jax.Array:
    """The sums [B, P, 2] of `values` [B, T] over each of the 2 P segments of a row: pair k has 2 k - 1 and 2 k."""
    which = jax.nn.one_hot(segment_ids - 1, 2 * pairs, dtype=values.dtype)  # padding is in none
    sums = jnp.einsum("bt,btn->bn", values, which, precision=jax.lax.Precision.HIGHEST)
    return sums.reshape(len(values), pairs, 2)


def sequences(logprobs: jax.Array, mask: jax.Array, segment_ids: jax.Array, pairs: int) -> Sequences:
    """The sequences in rows of log-probabilities [B, T] of targets, of which those in `mask` [B, T] count."""
    masked = jnp.where(mask > 0, logprobs, 0)  # not a product: the logarithm of what is impossible is -inf
    return Sequences(by_side(masked, segment_ids, pairs), by_side(mask, segment_ids, pairs))
