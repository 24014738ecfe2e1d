"""What shapes attention's logits (`Mask`, `Scoring`), and the kernels that hold them whole or by rows.

Every kernel is a function of the same arguments with the same numbers; which one runs is a value. Logits and softmax
are float32. A bias is given by distance, [N, T + S - 1], and laid out for a block of queries and
keys when that is computed, so that nothing of size T x S need exist.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute
from lm.model.native import attend, attends
from lm.model.products import materialize
from lm.sharding.rules import MESH_AXES
from lm.sharding.tracing import axis_size

FAR = 1 << 29  # more keys than any sequence has
CACHE_BLOCK = 128  # keys of a cache that are read at a time
FEW = 16  # queries for which an accelerator reads all of a cache at once, before they are written into it
MINUS_INFINITY = -1e30  # finite, so that a query that may look at nothing gives numbers and no NaN


@dataclass(frozen=True)
class Mask:
    """Which keys a query may look at: those of its own segment and, when `causal`, those not later than itself, or of
    its block; with a `window`, none so many tokens or more before it, and where not `causal` none more than
    `window_after` behind it (None: as many as before it).

    `query_segments` [B, T] and `key_segments` [B, S] are whole numbers, 0 for padding; None is one segment.
    `query_blocks` and `key_blocks`, likewise, number the blocks whose tokens see one another, later ones too, 0 for
    none: an image's, or a prefix. `offset` is the index of the first query among the keys, of all
    rows or [B]: what a cache held before. `key_positions` [B, S] are the keys' own indices where these are not 0 to
    S - 1 (a ring of the last ones), negative for none. `ahead` [B, T] stands for blocks behind a cache: how many later
    keys a causal query sees too. `zigzag`: queries and keys are in the order of lm/model/context.py's
    `zigzag_shard`."""

    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    offset: jax.Array | int = 0
    query_blocks: jax.Array | None = None
    key_blocks: jax.Array | None = None
    causal: bool = True
    window: int = 0
    window_after: int | None = None
    zigzag: bool = False
    key_positions: jax.Array | None = None
    ahead: jax.Array | None = None

    @property
    def is_token(self) -> jax.Array | None:
        """[B, T] booleans, false for queries that are padding; None where there are no segments."""
        return None if self.query_segments is None else self.query_segments > 0

    def allowed(self, rows: "Span", columns: "Span") -> jax.Array | None:
        """The [B or 1, T, S] booleans of these queries and keys, or None where all are allowed."""
        keys = columns.index[None] if self.key_positions is None else columns.of(self.key_positions)
        offset = self.offset if jnp.ndim(self.offset) == 0 else self.offset[:, None, None]  # type: ignore[index]
        distance = keys[:, None, :] - rows.index[None, :, None] - offset
        allowed = None if self.key_positions is None else keys[:, None, :] >= 0
        if self.causal:
            earlier = distance <= (0 if self.ahead is None else rows.of(self.ahead)[:, :, None])
            allowed = earlier if allowed is None else allowed & earlier
            if self.query_blocks is not None and self.key_blocks is not None:
                block = rows.of(self.query_blocks)[:, :, None]
                allowed = allowed | ((block == columns.of(self.key_blocks)[:, None, :]) & (block > 0))
        if self.window:
            near = -distance < self.window
            near = near if self.causal else near & (distance <= self.sides[1])
            allowed = near if allowed is None else allowed & near
        if self.query_segments is not None and self.key_segments is not None:
            same = rows.of(self.query_segments)[:, :, None] == columns.of(self.key_segments)[:, None, :]
            allowed = same if allowed is None else allowed & same
        return allowed

    def reach(self, first: Any, last: Any) -> tuple[Any, Any]:
        """The first and last key that queries first to last can see by place; before 0 and beyond the end too."""
        behind, ahead = self.sides
        return first + self.offset - behind, last + self.offset + ahead

    def reached(self, first: Any, last: Any) -> tuple[Any, Any]:
        """The first and last query that can see keys first to last by place."""
        behind, ahead = self.sides
        return first - self.offset - ahead, last - self.offset + behind

    @property
    def sides(self) -> tuple[int, int]:
        """How many keys a query can see before and after its own place."""
        window = self.window - 1 if self.window else FAR
        if self.causal:
            return window, 0 if self.key_blocks is None else FAR
        return window, window if self.window_after is None else self.window_after


def _flatten(mask: Mask) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    known = isinstance(mask.offset, int)  # it stays so inside jit and checkpoint: kernels leave out what it hides
    arrays = (
        *(mask.query_segments, mask.key_segments, None if known else mask.offset),
        *(mask.query_blocks, mask.key_blocks, mask.key_positions, mask.ahead),
    )
    return arrays, (mask.offset if known else None, mask.causal, mask.window, mask.window_after, mask.zigzag)


def _unflatten(static: tuple[Any, ...], arrays: tuple[Any, ...]) -> Mask:
    queries, keys, offset, query_blocks, key_blocks, key_positions, ahead = arrays
    known, causal, window, after, zigzag = static
    offset = offset if known is None else known
    return Mask(queries, keys, offset, query_blocks, key_blocks, causal, window, after, zigzag, key_positions, ahead)


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
    """What shapes the logits besides q and k: who may look at whom; a `bias` by distance, [N, T + S - 1], or one for
    each row (the first is that of key 0 to query T - 1); a `softcap` that bends them to softcap * tanh(logits /
    softcap) (Gemma 2, 2408.00118; 0: none); and `sinks` [N], the logit of looking at nothing (gpt-oss; 2309.17453)."""

    mask: Mask
    bias: jax.Array | None = None
    softcap: float = 0.0
    sinks: jax.Array | None = None

    def __call__(self, q: jax.Array, k: jax.Array, rows: Span, columns: Span, queries: int) -> jax.Array:
        """Float32 logits [B, K, G, T, S] of the `rows` and `columns` q [B, K, G, T, H] and k [B, K, S, H], of
        `queries` in all."""
        logits = product("bkgth,bksh->bkgts", q, k)
        if self.bias is not None:
            K, G = q.shape[1:3]
            part = by_distance(self.bias, rows, columns, queries)
            logits = logits + part.reshape(*part.shape[:-3], K, G, *part.shape[-2:])
        if self.softcap:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        allowed = self.mask.allowed(rows, columns)
        return logits if allowed is None else jnp.where(allowed[:, None, None], logits, MINUS_INFINITY)

    @property
    def is_plain(self) -> bool:
        """Whether only the mask shapes the logits."""
        return self.bias is None and self.sinks is None and not self.softcap

    def at(self, key_positions: jax.Array) -> "Scoring":
        """The same for keys whose indices are `key_positions` [B, S]."""
        return replace(self, mask=replace(self.mask, key_positions=key_positions))

    def sink(self, kv_heads: int) -> jax.Array | None:
        """The sinks as [K, G, 1, 1]."""
        return None if self.sinks is None else self.sinks.reshape(kv_heads, -1, 1, 1).astype(jnp.float32)


def by_distance(bias: jax.Array, rows: Span, columns: Span, queries: int) -> jax.Array:
    """The [..., T, S] block of a bias [..., M] by distance: entry (t, s) is at columns + s - (rows + t) + queries - 1.

    Rows that each start one place earlier: copies of the vector end to end, cut one shorter than it is, so that every
    row is shifted by one. A copy, where indexing would gather."""
    T, S = rows.size, columns.size
    part = Span(columns.start - rows.start + queries - T, T + S - 1).of(bias, axis=bias.ndim - 1)
    part = jnp.pad(part, [(0, 0)] * (bias.ndim - 1) + [(0, 1)])  # [..., T + S]
    copies = jnp.tile(part, T)[..., : T * (T + S - 1)]
    return copies.reshape(*bias.shape[:-1], T, T + S - 1)[..., T - 1 :]


def plain(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """q [B, T, N, H] (scaled already), k [B, S, K, H] and v [B, S, K, Hv] -> [B, T, N, Hv], with all logits
    [B, N, T, S] at once."""
    return blocked(q, k, v, scoring, replace(compute, block=q.shape[1]))


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` by blocks of queries, each with only the keys that mask and window can leave it: about half the work."""
    T, S = q.shape[1], k.shape[1]
    q, k, v = heads_first(q, k, v, compute)
    rows = tuple(Span(start, min(compute.block, T - start)) for start in range(0, T, compute.block))
    columns = tuple(_visible(scoring.mask, span, S) for span in rows)
    outs = []
    parts = (_cut(a, spans, size, compute) for a, spans, size in ((q, rows, T), (k, columns, S), (v, columns, S)))
    for own, near, own_q, near_k, near_v in zip(rows, columns, *parts, strict=True):
        outs.append(_softmax(scoring(own_q, near_k, own, near, T), near_v, scoring.sink(k.shape[1])))
    out = jnp.concatenate(outs, axis=3) if len(outs) > 1 else outs[0]
    return heads_last(out, compute)


