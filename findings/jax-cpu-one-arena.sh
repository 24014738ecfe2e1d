#!/bin/sh
# JAX on CPUs, MALLOC_ARENA_MAX=1, which is often set to make threaded programs smaller: XLA compiles on several threads,
# and these wait for one another at glibc's one heap, so that a training step takes nearly twice as long to compile.
#
# Seen with jax 0.10.2, glibc 2.36 and two cores, a step of 24 layers with Adam, three processes each in turn: compiled in
# 3.9 to 4.1 s with one arena and in 2.1 to 2.4 s with as many as glibc takes (8 a core), with 0.60 and 0.65 GB resident.
# Needs Linux with glibc, two or more cores, Python 3.11 or newer and PyPI; exits with 0 while compiling takes at least 1.3
# times as long, and with 1 when it does not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/compile.py" <<'EOP'
import resource
import time

import jax
import jax.numpy as jnp

WIDTH, LAYERS = 256, 24
params = [
    {"a": jnp.ones((WIDTH, wide)), "b": jnp.ones((wide, WIDTH)), "scale": jnp.ones(WIDTH)}
    for wide in range(512, 512 + 16 * LAYERS, 16)  # no two alike: each has kernels of its own
]


def loss(params, x):
    for p in params:
        normed = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"]
        x = x + jax.nn.gelu(normed @ p["a"]) @ p["b"]
    return (x * x).mean()


def step(params, m, v, x):
    g = jax.grad(loss)(params, x)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, g)
    return jax.tree.map(lambda p, m, v: p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), params, m, v), m, v


lowered = jax.jit(step).lower(params, params, params, jnp.ones((64, WIDTH)))
begun = time.perf_counter()
lowered.compile()
print(f"{time.perf_counter() - begun:.2f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}")
EOP
for _ in 1 2 3; do
  for arenas in 1 0; do
    echo "$arenas $(JAX_PLATFORMS=cpu MALLOC_ARENA_MAX=$arenas "$folder/venv/bin/python" "$folder/compile.py")"
  done
done | tee "$folder/seen"
"$folder/venv/bin/python" - "$folder/seen" <<'EOP'
import statistics
import sys

rows = [line.split() for line in open(sys.argv[1])]
one, many = (statistics.median(float(row[1]) for row in rows if row[0] == arenas) for arenas in "10")
print(f"compiled in {one:.2f} s with one arena, {many:.2f} s with as many as glibc takes: {one / many:.2f} times")
assert one > 1.3 * many
print("as seen: one arena makes compiling slower")
EOP
