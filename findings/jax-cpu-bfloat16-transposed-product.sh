#!/bin/sh
# JAX on CPUs: a bfloat16 product that sums over two axes, transposed, compiles and cannot be run.
#
# dot_general(g [2, K, N], x [2, K, M]) over the first two axes of both, summed in float32, is the gradient of a weight. Its
# transpose raises JaxRuntimeError when it runs ("Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32"). The
# compiler works the transpose into the product, and what comes of that is left to a kernel without bfloat16. The product
# alone runs, so does its transpose in float32, or summed over the same numbers as one axis, or behind a constraint on its
# layout. So code that runs in float32, or untransposed, fails when bfloat16 is turned on.
#
# Seen with jax 0.10.2 on x86-64 with avx512_bf16 (AMD Zen 4), in and outside of loops, on one device and on eight.
# Needs such a processor, Python 3.11 or newer and PyPI; exits with 0 while that is so, and with 1 when not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOP'
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def product(g, x, axes):
    over = (tuple(range(axes)),) * 2
    return jax.lax.dot_general(g, x, (over, ((), ())), preferred_element_type=jnp.float32)


ways = {
    "over two axes": lambda g, x: product(g, x, 2),
    "over two axes, transposed": lambda g, x: product(g, x, 2).T,
    "over one axis, transposed": lambda g, x: product(g.reshape(64, 12), x.reshape(64, 16), 1).T,
    "over two axes, laid out, transposed": lambda g, x: with_layout_constraint(product(g, x, 2), Layout((0, 1))).T,
}
print("jax", jax.__version__)
refused = set()
for dtype in ("float32", "bfloat16"):
    g, x = jnp.ones((2, 32, 12), dtype), jnp.ones((2, 32, 16), dtype)
    for name, way in ways.items():
        try:
            found = f"{float(jax.jit(way)(g, x)[0, 0]):g}"
        except jax.errors.JaxRuntimeError as error:
            found = str(error)
            refused.add((dtype, name))
        print(f"{dtype}, {name}: {found}")
assert refused == {("bfloat16", "over two axes, transposed")}, refused
print("as seen: one way of writing a weight's gradient is refused, in bfloat16")
EOP
