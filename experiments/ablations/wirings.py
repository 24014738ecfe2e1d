"""Where do the norms go, and which? Pre, post, sandwich, parallel; RMSNorm and LayerNorm, at equal FLOPs.

    lm study experiments.ablations.wirings

Xiong et al. (2002.04745) find that post-norm needs a warm-up and trains worse at the rate of pre-norm; PaLM
(2204.02311, section 2) finds the parallel block slightly worse at 8B and level at 62B; Zhang and Sennrich (1910.07467)
find RMSNorm level with LayerNorm.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.model.parts import LayerNorm
from lm.model.wiring import Parallel, PostNorm, Sandwich
from lm.study.ablation import Ablation

wirings = Ablation(
    small,
    arms={
        "pre": {},
        "post": dict(model=dict(wiring=PostNorm())),
        "sandwich": dict(model=dict(wiring=Sandwich())),
        "parallel": dict(model=dict(wiring=Parallel())),
        "layernorm": dict(model=dict(norm=LayerNorm())),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
