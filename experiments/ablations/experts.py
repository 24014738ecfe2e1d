"""Dense or experts? As many active FLOPs a token: 2 chosen experts of half the width, of 4 and of 8.

    lm study experiments.ablations.experts

Fedus et al. (2101.03961) and Jiang et al. (2401.04088) find more experts better at equal FLOPs. The router's own FLOPs
count, so the arms take a few steps less.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.model.experts import Experts
from lm.study.ablation import Ablation


def chosen_of(experts: int) -> Experts:
    """Two of `experts`, each half as wide as the dense feed-forward."""
    return Experts(mlp=128, activation="silu", gated=True, experts=experts, chosen=2, balance=0.01)


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
