"""Attention for sequences of any length.

`flash` goes over blocks of queries and keys and keeps the softmax up as keys go by; its backward pass computes the
logits of a block again from what the forward pass kept, one number a query (2112.05682, 2205.14135). So memory grows
with T + S. Blocks that the mask hides by place are not visited.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute
from lm.model.scoring import MINUS_INFINITY, Mask, Scoring, Span, heads_first, heads_last

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def flash(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` in memory that grows with T + S, by blocks of `compute.block` queries and keys."""
    T, S = q.shape[1], k.shape[1]
    t, s = min(compute.block, T), min(compute.block, S)
    q, k, v = heads_first(q, k, v, compute)
    q = jnp.pad(q, [(0, 0)] * 3 + [(0, -T % t), (0, 0)])
    k, v = (jnp.pad(a, [(0, 0)] * 2 + [(0, -S % s), (0, 0)]) for a in (k, v))
    wide = _padded(scoring, T, S, -T % t, -S % s)
    out = _flash(_Blocks(t, s, S, scoring.softcap), q, k, v, wide.bias, wide.sinks, wide.mask)
    return heads_last(out[..., :T, :], compute)


class _Blocks(NamedTuple):
    """The sizes of a block of queries and of keys, the keys that are not padding, and the softcap of the logits."""

    t: int
    s: int
    length: int
    softcap: float

    def logits(self, q: jax.Array, k: jax.Array, bias: Any, mask: Mask, i: Any, j: Any, total: int) -> jax.Array:
        """Float32 logits [B, K, G, t, s] of block i of `total` queries, q, and block j of keys, k."""
        rows, columns = Span(i * self.t, self.t), Span(j * self.s, self.s)
        logits = Scoring(mask, bias, self.softcap)(q, k, rows, columns, total)
        return jnp.where(columns.index < self.length, logits, MINUS_INFINITY)

    def keys_of(self, mask: Mask, i: Any, blocks: int) -> tuple[Any, Any]:
        """The blocks of keys [first, stop), of `blocks`, that block i of queries can see by place."""
        first, last = mask.reach(i * self.t, (i + 1) * self.t - 1)
        return jnp.clip(first // self.s, 0, blocks), jnp.clip(last // self.s + 1, 0, blocks)

    def queries_of(self, mask: Mask, j: Any, blocks: int) -> tuple[Any, Any]:
        """The blocks of queries [first, stop), of `blocks`, that can see block j of keys by place."""
        first, last = mask.reached(j * self.s, (j + 1) * self.s - 1)
        return jnp.clip(first // self.t, 0, blocks), jnp.clip(last // self.t + 1, 0, blocks)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(blocks: _Blocks, q: jax.Array, k: jax.Array, v: jax.Array, bias: Any, sinks: Any, mask: Mask) -> jax.Array:
    """Float32 [B, K, G, T, Hv] of q [B, K, G, T, H], k [B, K, S, H] and v [B, K, S, Hv]; T and S are whole blocks."""
    return _forward(blocks, q, k, v, bias, sinks, mask)[0]


def _forward(
    blocks: _Blocks, q: jax.Array, k: jax.Array, v: jax.Array, bias: Any, sinks: Any, mask: Mask
) -> tuple[jax.Array, Any]:
    (B, K, G, T, _), (t, s) = q.shape, blocks[:2]
    sink = Scoring(mask, sinks=sinks).sink(K)

    def one(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        qs = Span(i * t, t).of(q, 3)

        def look(j: jax.Array, carry: Arrays) -> Arrays:
            most, total, out = carry
            columns = Span(j * s, s)
            logits = blocks.logits(qs, columns.of(k, 2), bias, mask, i, j, T)
            higher = jnp.maximum(most, logits.max(-1, keepdims=True))
            weights, shrink = jnp.exp(logits - higher), jnp.exp(most - higher)
            part = _product("bkgts,bksh->bkgth", weights.astype(v.dtype), columns.of(v, 2))
            return higher, total * shrink + weights.sum(-1, keepdims=True), out * shrink + part

        most, total = jnp.full((B, K, G, t, 1), MINUS_INFINITY), jnp.zeros((B, K, G, t, 1))
        if sink is not None:
            most, total = jnp.broadcast_to(sink, most.shape), jnp.ones_like(total)
        first, stop = blocks.keys_of(mask, i, k.shape[2] // s)
        most, total, out = jax.lax.fori_loop(first, stop, look, (most, total, jnp.zeros((B, K, G, t, v.shape[-1]))))
        return out / total, most + jnp.log(total)

    out, log_z = jax.lax.map(one, jnp.arange(T // t))  # [T/t, B, K, G, t, ...]
    out, log_z = (jnp.moveaxis(a, 0, 3).reshape(B, K, G, T, -1) for a in (out, log_z))
    out, log_z = checkpoint_name(out, "attention"), checkpoint_name(log_z, "attention")
    return out, (q, k, v, bias, sinks, mask, out, log_z)


def _backward(blocks: _Blocks, saved: Any, g: jax.Array) -> tuple[Any, ...]:
    q, k, v, bias, sinks, mask, out, log_z = saved
    K, T, (t, s) = k.shape[1], q.shape[3], blocks[:2]
    delta = (g * out).sum(-1, keepdims=True)  # [B, K, G, T, 1]

    def one(carry: Any, j: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        columns = Span(j * s, s)
        ks, vs = columns.of(k, 2), columns.of(v, 2)

        def look(i: jax.Array, carry: Any) -> Any:
            dq, dbias, dk, dv = carry
            rows = Span(i * t, t)
            qs, gs, ds, zs = (rows.of(a, 3) for a in (q, g, delta, log_z))
            logits, pull = jax.vjp(lambda q, k, b: blocks.logits(q, k, b, mask, i, j, T), qs, ks, bias)
            weights = jnp.exp(logits - zs)
            dweights = _product("bkgth,bksh->bkgts", gs.astype(vs.dtype), vs)
            dqs, dks, more = pull(weights * (dweights - ds))
            dv = dv + _product("bkgts,bkgth->bksh", weights.astype(vs.dtype), gs.astype(vs.dtype))
            dq = jax.lax.dynamic_update_slice_in_dim(dq, rows.of(dq, 3) + dqs, rows.start, 3)
            return dq, jax.tree.map(jnp.add, dbias, more), dk + dks, dv

        first, stop = blocks.queries_of(mask, j, T // t)
        zeros = (jnp.zeros(a.shape, jnp.float32) for a in (ks, vs))
        *carry, dk, dv = jax.lax.fori_loop(first, stop, look, (*carry, *zeros))
        return tuple(carry), (dk, dv)

    start = jnp.zeros(q.shape, jnp.float32), jax.tree.map(jnp.zeros_like, bias)
    (dq, dbias), dks = jax.lax.scan(one, start, jnp.arange(k.shape[2] // s))
    dk, dv = (jnp.moveaxis(a, 0, 2).reshape(of.shape) for a, of in zip(dks, (k, v), strict=True))
    dsinks = None
    if sinks is not None:
        at_sink = jnp.exp(Scoring(mask, sinks=sinks).sink(K) - log_z)
        dsinks = -(at_sink * delta).sum((0, 3, 4)).reshape(sinks.shape)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dbias, dsinks, jax.tree.map(no_gradient, mask)


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def no_gradient(a: jax.Array) -> Any:
    """Of whole numbers and booleans."""
    return np.zeros(jnp.shape(a), jax.dtypes.float0)


_flash.defvjp(_forward, _backward)


def _padded(scoring: Scoring, T: int, S: int, more_queries: int, more_keys: int) -> Scoring:
    """`scoring` for so many more queries and keys."""
    after = [(0, 0), (0, more_keys)]
    mask = scoring.mask
    if mask.query_segments is not None and mask.key_segments is not None:
        queries = jnp.pad(mask.query_segments, [(0, 0), (0, more_queries)])
        mask = replace(mask, query_segments=queries, key_segments=jnp.pad(mask.key_segments, after))
    if mask.query_blocks is not None and mask.key_blocks is not None:
        queries = jnp.pad(mask.query_blocks, [(0, 0), (0, more_queries)])
        mask = replace(mask, query_blocks=queries, key_blocks=jnp.pad(mask.key_blocks, after))
    bias = scoring.bias
    if bias is not None:  # one more query comes before the first distance, one more key after the last
        bias = jnp.pad(bias, [(0, 0), (more_queries, more_keys)])
    return replace(scoring, mask=mask, bias=bias)
