"""How is it learned what is preferred? DPO, IPO, SimPO, ORPO and KTO, from one model that was fine-tuned to answer.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm study experiments.ablations.preferences

All arms start from `sft_small`'s model and take as many steps at one learning rate; KTO (2402.01306) reads the two
answers of a pair one by one, each labelled. Their losses and implicit rewards are of different scales, and KTO's own
accuracy is of completions. So all are asked one question, by SimPO's measures (2405.14734), which need no reference:
how much likelier is the right answer of a held-out pair, by its mean log-probability a token?

Measured (10 minutes on two busy cores, 40 steps, 61 held-out pairs, 3 seeds; SimPO's loss, its difference to DPO paired
by seed with its 95% interval, p after Holm, and the margin of the two answers, 2 times their log-ratio):

             loss     difference                          margin    seconds
    dpo      0.0329                                       6.34      44
    ipo      0.0305   -0.0024 [-0.0063, 0.0016] p 0.12    6.59      60
    kto      0.0418    0.0089 [ 0.0062, 0.0115] p 0.009   5.70      42
    simpo    0.0493    0.0164 [ 0.0129, 0.0200] p 0.007   5.36      35
    orpo     0.1293    0.0964 [ 0.0937, 0.0991] p 0.001   3.74      60

The right answer is the likelier one in every pair, whatever the arm: pairs of this rule are too easy to part them by
accuracy. By the margin DPO and IPO (2305.18290, 2310.12036) lead, which compare with a reference; SimPO does not lead
by its own loss. ORPO (2403.07691) goes on with its fine-tuning beside, and is least far after as many steps.
"""

from experiments.tune.dpo import experiment as dpo
from experiments.tune.kto import experiment as kto
from lm.experiment import Evaluation
from lm.study.ablation import Ablation
from lm.tune.dpo import DPO
from lm.tune.orpo import ORPO
from lm.tune.simpo import SimPO

preferences = Ablation(
    dpo.replace(evaluations={"asked": Evaluation(method=SimPO(), sources=dpo.data.mixture.sources)}),
    arms={
        "dpo": {},
        "ipo": dict(method=DPO(loss="ipo")),
        "simpo": dict(method=SimPO()),
        "orpo": dict(method=ORPO()),
        "kto": dict(method=kto.method, data=dict(mixture=kto.data.mixture)),
    },
    seeds=range(3),
    match="steps",
    measure="asked/loss",
)
