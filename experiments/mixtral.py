"""Mixtral 8x7B (2401.04088): experts, of which each token takes two, small, and the published sizes.

    lm train experiments.mixtral

The text, the tokenizer and the batches are the quickstart's. The logged `balance` and `router_z` are the losses that
keep the experts evenly used and their logits small (2101.03961, 2202.08906).

Measured: 1.92 bits per byte on code and 2.10 on prose after 240 steps (about 5 minutes on 2 CPU cores).
"""

from experiments.quickstart import experiment as quickstart
from lm.model.families import mixtral

experiment = quickstart.replace(
    name="mixtral",
    model=mixtral(
        vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=384, experts=4, context=256, theta=1e4, tied=True
    ),
)

# Table 1 of the paper, and the second model of the name
mixtral_8x7b = mixtral(vocab=32000, layers=32, width=4096, heads=32, kv_heads=8, mlp=14336, context=32768)
mixtral_8x22b = mixtral(vocab=32768, layers=56, width=6144, heads=48, kv_heads=8, mlp=16384, context=65536)
