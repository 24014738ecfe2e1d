"""Should the mixture change on the way? A warm-up from equal weights, prose first or code first, against constant ones.

    lm study experiments.ablations.curriculum

The weights change linearly, and every arm reads as much of each source as the constant one. Annealing towards one's
target data at the end is common practice (Llama 3, 2407.21783, section 3.1.3, which finds it to help an 8B model).

Measured (3.5 minutes on 1 busy CPU core with bfloat16 units; mean bits per byte over the sources, the difference to
constant paired by 3 seeds with its 95% interval, p after Holm; then each source's):

                                                          code     prose
    constant      2.755                                   2.636    2.874
    warm-up       2.756   0.001 [-0.004, 0.007] p 0.622   2.635    2.878
    prose-first   2.758   0.004 [-0.008, 0.015] p 0.622   2.635    2.882
    code-first    2.757   0.003 [-0.003, 0.008] p 0.507   2.645    2.870

Cannot be told: none of the orders differs from constant weights by more than a hundredth or two. What is read last is
a little better in each, as one would expect, and what is read first a little worse.
"""

from experiments.ablations.small import experiment as small
from lm.data.mixture import Breakpoint
from lm.study.ablation import Ablation


def shares(first: float, *later: tuple[int, float]) -> dict[str, object]:
    """The share of code is `first`, then goes linearly to each (step, share)."""
    breakpoints = tuple(Breakpoint(step, {"code": code, "prose": 1 - code}) for step, code in later)
    return dict(data=dict(mixture=dict(weights={"code": first, "prose": 1 - first}, breakpoints=breakpoints)))


STEPS = small.steps
curriculum = Ablation(
    small,
    arms={
        "constant": {},
        "warm-up": shares(0.5, (STEPS // 4, 11 / 14)),  # 0.75 on average
        "prose-first": shares(0.5, (STEPS, 1.0)),
        "code-first": shares(1.0, (STEPS, 0.5)),
    },
    seeds=range(3),
    measure="bits_per_byte",
)
