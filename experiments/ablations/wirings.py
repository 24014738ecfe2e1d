"""Where do the norms go, and which? Pre, post, sandwich, parallel; RMSNorm and LayerNorm, at equal FLOPs.

    lm study experiments.ablations.wirings

Xiong et al. (2002.04745) find that post-norm needs a warm-up and trains worse at the rate of pre-norm; PaLM
(2204.02311, section 2) finds the parallel block slightly worse at 8B and level at 62B; Zhang and Sennrich (1910.07467)
find RMSNorm level with LayerNorm.

Measured (7.5 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
pre paired by 3 seeds with its 95% interval, p after Holm):

    pre          2.755
    post         2.775    0.020 [ 0.013,  0.027]   p 0.019
    sandwich     2.842    0.087 [ 0.052,  0.122]   p 0.019
    parallel     2.739   -0.016 [-0.019, -0.012]   p 0.010
    layernorm    2.752   -0.002 [-0.005,  0.001]   p 0.074

Found again: post-norm is worse, and no difference to LayerNorm is seen. Not found: the parallel block is better here.
Where embeddings begin at 0.02, and not of unit size, post-norm is ahead by 0.3 instead (NOTES.md).
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
