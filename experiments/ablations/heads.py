"""How many heads of keys and values? Multi-head, grouped and multi-query attention, at equal FLOPs.

    lm study experiments.ablations.heads

Ainslie et al. (2305.13245, table 1) find grouped heads between the two and nearly as good as multi-head, multi-query
slightly worse; what one buys is the cache. In bfloat16 this model keeps 1,152 bytes a token with 4 heads, 576 with 2,
288 with 1 (2 x 3 layers x heads x 24 x 2 bytes).

Measured (3.5 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
multi-head paired by 3 seeds with its 95% interval, p after Holm):

    multi-head     2.755                                    1,152 bytes a token
    grouped        2.729   -0.025 [-0.032, -0.019]  p 0.003   576
    multi-query    2.717   -0.038 [-0.044, -0.032]  p 0.003   288

Not found: the paper's order, which holds the steps. At equal FLOPs what fewer heads save is spent on 6 and 9% more
steps, which at so short a run is worth more than the heads.
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
