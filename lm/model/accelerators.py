"""Attention by the vendors' kernels: splash attention on TPUs (Pallas), cuDNN's on GPUs.

They give the numbers of `plain`. What one of them cannot do (a bias, a prefix, a cache, for cuDNN also caps, sinks and
float32) the portable kernels do in its place.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lm.model.compute import Compute
from lm.model.flash import flash
from lm.model.scoring import Mask, Scoring, plain
from lm.sharding import per_device, platform

TILE = 128  # splash attention's blocks are multiples of this


def splash(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` by JAX's splash attention kernel for TPUs; on a CPU it is interpreted, for tests."""
    (T, N), S = q.shape[1:3], k.shape[1]
    mask = scoring.mask
    if scoring.bias is not None or mask.prefix is not None or not isinstance(mask.offset, int) or T == 1:
        return _portable(q, k, v, scoring, compute)
    queries, keys = _segments(mask, q.shape[0], T, S, -T % TILE, -S % TILE)
    q, k, v = (
        jnp.pad(a.astype(compute.dtype), [(0, 0), (0, -a.shape[1] % TILE), (0, 0), (0, 0)]).transpose(0, 2, 1, 3)
        for a in (q, k, v)
    )
    axes = ("batch", "heads", None, None), ("batch", "kv_heads", None, None), ("batch", None), ("heads",)
    sinks = jnp.full((N,), -jnp.inf) if scoring.sinks is None else scoring.sinks.astype(jnp.float32)
    run = partial(_splash, mask.causal, mask.window, mask.offset, scoring.cap, scoring.sinks is not None)
    out = per_device(run, (axes[0], axes[1], axes[1], axes[2], axes[2], axes[3]), axes[0])(
        q, k, v, queries, keys, sinks
    )
    return out.transpose(0, 2, 1, 3)[:, :T].astype(compute.dtype)


def _splash(
    causal: bool,
    window: int,
    offset: int,
    cap: float,
    sunk: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    sinks: jax.Array,
) -> jax.Array:
    """[B, N, T, H] of q [B, N, T, H], k and v [B, K, S, H], segments [B, T] and [B, S], sinks [N]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    N, T, S = q.shape[1], q.shape[2], k.shape[2]
    sides = (window - 1 if window else None, 0 if causal else (window - 1 if window else None))
    one = masks.FullMask((T, S)) if sides == (None, None) else masks.LocalMask((T, S), sides, offset)
    t, s = (max(b for b in (512, 384, 256, 128) if n % b == 0) for n in (T, S))
    blocks = kernels.BlockSizes(t, s, s, t, s, s, t, s)
    attend = kernels.make_splash_mha(
        masks.MultiHeadMask([one] * N),
        block_sizes=blocks,
        attn_logits_soft_cap=cap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() == "cpu",
    )
    extra = dict(sinks=sinks) if sunk else {}
    each = jax.vmap(lambda q, k, v, a, b: attend(q, k, v, segment_ids=kernels.SegmentIds(a, b), **extra))
    return each(q, k, v, queries, keys)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`plain` by cuDNN's fused attention, on NVIDIA GPUs, in bfloat16."""
    mask, T, H = scoring.mask, q.shape[1], q.shape[3]
    half = compute.dtype == "bfloat16"
    if scoring.bias is not None or scoring.cap or scoring.sinks is not None or not half or H % 8 or H > 128:
        return _portable(q, k, v, scoring, compute)
    if mask.prefix is not None or not isinstance(mask.offset, int) or mask.offset or T == 1:
        return _portable(q, k, v, scoring, compute)
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = (mask.query_segments[:, :, None] == mask.key_segments[:, None, :])[:, None]
    window = (mask.window - 1, 0 if mask.causal else mask.window - 1) if mask.window else None
    q, k, v = (a.astype(compute.dtype) for a in (q, k, v))
    return jax.nn.dot_product_attention(
        q, k, v, mask=segments, scale=1.0, is_causal=mask.causal, local_window_size=window, implementation="cudnn"
    )


def _portable(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    return (plain if q.shape[1] == 1 else flash)(q, k, v, scoring, compute)


def _segments(mask: Mask, B: int, T: int, S: int, more_t: int, more_s: int) -> tuple[jax.Array, jax.Array]:
    """The segments of queries and keys [B, ...], one more of its own for what is padded."""
    queries = jnp.ones((B, T), jnp.int32) if mask.query_segments is None else mask.query_segments
    keys = jnp.ones((B, S), jnp.int32) if mask.key_segments is None else mask.key_segments
    pad = partial(jnp.pad, mode="constant", constant_values=-1)
    return pad(queries, [(0, 0), (0, more_t)]), pad(keys, [(0, 0), (0, more_s)])
