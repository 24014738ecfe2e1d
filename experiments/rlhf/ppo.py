"""Sums of two numbers below 100, learned from whether the answer is right by PPO (1707.06347, 2203.02155).

    lm train experiments.grpo_arithmetic:sft
    lm train experiments.rlhf.ppo

The task and the start are those of experiments/grpo_arithmetic.py, with one completion of each of 512 prompts a step
and a value head in place of groups; each rollout is learned from in four updates.

Seed 0 took 104 s on two cores that had other work too. One completion of each held-out sum, drawn at temperature 1:

    steps of PPO          0     20     40     60     80
    right             29.5%  40.4%  46.6%  47.6%  51.3%
    in the format    100.0% 100.0%  99.8%  99.8%  98.8%

Step 0 is that of experiments/grpo_arithmetic.py.
"""

from dataclasses import replace

from experiments.grpo_arithmetic import experiment as grpo
from lm.train.optim import AdamW
from lm.train.schedule import Constant
from lm.tune.kl_control import FixedKL
from lm.tune.ppo import PPO
from lm.tune.reward_functions import ExactAnswer, Format

experiment = replace(
    grpo.replace(model=dict(output=dict(scores=1)), steps=80, eval_every_steps=20, checkpoint_every_steps=40),
    name="arithmetic_ppo",
    method=PPO(
        rewards=(ExactAnswer(pattern=r"^<(\d+)>$"), Format(pattern=r"<\d+>", weight=0.1)),
        max_new_tokens=8,
        kl=FixedKL(0.01),
        value_weight=0.5,
        minibatches=2,
        epochs=2,
    ),
    optimizer=AdamW(learning_rate=4e-4, b2=0.99, weight_decay=0.0, schedule=Constant(warmup_steps=5)),
)
