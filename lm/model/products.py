"""Products with weights, where nearly all FLOPs are: what each kind of device wants of them, behind `linear`.

A CPU's matrix kernels want them flat, an accelerator wants B and T kept apart; both have gradients of their own, so
that operands and sums are of the dtypes that were asked for in all three products of a step.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from lm.model.compute import Compute
from lm.sharding.rules import MESH_AXES
from lm.sharding.tracing import axis_size, constrain, platform, shard_count

LANES = 128  # of a TPU: numbers that lie side by side
WIDE = 4096  # from this size of both its sides on a product keeps to itself on TPUs


def in_memory(x: jax.Array) -> jax.Array:
    """x as it is, written to memory row by row, where one CPU computes: neither worked into all that reads it, nor
    laid out as one reader would like it and the others would not. (XLA's CPU compiler drops barriers before it fuses.
    Over several devices it would gather x for this.)"""
    if platform() != "cpu" or axis_size(*MESH_AXES) > 1:
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


@jax.custom_vjp
def summed_once(x: jax.Array) -> jax.Array:
    """x, with its gradient `in_memory`: a gradient to which every layer adds would else be summed anew in each."""
    return x


summed_once.defvjp(lambda x: (x, None), lambda _, g: (in_memory(g),))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _flat_product(x: jax.Array, w: jax.Array, rows: int) -> jax.Array:
    """x [M, I] @ w [I, O] -> float32 [M, O], summed in float32 always; `rows` divides M (see the gradient)."""
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _flat_forward(x: jax.Array, w: jax.Array, rows: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _flat_product(x, w, rows), (x, w)


def _flat_backward(rows: int, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    g = g.astype(w.dtype)
    dx = jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), _weight_gradient(x, g, rows).astype(w.dtype)


def _weight_gradient(x: jax.Array, g: jax.Array, rows: int) -> jax.Array:
    """Float32 [I, O], the product of x [M, I] and g [M, O] over M; `rows` divides M.

    A CPU's fast kernel wants M innermost in the first operand: contracting two axes makes the compiler copy it so,
    contracting one makes it take a kernel of half the speed. The narrower operand goes first, the cheaper one to copy.
    (NOTES.md, speed on CPUs.)"""
    if x.shape[1] > g.shape[1]:
        return in_memory(_weight_gradient(g, x, rows)).T
    x, g = (in_memory(a).reshape(rows, -1, a.shape[1]) for a in (x, g))
    return jax.lax.dot_general(x, g, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32)


_flat_product.defvjp(_flat_forward, _flat_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _product(x: jax.Array, w: jax.Array, contract: int, back: bool, dtype: str, gradients: str) -> jax.Array:
    """x [B, T, *in] @ w [*in, *out] in x's dtype, summed in float32 and given in `dtype`, so that a mesh's devices
    exchange no more than that; they exchange the gradient of w in `gradients`."""
    over = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    wide = _wide(w, contract)
    return _apart(_dot(_apart(x, wide), _laid(narrowed(w, x.dtype), back), over, dtype), wide)


def _wide(w: jax.Array, contract: int) -> bool:
    return min(math.prod(w.shape[:contract]), math.prod(w.shape[contract:])) >= WIDE


def _apart(x: jax.Array, wide: bool) -> jax.Array:
    """x as it is, in memory and not worked into a `wide` product that reads or writes it: a TPU's compiler would do
    what comes before or after inside the product's loops, once for every tile, and where both its sides are wide that
    takes longer than the way through memory (NOTES.md, plans and TPUs)."""
    return jax.lax.optimization_barrier(x) if wide and platform() == "tpu" else x


def narrowed(w: jax.Array, dtype: Any) -> jax.Array:
    """Weights w in `dtype`, the products'. Where a loop over layers reads them in bfloat16 alone, a TPU's compiler
    would narrow all layers' ahead of it and hold the copies all through; one more rounding, which changes nothing,
    keeps it from that."""
    if platform() == "tpu" and jnp.dtype(dtype) == jnp.bfloat16 != w.dtype:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)


def _laid(w: jax.Array, back: bool) -> jax.Array:
    """Weights w [*in, D] that lead `back` to the model's width, laid out in a TPU's memory with D outermost where fsdp
    splits it into less than whole rows of lanes: gathered as the innermost axis, in odd pieces they would be copied
    afterwards. (Split over tensor too, they would be gathered over that as well.)"""
    if not back or platform() != "tpu" or axis_size("tensor") > 1 or w.shape[-1] // shard_count("embed") % LANES == 0:
        return w
    return with_layout_constraint(w, Layout((w.ndim - 1, *range(w.ndim - 1))))


def _dot(x: jax.Array, y: jax.Array, over: Any, dtype: Any) -> jax.Array:
    """The units of accelerators sum in float32 and round once; a CPU's would sum in `dtype`."""
    if platform() == "cpu":
        return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.float32).astype(dtype)
    return jax.lax.dot_general(x, y, (over, ((), ())), preferred_element_type=jnp.dtype(dtype))


