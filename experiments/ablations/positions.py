"""Which positional encoding? None, sinusoidal, learned, rotary, ALiBi, T5's relative buckets, at equal FLOPs; and which
holds in rows two and four times as long as those of training?

    lm study experiments.ablations.positions

Press et al. (2108.12409) find ALiBi level with or better than rotary and sinusoidal positions at the training length,
and the only one of the three that holds beyond it (figure 1); Su et al. (2104.09864) find rotary ahead of sinusoidal.
Learned positions end with the rows that they were trained on: they have no score beyond.

Measured (8.5 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
rotary paired by 3 seeds with its 95% interval, p after Holm; then the same models in rows of 256 and 512 tokens):

                 128 tokens                                   256      512
    rotary       2.755                                        2.753    2.753
    none         2.753   -0.001 [-0.004, 0.001]   p 0.289     2.751    2.750
    sinusoidal   2.832    0.078 [ 0.068, 0.087]   p 0.004     2.853    2.876
    learned      2.754   -0.001 [-0.003, 0.001]   p 0.289     –        –
    alibi        2.745   -0.010 [-0.020, 0.001]   p 0.229     2.742    2.740
    relative     2.758    0.003 [-0.000, 0.007]   p 0.229     2.755    2.753

Found again: sines are worst, and lose more the longer the rows, while ALiBi gains. Whether ALiBi is ahead of rotary
cannot be told: about 4 seeds would show a difference of this size. Not found: that rotary fails beyond the training
length. A model this small looks at the tokens before, and needs no positions to do that.
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
