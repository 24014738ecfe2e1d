"""How is it learned what is preferred? DPO, IPO, SimPO and ORPO, from one model that was fine-tuned to answer.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm study experiments.ablations.preferences

All arms start from `sft_small`'s model and take the same rows in as many steps, at one learning rate. Losses are of
different scales: arms are compared by accuracy on held-out pairs, each by its own implicit reward. In DPO and IPO
(2305.18290, 2310.12036) that is the log-ratio against the start, in SimPO and ORPO (2405.14734, 2403.07691) the mean
log-probability. KTO (2402.01306) reads completions that are labelled one by one, and its accuracy is of these: it
answers another question, and is no arm (experiments/tune/kto.py).

Measured with one seed (5 minutes on two cores that had other work too), of 61 held-out pairs after 40 steps; one seed
has no interval, and pairs of this rule are too easy to part the arms.

             accuracy   chosen reward   rejected reward   seconds
    dpo        100.0%           -0.69             -2.80        95
    ipo         98.4%           -0.74             -3.01        77
    simpo      100.0%           -9.93            -15.18        50
    orpo       100.0%           -0.48             -0.67        49

The two that need no reference take half to two thirds of the time. Rewards compare between DPO and IPO alone, which
are much alike at the same beta.
"""

from experiments.tune.dpo import experiment as dpo
from lm.study.ablation import Ablation
from lm.tune.dpo import DPO
from lm.tune.orpo import ORPO
from lm.tune.simpo import SimPO

preferences = Ablation(
    dpo,
    arms={
        "dpo": {},
        "ipo": dict(method=DPO(loss="ipo")),
        "simpo": dict(method=SimPO()),
        "orpo": dict(method=ORPO()),
    },
    seeds=range(3),
    match="steps",
    measure="answers/accuracy",
)
