#!/bin/sh
# transformers 5 before 5.24 scales the output of an umT5 whose config says that it is not tied.
#
# umT5's published files have an output matrix of their own and tie_word_embeddings=false, and their logits are those of the
# decoder's last states as they are. transformers 5.23 forces the flag to true as it reads a config.json, and its forward pass
# multiplies those states by d_model**-0.5 where the flag is true: the weights stay apart, the logits shrink (28 times at
# d_model=768), and what is sampled at temperature 1 is close to noise. Greedy text is the same. Seen with transformers
# 5.23.0 and torch 2.13.0: logits are 0.354 times those of the output matrix at d_model=8.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'END'
import json
import pathlib
import tempfile

import torch
import transformers

folder = pathlib.Path(tempfile.mkdtemp())
declared = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16, decoder_start_token_id=0)
(folder / "config.json").write_text(json.dumps(dict(model_type="umt5", tie_word_embeddings=False, **declared)))
model = transformers.UMT5ForConditionalGeneration(transformers.UMT5Config.from_pretrained(folder)).eval()
with torch.no_grad():
    model.lm_head.weight = torch.nn.Parameter(torch.randn(16, 8))
    ids = torch.tensor([[3, 4, 5]])
    found = model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    wanted = model.lm_head(model.decoder(ids, encoder_hidden_states=model.encoder(ids)[0])[0])
ratio = float((found.logits / wanted).mean())
print(f"transformers {transformers.__version__}: tie_word_embeddings=False is read as {model.config.tie_word_embeddings},")
print(f"and logits are {ratio:.3f} times those of the output matrix; 8**-0.5 is {8**-0.5:.3f}")
assert model.config.tie_word_embeddings and abs(ratio - 8**-0.5) < 1e-3, "an umT5 that is not tied is not scaled"
END
