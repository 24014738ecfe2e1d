#!/bin/sh
# On CPUs jax.lax.ragged_dot, the product of runs of rows with a matrix each (a mixture's experts), multiplies all rows with
# every matrix: its time grows with the number of matrices, and so does its memory, for the rows are laid out once for each.
#
# Seen with jax 0.10.2 on two AVX-512 cores, 2,048 rows of 256 numbers, matrices [256, 512], float32: XLA counts 0.54
# GFLOP for one product of all rows with one matrix, 4.3 for a ragged one with 8 matrices and 34.4 with 64, where the
# sum of the runs' own products is 0.54 in each; temporaries were 0, 21 and 168 MB, and the time of 64 matrices 60 times
# that of one product.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import statistics
import time

import jax
import jax.numpy as jnp

ROWS, INSIDE, OUTSIDE = 2048, 256, 512
rows = jax.random.normal(jax.random.key(0), (ROWS, INSIDE))


def seen(product, *args):
    compiled = jax.jit(product).lower(*args).compile()
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        taken.append(1000 * (time.perf_counter() - start))
    flops, memory = compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes
    return flops / 1e9, memory / 1e6, statistics.median(taken)


dense = seen(jnp.dot, rows, jnp.ones((INSIDE, OUTSIDE)))
print(f"jax {jax.__version__}: one matrix: %.2f GFLOP, %.0f MB of temporaries, %.1f ms" % dense)
found = {}
for count in (8, 64):
    sizes = jnp.full(count, ROWS // count, jnp.int32)
    found[count] = seen(jax.lax.ragged_dot, rows, jnp.ones((count, INSIDE, OUTSIDE)), sizes)
    print(f"ragged_dot, {count} matrices: %.2f GFLOP, %.0f MB of temporaries, %.1f ms" % found[count])
for count, (flops, memory, _) in found.items():
    assert flops > 0.9 * count * dense[0], "the work no longer grows with the number of matrices"
    assert memory > 0.9 * count * rows.nbytes / 1e6, "the memory no longer grows with the number of matrices"
END
