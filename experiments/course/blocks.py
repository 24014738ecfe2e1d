"""What holds a stack of layers together? One without the residual stream, one without norms, and a block as it is.

    lm study experiments.course.blocks

docs/course/blocks.md has what was measured.
"""

from experiments.ablations.small import experiment as small
from lm.model.parts import Norm
from lm.model.wiring import Wiring
from lm.study.ablation import Ablation

parts = Ablation(
    small.replace(model=dict(layers=6)),
    arms={
        "block": {},
        "no_residual": dict(model=dict(wiring=Wiring())),
        "no_norm": dict(model=dict(norm=Norm())),
    },
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)
