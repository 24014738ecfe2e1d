"""A scaling ladder: five widths at four budgets, the law of their losses, and how well it predicts the largest budget.

    lm study experiments.scaling

The law is L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, 2203.15556), fitted to the three smaller
budgets; the fourth, twice as large as any of them, is held out and has to be predicted. Only the width and, with it,
the feed-forward change: three layers, four heads of 32.

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.study.scaling import Ladder
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

base = small.replace(
    name="scaling",
    optimizer=AdamW(learning_rate=4e-3, schedule=Cosine(warmup_steps=10)),
    batch_tokens=4 * 128,
    eval_every_steps=1_000_000,  # at the end alone
)
ladder = Ladder(
    base,
    compute=(1e11, 2e11, 4e11, 8e11),
    shapes=tuple(
        dict(model=dict(width=width, ffn=dict(mlp=mlp)))
        for width, mlp in ((32, 88), (48, 128), (64, 172), (96, 256), (128, 344))
    ),
    measure="bits_per_byte",
)
