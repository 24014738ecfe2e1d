"""Attention over a mesh: each device has the queries of its part of the rows, the heads and the sequence.

Where the sequence is split (mesh axis context), the keys and values of the other parts are gathered, and each device
attends from its own queries. In natural order a causal mask would leave the last device with most of the work, so the
tokens of a row are sharded in a zigzag (load-balanced): with C devices the row is cut into 2 C chunks, and device c
gets chunks c and 2 C - 1 - c (Llama 3, 2407.21783, section 3.3.2), whose work adds up to the same everywhere. A kernel
sees one chunk of queries and the keys in natural order, with the chunk's place as the mask's offset: windows, segments,
blocks and biases by distance are what they always are.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.accelerators import splash, splash_supports
from lm.model.compute import Compute
from lm.model.kernels import KERNELS
from lm.model.scoring import Scoring
from lm.sharding.collectives import all_gather, axis_index, per_device
from lm.sharding.tracing import axis_size, constrain

AXIS = "context"
BY_TOKEN: tuple[str, ...] = ("tokens", "targets", "weights", "segment_ids", "positions", "prefix", "token_types")
BY_TOKEN += ("teacher_ids", "teacher_log_probs", "teacher_rest")  # lm/tune/distill.py
BY_TOKEN += ("ends",)  # lm/data/preferences.py
PARTITIONED = ("plain", "blocked", "flash", "native", "cudnn")  # by the compiler itself, where the sequence is whole


def zigzag_shard(x: jax.Array, shards: int, axis: int = 1) -> jax.Array:
    """The tokens on `axis` in the order in which `shards` devices have them: chunks 0, 2 C - 1, 1, 2 C - 2, ..."""
    halves = _cut(x, axis, (2, shards))
    first, second = (jax.lax.index_in_dim(halves, i, axis, keepdims=False) for i in (0, 1))
    return jnp.stack([first, jnp.flip(second, axis)], axis + 1).reshape(x.shape)


def zigzag_unshard(x: jax.Array, shards: int, axis: int = 1) -> jax.Array:
    """What `zigzag_shard` was given."""
    pairs = _cut(x, axis, (shards, 2))
    first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return jnp.stack([first, jnp.flip(second, axis)], axis).reshape(x.shape)


def _cut(x: jax.Array, axis: int, parts: tuple[int, int]) -> jax.Array:
    return x.reshape(*x.shape[:axis], *parts, x.shape[axis] // (parts[0] * parts[1]), *x.shape[axis + 1 :])


def shard_sequence(batch: dict[str, Any], causal: bool) -> tuple[dict[str, Any], bool]:
    """A batch with its tokens laid over the context axis, and whether they were zigzag: those of a `causal` model are.
    Rows whose length does not divide get padding at their end."""
    shards = axis_size(AXIS)
    if shards == 1:
        return batch, False
    shape = batch["tokens"].shape
    more = -shape[1] % (2 * shards)
    batch = {"positions": jnp.broadcast_to(jnp.arange(shape[1]), shape), **batch}
    if more:
        batch = {"segment_ids": jnp.ones(shape, jnp.int32), **batch}

    def lay(x: jax.Array) -> jax.Array:
        x, others = jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)]), [None] * (x.ndim - 2)
        return constrain(zigzag_shard(x, shards) if causal else x, "batch", "seq", *others)

    return {name: lay(a) if name in BY_TOKEN else a for name, a in batch.items()}, causal


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """The kernel `compute.attention` on q [B, T, N, H] (scaled already), k [B, S, K, H] and v [B, S, K, Hv] ->
    [B, T, N, Hv], on the mesh in use."""
    mask, shards, (T, N), S = scoring.mask, axis_size(AXIS), q.shape[1:3], k.shape[1]
    whole = shards == 1 and compute.attention in PARTITIONED
    decoding = not isinstance(mask.offset, int) or mask.offset != 0 or T == 1
    if whole or decoding or T % shards or S % shards:
        assert not mask.zigzag, (mask.offset, T, S, shards)
        return KERNELS[compute.attention](q, k, v, scoring, compute)
    by_query, by_key = (mask.query_segments, mask.query_blocks), (mask.key_segments, mask.key_blocks)
    arrays = (*by_query, *by_key, scoring.bias, scoring.sinks)
    axes = (*[("batch", "seq")] * 2, *[("batch", None)] * 2, ("heads", None), ("heads",))
    given = tuple(None if a is None else names for a, names in zip(arrays, axes, strict=True))
    heads, kv = ("batch", "seq", "heads", "head_dim"), ("batch", "seq", "kv_heads", "head_dim")
    shape = replace(mask, query_segments=None, key_segments=None, query_blocks=None, key_blocks=None)
    run = partial(_attend, replace(scoring, mask=shape, bias=None, sinks=None), compute)
    return per_device(partial(run, (T, N, k.shape[2])), (heads, kv, kv, *given), heads)(q, k, v, *arrays)


def _attend(
    scoring: Scoring,
    compute: Compute,
    whole: tuple[int, int, int],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_segments: jax.Array | None,
    query_blocks: jax.Array | None,
    key_segments: jax.Array | None,
    key_blocks: jax.Array | None,
    bias: jax.Array | None,
    sinks: jax.Array | None,
) -> jax.Array:
    """One device's part [B, T, N, Hv], of `whole` (T, N, K); the keys' segments and blocks are whole."""
    zigzag, shards = scoring.mask.zigzag, axis_size(AXIS)
    k, v = (all_gather(a, AXIS, 1) for a in _own_heads(whole[1:], q.shape[2], k, v))
    if zigzag:
        k, v = (zigzag_unshard(a, shards) for a in (k, v))
        by_key = (None if a is None else zigzag_unshard(a, shards) for a in (key_segments, key_blocks))
        key_segments, key_blocks = by_key
    mask = replace(scoring.mask, key_segments=key_segments, key_blocks=key_blocks, zigzag=False)
    if shards > 1 and compute.attention == "splash" and bias is None and splash_supports(mask, q.shape[1], k.shape[1]):
        every = replace(scoring, mask=replace(mask, query_segments=query_segments), sinks=sinks)
        return splash(q, k, v, every, compute, shards, zigzag)
    t, c = q.shape[1] // (2 if zigzag else 1), axis_index(AXIS)
    outs = []
    for i, chunk in enumerate((c, 2 * shards - 1 - c) if zigzag else (c,)):
        rows, start = slice(i * t, (i + 1) * t), chunk * t
        segments, blocks = (None if a is None else a[:, rows] for a in (query_segments, query_blocks))
        here = replace(mask, query_segments=segments, query_blocks=blocks, offset=start)
        near = None if bias is None else jax.lax.dynamic_slice_in_dim(bias, whole[0] - t - start, t + k.shape[1] - 1, 1)
        one = replace(scoring, mask=here, bias=near, sinks=sinks)
        outs.append(KERNELS[compute.attention](q[:, rows], k, v, one, compute))
    return jnp.concatenate(outs, axis=1) if zigzag else outs[0]


def _own_heads(whole: tuple[int, ...], own: int, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kv heads that this device's `own` query heads look at, of `whole` (N, K), where K were too few to split."""
    (N, K), each = whole, whole[0] // whole[1]
    if own == N or k.shape[2] < K:
        return k, v
    assert each % own == 0, (whole, own)  # lm/legal.py
    head = axis_index("tensor") * own // each
    return tuple(jax.lax.dynamic_slice_in_dim(a, head, 1, axis=2) for a in (k, v))  # type: ignore[return-value]
