"""Choosing the next token from logits: greedy, or drawn after penalties, temperature and lm/decode/filters.py.

Every row draws with a key of its own, so what a row gets depends on its logits and its key, never on how many rows are
decoded beside it. What a value leaves at its default costs nothing: the choice is made while tracing.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from lm.bounds import Bounds, Finite, Fraction, Natural, NonNegative, Positive, Probability, Sentinel, check
from lm.decode import filters
from lm.decode.filters import Counts

NONE = -1  # in place of a token, where the logits say nothing
BLOCK = 256  # tokens whose probabilities are added up before one among them is drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw a token; fields and their order of work are those of transformers and vLLM.

    `repetition_penalty` is for tokens of the prompt and the text so far (1: none), `presence_penalty` and
    `frequency_penalty` for those of the text alone (0: none). `logit_bias` adds to the logits of ids, and -inf forbids
    them. Ids from `vocab_size` on are never drawn (0: no limit): a vocabulary may be padded past its tokenizer's.
    `temperature` divides the logits (0: greedy). Of what that gives, `top_k` keeps the k likeliest (0: all), of those
    `top_p` the fewest whose mass reaches p (1: all), then `min_p` those of at least p times the likeliest's probability
    (0: all), then `typical_p` the fewest of mass p whose information is nearest to the entropy (1: all)."""

    temperature: Annotated[NonNegative, Sentinel(0, "greedy")] = 1.0
    top_k: Annotated[Natural, Sentinel(0, "all")] = 0
    top_p: Annotated[Probability, Sentinel(1, "all")] = 1.0
    min_p: Annotated[Fraction, Sentinel(0, "all")] = 0.0
    typical_p: Annotated[Probability, Sentinel(1, "all")] = 1.0
    repetition_penalty: Annotated[Positive, Sentinel(1, "none")] = 1.0
    presence_penalty: Annotated[Finite, Sentinel(0, "none")] = 0.0
    frequency_penalty: Annotated[Finite, Sentinel(0, "none")] = 0.0
    logit_bias: tuple[tuple[Natural, Annotated[float, Bounds(-math.inf)]], ...] = ()
    vocab_size: Annotated[Natural, Sentinel(0, "no limit")] = 0

    def __post_init__(self) -> None:
        check(self)

    @property
    def greedy(self) -> bool:
        """Whether no draw is made, so that the key does not matter."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def counts(self) -> bool:
        """Whether it reads the tokens of the text so far."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    def __call__(self, logits: jax.Array, key: jax.Array, counts: Counts | None = None) -> jax.Array:
        """Tokens [B] int32 for logits [B, V]. Logits of -inf are never drawn; a row whose maximum is not finite (NaN
        among its logits, or nothing to draw) gets NONE.

        Args:
          logits: [B, V], of any float dtype.
          key: one for the batch, of which row i takes fold_in(key, i), or one a row [B].
          counts: of the tokens in each row, where `self.counts`."""
        return self.choose(self.process(logits, counts), key)

    def choose(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Tokens [B] as they are drawn from logits that `process` gave; arguments as in a call."""
        most = jnp.max(logits, axis=-1)
        if self.greedy:
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            chosen = draw(logits, row_keys(key, logits.shape[0]))
        return jnp.where(jnp.isfinite(most), chosen, NONE)

    def process(self, logits: jax.Array, counts: Counts | None = None) -> jax.Array:
        """The logits [B, V] float32 whose softmax is drawn from; of a greedy choice, those of which the largest is
        taken."""
        logits = logits.astype(jnp.float32)
        if self.counts:
            assert counts is not None
            logits = filters.repetition_penalty(logits, counts, self.repetition_penalty)
            logits = filters.presence_and_frequency_penalty(
                logits, counts, self.presence_penalty, self.frequency_penalty
            )
        if self.logit_bias:
            tokens, biases = zip(*self.logit_bias, strict=True)
            if max(tokens) >= logits.shape[-1]:
                raise ValueError(f"logit_bias for id {max(tokens)}: the vocabulary has {logits.shape[-1]}")
            logits = logits.at[:, jnp.array(tokens)].add(jnp.array(biases, jnp.float32))
        if self.vocab_size:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < self.vocab_size, logits, -jnp.inf)
        if self.greedy:
            return logits
        # the maximum goes first: a tiny temperature then gives -inf, not inf - inf
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = filters.top_k(logits, int(self.top_k))
        if self.top_p < 1:
            logits = filters.top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = filters.min_p(logits, self.min_p)
        return filters.typical_p(logits, self.typical_p) if self.typical_p < 1 else logits


def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """A token of each row [B] by its probability, the softmax of logits [B, V] float32, with `keys` [B].

    By inversion: two uniform numbers a row choose a block of tokens, and one in it. jax.random.categorical draws a
    Gumbel number for each token, which takes 6 to 25 times longer on CPUs (NOTES.md)."""
    B, V = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0), (0, -V % BLOCK)]).reshape(B, -1, BLOCK)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = _invert(weights.sum(-1), uniform[:, 0])
    within = _invert(jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0], uniform[:, 1])
    return (block * BLOCK + within).astype(jnp.int32)


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index [B] at which the sum of weights [B, n] up to it exceeds the share `uniform` [B] of all."""
    reached = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    return jnp.argmax(reached > uniform[:, None] * jnp.max(reached, axis=-1, keepdims=True), axis=-1)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key a row [rows], from one for all of them; keys that are one a row already stay as they are."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # the older raw form
    if key.ndim:
        if key.shape != (rows,):
            raise ValueError(f"keys of shape {key.shape} for {rows} rows: expected one key, or one a row")
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
