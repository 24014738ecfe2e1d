"""Attention by the vendors' kernels: splash attention on TPUs (Pallas), cuDNN's on GPUs.

They give the numbers of `plain`. What one of them cannot do (a bias, blocks, a cache, for cuDNN also caps, sinks and
float32) the portable kernels do in its place.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.compute import Compute
from lm.model.flash import flash
from lm.model.scoring import Mask, Scoring, plain
from lm.sharding.collectives import axis_index

TILE = 128  # splash attention's blocks are multiples of this
BLOCKS = (4096, 2048, 1024, 512, 384, 256, 128)


def splash_supports(mask: Mask, T: int, S: int) -> bool:
    """Whether the kernel can do a part [T] of the queries under this mask, on its own blocks."""
    return mask.key_blocks is None and T % TILE == 0 and S % TILE == 0


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scoring: Scoring,
    compute: Compute,
    shards: int = 1,
    zigzag: bool = False,
) -> jax.Array:
    """`plain` by JAX's splash attention kernel for TPUs; on a CPU it is interpreted, for tests. With `shards`, q is
    this device's part of the queries of so many, in natural order or `zigzag` (lm/model/context.py)."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds  # 0.1 s, which only TPUs need

    T, S = q.shape[1], k.shape[1]
    mask = scoring.mask
    if scoring.bias is not None or mask.key_blocks is not None or not isinstance(mask.offset, int) or T == 1:
        return _portable(q, k, v, scoring, compute)
    queries, keys = _segments(mask, q.shape[0], T, S, -T % TILE, -S % TILE)
    q, k, v = (
        jnp.pad(a.astype(compute.dtype), [(0, 0), (0, -a.shape[1] % TILE), (0, 0), (0, 0)]).transpose(0, 2, 1, 3)
        for a in (q, k, v)
    )
    kernel = _splash_kernel(q.shape[1:3], k.shape[2], scoring, compute, shards, zigzag)
    extra = {} if scoring.sinks is None else dict(sinks=scoring.sinks.astype(jnp.float32))
    each = jax.vmap(lambda q, k, v, a, b: kernel(q, k, v, segment_ids=SegmentIds(a, b), **extra))
    return each(q, k, v, queries, keys).transpose(0, 2, 1, 3)[:, :T].astype(compute.dtype)


def _splash_kernel(
    queries: tuple[int, ...], S: int, scoring: Scoring, compute: Compute, shards: int, zigzag: bool
) -> Any:
    """The kernel for (heads, queries) of one device and S keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (N, T), mask = queries, scoring.mask
    behind, ahead = (side if mask.window else None for side in mask.sides)
    sides = behind, 0 if mask.causal else ahead
    if sides == (None, None):
        shards = 1  # every device has the same mask
    every = (T * shards, S)
    one = masks.FullMask(every) if sides == (None, None) else masks.LocalMask(every, sides, int(mask.offset))
    if zigzag and isinstance(one, masks.LocalMask):
        chunks = np.arange(T * shards, dtype=np.int32).reshape(2, shards, -1)
        one.q_sequence = np.stack([chunks[0], chunks[1, ::-1]], axis=1).reshape(-1)
    most = max(512, compute.block)
    t, s = (max(b for b in BLOCKS if n % b == 0 and b <= most) for n in (T, S))
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([one] * N),
        block_sizes=kernels.BlockSizes(t, s, s, t, s, s, t, s),
        attn_logits_soft_cap=scoring.softcap or None,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name="attention",
        interpret=compute.backend == "cpu",
    )
    return kernel if shards == 1 else jax.tree.map(partial(_own_part, shards), kernel)


def _own_part(shards: int, x: jax.Array) -> jax.Array:
    """This device's part of what the kernel knows of a mask: blocks [heads, queries, keys], or the queries' places."""
    axis = min(1, x.ndim - 1)
    part = x.shape[axis] // shards
    return jax.lax.dynamic_slice_in_dim(x, axis_index("context") * part, part, axis)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` by cuDNN's fused attention, on NVIDIA GPUs, in bfloat16; values smaller than keys are padded for it."""
    mask, T, H, Hv = scoring.mask, q.shape[1], q.shape[3], v.shape[3]
    half = compute.dtype == "bfloat16"
    if scoring.bias is not None or scoring.softcap or scoring.sinks is not None:
        return _portable(q, k, v, scoring, compute)
    if not half or H % 8 or not Hv <= H <= 128:
        return _portable(q, k, v, scoring, compute)
    if mask.key_blocks is not None or not isinstance(mask.offset, int) or mask.offset or T == 1:
        return _portable(q, k, v, scoring, compute)
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = (mask.query_segments[:, :, None] == mask.key_segments[:, None, :])[:, None]
    window = mask.sides if mask.window else None
    q, k, v = (a.astype(compute.dtype) for a in (q, k, v))
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, H - Hv)])
    out = jax.nn.dot_product_attention(
        q, k, v, mask=segments, scale=1.0, is_causal=mask.causal, local_window_size=window, implementation="cudnn"
    )
    return out[..., :Hv]


def _portable(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    return (plain if q.shape[1] == 1 else flash)(q, k, v, scoring, compute)


def _segments(mask: Mask, B: int, T: int, S: int, more_t: int, more_s: int) -> tuple[jax.Array, jax.Array]:
    """The segments of queries and keys [B, ...], one more of its own for what is padded."""
    queries = jnp.ones((B, T), jnp.int32) if mask.query_segments is None else mask.query_segments
    keys = jnp.ones((B, S), jnp.int32) if mask.key_segments is None else mask.key_segments
    pad = partial(jnp.pad, mode="constant", constant_values=-1)
    return pad(queries, [(0, 0), (0, more_t)]), pad(keys, [(0, 0), (0, more_s)])
