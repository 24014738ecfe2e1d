"""Every method of fine-tuning: the same updates on one device, on eight and by two processes; killed, the same bits."""

import functools
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import several
from tests.tiny import lines
from tests.tune.methods import experiments, first_updates, write

PROGRAM = ("-m", "tests.tune.methods")
NAMES = [*experiments(Path())]
MESH = {"fsdp": 2, "tensor": 2, "context": 2}
KILLED = ("sft-lora", "dpo", "distill-cached")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """(name) -> the first updates on one device, made once."""
    return functools.cache(lambda name: first_updates(experiments(folder)[name], {"data": 1}))


def same_metrics(found: list[Any], expected: list[Any]) -> None:
    """The metrics that both have, the same within what sums over devices lose."""
    for own, wanted in zip(found, expected, strict=True):
        both = own.keys() & wanted.keys() - {"tokens"}  # of the run, and of the batch
        assert {"loss", "grad_norm"} <= both
        assert {name: own[name] for name in both} == {
            name: pytest.approx(wanted[name], rel=1e-4, abs=1e-6) for name in both
        }


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_make_the_first_three_updates_of_one(name: str, folder: Path, alone: Any) -> None:
    one, params = alone(name)
    eight, others = first_updates(experiments(folder)[name], MESH)
    assert len({metrics["loss"] for metrics in one}) == 3
    same_metrics(eight, one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-4), params, others)


def test_two_processes_make_the_first_three_updates_of_one_device(folder: Path, alone: Any, tmp_path: Path) -> None:
    words = (*NAMES, "steps=3")
    several.finish(several.start(2, folder, tmp_path, 0.0, *words, program=PROGRAM, settings=()), seconds=1200)
    for name in NAMES:
        assert (tmp_path / name / "report.html").exists()
        same_metrics([line for line in lines(tmp_path / name) if "loss" in line], alone(name)[0])


# ---------------------------------------------------------------- killed


def start(folder: Path, workdir: Path, seconds: float, *words: str) -> subprocess.Popen[str]:
    """A process of one device that trains the methods of these names."""
    command = [sys.executable, *PROGRAM, str(folder), str(workdir), str(seconds), *words]
    return subprocess.Popen(command, cwd=several.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    several.finish([start(folder, workdir, 0.0, *KILLED)], seconds=1200)
    return workdir


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_resumed_it_has_the_same_bits(name: str, folder: Path, uninterrupted: Path, tmp_path: Path) -> None:
    process, run = start(folder, tmp_path, 0.3, name), tmp_path / name
    several.until_step([process], run, random.randint(5, 8))
    while not (run / "checkpoints" / "4").exists():
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    process.communicate()
    reached = max(line["step"] for line in lines(run))
    print(f"killed after step {reached}")
    (said,) = several.finish([start(folder, tmp_path, 0.0, name)], seconds=1200)
    assert reached < 12 and "resumed from checkpoint" in said
    assert lines(run) == lines(uninterrupted / name)
