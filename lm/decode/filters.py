"""What becomes of logits before a token is drawn: pure functions of logits [B, V] float32, which compose.

Each takes its parameter as a number, or as an array [B, 1] with a number a row, and gives logits in which what is not
to be drawn is -inf. A row's result depends on that row alone. Nothing is sorted, which for a whole vocabulary takes
longer than a small model's forward pass (NOTES.md): a set of the likeliest is everything above a threshold, which is
searched bit by bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Number = float | int | jax.Array
FEW = 64  # of the likeliest tokens


class Counts(NamedTuple):
    """How often each token occurs in each row, int32 [B, V]: in its `prompt`, and among its `new` tokens."""

    prompt: jax.Array
    new: jax.Array

    @classmethod
    def of(cls, tokens: jax.Array, segments: jax.Array | None, vocab: int) -> "Counts":
        """Of prompts [B, T] without the padding, where segments [B, T] are 0."""
        real = jnp.ones_like(tokens) if segments is None else (segments > 0).astype(jnp.int32)
        rows = jnp.arange(tokens.shape[0])[:, None]
        prompt = jnp.zeros((tokens.shape[0], vocab), jnp.int32).at[rows, tokens].add(real)
        return cls(prompt, jnp.zeros_like(prompt))

    def add(self, tokens: jax.Array) -> "Counts":
        """With one more new token in each row, [B]."""
        return self._replace(new=self.new.at[jnp.arange(len(tokens)), tokens].add(1))


def repetition_penalty(logits: jax.Array, counts: Counts, penalty: Number) -> jax.Array:
    """Logits of tokens that occurred, in the prompt too, divided by `penalty` where positive and multiplied where
    negative; 1: none (CTRL, 1909.05858, section 4.1)."""
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(counts.prompt + counts.new > 0, penalized, logits)


def presence_and_frequency_penalty(logits: jax.Array, counts: Counts, presence: Number, frequency: Number) -> jax.Array:
    """Logits less `presence` for tokens among the new ones, and less `frequency` for each time they occur there (the
    completions API of OpenAI)."""
    return logits - presence * (counts.new > 0) - frequency * counts.new


def top_k(logits: jax.Array, k: Number) -> jax.Array:
    """The k largest (0: all); of equal ones the first (1805.04833, section 5.4)."""
    threshold = None
    if isinstance(k, int) and 0 < k <= FEW:  # the k-th largest is found faster by a heap
        threshold = _ordered(jax.lax.top_k(logits, k)[0][:, -1:])
    k = jnp.where(jnp.asarray(k) > 0, k, logits.shape[-1])
    return _keep(logits, _fewest(logits, jnp.ones_like(logits), k, threshold))


def top_p(logits: jax.Array, p: Number) -> jax.Array:
    """The nucleus: the fewest tokens, likeliest first, whose mass reaches p; 1: all (1904.09751)."""
    kept = _keep(logits, _fewest(logits, jax.nn.softmax(logits), p))
    return jnp.where(jnp.asarray(p) < 1, kept, logits)


def min_p(logits: jax.Array, p: Number) -> jax.Array:
    """Tokens whose probability is at least p times that of the likeliest; 0: all (2407.01082)."""
    return _keep(logits, logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p))


def typical_p(logits: jax.Array, p: Number) -> jax.Array:
    """The fewest tokens whose mass reaches p, those first whose information is nearest to the distribution's entropy;
    1: all (locally typical sampling, 2202.00666)."""
    log_p = jax.nn.log_softmax(logits)
    mass = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(mass > 0, mass * log_p, 0), axis=-1, keepdims=True)
    kept = _keep(logits, _fewest(-jnp.abs(log_p + entropy), mass, p))
    return jnp.where(jnp.asarray(p) < 1, kept, logits)


def _keep(logits: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, logits, -jnp.inf)


def _fewest(scores: jax.Array, weights: jax.Array, least: Number, threshold: jax.Array | None = None) -> jax.Array:
    """[B, V]: the fewest tokens, highest score first and of equal ones the first, whose weights add up to `least`; all
    where the weights of all are less.

    Args:
      scores, weights: float32 [B, V].
      least: a number, or [B, 1].
      threshold: the last kept score, as `_ordered` has it, where it is known."""
    rows, keys = len(scores), _ordered(scores)
    if threshold is None:
        threshold = _largest(
            rows, keys, 32, lambda kept: jnp.sum(jnp.where(kept, weights, 0), -1, keepdims=True) >= least
        )
    above, level = keys > threshold, keys == threshold
    first = jnp.arange(keys.shape[-1], 0, -1, dtype=jnp.uint32)[None]  # larger for what is earlier

    def some() -> jax.Array:
        """Of those at the threshold, as many as are needed."""
        needed = _largest(
            rows,
            first,
            keys.shape[-1].bit_length(),
            lambda kept: jnp.sum(jnp.where(above | level & kept, weights, 0), -1, keepdims=True) >= least,
        )
        return above | level & (first >= needed)

    return jax.lax.cond(jnp.any(level.sum(-1) > 1), some, lambda: above | level)


def _largest(rows: int, keys: jax.Array, bits: int, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest threshold [B, 1] of `bits` bits for which enough(keys >= threshold) [B, 1], or 0; of uint32 `keys`
    [B or 1, V] for B `rows`."""

    def add_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        return jnp.where(enough(keys >= higher), higher, threshold)

    return jax.lax.fori_loop(0, bits, add_bit, jnp.zeros((rows, 1), jnp.uint32))


def _ordered(x: jax.Array) -> jax.Array:
    """Float32 as uint32 in the same order; 0 and -0 are equal."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
