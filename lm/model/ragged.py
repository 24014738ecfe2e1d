"""Products of runs of rows with a matrix each, whatever the runs' lengths (2211.15841): the experts'.

XLA's ragged product multiplies every row with every matrix on CPUs, and on TPUs on the way back. In its place a CPU
multiplies one block of a run after the other, and TPUs have JAX's megablox kernels (Pallas); the numbers are the same.
The kernels are imported where they are used: 0.1 s that only TPUs need.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.compute import Compute
from lm.model.products import weight_gradient

TILES = (512, 1024, 1024)  # rows, inputs and outputs of a block in a TPU's scratchpad
LEAST = 128
BLOCK = 128  # rows that a CPU multiplies at once
Tiles = tuple[int, int, int]


def ragged(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array, compute: Compute, transposed: bool = False
) -> jax.Array:
    """[M, O] in `compute.dtype`: rows [M, I] times the matrices weights [E, I, O] (`transposed`: [E, O, I]), the first
    sizes[0] rows times the first, and so on. What rows after the last run get, and hand back as gradients, means
    nothing."""
    ends = weights.shape[:0:-1] if transposed else weights.shape[1:]
    tiles: Tiles = tuple(math.gcd(n, most) for n, most in zip((len(rows), *ends), TILES, strict=True))  # type: ignore
    if compute.backend == "tpu" and min(tiles) >= LEAST:
        from jax.experimental.pallas.ops.tpu.megablox.ops import gmm

        run = _gmm_transposed if transposed else gmm
        return run(rows, weights, sizes, jnp.dtype(compute.dtype), tiles)
    if compute.backend == "cpu":
        return _blocked(rows, weights, sizes, transposed, compute).astype(compute.dtype)
    weights = weights.swapaxes(1, 2) if transposed else weights
    return jax.lax.ragged_dot(rows, weights, sizes, preferred_element_type=jnp.float32).astype(compute.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _blocked(rows: jax.Array, weights: jax.Array, sizes: jax.Array, transposed: bool, compute: Compute) -> jax.Array:
    """`ragged` in float32 [M, O], a matrix read once for each block of its run. A block at a run's end goes on into the
    next, whose own first block comes later and writes over that; rows that no run has are zeros or mean nothing."""
    size = min(BLOCK, len(rows))
    block_at, matrix_at = _blocks(rows, size), _slices(weights, 1)
    over = ((1,), (1 if transposed else 0,)), ((), ())

    def multiply(y: jax.Array, run: jax.Array, first: jax.Array, _: jax.Array) -> jax.Array:
        product = jax.lax.dot_general(block_at(first), matrix_at(run)[0], over, preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(y, product, first, 0)

    y = jnp.zeros((len(rows) + size, weights.shape[1 if transposed else 2]), jnp.float32)
    return _each_block(sizes, size, multiply, y)[: len(rows)]


def _blocked_forward(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array, transposed: bool, compute: Compute
) -> tuple[jax.Array, Any]:
    return _blocked(rows, weights, sizes, transposed, compute), (rows, weights, sizes)


def _blocked_backward(
    transposed: bool, compute: Compute, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    rows, weights, sizes = saved
    g = g.astype(rows.dtype)
    drows = _blocked(g, weights, sizes, not transposed, compute).astype(rows.dtype)
    size = min(BLOCK, len(rows))
    sides = [_blocks(a, size) for a in ((g, rows) if transposed else (rows, g))]

    def add(sums: jax.Array, run: jax.Array, first: jax.Array, length: jax.Array) -> jax.Array:
        mine = (jnp.arange(size) < length)[:, None]
        x, y = (jnp.where(mine, block_at(first), 0) for block_at in sides)
        return sums.at[run].add(weight_gradient(x, y, math.gcd(size, 2), compute))

    dweights = _each_block(sizes, size, add, jnp.zeros(weights.shape, jnp.float32))
    return drows, dweights.astype(weights.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _blocks(rows: jax.Array, size: int) -> Callable[[jax.Array], jax.Array]:
    """The `size` rows from a given one on; zeros behind the last."""
    return _slices(jnp.pad(rows, ((0, size), (0, 0))), size)


def _slices(a: jax.Array, size: int) -> Callable[[jax.Array], jax.Array]:
    """The `size` elements of `a` from a given one on, along the first axis. XLA's CPU compiler cuts bfloat16 as
    float32, to which without the barrier it would turn the whole array ahead of a loop."""

    def at(first: jax.Array) -> jax.Array:
        whole, first = jax.lax.optimization_barrier((a, first))
        return jax.lax.dynamic_slice_in_dim(whole, first, size)

    return at


def _each_block(sizes: jax.Array, size: int, step: Callable[..., jax.Array], value: jax.Array) -> jax.Array:
    """`value` after `step(value, run, first row, rows of the run from there)` of each block of `size` rows of each run,
    in their order. Runs without rows have no block."""
    blocks = -(-sizes // size)
    ends, block_ends = jnp.cumsum(sizes), jnp.cumsum(blocks)

    def one(block: jax.Array, value: jax.Array) -> jax.Array:
        run = (block_ends <= block).sum()
        first = ends[run] - sizes[run] + (block - block_ends[run] + blocks[run]) * size
        return step(value, run, first, ends[run] - first)

    return jax.lax.fori_loop(0, block_ends[-1], one, value)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _gmm_transposed(rows: jax.Array, weights: jax.Array, sizes: jax.Array, dtype: Any, tiles: Tiles) -> jax.Array:
    """The kernel with weights [E, O, I]. Its gradient of them is made as they are; megablox's own would turn it."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    return gmm(rows, weights, sizes, dtype, tiles, transpose_rhs=True)


def _gmm_transposed_forward(rows: jax.Array, weights: jax.Array, sizes: jax.Array, dtype: Any, tiles: Tiles) -> Any:
    return _gmm_transposed(rows, weights, sizes, dtype, tiles), (rows, weights, sizes)


def _gmm_transposed_backward(dtype: Any, tiles: Tiles, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

    rows, weights, sizes = saved
    tiles = tiles[0], tiles[2], tiles[1]
    drows = gmm(g, weights, sizes, rows.dtype, tiles)
    dweights = tgmm(g.swapaxes(0, 1), rows, sizes, weights.dtype, tiles, None, len(weights))
    return drows, dweights, None


_gmm_transposed.defvjp(_gmm_transposed_forward, _gmm_transposed_backward)
