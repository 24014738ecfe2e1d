"""Making a run longer, or shorter, than it was declared.

It goes on from its newest checkpoint where the learning rates of the steps so far are the same at both lengths: under
a constant schedule, say. A schedule that decays at the end (WSD) goes on from the checkpoint where its decay began,
which a run keeps; what came after is set aside. Under a schedule that depends on the length from the start there is
nothing to go on from.
"""

import shutil
from pathlib import Path

import numpy as np

from lm.experiment import Experiment
from lm.machine import buckets
from lm.train.program import tabulate_schedule


def check_length(folder: Path, old: Experiment, new: Experiment) -> None:
    """Make the run in `folder`, declared as `old`, ready to go on as `new`, of another number of steps.

    Raises ValueError where it cannot."""
    steps, shared = buckets.checkpoint_steps(folder), shared_steps(old, new)
    newest = max(steps, default=0)
    if newest <= shared:
        return
    at = max((step for step in steps if step <= shared), default=None)
    if at is None or newest > new.steps:
        raise ValueError(_refusal(folder, old, new, newest))
    suffix, later = f".of-{old.steps}-steps", [step for step in steps if step > at]
    if (folder / "metrics.jsonl").exists():
        shutil.copy(folder / "metrics.jsonl", folder / f"metrics{suffix}.jsonl")
    for step in later:
        buckets.rename_checkpoint(folder, step, f"{step}{suffix}")
    aside = ", ".join(f"{step}{suffix}" for step in later)
    print(f"going on from checkpoint {at}, from before the decay of the run of {old.steps} steps; set aside: {aside}")


def shared_steps(old: Experiment, new: Experiment) -> int:
    """The number of first steps whose learning rates are the same in both."""
    most = min(old.steps, new.steps)
    same = tabulate_schedule(old.optimizer, old.steps)[:most] == tabulate_schedule(new.optimizer, new.steps)[:most]
    return int(np.argmin(same)) if not same.all() else most


def _refusal(folder: Path, old: Experiment, new: Experiment, newest: int) -> str:
    where, kind = buckets.display_path(folder), type(old.optimizer.schedule).__name__
    if newest > new.steps:
        why = f"steps was {old.steps}, is {new.steps}, and step {newest} is done already"
    elif old.optimizer.schedule.branch_step(old.steps):
        why = f"steps was {old.steps}, is {new.steps}, and no checkpoint from before the decay of {kind} is left"
    else:
        why = f"steps was {old.steps}, is {new.steps}, and {kind} would have had other learning rates from the start"
    return (
        f"{where} holds a run of a different length ({why}): choose another --workdir to train anew; "
        "runs under Constant, InverseSquareRoot or WSD schedules can be lengthened"
    )
