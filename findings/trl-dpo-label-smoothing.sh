#!/bin/sh
# TRL's DPO trains the same with and without label_smoothing, in its default loss.
#
# DPOConfig(label_smoothing=0.4) is conservative DPO: a pair is taken for turned round with this probability. TRL 1.16.0
# takes the option and reads it in the losses robust, exo_pair, aot and aot_unpaired; in sigmoid, the default, the losses of
# every step are the same to the last bit, and nothing is said.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check trl==1.16.0 transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'END'
import tempfile

import tokenizers
import torch
import transformers
import trl
from datasets import Dataset

words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
chosen, rejected = [" c d", " e", " f g", " h"], [" d", " f e", " g", " a b"]
pairs = Dataset.from_dict({"prompt": ["a b"] * 4, "chosen": chosen, "rejected": rejected})


def losses(**options):
    torch.manual_seed(0)
    size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=len(words))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, pad_token_id=0, eos_token_id=1))
    quiet = dict(report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True)
    sizes = dict(max_steps=3, per_device_train_batch_size=4, learning_rate=0.1, use_cpu=True, bf16=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        args = trl.DPOConfig(output_dir=folder, **sizes, **quiet, **options)
        trainer = trl.DPOTrainer(model=folder, args=args, train_dataset=pairs, processing_class=tokenizer)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


plain, smooth = losses(), losses(label_smoothing=0.4)
robust = losses(label_smoothing=0.4, loss_type=["robust"])
print(f"trl {trl.__version__}: without {plain}, with label_smoothing=0.4 {smooth}, in the loss robust {robust}")
assert plain == smooth != robust, "label_smoothing is used"
END
