#!/bin/sh
# On CPUs a loop that reads one of many bfloat16 matrices a turn first turns all of them to float32, outside of the loop:
# XLA cuts bfloat16 arrays as float32 ones and moves the conversion ahead of the loop. Given to the cut through an
# optimization_barrier together with its index, nothing is converted but what is read. (A barrier around the array
# alone changes nothing; cut as integers of 16 bits, the whole array is copied too.)
#
# Seen with jax 0.10.2 on two AVX-512 cores, two rows times two of 32 matrices [512, 1024]: 68 MB of temporaries and
# 36 ms; with the barrier 1.1 MB and 0.5 ms, with the same bits.
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

MATRICES, INSIDE, OUTSIDE = 32, 512, 1024
keys = jax.random.split(jax.random.key(0))
x = jax.random.normal(keys[0], (2, INSIDE), jnp.bfloat16)
weights = jax.random.normal(keys[1], (MATRICES, INSIDE, OUTSIDE), jnp.bfloat16)


def chosen(x, weights, turns, barrier):
    def turn(i, sums):
        cut = (weights, 3 * i)
        w = jax.lax.dynamic_index_in_dim(*(jax.lax.optimization_barrier(cut) if barrier else cut), keepdims=False)
        return sums + jax.lax.dot(x, w, preferred_element_type=jnp.float32)

    return jax.lax.fori_loop(0, turns, turn, jnp.zeros((2, OUTSIDE), jnp.float32))


found = {}
for barrier in (False, True):
    program = jax.jit(chosen, static_argnums=3).lower(x, weights, 2, barrier).compile()
    taken = []
    for _ in range(15):
        start = time.perf_counter()
        y = jax.block_until_ready(program(x, weights, 2))
        taken.append(1000 * (time.perf_counter() - start))
    found[barrier] = (program.memory_analysis().temp_size_in_bytes / 1e6, statistics.median(taken), y)
    print("%s: %.1f MB of temporaries, %.2f ms" % (("as it is", "with the barrier")[barrier], *found[barrier][:2]))
(memory, slow, y), (less, fast, same) = found[False], found[True]
assert memory > 1.9 * weights.nbytes / 1e6, "the matrices are no longer copied as float32"
assert less < 0.2 * weights.nbytes / 1e6, "with the barrier, memory is taken too"
assert slow > 2 * fast, "both take the same time"
assert jnp.array_equal(y, same), "other bits"
END
