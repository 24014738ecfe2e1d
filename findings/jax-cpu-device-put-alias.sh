#!/bin/sh
# JAX on CPUs, device_put(x, may_alias=False): asked for a copy, it still shares the memory of a NumPy array that lies at
# a multiple of 64 bytes, and one that does not it copies. Whoever writes to the NumPy array afterwards (a buffer that is
# filled again for the next tensor of a file) changes the JAX array, or does not, by the array's address.
#
# Seen with jax 0.10.2 and numpy 2.4.6: of the array at a multiple of 64 the JAX array reads 7 after the
# NumPy array was set to 7; of the one 4 bytes on it keeps its 0. jnp.array(x, copy=True) keeps its 0 in both cases.
# A copy has to be made by hand (numpy's copy, or jnp.array) before the buffer is written again.
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

COUNT = 1024


def seen(offset, put):
    """What a JAX array reads after the NumPy array that it was made from, so many bytes off a multiple of 64, is 7."""
    memory = np.zeros(COUNT * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    x = memory[start : start + COUNT * 4].view(np.float32)
    there = jax.block_until_ready(put(x))
    x[:] = 7
    return float(there[0])


asked = {name: [seen(offset, put) for offset in (0, 4)] for name, put in {
    "device_put(x, may_alias=False)": lambda x: jax.device_put(x, may_alias=False),
    "jnp.array(x, copy=True)": lambda x: jnp.array(x, copy=True),
}.items()}
for name, values in asked.items():
    print(f"{name}: {values[0]:g} at a multiple of 64 bytes, {values[1]:g} 4 bytes on")
assert asked == {"device_put(x, may_alias=False)": [7.0, 0.0], "jnp.array(x, copy=True)": [0.0, 0.0]}, asked
print("as seen: what was to be a copy shares memory where the address allows it")
EOF
