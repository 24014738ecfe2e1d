#!/bin/sh
# XLA's CPU compiler takes over twice as long with its fusion emitters, which are on by default, without optimization too.
#
# xla_backend_optimization_level=0 is known as the way to compile fast where programs run once, in tests for instance. More
# than half of what is left is the emitters' own pipeline (MLIR), which --xla_cpu_use_fusion_emitters=false leaves out.
# Seen with jax 0.10.2: the gradient of two layers of attention, CPU seconds of `compile`, the least of three: 0.34 and 0.14.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
cat > "$folder/seconds.py" <<'END'
import resource

import jax
import jax.numpy as jnp


def norm(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def loss(params, x):
    for q, k, v, out, up, down in params:
        h = norm(x)
        scores = jnp.einsum("btd,bsd->bts", h @ q, h @ k)
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -1e9)
        x = x + jax.nn.softmax(scores) @ (h @ v) @ out
        x = x + jax.nn.silu(norm(x) @ up) @ down
    return (norm(x) ** 3).mean()


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


layer = [jnp.ones((16, 16))] * 4 + [jnp.ones((16, 32)), jnp.ones((32, 16))]
seconds = []
for _ in range(3):
    jax.clear_caches()
    lowered = jax.jit(jax.value_and_grad(loss)).lower([layer] * 2, jnp.ones((2, 8, 16)))
    before = cpu()
    lowered.compile()
    seconds.append(cpu() - before)
print(min(seconds))
END
base=--xla_backend_optimization_level=0
with=$(JAX_PLATFORMS=cpu XLA_FLAGS=$base "$folder/venv/bin/python" "$folder/seconds.py")
without=$(JAX_PLATFORMS=cpu XLA_FLAGS="$base --xla_cpu_use_fusion_emitters=false" "$folder/venv/bin/python" "$folder/seconds.py")
echo "CPU seconds to compile: $with with fusion emitters, $without without"
"$folder/venv/bin/python" -c "assert $with > 1.8 * $without, 'the fusion emitters cost less than they did'"
