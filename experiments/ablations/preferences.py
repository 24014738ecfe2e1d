"""How is it learned what is preferred? DPO, IPO, SimPO, ORPO and KTO, from one model that was fine-tuned to answer.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm study experiments.ablations.preferences

All arms start from `sft_small`'s model and take as many steps at one learning rate; KTO (2402.01306) reads the two
answers of a pair one by one, each labelled. Their losses and implicit rewards are of different scales, and KTO's own
accuracy is of completions. So all are asked one question, by SimPO's measures (2405.14734), which need no reference:
of how many held-out pairs the right answer is the likelier one, by its mean log-probability a token.

Before KTO was an arm, one seed took 5 minutes on two cores that had other work too; after 40 steps each arm's own
implicit reward (in DPO and IPO, 2305.18290 and 2310.12036, the log-ratio against the start, in SimPO and ORPO,
2403.07691, the mean log-probability) was right in so many of 61 held-out pairs. One seed has no interval, and pairs of
this rule are too easy to part the arms.

             accuracy   chosen reward   rejected reward   seconds
    dpo        100.0%           -0.69             -2.80        95
    ipo         98.4%           -0.74             -3.01        77
    simpo      100.0%           -9.93            -15.18        50
    orpo       100.0%           -0.48             -0.67        49

The two that need no reference take half to two thirds of the time. Rewards compare between DPO and IPO alone, which
are much alike at the same beta.
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
    measure="asked/answers/accuracy",
)
