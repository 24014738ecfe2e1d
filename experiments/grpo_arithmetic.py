"""Sums of two numbers below 100, learned from whether the answer is right (GRPO, 2402.03300).

    lm train experiments.grpo_arithmetic:sft
    lm train experiments.grpo_arithmetic

The first run teaches a model of 0.46 million parameters the format, "12+34=" answered by "<46>", and some of the sums:
it ends while they are being learned. The second one starts from it, and never sees an answer: four completions each of
128 prompts a step are worth 1 where the sum is right, and 0.1 where the format is. 5% of the pairs of numbers are held
out, in both orders.

Measured with seed 0 on two cores that had much other work: 68 s, then 833 s. One completion of each held-out sum, drawn
at temperature 1:

    steps of GRPO       0     50    100    200    300    400    500    600
    right            29.5%  34.2%  41.6%  42.5%  49.9%  52.0%  53.4%  53.6%
    in the format   100.0% 100.0%  99.8% 100.0%  99.8% 100.0% 100.0% 100.0%

It was hoped to double the share that is right, and did 1.8 times. Groups of 16 from 32 prompts a step, at 5e-4, came to
41.0% in 250 steps; with four updates a step, at 1e-3, the share fell to 14.2% in 50. Step 0 is

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
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Constant
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
        group=4,
        max_new_tokens=8,
    ),
    data=Data(mixture=Mixture(sources={"sums": Prompts(Sums())}, weights={"sums": 1.0}), packing=OnePerRow()),
    optimizer=AdamW(learning_rate=8e-4, b2=0.99, weight_decay=0.0, schedule=Constant(warmup_steps=10)),
    seq_len=16,
    batch_tokens=512 * 16,
    steps=600,
    eval_every_steps=50,
    checkpoint_every_steps=100,
)
