#!/bin/sh
# PEFT says that it ignores a rank_pattern of a parameter, and applies it.
#
# target_parameters adapts arrays that are no module's own weight, as the stacked experts of Mixtral in transformers 5.
# With a rank_pattern for one of them PEFT 0.21.2 warns that its keys "did not match any targeted module and were
# ignored". The factors have the pattern's rank all the same, and are scaled by alpha over that rank: who trusts the
# message and sets r for all instead trains another adapter. (Of a module's weight a pattern gives no such message.)
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'END'
import warnings

import peft
import torch
import transformers

sizes = dict(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
experts = dict(intermediate_size=12, num_local_experts=3, num_experts_per_tok=2)


def adapted(**patterns):
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **experts))
    targets = dict(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=8, **targets, **patterns))
    said = [str(one.message) for one in caught if "rank_pattern keys did not match" in str(one.message)]
    return said, dict(model.named_parameters())


def rank(parameters, name):
    return next(p.shape[0] for n, p in parameters.items() if name in n and "lora_A" in n)


said, parameters = adapted(rank_pattern={r".*\.down_proj": 5})
_, plain = adapted()
of_module, _ = adapted(rank_pattern={"q_proj": 5})
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}:")
print(f"said: {said[0] if said else 'nothing'}")
print(f"rows of the experts' A: {rank(parameters, 'experts')} with the pattern, {rank(plain, 'experts')} without (3 experts)")
assert said and "ignored" in said[0], "no message any more"
assert rank(plain, "experts") == 3 * 2 and rank(parameters, "experts") == 3 * 5, "the pattern is ignored indeed"
assert not of_module, "a module's pattern gives the message too"
END
