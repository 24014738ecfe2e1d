"""The base of the ablations in this folder: the quickstart's Llama, smaller, in rows of 128 tokens.

    lm train experiments.ablations.small

1.2 million parameters, 256,000 tokens: enough for differences of a few hundredths of a bit per byte to show over five
seeds, in seconds a run. What holds at this size need not hold at another: a ladder (lm/study/scaling.py) tells.
"""

from experiments.quickstart import experiment as quickstart
from lm.model.families import llama
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

experiment = quickstart.replace(
    name="small",
    model=llama(vocab=4096, layers=3, width=128, heads=4, mlp=344, context=128, tied=True),
    optimizer=AdamW(learning_rate=4e-3, schedule=Cosine(warmup_steps=25)),
    batch_tokens=8 * 128,
    steps=250,
    eval_every_steps=125,
    checkpoint_every_steps=125,
)
