"""UL2 (2205.05131): one model for regular, sequential and extreme denoising, told which by a mode token; small, and the
published size.

    lm train experiments.ul2

The text and the tokenizer are the quickstart's. The seven denoisers are those of the paper's Table 1; a row is as long
as the one that is shortened least allows (282 tokens), and the decoder as wide as the one that writes most.

Measured: after 240 steps 6.37 nats a target token on code and 6.26 on prose, 7 and 7% of them right (about
3 minutes on 2 CPU cores).
"""

from experiments.quickstart import experiment as quickstart
from lm.data.denoise import UL2
from lm.model.families import t5_v1_1
from lm.model.parts import FeedForward
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.pretrain import Pretrain

experiment = quickstart.replace(
    name="ul2",
    model=t5_v1_1(vocab=4096 + 103, layers=2, width=256, heads=4, head_dim=64, mlp=512, context=256),
    method=Pretrain(objective=UL2()),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=20)),
    steps=240,
    eval_every_steps=120,
    sample_tokens=60,
)

# section 5.1: 32 layers each, gated silu
ul2_20b = t5_v1_1(
    vocab=32128, layers=32, width=4096, heads=16, head_dim=256, mlp=16384, ffn=FeedForward(16384, "silu", gated=True)
)
