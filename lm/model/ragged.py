"""Products of runs of rows with a matrix each, whatever the runs' lengths (2211.15841): the experts'.

XLA's ragged product goes backward on TPUs by products with every matrix, so there JAX's megablox kernels (Pallas) take
its place, with the same numbers. They are imported where they are used: 0.1 s that only TPUs need.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.compute import Compute

TILES = (512, 1024, 1024)  # rows, inputs and outputs of a block in a TPU's scratchpad
LEAST = 128
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
    weights = weights.swapaxes(1, 2) if transposed else weights
    return jax.lax.ragged_dot(rows, weights, sizes, preferred_element_type=jnp.float32).astype(compute.dtype)


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
