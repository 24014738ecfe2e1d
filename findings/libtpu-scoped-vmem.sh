#!/bin/sh
# libtpu's compiler: xla_tpu_scoped_vmem_limit_kib, the vector memory that one kernel may take, as an option of one
# program (jax.jit's compiler_options), without a chip (jax.experimental.topologies). What it does without the option
# differs by chip, more of it is not better, and where a chip has no more, nothing says so.
#
# Seen with jax 0.10.2 and libtpu 0.0.42.1, tanh(a @ b) @ b, 8192 x 8192 in bfloat16, rows over four chips, by the sum of
# the compiler's own estimated cycles: v5e is as with 16 MiB and best with 64, but with 117 MiB slower than without the
# option; v5p is as with 16 and better with 64; v6e is as with 32 and slower with 64; on v4 the option is taken and
# changes nothing. So a limit that helps on one chip belongs to that chip, and a search has to compile with it.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 requests
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_STDERR_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'EOF'
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIZE = 8192


def cycles(chips, mib):
    """The compiler's estimate of the program on `chips`, kernels taking up to so many MiB; None: without the option."""
    devices = topologies.get_topology_desc(chips, "tpu").devices
    mesh = Mesh(np.array(devices).reshape(-1), ("data",))

    def argument(*axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16, sharding=sharding)

    options = {} if mib is None else {"xla_tpu_scoped_vmem_limit_kib": str(1024 * mib)}
    program = jax.jit(lambda a, b: jnp.tanh(a @ b) @ b, compiler_options=options)
    text = program.lower(argument("data"), argument()).compile().as_text()
    return sum(int(n) for n in re.findall(r'estimated_cycles":"(\d+)"', text))


found = {}
for chips, limits in {"v4:2x2x1": (16, 64), "v5e:2x2": (16, 64, 117), "v5p:2x2x1": (16, 64), "v6e:2x2": (32, 64)}.items():
    plain = cycles(chips, None)
    found[chips] = [round(cycles(chips, mib) / plain, 3) for mib in limits]
    print(chips, f"{plain:,} cycles; with", ", ".join(f"{m} MiB: {x} x" for m, x in zip(limits, found[chips])))
v4, (v5e16, v5e64, v5e117), (v5p16, v5p64), (v6e32, v6e64) = found.values()
assert v4 == [1.0, 1.0], v4
assert v5e64 < v5e16 == 1.0 < v5e117, found
assert v5p64 < v5p16 == 1.0, found
assert v6e64 > v6e32 == 1.0, found
print("as seen: the default is the chip's, more is not always better, and v4 ignores the option")
EOF
