"""PPO, GRPO, DPO and best-of-n from one fine-tuned model, by one reward model, and judged by the rule behind it.

    lm train experiments.rlhf.reviews:pretrained
    lm train experiments.rlhf.reviews:sft
    lm train experiments.rlhf.reviews:reward
    lm study experiments.rlhf.instructgpt

The last step of InstructGPT (2203.02155) in miniature, after those of experiments/rlhf/reviews.py. PPO, GRPO and online
DPO learn from 8,192 completions of their own, scored by the reward model; DPO from about 3,900 pairs that the rule
itself made; best-of-n draws as many completions, 16 for each of the 512 held-out prompts, and keeps the one with the
highest score. All are judged by one completion of each held-out prompt: its score, what it is worth by the rule, and
how often that is more than a completion of the fine-tuned model is worth. Means over the seeds:

                 seeds   rule    score   win rate   KL, nats   tokens   distinct-2
    sft              3   -0.41    0.00     53.9%        0.0      15.3         4.0%
    best of 16       3    1.56    2.67     86.0%        1.8      16.6         3.2%
    dpo              3    0.77    1.41     74.8%        0.6      11.5         5.1%
    ppo              3    2.50    3.65     92.3%        5.9      20.0         1.5%
    grpo             3   -3.11    3.84     14.7%       22.7      25.9         2.4%
    online dpo       3   -3.04    3.74     12.5%       19.9      19.6         1.4%

The deviation of the rule over the seeds is 0.02 for DPO, 0.08 for PPO, 0.24 for GRPO and 0.31 for online DPO; half of a
win rate's 95% interval over the prompts is 2.0 to 3.8 points. Win rates are by the rule, and a tie is half; 53.9% is
what two draws of the same model came to. What is drawn from the start is the same at every seed.

GRPO, with its KL in the loss, found what the reward model had not seen: " the staff was fine and the staff was fine and
the staff was fine and the staff was great." Its scores are as high as PPO's, and by the rule it loses; so does online
DPO. PPO, with the KL off its rewards, praises several things: " the staff was great and the light was kind and the soup
was fine and the view was great." Runs were made beside some fifteen other processes on two cores; one of PPO took about
80 s of CPU time, half of it compilation. KL coefficients are first guesses and were not tuned: the table is no verdict
on the methods, but on how far each went.
"""

from dataclasses import replace
from typing import Any

from experiments.rlhf.reviews import Rule, reward, sft
from lm.data.mixture import Data, Mixture
from lm.data.pack import OnePerRow, Pack
from lm.data.preferences import Preferences
from lm.data.prompts import Prompts
from lm.data.reviews import HELDOUT, Reviews
from lm.data.source import Source
from lm.experiment import Evaluation
from lm.study.ablation import Ablation
from lm.train.optim import AdamW
from lm.train.schedule import Constant
from lm.tune.completion_eval import CompletionEval
from lm.tune.dpo import DPO
from lm.tune.grpo import GRPO
from lm.tune.kl_control import FixedKL
from lm.tune.online_dpo import OnlineDPO
from lm.tune.ppo import PPO
from lm.tune.start import Start

LENGTH, NEW = 52, 40  # tokens of a row, and of a completion
STEPS, ROWS = 64, 128  # completions are drawn in each step of a policy: 8,192 in all
PAIR_ROWS = 48  # of 64 tokens have about 64 pairs
BEST_OF = STEPS * ROWS // HELDOUT  # draws as many

prompts: dict[str, Source] = {"prompts": Prompts(Reviews("answers"))}
judge = CompletionEval(
    rewards=(Rule(weight=0.0),), scorer="runs/reviews_reward", scorer_model=reward.model, max_new_tokens=NEW
)
base = replace(
    sft,
    name="rlhf",
    start=Start("runs/reviews_sft"),
    optimizer=AdamW(learning_rate=0.0, schedule=Constant()),
    steps=1,
    seq_len=LENGTH,
    batch_tokens=ROWS * LENGTH,
    evaluations={"completions": Evaluation(method=judge, sources=prompts, rows=256)},
    eval_every_steps=STEPS,
    checkpoint_every_steps=STEPS,
    prompts=(),
)

on_policy: Any = dict(
    steps=STEPS,
    data=Data(mixture=Mixture(sources=prompts, weights={"prompts": 1.0}), packing=OnePerRow()),
)
scored: Any = dict(scorer="runs/reviews_reward", scorer_model=reward.model, max_new_tokens=NEW)


def adam(learning_rate: float) -> AdamW:
    """The optimizer of all arms."""
    return AdamW(learning_rate=learning_rate, b2=0.99, weight_decay=0.0, schedule=Constant(warmup_steps=5))


instructgpt = Ablation(
    base,
    arms={
        "sft": {},
        "best_of_n": dict(evaluations=dict(completions=dict(method=replace(judge, best_of=BEST_OF)))),
        "dpo": dict(
            steps=STEPS,
            method=DPO(beta=0.3),
            seq_len=sft.length,
            batch_tokens=PAIR_ROWS * sft.length,
            data=Data(
                mixture=Mixture(sources={"pairs": Preferences(Reviews("pairs"))}, weights={"pairs": 1.0}),
                packing=Pack(),
            ),
            optimizer=adam(2e-4),
        ),
        "ppo": dict(
            **on_policy,
            model=dict(output=dict(scores=1)),
            method=PPO(**scored, kl=FixedKL(0.05), value_weight=0.5, minibatches=2, epochs=2),
            optimizer=adam(1e-3),
        ),
        "grpo": dict(
            **on_policy,
            method=GRPO(**scored, group=8, beta=0.05, minibatches=2, epochs=2),
            optimizer=adam(1e-3),
        ),
        "online_dpo": dict(
            **on_policy,
            method=OnlineDPO(**scored, group=2, beta=0.1, minibatches=2, epochs=2),
            optimizer=adam(5e-4),
        ),
    },
    seeds=range(3),
    match="steps",
    measure="completions/prompts/Rule",
)
