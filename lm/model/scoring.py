"""What shapes attention's logits (`Mask`, `Scoring`), and the kernels that hold them whole or by rows.

Every kernel is a function of the same arguments with the same numbers; which one runs is a value. Logits and softmax
are float32. A bias is given by distance, [N, T + S - 1], and laid out for a block of queries and
keys when that is computed, so that nothing of size T x S need exist.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute

FAR = 1 << 29  # more keys than any sequence has
MINUS_INFINITY = -1e30  # finite, so that a query that may look at nothing gives numbers and no NaN


@dataclass(frozen=True)
class Mask:
    """Which keys a query may look at: those of its own segment and, when `causal`, those not later than itself, or in
    the prefix; with a `window`, those fewer than so many tokens away.

    `query_segments` [B, T] and `key_segments` [B, S] are whole numbers, 0 for padding; None is one segment. `prefix`
    [B, S] marks keys that all of their segment see. `offset` is the index of the first query among the keys: what a
    cache held before. `dealt`: queries and keys stand in the order of lm/model/context.py's `deal`."""

    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    offset: jax.Array | int = 0
    prefix: jax.Array | None = None
    causal: bool = True
    window: int = 0
    dealt: bool = False

    def allowed(self, rows: "Span", columns: "Span") -> jax.Array | None:
        """The [B or 1, T, S] booleans of these queries and keys, or None where all are allowed."""
        distance = columns.index[None, :] - rows.index[:, None] - self.offset
        allowed = None
        if self.causal:
            allowed = (distance <= 0)[None]
            if self.prefix is not None:
                allowed = allowed | columns.of(self.prefix)[:, None].astype(bool)
        if self.window:
            near = (jnp.abs(distance) < self.window)[None]
            allowed = near if allowed is None else allowed & near
        if self.query_segments is not None and self.key_segments is not None:
            same = rows.of(self.query_segments)[:, :, None] == columns.of(self.key_segments)[:, None, :]
            allowed = same if allowed is None else allowed & same
        return allowed

    def reach(self, first: Any, last: Any) -> tuple[Any, Any]:
        """The first and last key that queries first to last can see by place; before 0 and beyond the end too."""
        ahead, behind = self._sides()
        return first + self.offset - behind, last + self.offset + ahead

    def reached(self, first: Any, last: Any) -> tuple[Any, Any]:
        """The first and last query that can see keys first to last by place."""
        ahead, behind = self._sides()
        return first - self.offset - ahead, last - self.offset + behind

    def _sides(self) -> tuple[int, int]:
        """How many keys a query can see after and before its own place."""
        window = self.window - 1 if self.window else FAR
        return (0 if self.causal and self.prefix is None else window), window


def _flatten(mask: Mask) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    known = isinstance(mask.offset, int)  # it stays so inside jit and checkpoint: kernels leave out what it hides
    arrays = mask.query_segments, mask.key_segments, None if known else mask.offset, mask.prefix
    return arrays, (mask.offset if known else None, mask.causal, mask.window, mask.dealt)


def _unflatten(static: tuple[Any, ...], arrays: tuple[Any, ...]) -> Mask:
    queries, keys, offset, prefix = arrays
    return Mask(queries, keys, offset if static[0] is None else static[0], prefix, *static[1:])


jax.tree_util.register_pytree_node(Mask, _flatten, _unflatten)


@dataclass(frozen=True)
class Span:
    """`size` places from `start` on."""

    start: jax.Array | int
    size: int

    @property
    def index(self) -> jax.Array:
        return jnp.arange(self.size) + self.start

    def of(self, x: jax.Array, axis: int = 1) -> jax.Array:
        """This part of an axis of x."""
        return jax.lax.dynamic_slice_in_dim(x, self.start, self.size, axis)


