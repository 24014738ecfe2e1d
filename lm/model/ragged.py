"""Products of runs of rows with a matrix each, whatever the runs' lengths (2211.15841): the experts'.

XLA's ragged product goes backward on TPUs by products with every matrix, so there JAX's megablox kernels (Pallas) take
its place, with the same numbers.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox

from lm.model.compute import Compute
from lm.sharding import platform

TILES = (512, 1024, 1024)  # rows, inputs and outputs of a block in a TPU's scratchpad
LEAST = 128


def ragged(rows: jax.Array, weights: jax.Array, sizes: jax.Array, compute: Compute) -> jax.Array:
    """[M, O] in `compute.dtype`: rows [M, I] times the matrices weights [E, I, O], the first sizes[0] rows times the
    first, and so on. What rows after the last run get, and hand back as gradients, means nothing."""
    tiles = tuple(math.gcd(n, most) for n, most in zip((len(rows), *weights.shape[1:]), TILES, strict=True))
    if platform() == "tpu" and min(tiles) >= LEAST:
        return megablox.gmm(rows, weights, sizes, jnp.dtype(compute.dtype), (tiles[0], tiles[1], tiles[2]))
    return jax.lax.ragged_dot(rows, weights, sizes, preferred_element_type=jnp.float32).astype(compute.dtype)
