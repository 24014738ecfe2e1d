"""Does it help to learn the token after the next one too? Multi-token prediction off and on, at equal steps.

    lm study experiments.ablations.multi_token

DeepSeek-V3 (2412.19437, section 4.5.1) finds one module better on most benchmarks, at equal tokens and without the
module when the model is used; Gloeckle et al. (2404.19737, figure 3) find that the smallest models lose by it.

Measured (11 minutes on 1 CPU core that others used too, with bfloat16 units; mean bits per byte over the sources, the
difference to off paired by 3 seeds with its 95% interval, p after Holm; then the FLOPs):

    off           2.7547                                        310 G
    weight-0.1    2.7539   -0.0008 [-0.0011, -0.0004]  p 0.024  464 G
    weight-0.3    2.7541   -0.0006 [-0.0023,  0.0012]  p 0.290  464 G

At this size and length next to nothing is gained, for half as many FLOPs again: the module's layer and output are as
large as a third and as the whole of the model's. What is gained is a draft:

    lm train experiments.ablations.small --set "model.multi_token=MultiToken()" steps=1000
    lm sample runs/small --prompt "def read_lines(path):" --draft self -n 16 --max-new-tokens 100

After 1,000 steps (1.98 bits per byte, 2 minutes) and at temperature 0.8, 68% of single drafted tokens are accepted,
1.68 tokens a call of the model; with --draft-tokens 2 54%, 2.08 a call; with 3 45%, 2.36 a call. At temperature 0,
where this model repeats itself, it is 98%, 93% and 89%; texts are those without a draft.
"""

from experiments.ablations.small import experiment as small
from lm.model.config import MultiToken
from lm.study.ablation import Ablation

multi_token = Ablation(
    small,
    arms={
        "off": {},
        "weight-0.1": dict(model=dict(multi_token=MultiToken(depth=1, weight=0.1))),
        "weight-0.3": dict(model=dict(multi_token=MultiToken(depth=1, weight=0.3))),
    },
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)
