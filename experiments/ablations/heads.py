"""How many heads of keys and values? Multi-head, grouped and multi-query attention, at equal FLOPs.

    lm study experiments.ablations.heads

Ainslie et al. (2305.13245, table 1) find grouped heads between the two and nearly as good as multi-head, multi-query
slightly worse; what one buys is the cache. In bfloat16 this model keeps 1,152 bytes a token with 4 heads, 576 with 2,
288 with 1 (2 x 3 layers x heads x 24 x 2 bytes).

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.study.ablation import Ablation

heads = Ablation(
    small,
    arms={
        "multi-head": {},
        "grouped": dict(model=dict(attention=dict(kv_heads=2))),
        "multi-query": dict(model=dict(attention=dict(kv_heads=1))),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
