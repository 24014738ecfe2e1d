"""Runs that learn from rewards, killed with SIGKILL: they go on to the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm.train.checkpoint import FILE, Checkpoints
from tests import several
from tests.tiny import lines
from tests.tune.process import METHODS, PLACES

KILLS = {"rollout": 6, "update": 6, "checkpoint": 3}  # where at least one checkpoint is whole


def run(method: str, file: Path, workdir: Path, where: str = "never", count: int = 0) -> int:
    """The exit code of the run in a process of its own."""
    command = [sys.executable, "-m", "tests.tune.process", method, where, str(count), str(file), str(workdir)]
    done = subprocess.run(command, cwd=several.ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode in (0, -9), done.stdout + done.stderr
    return done.returncode


CASES = [(method, where) for method in METHODS for where in PLACES]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "where"), CASES)
def test_killed_in_the_middle_it_goes_on_to_the_same_bits(method: str, where: str, file: Path, tmp_path: Path) -> None:
    """The parameters, the optimizer's moments and what a method keeps included."""
    folder, whole = tmp_path / "run", tmp_path / "run-whole"
    assert run(method, file, folder, where, KILLS[where]) == -9
    begun = Checkpoints(folder / "checkpoints").latest
    assert begun and begun < 7
    assert run(method, file, folder) == 0
    assert lines(folder) == lines(whole)
    sums = [json.loads((one / "checkpoints" / "7" / FILE).read_text())["arrays"] for one in (folder, whole)]
    assert sums[0] == sums[1] and any(".mu." in name for name in sums[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(method: str, file: Path, tmp_path: Path) -> None:
    """The first three updates: each process draws and scores its own rows, and one asks the reward functions."""
    program = ("-m", "tests.tune.process", method, "never", "0")
    for n in (1, 2):
        several.finish(several.start(n, file, tmp_path / f"{n}", 0.0, "steps=3", program=program), seconds=1200)
    for own, other in zip(*(lines(tmp_path / f"{n}") for n in (1, 2)), strict=True):
        assert max(one.pop("sampler_gap", 0.0) for one in (own, other)) < 1e-4
        assert own == {name: pytest.approx(value, rel=1e-3, abs=1e-5) for name, value in other.items()}
