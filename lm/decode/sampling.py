"""Choosing the next token from logits: greedy, or drawn after temperature, top-k and top-p.

Every row draws with a key of its own, so what a row gets depends on its logits and its key, never on how many rows are
decoded beside it. What a value leaves at its default costs nothing: the choice is made while tracing.
"""

import dataclasses

import jax
import jax.numpy as jnp

NEAR = 1024  # a nucleus of up to so many tokens is found without sorting the vocabulary
NONE = -1  # in place of a token, where the logits say nothing


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw a token.

    `temperature` divides the logits (0: greedy); of what that gives, `top_k` keeps the k likeliest (0: all), and of
    those `top_p` keeps the fewest whose mass reaches p (1: all; Holtzman et al. 2020, arXiv:1904.09751)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
        if not (self.top_k >= 0 and self.top_k == int(self.top_k)):
            raise ValueError(f"top_k={self.top_k}: expected a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability above 0 and up to 1 (all tokens)")

    @property
    def greedy(self) -> bool:
        """Whether no draw is made, so that the key does not matter."""
        return self.temperature == 0 or self.top_k == 1

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Logits [B, V] -> tokens [B] int32. Logits of -inf are never drawn; a row whose maximum is not finite (NaN
        among its logits, or nothing to draw) gets NONE.

        `key` is one for the batch, of which row i takes fold_in(key, i), or one a row [B]."""
        most = jnp.max(logits, axis=-1)
        return jnp.where(jnp.isfinite(most), self._choose(logits, most, key), NONE)

    def _choose(self, logits: jax.Array, most: jax.Array, key: jax.Array) -> jax.Array:
        """Tokens [B] for rows whose maximum `most` [B] is finite."""
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # the maximum goes first: a tiny temperature then gives -inf, not inf - inf
        logits = (logits.astype(jnp.float32) - most[:, None].astype(jnp.float32)) / self.temperature
        keys = row_keys(key, logits.shape[0])
        vocab = logits.shape[-1]
        width = min(self.top_k or vocab, vocab)
        if self.top_p < 1:
            return self._nucleus(logits, keys, width)
        if width == vocab:
            return _draw(keys, logits)
        kept, tokens = jax.lax.top_k(logits, width)
        return _pick(tokens, _draw(keys, kept))

    def _nucleus(self, logits: jax.Array, keys: jax.Array, width: int) -> jax.Array:
        """Tokens [B] drawn from the nucleus of the `width` likeliest.

        Sorting a whole vocabulary costs more than a small model's forward pass (8192 logits: 2 ms on a CPU, the 1024
        likeliest of them a tenth of that), so it is done only when some row's nucleus is larger than NEAR."""
        near = min(width, NEAR)
        kept, tokens = jax.lax.top_k(logits, near)
        everything = logits if width == logits.shape[-1] else kept if near == width else jax.lax.top_k(logits, width)[0]
        total = jax.nn.logsumexp(everything, axis=-1, keepdims=True)
        chosen, complete = self._from_sorted(kept, tokens, total, keys)
        if near == width:
            return chosen

        def sort() -> jax.Array:
            # a row that was complete keeps its token: what it gets must not depend on its neighbours
            return jnp.where(complete, chosen, self._from_sorted(*jax.lax.top_k(logits, width), total, keys)[0])

        return jax.lax.cond(jnp.all(complete), lambda: chosen, sort)

    def _from_sorted(
        self, kept: jax.Array, tokens: jax.Array, total: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """A draw from the nucleus among the sorted logits `kept` [B, k] of `tokens`; whether it ends in them [B]."""
        mass = jnp.exp(kept - total)
        reached = jnp.cumsum(mass, axis=-1)
        # the mass before a token decides: the likeliest has 0 before it, so one is always kept
        nucleus = jnp.where(reached - mass < self.top_p, kept, -jnp.inf)
        return _pick(tokens, _draw(keys, nucleus)), reached[:, -1] >= self.top_p


@dataclasses.dataclass(frozen=True)
class FirstIds:
    """`sampling` among the first `count` ids: those that a padded vocabulary has beyond its tokenizer's are never
    drawn."""

    sampling: Sampling
    count: int

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """As Sampling's."""
        return self.sampling(jnp.where(jnp.arange(logits.shape[-1]) < self.count, logits, -jnp.inf), key)


def _draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _pick(tokens: jax.Array, ranks: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, ranks[:, None], axis=-1)[:, 0].astype(jnp.int32)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key a row [rows], from one for all of them; keys that are one a row already stay as they are."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # the older raw form
    if key.ndim:
        if key.shape != (rows,):
            raise ValueError(f"keys of shape {key.shape} for {rows} rows: expected one key, or one a row")
        return key
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
