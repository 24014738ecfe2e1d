"""Too much of a reward model: the true reward rises and falls as the policy leaves the model of its start (2210.10760).

    lm train experiments.rlhf.reviews:pretrained
    lm train experiments.rlhf.reviews:sft
    lm train experiments.rlhf.overoptimization:proxy
    lm study experiments.rlhf.overoptimization

The proxy is a reward model of 200 pairs, right on 84.8% of the held-out ones; the true reward is the rule that made
them (lm/data/reviews.py). PPO has no KL penalty, and best-of-n goes as far as log n - (n - 1) / n nats. The report
draws both rewards over the root of the KL divergence. Measured with one seed, as rewards less the start's:

    best of n       n     4     16     64
    KL, nats           0.64   1.84   3.17
    proxy             +2.01  +3.28  +3.81
    true              +1.07  +1.52  +1.78

    PPO, step           4      8     12     16     20     24     28     32     36     40
    KL, nats           0.16   0.72   1.03   1.36   3.60  20.73  36.25  37.24  44.86  44.22
    proxy             +0.50  +1.04  +1.34  +1.54  +1.80  +2.25  +2.64  +3.02  +3.07  +3.37
    true              +0.37  +0.70  +0.97  +1.12  +0.85  +0.15  -0.06  -0.00  -0.22  -0.21

At a learning rate of 2e-3 in place of 3e-4 PPO was past all this within 8 steps (KL 27).

By PPO the true reward is highest at 1.36 nats and is gone at 36, while the proxy's doubles. Best-of-n gains less and
less of it, and does not turn by n = 64. On the way 256 prompts are read, at the end and for best-of-n 512. PPO's run
took 5 minutes, and the four others up to 13, beside some fifteen other processes on two cores.
"""

from dataclasses import replace

from experiments.rlhf.instructgpt import adam, base, judge, on_policy
from experiments.rlhf.reviews import reward
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.preferences import Preferences
from lm.data.reviews import Reviews
from lm.experiment import Evaluation
from lm.study.overoptimization import Overoptimization
from lm.tune.kl_control import FixedKL
from lm.tune.ppo import PPO

proxy = replace(
    reward,
    name="reviews_proxy",
    data=Data(
        mixture=Mixture(sources={"pairs": Preferences(Reviews("pairs", most=200))}, weights={"pairs": 1.0}),
        packing=Pack(),
    ),
    steps=60,
    eval_every_steps=20,
    checkpoint_every_steps=20,
)

optimised = replace(judge, scorer="runs/reviews_proxy")
(evaluation,) = base.evaluations.values()


def best_of(n: int) -> Evaluation:
    """The evaluation of the best of `n` by the proxy."""
    return replace(evaluation, method=replace(optimised, best_of=n))


ppo = PPO(
    scorer="runs/reviews_proxy",
    scorer_model=reward.model,
    max_new_tokens=judge.max_new_tokens,
    kl=FixedKL(0.0),
    value_weight=0.5,
    minibatches=2,
    epochs=2,
)

overoptimization = Overoptimization(
    base.replace(evaluations=dict(completions=best_of(1)), eval_tokens=1),
    arms={
        "start": {},
        **{f"best_of_{n}": dict(evaluations=dict(completions=best_of(n))) for n in (4, 16, 64)},
        "ppo": dict(
            **on_policy | dict(steps=40, eval_every_steps=4, checkpoint_every_steps=40),
            model=dict(output=dict(scores=1)),
            method=ppo,
            optimizer=adam(3e-4),
        ),
    },
    seeds=range(1),
    match="steps",
    measure="completions/prompts/Rule",
    proxy="completions/prompts/scorer",
    kl="completions/prompts/kl",
)
