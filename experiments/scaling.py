"""A scaling ladder: five widths at four budgets, the law of their losses, and how well it predicts the largest budget.

    lm study experiments.scaling

The law is L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, 2203.15556), fitted to the three smaller
budgets; the fourth, twice as large as any of them, is held out and has to be predicted. Only the width and, with it,
the feed-forward change: three layers, four heads of 32.

Measured (20 minutes on one busy CPU core; bits per byte, mean over the sources, one seed):

    parameters     1e11     2e11     4e11     8e11 FLOPs   predicted for the last
      205,792     2.753    2.648    2.492    2.315         2.515 [2.401, 2.653]
      325,968     2.769    2.709    2.613    2.408         2.537 [2.424, 2.675]
      459,968     2.781    2.719    2.584    2.413         2.557 [2.440, 2.693]
      762,528     2.804    2.748    2.642    2.495         2.591 [2.475, 2.732]
    1,118,080     2.829    2.779    2.707    2.606         2.620 [2.502, 2.767]

The prediction fails: the median error is 5.3%, and 2 of 5 runs lie in their intervals. In runs as short as these
(14,000 to 439,000 tokens) the loss falls by more at each doubling of the tokens: no sum of powers of N and D does, E
comes out as 0, and the smallest size is the best at every budget, so that approach 2 finds no minimum. What the report
says, then, is that these budgets are too small for a law.
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
