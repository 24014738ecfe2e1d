#!/bin/sh
# transformers 5 writes tie_word_embeddings=true for a T5 v1.1 whose config says false.
#
# T5 v1.1 has an output matrix of its own. A config.json with tie_word_embeddings=false reads and writes back as true, beside
# a new field scale_decoder_outputs=false; the file of weights still holds lm_head.weight, which is used. Whoever follows the
# rule of transformers 4, "tied: share the embedding and scale by d_model**-0.5", gets wrong logits from such a folder. What
# tells the two apart is scale_decoder_outputs, or lm_head.weight. Seen with transformers 5.24.0.
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
declared = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16, feed_forward_proj="gated-gelu")
(folder / "config.json").write_text(json.dumps(dict(model_type="t5", tie_word_embeddings=False, **declared)))
transformers.T5Config.from_pretrained(folder).save_pretrained(folder / "again")
written = json.loads((folder / "again" / "config.json").read_text())
seen = {name: written.get(name) for name in ("tie_word_embeddings", "scale_decoder_outputs")}
print(f"transformers {transformers.__version__}: false is written back as", seen)
assert seen == {"tie_word_embeddings": True, "scale_decoder_outputs": False}, "the flag survives"
END
