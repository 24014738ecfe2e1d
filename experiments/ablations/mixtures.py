"""Which weights of the sources? Code and prose from 25 to 95% code, compared by the mean over both.

    lm study experiments.ablations.mixtures

Xie et al. (2305.10429) find that weights matter, and that downweighting an easy source costs it little. Here each
source's own bits per byte are in the report beside the mean.

Measured (3 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to 75%
code paired by 3 seeds with its 95% interval, p after Holm; then each source's):

                                                    code     prose
    75   2.755                                      2.636    2.874
    25   2.743   -0.012 [-0.024,  0.000]  p 0.050   2.762    2.723
    50   2.732   -0.022 [-0.028, -0.016]  p 0.009   2.679    2.786
    95   2.808    0.054 [ 0.041,  0.067]  p 0.009   2.622    2.995

Found again: the weights matter, and equal ones cost code, the easier source, half of what they gain on prose.
"""

from experiments.ablations.small import experiment as small
from lm.study.ablation import Ablation


def code(share: float) -> dict[str, object]:
    """`share` of the rows are code, the others prose."""
    return dict(data=dict(mixture=dict(weights={"code": share, "prose": round(1 - share, 2)})))


mixtures = Ablation(
    small,
    arms={"75": {}, **{f"{100 * share:.0f}": code(share) for share in (0.25, 0.5, 0.95)}},
    seeds=range(3),
    measure="bits_per_byte",
)
