"""Mistral 7B (2310.06825): a sliding window in every layer, small, and the published size.

    lm train experiments.mistral

The text, the tokenizer and the batches are the quickstart's. A layer sees 64 tokens, and four layers see 253.

Measured: 1.87 bits per byte on code and 2.06 on prose after 240 steps (about 3 minutes on 2 CPU cores).
"""

from typing import Any

from experiments.quickstart import experiment as quickstart
from lm.model.families import mistral

experiment = quickstart.replace(
    name="mistral",
    model=mistral(vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=768, context=256, window=64, tied=True),
)

# Table 1 of the paper; version 0.2 has no window and a larger theta
_7B: dict[str, Any] = dict(vocab=32000, layers=32, width=4096, heads=32, kv_heads=8, mlp=14336, context=32768)
mistral_7b = mistral(**_7B)
mistral_7b_v02 = mistral(window=0, theta=1e6, **_7B)
