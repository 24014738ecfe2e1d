"""Products with weights, where nearly all FLOPs are: what each kind of device wants of them, behind `linear`.

A CPU's matrix kernels want them flat, an accelerator wants B and T kept apart; both have gradients of their own, so
that operands and sums are of the dtypes that were asked for in all three products of a step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from lm.model.adapted import Adapted, Weight, merged
from lm.model.compute import Compute
from lm.model.native import Streamed, multiply
from lm.sharding.rules import MESH_AXES
from lm.sharding.tracing import axis_size, constrain, shard_count

LANES = 128  # of a TPU: numbers that lie side by side
WIDE = 4096  # from this size of both its sides on a product keeps to itself on TPUs


def _one_cpu(compute: Compute) -> bool:
    return compute.backend == "cpu" and axis_size(*MESH_AXES) == 1


def materialize(x: jax.Array, compute: Compute) -> jax.Array:
    """x as it is, written to memory row by row, where one CPU computes: neither worked into all that reads it, nor
    laid out as one reader would like it and the others would not. (XLA's CPU compiler drops barriers before it fuses.
    Over several devices it would gather x for this.)"""
    if not _one_cpu(compute):
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_gradient_once(x: jax.Array, compute: Compute) -> jax.Array:
    """x, with its gradient materialized: a gradient to which every layer adds would else be summed anew in each."""
    return x


sum_gradient_once.defvjp(lambda x, compute: (x, None), lambda compute, _, g: (materialize(g, compute),))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _flat_product(x: jax.Array, w: jax.Array, rows: int, compute: Compute) -> jax.Array:
    """x [M, I] @ w [I, O] -> float32 [M, O], summed in float32 always; `rows` divides M (see the gradient)."""
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _flat_forward(
    x: jax.Array, w: jax.Array, rows: int, compute: Compute
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _flat_product(x, w, rows, compute), (x, w)


def _flat_backward(
    rows: int, compute: Compute, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = g.astype(w.dtype)
    dx = jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), weight_gradient(x, g, rows, compute).astype(w.dtype)


def weight_gradient(x: jax.Array, g: jax.Array, rows: int, compute: Compute) -> jax.Array:
    """Float32 [I, O], the product of x [M, I] and g [M, O] over M; `rows` divides M.

    A CPU's fast kernel wants M innermost in the first operand: contracting two axes makes the compiler copy it so,
    contracting one makes it take a kernel of half the speed. The narrower operand goes first, the cheaper one to copy.
    (NOTES.md, speed on CPUs.) Where nothing can be materialized the compiler would work the transpose into such a
    product, which it cannot run in bfloat16 (findings/jax-cpu-bfloat16-transposed-product.sh)."""
    if not _one_cpu(compute):
        return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    if x.shape[1] > g.shape[1]:
        return materialize(weight_gradient(g, x, rows, compute), compute).T
    x, g = (materialize(a, compute).reshape(rows, -1, a.shape[1]) for a in (x, g))
    return jax.lax.dot_general(x, g, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32)


_flat_product.defvjp(_flat_forward, _flat_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(x: jax.Array, w: jax.Array, contract: int, back: bool, compute: Compute) -> jax.Array:
    """x [B, T, *in] @ w [*in, *out] in x's dtype, summed in float32 and given in `compute.dtype`, so that a mesh's
    devices exchange no more than that; they exchange the gradient of w in `compute.exchanged`."""
    over = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    barrier = partial(_no_fusion_barrier, wide=_wide(w, contract), compute=compute)
    return barrier(_dot(barrier(x), _relayout(cast(w, x.dtype, compute), back, compute), over, compute.dtype, compute))


def _wide(w: jax.Array, contract: int) -> bool:
    return min(math.prod(w.shape[:contract]), math.prod(w.shape[contract:])) >= WIDE


def _no_fusion_barrier(x: jax.Array, wide: bool, compute: Compute) -> jax.Array:
    """x as it is, in memory and not worked into a `wide` product that reads or writes it: a TPU's compiler would do
    what comes before or after inside the product's loops, once for every tile, and where both its sides are wide that
    takes longer than the way through memory (NOTES.md, plans and TPUs)."""
    return jax.lax.optimization_barrier(x) if wide and compute.backend == "tpu" else x


def cast(w: jax.Array, dtype: Any, compute: Compute) -> jax.Array:
    """Weights w in `dtype`, the products'. Where a loop over layers reads them in bfloat16 alone, a TPU's compiler
    would cast all layers' ahead of it and hold the copies all through; one more rounding, which changes nothing, keeps
    it from that."""
    if compute.backend == "tpu" and jnp.dtype(dtype) == jnp.bfloat16 != w.dtype:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)


def _relayout(w: jax.Array, back: bool, compute: Compute) -> jax.Array:
    """Weights w [*in, D] that lead `back` to the model's width, laid out in a TPU's memory with D outermost where fsdp
    splits it into less than whole rows of lanes: gathered as the innermost axis, in odd pieces they would be copied
    afterwards. (Split over tensor too, they would be gathered over that as well.)"""
    if not back or compute.backend != "tpu" or axis_size("tensor") > 1:
        return w
    if w.shape[-1] // shard_count("embed") % LANES == 0:
        return w
    return with_layout_constraint(w, Layout((w.ndim - 1, *range(w.ndim - 1))))


def _dot(x: jax.Array, y: jax.Array, over: Any, dtype: Any, compute: Compute) -> jax.Array:
    """The units of accelerators sum in float32 and round once; a CPU's would sum in `dtype`."""
    if compute.backend == "cpu":
        return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32).astype(dtype)
    return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.dtype(dtype))


