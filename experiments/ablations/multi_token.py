"""Does it help to predict the token after the next one too? Multi-token prediction off and on, at equal steps.

    lm study experiments.ablations.multi_token

DeepSeek-V3 (2412.19437, section 4.5.1) finds one module better on most benchmarks at equal tokens, the module dropped
when the model is used; Gloeckle et al. (2404.19737, figure 3) find that small models lose by it.
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
