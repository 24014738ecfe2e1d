"""Which checkpoint is read, by the words of the command line."""

from pathlib import Path

import pytest

from lm.train.checkpoint import Checkpoints
from lm.train.kept import kept_step
from tests.train.test_checkpoint import abstract, at

LOSSES = {10: 3.0, 20: 1.0, 30: 2.0, 40: None}


def test_last_best_and_by_number(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=4)
    with pytest.raises(ValueError, match="--step best: no checkpoint was evaluated in .*, kept are none"):
        kept_step(checkpoints, "best")
    for step, loss in LOSSES.items():
        checkpoints.save(at(step), {} if loss is None else {"loss": loss})
    checkpoints.wait()
    assert [kept_step(checkpoints, which) for which in ("last", "best", "10")] == [None, 20, 10]
    for wrong in ("15", "-1", "newest", "1.5", ""):
        with pytest.raises(
            ValueError, match=f"--step {wrong}: .* has no checkpoint of that step, kept are 10, 20, 30, 40"
        ):
            kept_step(checkpoints, wrong)
    assert checkpoints.restore(abstract(), only=20)[2] == 20 and checkpoints.restore(abstract())[2] == 40
    checkpoints.close()
