"""How far one next-token distribution is from another, over all tokens or over the likeliest of them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.bounds import Share

NONE = -1e30  # log of the probability 0, and finite: 0 x NONE is 0


@dataclass(frozen=True)
class Divergence:
    """How far the student's distribution p is from the teacher's q: a sum over outcomes."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        """The term of each outcome, in nats."""
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(q || p) = sum q (log q - log p), which is least where p covers all that q may say."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.exp(log_q) * (log_q - log_p)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(p || q), under which p keeps to what q finds likely (2306.08543); of each token by itself, in the text of the
    data, where the paper's is of whole texts that the student writes."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.exp(log_p) * (log_p - log_q)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p (GKD, 2306.13649, equation 1)."""

    beta: Share = 0.5

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        log_m = jnp.logaddexp(math.log(self.beta) + log_q, math.log(1 - self.beta) + log_p)
        return self.beta * jnp.exp(log_q) * (log_q - log_m) + (1 - self.beta) * jnp.exp(log_p) * (log_p - log_m)


def divergence(kind: Divergence, logits: jax.Array, log_q: jax.Array, log_rest: jax.Array | None = None) -> jax.Array:
    """[B, T] nats, from the teacher's `log_q` to the student's `logits` [B, T, V].

    With `log_rest` [B, T] the tokens that `log_q` gives NONE are one outcome, of this probability."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_p = logits - log_z[..., None]
    if log_rest is None:
        return kind.terms(log_p, log_q).sum(-1)
    kept = log_q > NONE / 2
    others = jax.nn.logsumexp(jnp.where(kept, NONE, logits), axis=-1) - log_z
    return kind.terms(jnp.where(kept, log_p, NONE), log_q).sum(-1) + kind.terms(others, log_rest)


def top(log_q: jax.Array, k: int) -> tuple[jax.Array, jax.Array | None]:
    """log_q [B, T, V] with NONE for all but its `k` likeliest tokens, and the log-probability [B, T] of all others
    together; for k = 0 as it is, and None."""
    if not k:
        return log_q, None
    ids, values, rest = likeliest(log_q, k)
    return spread(ids, values, log_q.shape[-1]), rest


def likeliest(log_q: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The ids [B, T, k] of the likeliest tokens of log_q [B, T, V], their log-probabilities, and that [B, T] of all
    others together."""
    values, ids = jax.lax.top_k(log_q, k)
    others = jnp.put_along_axis(log_q, ids, NONE, axis=-1, inplace=False)
    return ids, values, jax.nn.logsumexp(others, axis=-1)


def spread(ids: jax.Array, values: jax.Array, vocab: int) -> jax.Array:
    """[..., V]: `values` [..., K] at `ids` [..., K], NONE elsewhere."""
    empty = jnp.full((*ids.shape[:-1], vocab), NONE, values.dtype)
    return jnp.put_along_axis(empty, ids, values, axis=-1, inplace=False)
