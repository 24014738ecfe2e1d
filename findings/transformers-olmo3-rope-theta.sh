#!/bin/sh
# transformers 5 reads the rope_theta of an OLMo 3 config for its full-attention layers alone.
#
# Files from before version 5 say one rope_theta for all layers. Olmo3Config pops the field for the full-attention layers
# and then pops it again for those with a window, which find nothing left and take the class's 500000: a model with another
# theta is silently computed with two. Seen with transformers 5.23.0; rope_parameters with both written out is read right.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0
"$folder/venv/bin/python" - <<'END'
import transformers

found = transformers.Olmo3Config.from_dict({"rope_theta": 10000.0}).rope_parameters
seen = {kind: found[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")}
print("rope_theta 10000 is read as", seen)
raise SystemExit(seen != {"full_attention": 10000.0, "sliding_attention": 500000.0})
END
