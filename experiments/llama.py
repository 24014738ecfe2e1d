"""LLaMA (2302.13971), Llama 2 (2307.09288) and Llama 3 (2407.21783): a small one, and the published sizes.

    lm train experiments.llama

The text, the tokenizer and the batches are the quickstart's; so is the model, but for the optimizer, AdamW as in the
papers.

Measured: 2.25 bits per byte on code and 2.39 on prose after 240 steps; with Muon, as the quickstart has it, 1.90 and
2.09 (about 3 minutes on 2 CPU cores).
"""

from typing import Any

from experiments.quickstart import experiment as quickstart
from lm.model.families import llama
from lm.model.scaling import Llama3
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

experiment = quickstart.replace(
    name="llama",
    model=llama(vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=768, context=256, tied=True),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=20)),
)

# Table 2 of 2302.13971
_1: dict[str, Any] = dict(vocab=32000, context=2048, eps=1e-6)
llama_7b = llama(layers=32, width=4096, heads=32, mlp=11008, **_1)
llama_13b = llama(layers=40, width=5120, heads=40, mlp=13824, **_1)
llama_33b = llama(layers=60, width=6656, heads=52, mlp=17920, **_1)
llama_65b = llama(layers=80, width=8192, heads=64, mlp=22016, **_1)

# Table 1 of 2307.09288
_2: dict[str, Any] = dict(vocab=32000, context=4096)
llama2_7b = llama(layers=32, width=4096, heads=32, mlp=11008, **_2)
llama2_13b = llama(layers=40, width=5120, heads=40, mlp=13824, **_2)
llama2_70b = llama(layers=80, width=8192, heads=64, kv_heads=8, mlp=28672, **_2)

# Table 3 of 2407.21783; the rotation of 3.1 and of the small models of 3.2 is stretched
_3: dict[str, Any] = dict(vocab=128256, kv_heads=8, theta=5e5)
llama3_8b = llama(layers=32, width=4096, heads=32, mlp=14336, context=8192, **_3)
llama3_70b = llama(layers=80, width=8192, heads=64, mlp=28672, context=8192, **_3)
_3_1: dict[str, Any] = dict(context=131072, scaling=Llama3(factor=8.0), **_3)
llama3_1_8b = llama(layers=32, width=4096, heads=32, mlp=14336, **_3_1)
llama3_1_70b = llama(layers=80, width=8192, heads=64, mlp=28672, **_3_1)
llama3_1_405b = llama(layers=126, width=16384, heads=128, mlp=53248, **_3_1)
_3_2: dict[str, Any] = dict(context=131072, scaling=Llama3(factor=32.0), tied=True, **_3)
llama3_2_1b = llama(layers=16, width=2048, heads=32, mlp=8192, **_3_2)
llama3_2_3b = llama(layers=28, width=3072, heads=24, mlp=8192, **_3_2)