def _product_forward(
    x: jax.Array, w: jax.Array, contract: int, back: bool, dtype: str, gradients: str
) -> tuple[jax.Array, Any]:
    return _product(x, w, contract, back, dtype, gradients), (x, w)


def _product_backward(
    contract: int, back: bool, dtype: str, gradients: str, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    wide = _wide(w, contract)
    x, g = _apart(x, wide), _apart(g.astype(x.dtype), wide)
    lead = x.ndim - contract
    outs = tuple(range(lead, g.ndim)), tuple(range(contract, w.ndim))
    rows = tuple(range(lead)), tuple(range(lead))
    dx = _apart(_dot(g, _laid(narrowed(w, x.dtype), back), outs, x.dtype), wide)
    return dx, _dot(x, g, rows, gradients).astype(w.dtype)


_product.defvjp(_product_forward, _product_backward)


def linear(x: jax.Array, w: jax.Array, compute: Compute, contract: int = 1, back: bool = False) -> jax.Array:
    """x [B, T, *in] times w [*in, *out] -> [B, T, *out], over the last `contract` axes of x; `back` where that leads
    from within a layer back to the model's width.

    Operands are `compute.matmul`, sums float32, the result `compute.dtype`."""
    inside, outside = w.shape[:contract], w.shape[contract:]
    x = x.astype(compute.matmul)
    if compute.flat == "yes":
        w = w.astype(compute.matmul)
        lead = x.shape[: x.ndim - contract]
        flat = _flat_product(
            x.reshape(-1, math.prod(inside)), w.reshape(math.prod(inside), math.prod(outside)), lead[0]
        )
        return flat.reshape(*lead, *outside).astype(compute.dtype)
    return _product(x, w, contract, back, compute.dtype, compute.exchanged)


def linears(x: jax.Array, ws: Sequence[jax.Array], compute: Compute) -> list[jax.Array]:
    """`linear` of x [B, T, D] with each of several weights [D, *out].

    Where products are flat they are one product with the weights side by side: x is read once, and its gradient is
    summed inside the product instead of between several."""
    if compute.flat != "yes" or len(ws) == 1:
        return [linear(x, w, compute) for w in ws]
    wide = linear(x, jnp.concatenate([w.reshape(w.shape[0], -1) for w in ws], axis=1), compute)
    ends = list(accumulate(math.prod(w.shape[1:]) for w in ws))
    parts = jnp.split(wide, ends[:-1], axis=-1)
    return [part.reshape(*x.shape[:-1], *w.shape[1:]) for part, w in zip(parts, ws, strict=True)]


def look_up(table: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
    """The rows [B, T, D] of a table [M, D] that ids [B, T] name."""
    x = constrain(table[ids].astype(dtype), "found_batch", "found_seq", "embed")
    x = constrain(x, "found_batch", "seq", "found_embed")
    return constrain(x, "batch", "seq", "act_embed")
