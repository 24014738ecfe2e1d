"""A ladder of a few minutes: three widths at four budgets, and the law of their losses.

    lm study experiments.course.scaling

It is that of experiments/scaling.py with fewer shapes and half the budgets. docs/course/scaling.md has what was
measured.
"""

from experiments import scaling
from lm.study.scaling import Ladder

rungs = Ladder(
    scaling.base,
    compute=(5e10, 1e11, 2e11, 4e11),
    shapes=tuple(dict(model=dict(width=width, ffn=dict(mlp=mlp))) for width, mlp in ((32, 88), (64, 172), (128, 344))),
    seeds=range(3),
    measure="bits_per_byte",
)
