"""Which weights of the sources? Code and prose from 25 to 95% code, compared by the mean over both.

    lm study experiments.ablations.mixtures

Xie et al. (2305.10429) find that weights matter, and that downweighting an easy source costs it little. Here each
source's own bits per byte are in the report beside the mean.

Measured: (to be run).
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
