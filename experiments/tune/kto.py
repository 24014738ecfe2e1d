"""A model of our own learns from answers that are good or not: KTO, from the model of `sft_small`.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm train experiments.tune.kto

The answers are those of `experiments.tune.dpo`, taken one by one: a docstring's first paragraph is good, its words
shuffled are not. How far the policy is from the model of `sft_small`, its reference, is estimated from each question
with the answer to another.

Seed 0 took 120 s on two cores that had other work too. After 40 steps the held-out rewards are -0.22 of good answers
and -1.79 of shuffled ones; at first both are 0. The reference point is 0 throughout, and 62.3% of the answers are on
their own side of it: nearly all shuffled ones, and few of the good ones, which have become a little less likely too.
"""

from experiments.tune.dpo import experiment as dpo
from lm.data.mixture import Mixture
from lm.data.preferences import UnpairedPreferences
from lm.data.talks import StdlibPairs
from lm.tune.kto import KTO

experiment = dpo.replace(
    name="kto",
    method=KTO(beta=0.1),
    data=dict(mixture=Mixture(sources={"answers": UnpairedPreferences(StdlibPairs())}, weights={"answers": 1.0})),
)
