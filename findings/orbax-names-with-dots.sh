#!/bin/sh
# orbax writes the arrays of {"a.b": x} and {"a": {"b": y}} to one place: one of them is lost, without a word.
#
# An array's place in a checkpoint is its path with dots between the keys, and a dot inside of a key is not escaped. Names
# of PyTorch ("layers.0") beside a nested tree can meet so. The metadata names both; of arrays of one shape and dtype both
# come back as one of the two, which of them may change from save to save; of two shapes the save fails. A slash is safe.
# Seen with orbax-checkpoint 0.12.8: of eight pairs all came back equal.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'END'
import importlib.metadata
import pathlib
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
lost = {}
for mark in (".", "/"):
    flat = {f"layer_{i}{mark}w": jnp.full(4, 1.0) for i in range(8)}
    nested = {f"layer_{i}": {"w": jnp.full(4, 2.0)} for i in range(8)}
    with ocp.StandardCheckpointer() as checkpointer:
        place = pathlib.Path(sys.argv[1]) / ("dots" if mark == "." else "slashes")
        checkpointer.save(place, {**flat, **nested})
        checkpointer.wait_until_finished()
        found = checkpointer.restore(place)
    both = [(float(found[f"layer_{i}{mark}w"][0]), float(found[f"layer_{i}"]["w"][0])) for i in range(8)]
    lost[mark] = [one == two for one, two in both]
    print(f"1 in layer_i{mark}w and 2 in layer_i, w, come back as {both}")
assert all(lost["."]) and not any(lost["/"]), "arrays with a dot in their names are kept apart"
print("as seen: of two arrays with one dotted name one is lost")
END
