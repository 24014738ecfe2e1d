#!/bin/sh
# TRL's CISPO clips every token of an on-policy step by default.
#
# CISPO weighs a token's log-probability by its importance ratio, up to a cap of 1 + epsilon_high in the paper. In TRL
# 1.16.0 epsilon_high is the cap itself, and its default, that of GRPO's epsilon, is 0.2: the ratios of a first step, which
# are 1, are all above it. The gradient is a fifth of what it is without a cap, and the clip ratio counts the tokens of
# positive advantage. epsilon_high=1.2 is what 0.2 means elsewhere.
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
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def first_step(**options):
    torch.manual_seed(0)
    size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=len(words))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, pad_token_id=0, eos_token_id=1))
    quiet = dict(report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True)
    sizes = dict(max_steps=1, per_device_train_batch_size=8, num_generations=8, max_completion_length=6)
    with tempfile.TemporaryDirectory() as folder:
        given = dict(loss_type="cispo", use_cpu=True, bf16=False, **options)
        args = trl.GRPOConfig(output_dir=folder, **sizes, **quiet, **given)
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list("abcd")}),
            processing_class=tokenizer,
        )
        trainer.train()
    line = trainer.state.log_history[0]
    return line["cispo_clip_ratio"], line["grad_norm"]


(default, small), (wide, whole) = first_step(), first_step(epsilon_high=5.0)
print(f"trl {trl.__version__}: of a first step's tokens, whose ratios are 1, {default:.0%} are clipped by default")
print(f"and {wide:.0%} with epsilon_high=5.0; the gradient's norm is {small / whole:.2f} of that")
assert default > 0.2 and wide == 0 and abs(small / whole - 0.2) < 0.05, "the cap is above 1"
END