def _product_forward(x: jax.Array, w: jax.Array, contract: int, back: bool, compute: Compute) -> tuple[jax.Array, Any]:
    return _product(x, w, contract, back, compute), (x, w)


def _product_backward(
    contract: int, back: bool, compute: Compute, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    barrier = partial(_no_fusion_barrier, wide=_wide(w, contract), compute=compute)
    x, g = barrier(x), barrier(g.astype(x.dtype))
    lead = x.ndim - contract
    outs = tuple(range(lead, g.ndim)), tuple(range(contract, w.ndim))
    rows = tuple(range(lead)), tuple(range(lead))
    dx = barrier(_dot(g, _relayout(cast(w, x.dtype, compute), back, compute), outs, x.dtype, compute))
    return dx, _dot(x, g, rows, compute.exchanged, compute).astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def linear(x: jax.Array, w: Weight | Streamed, compute: Compute, contract: int = 1, back: bool = False) -> jax.Array:
    """x [B, T, *in] times w [*in, *out] -> [B, T, *out], over the last `contract` axes of x; `back` where that leads
    from within a layer back to the model's width.

    Operands are `compute.matmul`, sums float32, the result `compute.dtype`."""
    if isinstance(w, Streamed):
        return multiply(x, [w], contract, compute)[0]
    if isinstance(w, Adapted):
        return _adapted(x, [w], lambda x, ws: [linear(x, ws[0], compute, contract, back)], compute)[0]
    inside, outside = w.shape[:contract], w.shape[contract:]
    x = x.astype(compute.matmul)
    if compute.flat == "yes":
        w = w.astype(compute.matmul)
        lead = x.shape[: x.ndim - contract]
        flat = _flat_product(
            x.reshape(-1, math.prod(inside)), w.reshape(math.prod(inside), math.prod(outside)), lead[0], compute
        )
        return flat.reshape(*lead, *outside).astype(compute.dtype)
    return _product(x, w, contract, back, compute)


def linears(x: jax.Array, ws: Sequence[Weight], compute: Compute) -> list[jax.Array]:
    """`linear` of x [B, T, D] with each of several weights [D, *out].

    Where products are flat they are one product with the weights side by side: x is read once, and its gradient is
    summed inside the product instead of between several. Streamed weights are multiplied in one call."""
    if len(streamed := [w for w in ws if isinstance(w, Streamed)]) == len(ws):
        return multiply(x, streamed, 1, compute)
    if compute.flat != "yes" or len(ws) == 1:
        return [linear(x, w, compute) for w in ws]
    if any(isinstance(w, Adapted) for w in ws):
        return _adapted(x, ws, lambda x, ws: linears(x, ws, compute), compute)
    wide = linear(x, jnp.concatenate([merged(w).reshape(w.shape[0], -1) for w in ws], axis=1), compute)
    ends = list(accumulate(math.prod(w.shape[1:]) for w in ws))
    parts = jnp.split(wide, ends[:-1], axis=-1)
    return [part.reshape(*x.shape[:-1], *w.shape[1:]) for part, w in zip(parts, ws, strict=True)]


def _adapted(
    x: jax.Array, ws: Sequence[Weight], product: Callable[[jax.Array, list[Any]], list[jax.Array]], compute: Compute
) -> list[jax.Array]:
    """`product` of x and weights, some of which are adapted: they are merged again in the backward pass, not kept."""
    dropped = [isinstance(w, Adapted) and w.key is not None for w in ws]

    def merge(w: Weight, drops: bool) -> jax.Array:
        if not isinstance(w, Adapted):
            return w
        return w.dense if drops else jax.lax.stop_gradient(w.merged)

    def of_merged(x: jax.Array, ws: list[Any]) -> list[jax.Array]:
        return product(x, [merge(w, drops) for w, drops in zip(ws, dropped, strict=True)])

    ys, small = jax.checkpoint(of_merged)(x, list(ws)), partial(linear, compute=compute)
    return [
        y if not isinstance(w, Adapted) else w.product(x, y, small) if drops else w.learn(x, y, small)
        for w, y, drops in zip(ws, ys, dropped, strict=True)
    ]


def look_up(table: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
    """The rows [B, T, D] of a table [M, D] that ids [B, T] name."""
    x = constrain(table[ids].astype(dtype), "lookup_batch", "lookup_seq", "embed")
    x = constrain(x, "lookup_batch", "seq", "lookup_embed")
    return constrain(x, "batch", "seq", "act_embed")
