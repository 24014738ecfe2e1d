"""The base of the ablations in this folder: the quickstart's Llama, smaller, in rows of 128 tokens.

    lm train experiments.ablations.small

431,000 parameters, 102,000 tokens: seconds a run, and past the plateau of single tokens' frequencies, where arms differ
by who leaves it first. The embeddings are of unit size for that: at 0.02, what attention adds drowns them, and the same
100 steps end at 3.13 bits per byte instead of 2.75 (NOTES.md). What holds at this size need not hold at another: a
ladder (lm/study/scaling.py) tells.
"""

from experiments.quickstart import experiment as quickstart
from lm.model.families import llama
from lm.train.optim import Muon
from lm.train.schedule import Cosine

experiment = quickstart.replace(
    name="small",
    model=llama(
        vocab=1024,
        layers=3,
        width=96,
        heads=4,
        mlp=256,
        context=128,
        tied=True,
        init_scale=96**-0.5,  # and scaled up: embeddings of unit size, as in 1706.03762, section 3.4
        embed_scale=96**0.5,
    ),
    data=dict(tokenizer=dict(vocab_size=1024)),
    optimizer=Muon(learning_rate=0.01, adam_learning_rate=4e-3, schedule=Cosine(warmup_steps=10)),
    batch_tokens=8 * 128,
    steps=100,
    eval_every_steps=50,
    checkpoint_every_steps=50,
)