@dataclass(frozen=True)
class Scoring:
    """What shapes the logits besides q and k: who may look at whom, a `bias` [N, T + S - 1] by distance (the first is
    that of key 0 to query T - 1), a `cap` that bends them to cap * tanh(logits / cap) (Gemma 2, 2408.00118; 0: none),
    and `sinks` [N], the logit of looking at nothing (gpt-oss; 2309.17453)."""

    mask: Mask
    bias: jax.Array | None = None
    cap: float = 0.0
    sinks: jax.Array | None = None

    def __call__(self, q: jax.Array, k: jax.Array, rows: Span, columns: Span, queries: int) -> jax.Array:
        """Float32 logits [B, K, G, T, S] of the `rows` and `columns` q [B, K, G, T, H] and k [B, K, S, H], of
        `queries` in all."""
        logits = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
        if self.bias is not None:
            K, G = q.shape[1:3]
            part = by_distance(self.bias, rows, columns, queries)
            logits = logits + part.reshape(K, G, *part.shape[1:])
        if self.cap:
            logits = self.cap * jnp.tanh(logits / self.cap)
        allowed = self.mask.allowed(rows, columns)
        return logits if allowed is None else jnp.where(allowed[:, None, None], logits, MINUS_INFINITY)

    def sink(self, kv_heads: int) -> jax.Array | None:
        """The sinks as [K, G, 1, 1]."""
        return None if self.sinks is None else self.sinks.reshape(kv_heads, -1, 1, 1).astype(jnp.float32)


def by_distance(bias: jax.Array, rows: Span, columns: Span, queries: int) -> jax.Array:
    """The [N, T, S] block of a bias [N, M] by distance: entry (t, s) is at columns + s - (rows + t) + queries - 1.

    Rows that each start one place earlier: copies of the vector end to end, cut one shorter than it is, so that every
    row is shifted by one. A copy, where indexing would gather."""
    T, S = rows.size, columns.size
    part = Span(columns.start - rows.start + queries - T, T + S - 1).of(bias, axis=1)
    part = jnp.pad(part, ((0, 0), (0, 1)))  # [N, T + S]
    rolled = jnp.tile(part, (1, T))[:, : T * (T + S - 1)].reshape(-1, T, T + S - 1)
    return rolled[:, :, T - 1 :]


def plain(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """q [B, T, N, H] (scaled already), k and v [B, S, K, H] -> [B, T, N, H], with all logits [B, N, T, S] at once."""
    return blocked(q, k, v, scoring, replace(compute, block=q.shape[1]))


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` by blocks of queries, each with only the keys that mask and window can leave it: about half the work."""
    T, S = q.shape[1], k.shape[1]
    q, k, v = heads_first(q, k, v, compute)
    outs = []
    for start in range(0, T, compute.block):
        rows = Span(start, min(compute.block, T - start))
        first, stop = 0, S
        if isinstance(scoring.mask.offset, int):
            first, last = scoring.mask.reach(start, start + rows.size - 1)
            first, stop = max(0, min(first, S - 1)), max(1, min(last + 1, S))
        columns = Span(first, stop - first)
        logits = scoring(q[..., start : start + rows.size, :], k[..., first:stop, :], rows, columns, T)
        outs.append(_softmax(logits, v[..., first:stop, :], scoring.sink(k.shape[1])))
    out = jnp.concatenate(outs, axis=3) if len(outs) > 1 else outs[0]
    return heads_last(out, compute)


def heads_first(q: jax.Array, k: jax.Array, v: jax.Array, compute: Compute) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, K, G, T, H], k and v [B, K, S, H]: heads before time, once, so that products over batches of matrices need
    no copies of their own."""
    (B, T, N, H), K = q.shape, k.shape[2]
    q = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = (a.astype(compute.matmul).transpose(0, 2, 1, 3) for a in (k, v))
    return q, k, v


def heads_last(out: jax.Array, compute: Compute) -> jax.Array:
    """[B, K, G, T, H] as [B, T, N, H] again."""
    out = checkpoint_name(out, "attention")
    B, K, G, T, H = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H).astype(compute.dtype)


def _softmax(logits: jax.Array, v: jax.Array, sink: jax.Array | None) -> jax.Array:
    """Float32 [B, K, G, T, H]: v [B, K, S, H] weighted by the softmax of logits [B, K, G, T, S]."""
    # dividing [T, H] by the sum afterwards is H / S of the work of dividing the [T, S] probabilities
    most = logits.max(-1, keepdims=True)
    if sink is not None:
        most = jnp.maximum(most, sink)
    most = jax.lax.stop_gradient(most)
    weights = jnp.exp(logits - most)
    out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    total = weights.sum(-1, keepdims=True)
    return out / (total if sink is None else total + jnp.exp(sink - most))
