"""Dense or experts? As many active FLOPs a token: 2 chosen experts of half the width, of 4 and of 8.

    lm study experiments.ablations.experts

Fedus et al. (2101.03961) and Jiang et al. (2401.04088) find more experts better at equal FLOPs. The router's own FLOPs
count: 0.2 and 0.5%, less than a step of the 100.

Measured (5 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
dense paired by 3 seeds with its 95% interval, p after Holm; then all parameters):

    dense     2.755                                     431,000
    2-of-4    2.765    0.011 [-0.001, 0.022]  p 0.106     653,000
    2-of-8    2.734   -0.021 [-0.042, 0.001]  p 0.106   1,097,000

Cannot be told: 8 experts look better than dense and 4 do not; about 4 seeds would show differences of this size.
"""

from experiments.ablations.small import experiment as small
from lm.model.experts import Experts
from lm.study.ablation import Ablation


def chosen_of(experts: int) -> Experts:
    """Two of `experts`, each half as wide as the dense feed-forward."""
    return Experts(mlp=128, activation="silu", gated=True, experts=experts, top_k=2, load_balance_weight=0.01)


experts = Ablation(
    small,
    arms={
        "dense": {},
        "2-of-4": dict(model=dict(ffn=chosen_of(4))),
        "2-of-8": dict(model=dict(ffn=chosen_of(8))),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
