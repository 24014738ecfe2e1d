"""Which feed-forward? relu, gelu, GeGLU and SwiGLU with as many parameters each: gated ones are 2/3 as wide.

    lm study experiments.ablations.feedforward

Shazeer (2002.05202, table 1) finds both gated ones ahead of relu and gelu, by about 0.04 nats of T5's loss.

Measured: (to be run).
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
