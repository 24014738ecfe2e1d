#!/bin/sh
# JAX on CPUs: the same program on the same machine gives other bits on another number of cores. A product that sums over
# the rows of both sides, as a weight's gradient sums over tokens, and a sum over rows are cut between threads, and the
# parts added; a product that sums over the columns of its first side is not. So a run under taskset, in a container with fewer
# cores, or as one of several processes with a share of the cores each, is not the run that had all of them, to the bit.
#
# Seen with jax 0.10.2 on x86-64 (AVX-512), float32 and bfloat16, 1 core and 2: x @ w had the same bits, x.T @ y and
# x.sum(0) other ones, in the last digits.
# Needs Linux, taskset, two or more cores, Python 3.11 or newer and PyPI; exits with 0 while that is so, and with 1 when not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/sums.py" <<'EOP'
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))
x, y, w = draw(2048, 256), draw(2048, 1024), draw(256, 1024)
sums = {
    "x@w": lambda x, y, w: x @ w,
    "x.T@y": lambda x, y, w: x.T @ y,
    "x.T@y,bfloat16": lambda x, y, w: x.T.astype("bfloat16") @ y.astype("bfloat16"),
    "x.sum(0)": lambda x, y, w: x.sum(0),
}
for name, compute in sums.items():
    print(name, hashlib.sha256(np.asarray(jax.jit(compute)(x, y, w)).tobytes()).hexdigest()[:12])
EOP
cores=$("$folder/venv/bin/python" -c "import os; print(*sorted(os.sched_getaffinity(0))[:2], sep=',')")
for some in "${cores%,*}" "$cores"; do
  JAX_PLATFORMS=cpu taskset -c "$some" "$folder/venv/bin/python" "$folder/sums.py" > "$folder/$some"
done
paste -d ' ' "$folder/${cores%,*}" "$folder/$cores"
"$folder/venv/bin/python" - "$folder/${cores%,*}" "$folder/$cores" <<'EOP'
import sys

one, two = (dict(line.split() for line in open(file)) for file in sys.argv[1:])
changed = [name for name in one if one[name] != two[name]]
print("other bits on two cores than on one:", ", ".join(changed))
assert changed == ["x.T@y", "x.T@y,bfloat16", "x.sum(0)"]
print("as seen: what is summed over rows depends on the number of cores")
EOP
