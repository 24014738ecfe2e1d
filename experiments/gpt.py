"""GPT-2 (Radford et al., 2019, "Language models are unsupervised multitask learners"), small, and its published sizes;
and gpt-oss (2508.10925), OpenAI's open weights of today.

    lm train experiments.gpt

The text, the tokenizer and the batches are the quickstart's.

Measured: 2.02 bits per byte on code and 2.18 on prose after 240 steps (about 3 minutes on 2 CPU cores).
"""

from typing import Any

from experiments.quickstart import experiment as quickstart
from lm.model.families import gpt, gpt_oss

experiment = quickstart.replace(
    name="gpt",
    model=gpt(vocab=4096, layers=4, width=256, heads=4, context=256),
)

# Table 2 of the paper; the code that came with it fixes the heads
gpt2 = gpt(vocab=50257, layers=12, width=768, heads=12, context=1024)
gpt2_medium = gpt(vocab=50257, layers=24, width=1024, heads=16, context=1024)
gpt2_large = gpt(vocab=50257, layers=36, width=1280, heads=20, context=1024)
gpt2_xl = gpt(vocab=50257, layers=48, width=1600, heads=25, context=1024)

# Table 1 of 2508.10925
_OSS: dict[str, Any] = dict(vocab=201088, width=2880, heads=64, kv_heads=8, head_dim=64, mlp=2880, context=131072)
gpt_oss_20b = gpt_oss(layers=24, experts=32, **_OSS)
gpt_oss_120b = gpt_oss(layers=36, experts=128, **_OSS)
