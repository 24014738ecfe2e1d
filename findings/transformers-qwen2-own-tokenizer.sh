#!/bin/sh
# transformers' AutoTokenizer does not read the tokenizer.json of a qwen2 model as it stands, whatever tokenizer_class says.
#
# Of most model types it reads it so where tokenizer_config.json has the class PreTrainedTokenizerFast. Of qwen2, qwen3_5,
# qwen3_5_moe and qwen3_5_moe_text that class is held to be a mistake of the files: of tokenizer.json the vocabulary, the
# merges and the control ids around a text are taken, and NFC, Qwen's pattern and GPT-2's alphabet of bytes put in place of
# the file's normalizer, pre-tokenizer and decoder, without a word. Qwen2 is also what a Llama with biases on query, key and
# value is called: one that was trained with a vocabulary of its own is then fed other tokens than in training, and its
# answers are spelled wrongly. PreTrainedTokenizerFast.from_pretrained reads what the file says; a tokenizer that is Qwen's
# but for its vocabulary is the same by both. Seen with transformers 5.24.0 and tokenizers 0.23.3.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder" <<'END'
import json
import pathlib
import sys

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

TEXT = "the cat, 2026"


def pieces(*merges, alphabet):
    """A tokenizer whose vocabulary is an alphabet and what is merged of it."""
    names = [*sorted(alphabet), *(a + b for a, b in merges)]
    return Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=merges))


spaced = pieces(("▁", "c"), ("2", "0"), alphabet="abcdehnt,▁0126")  # SentencePiece's way with spaces
spaced.normalizer, spaced.decoder = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
qwen = pieces(("Ġ", "c"), ("2", "0"), alphabet=pre_tokenizers.ByteLevel.alphabet())
qwen.normalizer, qwen.decoder = normalizers.NFC(), decoders.ByteLevel()
split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
qwen.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

print("transformers", transformers.__version__)
same = {}
for name, tokenizer in (("spaced", spaced), ("qwen", qwen)):
    wanted = tokenizer.encode(TEXT).ids
    for model_type in ("llama", "qwen3", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"):
        folder = pathlib.Path(sys.argv[1]) / f"{name}-{model_type}"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        for reader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
            read = reader.from_pretrained(folder)
            plain = reader is transformers.PreTrainedTokenizerFast
            text = read.decode(wanted)
            same[name, model_type, plain] = read(TEXT)["input_ids"] == wanted and text == TEXT
            if not same[name, model_type, plain]:
                print(f"{name}, {model_type}: {type(read).__name__} has {read.tokenize(TEXT)}, decodes {text!r}")
print("the file of the first has", spaced.encode(TEXT).tokens)
others = {model_type for (_, model_type, _), right in same.items() if not right}
assert others == {"qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"}, f"read otherwise than written: {others}"
assert all(right for (name, _, plain), right in same.items() if plain or name == "qwen"), "others are read otherwise too"
print("as seen: of these four types tokenizer.json is read otherwise than it is written")
END
