#!/bin/sh
# orbax's partial_restore gives the placeholder back for a key that the checkpoint does not have.
#
# With partial_restore=True the target may have fewer keys than the file. One that the file lacks raises nothing: the
# ShapeDtypeStruct that stood for it comes back as the leaf, and fails only where it is used, or is written into the next
# checkpoint. Without partial_restore the same target is refused. Seen with orbax-checkpoint 0.12.8.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import importlib.metadata
import pathlib
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp

folder = pathlib.Path(tempfile.mkdtemp()) / "checkpoint"
checkpointer = ocp.PyTreeCheckpointer()
checkpointer.save(folder, {"here": np.ones(3, np.float32)})
target = {name: jax.ShapeDtypeStruct((3,), np.float32) for name in ("here", "missing")}
try:
    checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=target))
    strict = "taken"
except ValueError:
    strict = "refused"
found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=target, partial_restore=True))
print(f"orbax-checkpoint {importlib.metadata.version('orbax-checkpoint')}: {strict} when strict; when partial", found)
assert strict == "refused" and isinstance(found["missing"], jax.ShapeDtypeStruct), "a missing key is noticed"
END
