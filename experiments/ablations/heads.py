"""How many heads of keys and values? Multi-head, grouped and multi-query attention, at equal FLOPs.

    lm study experiments.ablations.heads

Ainslie et al. (2305.13245, table 1) find grouped heads between the two and nearly as good as multi-head, multi-query
slightly worse; what one buys is the cache. In bfloat16 this model keeps 1,536 bytes a token with 4 heads, 768 with 2,
384 with 1 (2 x 3 layers x heads x 32 x 2 bytes).

Measured (11 minutes on 2 busy CPU cores; mean bits per byte over the sources, differences paired by 3 seeds):

    multi-head     2.436
    grouped        2.419   -0.018 [-0.058, 0.022]
    multi-query    2.405   -0.031 [-0.114, 0.051]

At equal FLOPs the data cannot tell: what fewer heads save is spent on 4 to 6% more steps. The order of the paper, which
holds the steps, is not found again at this scale; about 11 seeds would show a difference of this size.
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
