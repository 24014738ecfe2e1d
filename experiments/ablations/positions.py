"""Which positional encoding? None, sinusoidal, learned, rotary, ALiBi, T5's relative buckets, at equal FLOPs; and which
holds in rows two and four times as long as those of training?

    lm study experiments.ablations.positions

Press et al. (2108.12409) find ALiBi level with or better than rotary and sinusoidal positions at the training length,
and the only one of the three that holds beyond it (figure 1); Su et al. (2104.09864) find rotary ahead of sinusoidal.
Learned positions end with the rows that they were trained on: they have no score beyond. Sines are of unit size, and
drown embeddings that begin at 0.02 (3.400 bits per byte here: single tokens' frequencies, and no more); so their arm
has embeddings of unit size, as they were published, and rotary-unit is the base with these.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.experiment import Evaluation
from lm.model.positions import Alibi, Learned, Positions, Relative, Sinusoidal
from lm.study.ablation import Ablation

# 1706.03762, section 3.4: embeddings as large as the sines that are added to them
UNIT = dict(init_scale=small.model.width**-0.5, embed_scale=small.model.width**0.5)

positions = Ablation(
    small.replace(evaluations={"2x": Evaluation(2), "4x": Evaluation(4)}),
    arms={
        "rotary": {},
        "none": dict(model=dict(positions=Positions())),
        "sinusoidal": dict(model=dict(positions=Sinusoidal(), **UNIT)),
        "rotary-unit": dict(model=UNIT),
        "learned": dict(model=dict(positions=Learned())),
        "alibi": dict(model=dict(positions=Alibi())),
        "relative": dict(model=dict(positions=Relative())),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
