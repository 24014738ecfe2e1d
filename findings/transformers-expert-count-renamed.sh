#!/bin/sh
# transformers 5 renames num_experts to num_local_experts in the config.json of a Qwen3-MoE.
#
# A published Qwen3-MoE says num_experts. Read and saved again, the file says num_local_experts and no longer has the other,
# and rope_theta has moved into rope_parameters. A reader that knows only the published names finds neither and takes its
# defaults. Seen with transformers 5.24.0.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
"$folder/venv/bin/python" - <<'END'
import json
import pathlib
import tempfile

import transformers

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "config.json").write_text(json.dumps(dict(model_type="qwen3_moe", num_experts=6, rope_theta=500000.0)))
transformers.Qwen3MoeConfig.from_pretrained(folder).save_pretrained(folder / "again")
written = json.loads((folder / "again" / "config.json").read_text())
seen = {name: written.get(name) for name in ("num_experts", "num_local_experts", "rope_theta", "rope_parameters")}
print(f"transformers {transformers.__version__}:", seen)
assert seen["num_experts"] is None and seen["num_local_experts"] == 6, "num_experts is written"
assert seen["rope_theta"] is None and seen["rope_parameters"]["rope_theta"] == 500000.0, "rope_theta is written"
END
