"""Which positional encoding? None, sinusoidal, learned, rotary, ALiBi, T5's relative buckets, at equal FLOPs.

    lm study experiments.ablations.positions

Press et al. (2108.12409) find ALiBi level with or better than rotary and sinusoidal positions at the training length,
and the only one of the three that holds beyond it; Su et al. (2104.09864) find rotary ahead of sinusoidal.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.model.positions import Alibi, Learned, Positions, Relative, Sinusoidal
from lm.study.ablation import Ablation

positions = Ablation(
    small,
    arms={
        "rotary": {},
        "none": dict(model=dict(positions=Positions())),
        "sinusoidal": dict(model=dict(positions=Sinusoidal())),
        "learned": dict(model=dict(positions=Learned())),
        "alibi": dict(model=dict(positions=Alibi())),
        "relative": dict(model=dict(positions=Relative())),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
