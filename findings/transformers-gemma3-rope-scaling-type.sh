#!/bin/sh
# transformers 5 scales a Llama by rope_scaling {"type": "linear"} and a Gemma 3 not at all.
#
# Configs from before transformers 4.43 name the scaling `type`, later ones `rope_type`. For Llama both mean the same. Gemma
# 3's class sorts rope_scaling under its full-attention layers first and looks for rope_type alone there: the older name is
# kept as a stranger, the scaling is "default", and the model runs as if it had no `factor`, after one warning of an unrecognized
# key. Seen with transformers 5.24.0.
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


def rope(cls, scaling):
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps({"model_type": cls.model_type, "rope_scaling": scaling}))
    found = cls.from_pretrained(folder).rope_parameters
    return found.get("full_attention", found)["rope_type"]


seen = {
    (cls.__name__, name): rope(cls, {name: "linear", "factor": 8.0})
    for cls in (transformers.LlamaConfig, transformers.Gemma3TextConfig)
    for name in ("type", "rope_type")
}
print(f"transformers {transformers.__version__}:", seen)
assert seen.pop(("Gemma3TextConfig", "type")) == "default", "the older name is read for Gemma 3 too"
assert set(seen.values()) == {"linear"}, "another class or name is not scaled"
END
