"""Which feed-forward? relu, gelu, GeGLU and SwiGLU with as many parameters each: gated ones are 2/3 as wide.

    lm study experiments.ablations.feedforward

Shazeer (2002.05202, table 1) finds both gated ones ahead of relu and gelu, by about 0.04 nats of T5's loss.

Measured (3 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
swiglu paired by 3 seeds with its 95% interval, p after Holm):

    swiglu    2.755
    geglu     2.751   -0.004 [-0.007, -0.000]   p 0.042
    gelu      2.783    0.028 [ 0.017,  0.039]   p 0.019
    relu      2.786    0.031 [ 0.020,  0.042]   p 0.019

Found again: both gated ones are ahead of relu and gelu, and next to each other.
"""

from experiments.ablations.small import experiment as small
from lm.model.parts import FeedForward
from lm.study.ablation import Ablation

feedforward = Ablation(
    small,
    arms={
        "swiglu": {},
        "geglu": dict(model=dict(ffn=FeedForward(mlp=256, activation="gelu", gated=True))),
        "gelu": dict(model=dict(ffn=FeedForward(mlp=384, activation="gelu"))),
        "relu": dict(model=dict(ffn=FeedForward(mlp=384, activation="relu"))),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
