"""How large a rank? LoRA of three ranks, rsLoRA and DoRA beside full fine-tuning, from the quickstart's model.

    lm train experiments.quickstart
    lm study experiments.ablations.lora_rank

Measured (4.4 minutes for 18 runs of 24 steps on two CPU cores that had other work; loss on held-out talks in nats a
token of the assistant's, the difference to full fine-tuning paired by 3 seeds with its 95% interval, p after Holm):

    full              5.164
    rank-2            5.286    0.122 [ 0.090, 0.153]   p 0.014
    rank-8            5.283    0.119 [ 0.086, 0.152]   p 0.014
    rank-32           5.277    0.113 [ 0.093, 0.134]   p 0.009
    rank-32-rslora    5.191    0.027 [-0.014, 0.068]   p 0.11
    rank-8-dora       5.280    0.116 [ 0.081, 0.152]   p 0.014

Found again: sixteen times the rank gains LoRA next to nothing, since A B is multiplied by alpha / rank, and alpha over
the root of the rank (rsLoRA, 2312.03732) lets the larger rank learn. Not told apart: rsLoRA of rank 32 and full
fine-tuning; about 6 seeds would. Not found: that DoRA (2402.09353) is ahead of LoRA at one rank. All adapters have one
learning rate; one of each arm's own, by a sweep, may close more of the gap.
"""

from experiments.tune.sft_small import experiment as sft_small
from lm.study.ablation import Ablation
from lm.tune.lora import DoRA, LoRA

base = sft_small.replace(
    name="lora_rank",
    batch_tokens=4 * 256,
    steps=24,
    eval_every_steps=24,
    checkpoint_every_steps=24,
    prompts=(),
    optimizer=dict(schedule=dict(warmup_steps=4)),
)
FASTER = dict(learning_rate=5e-3)  # factors begin at zero

lora_rank = Ablation(
    base,
    arms={
        "full": {},
        "rank-2": dict(trains=LoRA(rank=2), optimizer=FASTER),
        "rank-8": dict(trains=LoRA(rank=8), optimizer=FASTER),
        "rank-32": dict(trains=LoRA(rank=32), optimizer=FASTER),
        "rank-32-rslora": dict(trains=LoRA(rank=32, rslora=True), optimizer=FASTER),
        "rank-8-dora": dict(trains=DoRA(rank=8), optimizer=FASTER),
    },
    seeds=range(3),
    match="steps",
    measure="talks/loss",
)
