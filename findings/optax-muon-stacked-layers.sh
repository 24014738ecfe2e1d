#!/bin/sh
# optax.contrib.muon gives layers that are stacked for a scan to Adam, and the embedding to Muon.
#
# By default exactly the leaves of two dimensions are orthogonalised. Matrices of all layers in one array [layers, in, out],
# as nn.scan and MaxText keep them, have three and fall to Adam without a word; the embedding and the output, which Muon's
# author leaves to Adam, have two and go to Muon. Seen with optax 0.2.8: the first update of a matrix that stands alone is
# near orthogonal (singular values within 1.7 of one another), of the same matrix in a stack it is the gradient's sign.
# `muon_weight_dimension_numbers` is the cure for both.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import jax
import jax.numpy as jnp
import optax

params = {"embedding": jnp.ones((50, 8)), "stacked": jnp.ones((4, 8, 8)), "alone": jnp.ones((8, 8))}
layer = jax.random.normal(jax.random.key(0), (8, 8))
gradients = {"embedding": jax.random.normal(jax.random.key(1), (50, 8)), "stacked": jnp.stack([layer] * 4), "alone": layer}
optimizer = optax.contrib.muon(1e-2)
updates, _ = optimizer.update(gradients, optimizer.init(params), params)
alone = updates["alone"]
slice_of_stack = updates["stacked"][0]


def spread(x):
    values = jnp.linalg.svd(x, compute_uv=False)
    return float(values[0] / values[-1])


gram = updates["embedding"].T @ updates["embedding"]
off_diagonal = float(jnp.abs(gram - jnp.diag(jnp.diag(gram))).max() / jnp.diag(gram).mean())
signs = bool(jnp.all(jnp.sign(slice_of_stack) == -jnp.sign(layer)))
flat = float(jnp.abs(slice_of_stack).max() / jnp.abs(slice_of_stack).min())
print(f"optax {optax.__version__}: spread of singular values {spread(alone):.1f} alone, {spread(slice_of_stack):.1f} in a stack")
print(f"the stack's update is the gradient's sign: {signs}, entries within {flat:.2f} of one another")
print(f"the embedding's update is near orthogonal: columns overlap by {off_diagonal:.2f}")
assert signs and flat < 1.01, "a slice of a stack is orthogonalised"
assert spread(slice_of_stack) > 1.5 * spread(alone) and off_diagonal < 0.5, "the embedding goes to Adam"
END
