"""Which of a run's checkpoints is read: the newest, the best, or that of a step."""

import math

from lm.train.checkpoint import Checkpoints

LAST, BEST = "last", "best"


def kept_step(checkpoints: Checkpoints, which: str) -> int | None:
    """The step of the checkpoint that `which` names: a number, "best" (lowest in the metric of `checkpoints`), or
    "last": None, the newest that is intact. Raises ValueError, with those there are, where it is not kept."""
    if which == LAST:
        return None
    kept = checkpoints.steps()
    listed = f"kept are {', '.join(f'{step:,}' for step in kept) or 'none'}"
    if which != BEST:
        if not which.isdecimal() or int(which) not in kept:
            raise ValueError(f"--step {which}: {checkpoints.directory} has no checkpoint of that step, {listed}")
        return int(which)
    scores = {step: score for step in kept if (score := checkpoints.score(step)) is not None and math.isfinite(score)}
    if not scores:
        raise ValueError(f"--step best: no checkpoint was evaluated in {checkpoints.directory}, {listed}")
    return min(scores, key=scores.__getitem__)