def accelerated(compute: Compute, queries: int) -> bool:
    """Whether so many queries read a cache as a whole: an accelerator's, which has the bandwidth for it."""
    return compute.backend != "cpu" and queries <= FEW


Part = tuple[jax.Array, jax.Array]  # keys [B, K, S, H] and values [B, K, S, Hv]


def cached(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` on keys [B, K, S, H] and values [B, K, S, Hv] as a cache has them, heads first: read where they are.

    A cache of several CACHE_BLOCKs is read block by block, up to the longest row. A block that is hidden from a row
    adds zeros to what that row has, so what it gets does not depend on the others, to the bit."""
    (B, T, N, H), (K, S) = q.shape, k.shape[1:3]
    q = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    if takes(scoring, compute, q, k, v):
        out = attend(q, k, v, scoring.mask.allowed(Span(0, T), Span(0, S)))
    elif S <= CACHE_BLOCK or S % CACHE_BLOCK or accelerated(compute, T):
        k, v = (a.astype(compute.matmul) for a in (k, v))
        out = _softmax(scoring(q, k, Span(0, T), Span(0, S), T), v, scoring.sink(K))
    else:
        out = _by_block(q, k, v, scoring, compute)
    return heads_last(out, compute)


def takes(scoring: Scoring, compute: Compute, *arrays: jax.Array) -> bool:
    """Whether the kernel in C (lm/model/native.py) has such queries, keys and values, on one CPU."""
    plain = scoring.is_plain and compute.backend == "cpu" and axis_size(*MESH_AXES) == 1
    return plain and compute.matmul == "float32" and attends(*arrays)


def cached_before(
    q: jax.Array, kept: Part, new: Part, scorings: tuple[Scoring, Scoring], compute: Compute
) -> jax.Array:
    """`cached` with a cache that does not have the new tokens yet, and theirs beside it: a cache that is read and
    written by one operation after the other would be copied whole into a TPU's own memory and back.

    Args:
      q: queries [B, T, N, H].
      kept: the keys and values of the cache, heads first.
      new: those of the new tokens, heads first.
      scorings: of each, which know the keys' positions.
      compute: how it is computed.
    """
    (B, T, N, H), K = q.shape, new[0].shape[1]
    q = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    logits = [
        scoring(q, k.astype(compute.matmul), Span(0, T), Span(0, k.shape[2]), T)
        for (k, _), scoring in zip((kept, new), scorings, strict=True)
    ]
    sink = scorings[0].sink(K)
    most = jnp.maximum(*(part.max(-1, keepdims=True) for part in logits))
    most = most if sink is None else jnp.maximum(most, sink)
    weights = [jnp.exp(part - most) for part in logits]
    total = sum(part.sum(-1, keepdims=True) for part in weights) + (0 if sink is None else jnp.exp(sink - most))
    values = [v.astype(compute.matmul) for _, v in (kept, new)]
    outs = [product("bkgts,bksh->bkgth", w.astype(v.dtype), v) for w, v in zip(weights, values, strict=True)]
    return heads_last((outs[0] + outs[1]) / total, compute)


def _by_block(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """Float32 [B, K, G, T, Hv] of queries [B, K, G, T, H], with a running softmax (2112.05682)."""
    (*lead, T, _), S, sink = q.shape, k.shape[2], scoring.sink(k.shape[1])

    def look(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, out = carry
        columns = Span(j * CACHE_BLOCK, CACHE_BLOCK)
        keys, values = (columns.of(a, 2).astype(compute.matmul) for a in (k, v))
        logits = scoring(q, keys, Span(0, T), columns, T)
        higher = jnp.maximum(most, logits.max(-1, keepdims=True))
        weights, shrink = jnp.exp(logits - higher), jnp.exp(most - higher)
        part = product("bkgts,bksh->bkgth", weights.astype(values.dtype), values)
        return higher, total * shrink + weights.sum(-1, keepdims=True), out * shrink + part

    most, total = jnp.full((*lead, T, 1), MINUS_INFINITY), jnp.zeros((*lead, T, 1))
    if sink is not None:
        most, total = jnp.broadcast_to(sink, most.shape), jnp.ones_like(total)
    longest = jnp.minimum(jnp.max(scoring.mask.offset) + T, S)
    carry = most, total, jnp.zeros((*lead, T, v.shape[-1]))
    _, total, out = jax.lax.fori_loop(0, -(-longest // CACHE_BLOCK), look, carry)
    return out / total


def _visible(mask: Mask, rows: Span, keys: int) -> Span:
    """Those of so many `keys` that mask and window can leave to the queries `rows`."""
    if not isinstance(mask.offset, int):
        return Span(0, keys)
    first, last = mask.reach(rows.start, rows.start + rows.size - 1)
    first, stop = max(0, min(first, keys - 1)), max(1, min(last + 1, keys))
    return Span(first, stop - first)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _cut(x: jax.Array, spans: tuple[Span, ...], size: int, compute: Compute) -> list[jax.Array]:
    """The `spans` of x [..., size, H], which may overlap; neither their starts nor their stops ever go back.

    The gradient adds up what overlaps, in float32, and puts the rest side by side; that of slices would pad each to
    `size` and add them all."""
    return [x[..., span.start : span.start + span.size, :] for span in spans]


def _cut_backward(
    spans: tuple[Span, ...], size: int, compute: Compute, _: None, gs: list[jax.Array]
) -> tuple[jax.Array]:
    *lead, _rows, width = gs[0].shape
    done: list[jax.Array] = []  # from the end, what no span that is still to come reaches
    at, sums = size, jnp.zeros((*lead, 0, width), jnp.float32)  # of what is not done, from `at` on
    for span, g in zip(reversed(spans), reversed(gs), strict=True):
        assert isinstance(span.start, int)
        stop, g = span.start + span.size, g.astype(jnp.float32)
        if stop < at:  # nothing was cut from there
            sums, at = jnp.concatenate([jnp.zeros((*lead, at - stop, width), jnp.float32), sums], -2), stop
        done.append(sums[..., stop - at :, :])
        both = g[..., at - span.start :, :] + sums[..., : stop - at, :]
        sums = materialize(jnp.concatenate([g[..., : at - span.start, :], both], -2), compute)
        at = span.start
    done += [sums, jnp.zeros((*lead, at, width), jnp.float32)]
    return (jnp.concatenate(done[::-1], -2).astype(gs[0].dtype),)


_cut.defvjp(lambda x, spans, size, compute: (_cut(x, spans, size, compute), None), _cut_backward)


def heads_first(q: jax.Array, k: jax.Array, v: jax.Array, compute: Compute) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, Hv]: heads before time, once, so that products over batches of
    matrices need no copies of their own."""
    (B, T, N, H), K = q.shape, k.shape[2]
    q = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = (a.astype(compute.matmul).transpose(0, 2, 1, 3) for a in (k, v))
    return q, k, v


def heads_last(out: jax.Array, compute: Compute) -> jax.Array:
    """[B, K, G, T, H] as [B, T, N, H] again."""
    out = checkpoint_name(out, "attention")
    B, K, G, T, H = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H).astype(compute.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The float32 einsum of a and b. Its gradients are products of operands of their dtype too, with float32 sums;
    autodiff would multiply in float32, at half the speed."""
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _product_forward(letters: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(letters, a, b), (a, b)


def _product_backward(letters: str, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    ins, out = letters.split("->")
    of_a, of_b = ins.split(",")
    g = g.astype(a.dtype)
    da, db = product(f"{out},{of_b}->{of_a}", g, b), product(f"{out},{of_a}->{of_b}", g, a)
    return da.astype(a.dtype), db.astype(b.dtype)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _softmax(logits: jax.Array, v: jax.Array, sink: jax.Array | None) -> jax.Array:
    """Float32 [B, K, G, T, Hv]: v [B, K, S, Hv] weighted by the softmax of logits [B, K, G, T, S]."""
    return _softmax_forward(logits, v, sink)[0]


def _softmax_forward(logits: jax.Array, v: jax.Array, sink: jax.Array | None) -> tuple[jax.Array, Any]:
    most = logits.max(-1, keepdims=True)
    if sink is not None:
        most = jnp.maximum(most, sink)
    weights = jnp.exp(logits - most)
    nothing = None if sink is None else jnp.exp(sink - most)
    total = weights.sum(-1, keepdims=True) + (0 if nothing is None else nothing)
    # dividing [T, H] by the sum afterwards is H / S of the work of dividing the [T, S] probabilities
    weights = weights.astype(v.dtype)
    out = product("bkgts,bksh->bkgth", weights, v) / total
    return out, (weights, v, total, out, nothing, sink)


def _softmax_backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """With p the probabilities, dp = g v: dlogits = p (dp - sum over keys of p dp), and that sum is that of g out."""
    weights, v, total, out, nothing, sink = saved
    g = g / total
    along = (g * out).sum(-1, keepdims=True)
    g = g.astype(v.dtype)
    dlogits = weights * (product("bkgth,bksh->bkgts", g, v) - along)
    dv = product("bkgts,bkgth->bksh", weights, g).astype(v.dtype)
    return dlogits, dv, None if sink is None else -(nothing * along).sum((0, 3), keepdims=True)[0]


_softmax.defvjp(_softmax_forward, _softmax_backward)
