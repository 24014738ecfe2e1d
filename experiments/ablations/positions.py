"""Which positional encoding? None, sinusoidal, learned, rotary, ALiBi, T5's relative buckets, at equal FLOPs; and which
holds in rows two and four times as long as those of training?

    lm study experiments.ablations.positions

Press et al. (2108.12409) find ALiBi level with or better than rotary and sinusoidal positions at the training length,
and the only one of the three that holds beyond it (figure 1); Su et al. (2104.09864) find rotary ahead of sinusoidal.
Learned positions end with the rows that they were trained on: they have no score beyond.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.experiment import Evaluation
from lm.model.positions import Alibi, Learned, Positions, Relative, Sinusoidal
from lm.study.ablation import Ablation

positions = Ablation(
    small.replace(evaluations={"2x": Evaluation(2), "4x": Evaluation(4)}),
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
