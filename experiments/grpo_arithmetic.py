"""Sums of two numbers below 100, learned from whether the answer is right (GRPO, 2402.03300).

    lm train experiments.grpo_arithmetic:sft
    lm train experiments.grpo_arithmetic
    lm study experiments.grpo_arithmetic

The first run teaches a model of 0.46 million parameters the format, "12+34=" answered by "<46>", and some of the sums:
it ends while they are being learned. The second one starts from it, and never sees an answer: eight completions each of
128 prompts a step are worth 1 where the sum is right, and 0.1 where the format is. 5% of the pairs of numbers are held
out, in both orders.

Measured on two busy cores, where a run took 9 minutes. One completion of each held-out sum, drawn at temperature 1;
means of 3 seeds of GRPO, all from one fine-tuned model:

    steps of GRPO       0    100    200    300    400    500    600
    right            29.5%  44.5%  51.6%  56.2%  59.1%  61.9%  64.7% (61.6, 67.4, 65.2)
    in the format   100.0%                                      99.9%

2.2 times as many sums are right. With the KL divergence from the start in the loss (the study's other arm, beta=0.1)
49.8% were after 200 of these steps, less by 1.8 points, paired 95% interval -9.2 to 5.7: what KL does cannot be told,
and without it nothing collapses. Groups of four at a constant rate came to 53.6% in 600 steps; groups of 16 from 32
prompts a step, at 5e-4, to 41.0% in 250; with four updates a step, at 1e-3, the share fell to 14.2% in 50. Step 0 is

    lm train experiments.grpo_arithmetic --set steps=1 optimizer.learning_rate=1e-9 optimizer.schedule.warmup_steps=0
"""

from dataclasses import replace

from lm.data.conversations import Conversations
from lm.data.mixture import Data, Mixture
from lm.data.pack import OnePerRow, Pack
from lm.data.prompts import Prompts
from lm.data.sums import Sums
from lm.experiment import Experiment
from lm.model.families import llama
from lm.study.ablation import Ablation
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Constant, Cosine
from lm.tune.grpo import GRPO
from lm.tune.reward_functions import ExactAnswer, Format
from lm.tune.sft import SFT
from lm.tune.start import Start

sft = Experiment(
    name="arithmetic_sft",
    model=llama(vocab=258, layers=2, width=128, heads=4, mlp=384, context=32, tied=True),
    method=SFT(),
    data=Data(
        mixture=Mixture(sources={"sums": Conversations(Sums(), other_fields=("answer",))}, weights={"sums": 1.0}),
        tokenizer=Bytes(),
        packing=Pack(),
    ),
    optimizer=AdamW(learning_rate=2e-3, schedule=Constant(warmup_steps=20)),
    batch_tokens=64 * 32,
    steps=750,
)

experiment = replace(
    sft,
    name="arithmetic_grpo",
    start=Start("runs/arithmetic_sft"),
    method=GRPO(
        rewards=(ExactAnswer(pattern=r"^<(\d+)>$"), Format(pattern=r"<\d+>", weight=0.1)),
        group=8,
        max_new_tokens=8,
    ),
    data=Data(mixture=Mixture(sources={"sums": Prompts(Sums())}, weights={"sums": 1.0}), packing=OnePerRow()),
    optimizer=AdamW(learning_rate=8e-4, b2=0.99, weight_decay=0.0, schedule=Cosine(warmup_steps=10)),
    seq_len=16,
    batch_tokens=1024 * 16,
    steps=600,
    eval_every_steps=100,
    checkpoint_every_steps=200,
)

arithmetic = Ablation(
    experiment,
    arms={"no_kl": {}, "kl": dict(method=dict(beta=0.1))},
    seeds=range(3),
    match="steps",
    measure="sums/ExactAnswer",
)
