"""What a step of decoding reads, for a few rows at a time: weights and caches, at the speed of memory; and attention of
many queries, in training too.

XLA's CPU compiler wakes its threads for each product, copies what it cuts from a cache, and products of a few rows are
far below what memory gives. Here a kernel in C (native.c) multiplies float32, bfloat16 (half the bytes) or numbers of 8
bits (lm/model/int8.py) as they lie in memory, several matrices at once, and reads a cache where it is; its threads look
out for the next product. Of many queries XLA writes all logits to memory; the kernel keeps a tile of them in the cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.machine import native
from lm.model.compute import Compute

FEW = 128  # rows up to which the kernel multiplies
MOST = 8  # matrices of one call
TARGETS = ("lm_by_input", "lm_by_output", "lm_attention", "lm_attention_gradients")
TOKENS, WIDTH = 32, 1024  # queries up to which each is attended by itself (native.c), and the most numbers of a head


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Streamed:
    """A matrix of `shape` [*in, *out] as `values` of float32 or bfloat16: of that shape, or where they are `by_output`
    of [*out, *in], such as an embedding that is the output's weights."""

    values: jax.Array
    shape: tuple[int, ...] = field(metadata=dict(static=True))
    by_output: bool = field(default=False, metadata=dict(static=True))

    @property
    def T(self) -> "Streamed":
        """The same values as the matrix [*out, *in]."""
        return replace(self, shape=self.shape[::-1], by_output=not self.by_output)

    @property
    def scales(self) -> tuple[jax.Array, ...]:
        """A factor [O] of each output, where there is one."""
        return ()

    def flat(self, contract: int) -> jax.Array:
        """The values as [I, O], or `by_output` as [O, I], inputs and outputs flattened."""
        inputs = math.prod(self.shape[:contract])
        return self.values.reshape((-1, inputs) if self.by_output else (inputs, -1))

    def rounded(self) -> jax.Array:
        """The weights that it stands for, float32 of its shape."""
        values = self.values.astype(jnp.float32)
        return values.T if self.by_output else values


def multiply(x: jax.Array, ws: Sequence[Streamed], contract: int, compute: Compute) -> list[jax.Array]:
    """x [B, T, *in] times each of `ws` -> [B, T, *out] in `compute.dtype`, over the last `contract` axes of x;
    multiplied and summed in float32. A row's bits are the same whatever rows are beside it, at up to FEW rows."""
    lead = x.shape[: x.ndim - contract]
    x = x.astype(jnp.float32).reshape(math.prod(lead), -1)
    if len(x) > FEW:
        ys = [x @ w.rounded().reshape(x.shape[1], -1) for w in ws]
    else:
        ys = [y for first in range(0, len(ws), MOST) for y in _kernel(x, ws[first : first + MOST], contract)]
    return [y.reshape(*lead, *w.shape[contract:]).astype(compute.dtype) for y, w in zip(ys, ws, strict=True)]


def _kernel(x: jax.Array, ws: Sequence[Streamed], contract: int) -> Sequence[jax.Array]:
    (by_output,) = {w.by_output for w in ws}
    flat = [w.flat(contract) for w in ws]
    outputs = [jax.ShapeDtypeStruct((len(x), w.shape[not by_output]), jnp.float32) for w in flat]
    call = jax.ffi.ffi_call(TARGETS[by_output], outputs, vmap_method="sequential")
    return call(x, *flat, *(scale for w in ws for scale in w.scales))


def attends(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Whether `attend` takes queries, keys and values of these shapes and dtypes."""
    narrow = max(q.shape[-1], v.shape[-1]) <= WIDTH
    return narrow and all(a.dtype == jnp.float32 for a in (q, k, v)) and has_kernel()


def attend(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Float32 [B, K, G, T, Hv] of queries q [B, K, G, T, H] (scaled already) to the keys k [B, K, S, H] and values v
    [B, K, S, Hv] that `allowed` [B or 1, T, S] names (None: all of them), with a running softmax (2112.05682); zeros
    where that is none. A row's bits depend neither on other rows nor on keys that it may not look at: from more than
    TOKENS queries on, unless such a key, which another query looks at, is no number."""
    shape = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), jnp.float32)
    if (T := q.shape[3]) <= TOKENS:
        allowed = jnp.broadcast_to(True if allowed is None else allowed, (len(q), T, k.shape[2]))
    allowed = jnp.zeros((0, 0, 0), bool) if allowed is None else allowed
    return jax.ffi.ffi_call(TARGETS[2], shape, vmap_method="sequential")(q, k, v, allowed)


@jax.custom_vjp
def attend_trained(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """`attend`, with gradients of its own for q, k and v: probabilities are computed again from each query's sum
    (2205.14135), and no logits are kept. The bits are the same with gradients and without, of few queries too."""
    return _attend_forward(q, k, v, allowed)[0]


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None) -> tuple[jax.Array, Any]:
    allowed = jnp.zeros((0, 0, 0), bool) if allowed is None else allowed
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*q.shape[:-1], v.shape[-1]), q.shape[:-1])]
    y, log_total = jax.ffi.ffi_call(TARGETS[2], shapes, vmap_method="sequential")(q, k, v, allowed)
    y, log_total = checkpoint_name(y, "attention"), checkpoint_name(log_total, "attention")
    return y, (q, k, v, allowed, y, log_total)


def _attend_backward(saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in saved[:3]]
    dq, dk, dv = jax.ffi.ffi_call(TARGETS[3], shapes, vmap_method="sequential")(*saved, dy)
    return dq, dk, dv, None


attend_trained.defvjp(_attend_forward, _attend_backward)


@cache
def has_kernel() -> bool:
    """Whether there is a kernel for `multiply`: it is built now if need be, and known to XLA from here on."""
    library = native.library(Path(__file__).with_name("native.c"), jax.ffi.include_dir())
    if library is None:
        return False
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True
