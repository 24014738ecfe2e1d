#!/bin/sh
# JAX on CPUs, jax_cpu_enable_async_dispatch=False: a jitted function then runs when it is called, in the calling thread,
# but not where one of its arguments is still being copied. `device_put` of a large NumPy array returns before its copy
# is made, so the call that follows is dispatched as if the option were not set; its result is not ready either, and so
# are not the arguments of the next call that takes it: a training loop stays asynchronous from its first large batch on.
#
# Seen with jax 0.10.2 and numpy 2.4.6, a product of some hundred milliseconds that is given its last result and a batch:
# with a batch of 4 kB, or one of 16 MB that was waited for (block_until_ready), five calls return with their results
# there; with one of 16 MB straight from device_put none of the five has its result when it returns.
# Whoever sets the option for the memory (each dispatched step has temporaries of its own) must wait for the batch.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_cpu_enable_async_dispatch", False)
step = jax.jit(lambda state, batch: state @ state / jnp.linalg.norm(state) + batch.sum())
first = jax.block_until_ready(jnp.ones((2500, 2500)))
large = np.zeros(2**22 + 1, np.float32)[1:]  # at no multiple of 64 bytes, so that it has to be copied


def ready(place, batch):
    """Of five steps, how many have their result when the call returns."""
    state, found = jax.block_until_ready(step(first, jnp.zeros_like(place(batch)))), 0
    for _ in range(5):
        state = step(state, place(batch))
        found += state.is_ready()
    jax.block_until_ready(state)
    return found


def waited(batch):
    return jax.block_until_ready(jax.device_put(batch))


found = {
    "4 kB, device_put": ready(jax.device_put, large[:1000]),
    "16 MB, device_put and block_until_ready": ready(waited, large),
    "16 MB, device_put": ready(jax.device_put, large),
}
for what, count in found.items():
    print(f"{what}: {count} of 5 calls return with their result")
assert list(found.values()) == [5, 5, 0], found
print("as seen: a call with an argument that is still copied is asynchronous all the same")
EOF
