"""The kernels of attention by name: functions of the same arguments with the same numbers, one of them chosen by a
value (`Compute.attention`)."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from lm.model.accelerators import cudnn, splash
from lm.model.compute import Compute
from lm.model.flash import flash
from lm.model.native import attend_trained
from lm.model.scoring import Scoring, Span, blocked, heads_first, heads_last, plain, takes
from lm.sharding.rules import MESH_AXES
from lm.sharding.tracing import axis_size

MOST_BLOCKS = 64  # each is compiled by itself
PIECES = 4  # of a batch: more are compiled longer than they save


def blocked_or_flash(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`blocked`, and from more than MOST_BLOCKS blocks of queries on `flash`."""
    if q.shape[1] > MOST_BLOCKS * compute.block:
        return flash(q, k, v, scoring, compute)
    if compute.flat == "yes" and axis_size(*MESH_AXES) == 1 and q.shape[1] > compute.block:
        return _by_rows(q, k, v, scoring, compute)
    return blocked(q, k, v, scoring, compute)


def _by_rows(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`blocked` on up to PIECES equal parts of the batch, each by itself. XLA's CPU runtime gives products of many
    small matrices one core each, and starts independent ones together only where more than eight wait: an eighth to a
    fifth less time forward and backward on two cores, the same bits (NOTES.md, speed on CPUs)."""
    pieces = max(n for n in range(1, PIECES + 1) if q.shape[0] % n == 0)
    mask = scoring.mask
    arrays = "query_segments", "key_segments", "query_blocks", "key_blocks"
    whole = q, k, v, *(getattr(mask, name) for name in arrays)
    parts = ([None] * pieces if x is None else jnp.split(x, pieces) for x in whole)
    outs = []
    for own_q, own_k, own_v, *own in zip(*parts, strict=True):
        here = replace(mask, **dict(zip(arrays, own, strict=True)))
        outs.append(blocked(own_q, own_k, own_v, replace(scoring, mask=here), compute))
    return jnp.concatenate(outs)


def native(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`blocked_or_flash`, and where it takes this the kernel in C, forward and backward: it reads and writes no logits
    in memory, and computes in float32."""
    exact = replace(compute, matmul="float32")
    short = q.shape[1] <= MOST_BLOCKS * compute.block  # the mask has a byte for each query and key
    if short and takes(scoring, exact, *(heads := heads_first(q, k, v, exact))):
        allowed = scoring.mask.allowed(Span(0, q.shape[1]), Span(0, k.shape[1]))
        return heads_last(attend_trained(*heads, allowed), compute)
    return blocked_or_flash(q, k, v, scoring, compute)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, Scoring, Compute], jax.Array]
KERNELS: dict[str, Kernel] = {
    "plain": plain,
    "blocked": blocked_or_flash,
    "flash": flash,
    "native": native,
    "splash": splash,
    "cudnn": cudnn,
}
