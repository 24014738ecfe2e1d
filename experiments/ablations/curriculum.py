"""Should the mixture change on the way? Prose first or code first, going to the same weights, against constant ones.

    lm study experiments.ablations.curriculum

The arms read as much of each source as the constant one (the weights change linearly and average to its). Annealing
towards one's target data at the end is common practice (Llama 3, 2407.21783, section 3.1.3).

Measured: (to be run).
"""

from experiments.ablations.small import experiment as small
from lm.data.mixture import Knot
from lm.study.ablation import Ablation


def from_to(first: float, last: float) -> dict[str, object]:
    """The share of code goes linearly from `first` to `last` over the run."""
    end = Knot(small.steps, {"code": last, "prose": 1 - last})
    return dict(data=dict(mixture=dict(weights={"code": first, "prose": 1 - first}, knots=(end,))))


curriculum = Ablation(
    small,
    arms={"constant": {}, "prose-first": from_to(0.5, 1.0), "code-first": from_to(1.0, 0.5)},
    seeds=range(3),
    measure="bits_per_byte",
)
