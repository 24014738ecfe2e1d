"""Which optimizer? AdamW, Adafactor, Lion and Muon, each at the best rate of a small sweep of its own.

    lm study experiments.ablations.optimizers:muon_rates          and the other _rates: 5 rates, 1 seed
    lm study experiments.ablations.optimizers:optimizers           at those rates, 3 seeds

Jordan et al. (https://kellerjordan.github.io/posts/muon/) and Liu et al. (2502.16982) find Muon ahead of AdamW by a
third to a half of the tokens; Chen et al. (2302.06675) find Lion level with or ahead of AdamW; Zhao et al. (2407.07972)
find AdamW, Adafactor and Lion about level when each is tuned.

Measured, the sweeps (1 min each on 2 CPU cores; mean bits per byte over the sources, 1 seed), from the lowest rate to
the highest, each twice the one before:

    muon         2.670   2.638   2.641   2.659   2.854     5e-3 to 8e-2
    adamw        3.143   2.971   2.836   2.949   3.139     2e-3 to 3.2e-2
    adafactor    2.718   2.567   2.522   2.595   3.383     4e-2 to 6.4e-1
    lion         3.236   3.083   3.041   3.179   3.393     1.6e-3 to 2.56e-2

and the optimizers at their best rates (2 min; 3 seeds, differences to Muon with their paired 95% intervals):

    muon         2.637
    adamw        2.823   +0.186 (0.113 to 0.260)
    adafactor    2.526   -0.111 (0.097 to 0.125)
    lion         2.991   +0.354 (0.240 to 0.469)

Muon ahead of AdamW: found again. Lion level with AdamW: not found again. Adafactor level with AdamW: not found again
either; it is ahead of all here, where a run is 100 steps, and its steps are a share of each weight's size. Of Muon only
the matrices' rate was swept.
"""

from experiments.ablations.small import experiment as small
from lm.study.ablation import Ablation
from lm.study.space import LogUniform
from lm.study.sweep import Sweep
from lm.train.optim import Adafactor, AdamW, Lion, Muon, Optimizer
from lm.train.schedule import Cosine


def rates(optimizer: Optimizer, low: float, high: float) -> Sweep:
    """Five learning rates, evenly spaced in their logarithm."""
    space = {"optimizer.learning_rate": LogUniform(low, high, points=5)}
    return Sweep(small.replace(optimizer=optimizer), space, method="grid", seeds=(0,), measure="bits_per_byte")


WARM = Cosine(warmup_steps=10)
muon = Muon(learning_rate=1e-2, adam_learning_rate=8e-3, schedule=WARM)  # tables and vectors at AdamW's best rate
muon_rates = rates(muon, 5e-3, 8e-2)
adamw_rates = rates(AdamW(schedule=WARM), 2e-3, 3.2e-2)
adafactor_rates = rates(Adafactor(schedule=WARM), 4e-2, 6.4e-1)
lion_rates = rates(Lion(schedule=WARM), 1.6e-3, 2.56e-2)

optimizers = Ablation(
    small.replace(optimizer=muon),
    arms={
        "muon": {},
        "adamw": dict(optimizer=AdamW(learning_rate=8e-3, schedule=WARM)),
        "adafactor": dict(optimizer=Adafactor(learning_rate=1.6e-1, schedule=WARM)),
        "lion": dict(optimizer=Lion(learning_rate=6.4e-3, schedule=WARM)),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
