"""Gemma (2403.08295), Gemma 2 (2408.00118) and Gemma 3 (2503.19786), Gemini's open family: a small Gemma 3 (local and
global layers with a theta each, q/k norm, norms around each sublayer), and the published sizes; of Gemma 4 the one with
experts.

    lm train experiments.gemma

The text, the tokenizer and the batches are the quickstart's.

Measured: 1.75 bits per byte on code and 1.94 on prose after 240 steps (about 3 minutes on 2 CPU cores).
"""

from dataclasses import replace
from typing import Any

from experiments.quickstart import experiment as quickstart
from lm.model.families import gemma, gemma2, gemma3, gemma3_vision
from lm.model.hybrids import gemma4_moe
from lm.model.scaling import Linear

experiment = quickstart.replace(
    name="gemma",
    model=gemma3(
        vocab=4096, layers=4, width=256, heads=4, head_dim=64, kv_heads=2, mlp=768, context=256, window=64, every=4
    ),
)

# Table 1 of 2403.08295
_1: dict[str, Any] = dict(vocab=256000, head_dim=256, context=8192)
gemma_2b = gemma(layers=18, width=2048, heads=8, kv_heads=1, mlp=16384, **_1)
gemma_7b = gemma(layers=28, width=3072, heads=16, mlp=24576, **_1)

# Table 1 of 2408.00118; 27B scales its queries by (width / heads)^-0.5
_2: dict[str, Any] = dict(vocab=256000, context=8192)
gemma2_2b = gemma2(layers=26, width=2304, heads=8, kv_heads=4, head_dim=256, mlp=9216, **_2)
gemma2_9b = gemma2(layers=42, width=3584, heads=16, kv_heads=8, head_dim=256, mlp=14336, **_2)
gemma2_27b = gemma2(layers=46, width=4608, heads=32, kv_heads=16, head_dim=128, mlp=36864, query_scale=144**-0.5, **_2)

# Tables 1 and 2 of 2503.19786, the text models
_3: dict[str, Any] = dict(head_dim=256)
gemma3_1b = gemma3(vocab=262144, layers=26, width=1152, heads=4, kv_heads=1, mlp=6912, context=32768, **_3)
_3_LONG: dict[str, Any] = dict(vocab=262208, context=131072, window=1024, scaling=Linear(8.0))
gemma3_4b = gemma3(layers=34, width=2560, heads=8, kv_heads=4, mlp=10240, **_3, **_3_LONG)
gemma3_12b = gemma3(layers=48, width=3840, heads=16, kv_heads=8, mlp=15360, **_3, **_3_LONG)
gemma3_27b = gemma3(
    layers=62, width=5376, heads=32, kv_heads=16, mlp=21504, head_dim=128, query_scale=168**-0.5, **_3_LONG
)
gemma3_4b_vision, gemma3_12b_vision, gemma3_27b_vision = (
    replace(model, vision=gemma3_vision()) for model in (gemma3_4b, gemma3_12b, gemma3_27b)
)

# config.json of google/gemma-4-26B-A4B, its text_config, and no loss of balance, of which it says nothing
_4: dict[str, Any] = dict(vocab=262144, layers=30, width=2816, heads=16, kv_heads=8, mlp=2112, context=262144)
gemma4_26b_a4b = gemma4_moe(
    **_4, window=1024, full_kv_heads=2, keys_are_values=True, experts=128, expert_mlp=704, load_balance_weight=0.0
)
