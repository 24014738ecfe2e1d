#!/bin/sh
# On CPUs, an int8 matrix product with one row takes longer than with two.
#
# int8 x int8 -> int32 with one row on the left converts the whole matrix to int32 before the product; from two rows on XLA
# has a kernel for int8. So at batch 1, where decoding is, quantised weights make a step many times slower than float32
# ones, and the same row given twice, one result dropped, is about as fast, exactly. Seen with jax 0.10.2 for [2048, 4096]
# on two AVX2 cores: 11.8 ms with one row, 1.1 ms with two, 1.4 ms in float32.
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

weights = jax.random.randint(jax.random.key(0), (2048, 4096), -128, 128, jnp.int8)


def milliseconds(rows):
    product = jax.jit(lambda x, w: jax.lax.dot(x, w, preferred_element_type=jnp.int32))
    x, taken = jnp.ones((rows, 2048), jnp.int8), []
    product(x, weights).block_until_ready()
    for _ in range(15):
        start = time.perf_counter()
        product(x, weights).block_until_ready()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


one, two = milliseconds(1), milliseconds(2)
print(f"jax {jax.__version__}: {one:.1f} ms with one row, {two:.1f} ms with two")
assert one > 2 * two, "one row is as fast as two"
END
