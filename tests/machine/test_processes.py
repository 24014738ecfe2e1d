"""Several processes: a launcher's environment, and one run of two. What happens to more is in tests/several.py."""

from pathlib import Path
from typing import Any

import pytest

from lm.machine.processes import from_environment
from lm.run import course
from lm.train.checkpoint import Checkpoints
from tests import several
from tests.forked import Process, train
from tests.run.programs import shared_programs
from tests.tiny import experiment, write_texts

FOUND = dict(coordinator_address="a:1", num_processes=2, process_id=1, cluster_detection_method="deactivate")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"LM_PROCESSES": "1"}, None),
        ({"LM_PROCESSES": "auto"}, {}),
        ({"LM_PROCESSES": "2", "LM_PROCESS": "1", "LM_COORDINATOR": "a:1"}, FOUND),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, {}),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "3", "SLURM_NTASKS": "2"}, None),  # sbatch's own shell is no task
    ],
)
def test_a_launchers_environment(environ: dict[str, str], found: dict[str, Any] | None) -> None:
    assert from_environment(environ) == found


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LM_PROCESSES": "two"}, "LM_PROCESSES=two, LM_PROCESS=: expected a number of processes"),
        ({"LM_PROCESSES": "2", "LM_PROCESS": "2", "LM_COORDINATOR": "a:1"}, "and an index below it"),
        ({"LM_PROCESSES": "2", "LM_PROCESS": "0", "LM_COORDINATOR": "a"}, "LM_COORDINATOR=a: expected HOST:PORT"),
    ],
)
def test_an_inconsistent_environment_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_environment(environ)


def test_one_that_fails_ends_the_other_with_its_line(tmp_path: Path) -> None:
    """By whatever exception, also the process that serves the others; not by an abort of JAX after a while."""
    codes, said = several.failed(write_texts(tmp_path / "texts"), tmp_path / "run", 0, "own")
    assert codes == [1, 75], said
    (line,) = [line for line in said[1].splitlines() if line.startswith("lm: ")]
    assert "process 1 of 2 ends: another one has died" in line and "(process 0: RuntimeError: on its own)" in line
    assert "Traceback" in said[0] and "Traceback" not in said[1]


def test_two_are_left_together_and_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two gets SIGTERM, and both stop after the same step; this process, with other devices, goes on,
    to the metrics of a run that had these devices all along."""
    monkeypatch.setattr(course, "write_report", lambda folder: folder / "report.html")
    texts = write_texts(tmp_path / "texts")
    whole = experiment(texts).replace(prompts=(), compute=dict(matmul="float32"), model=dict(layers=1))
    arguments = (train, texts, tmp_path / "left", 0.1, *several.SETTINGS, "model.layers=1")
    two = [Process(tmp_path / f"{i}.txt", *arguments, **own) for i, own in enumerate(several.environments(2))]
    two[0].wait_for(tmp_path / "left", 3)
    two[1].terminate()
    said = [process.finish(75) for process in two]
    assert "SIGTERM: all 2 processes stop after step" in said[0]
    stopped = Checkpoints(tmp_path / "left" / "checkpoints").latest
    assert stopped and all(f"stopped after step {stopped}, with a checkpoint" in text for text in said)
    with shared_programs():
        course.train(whole, tmp_path / "whole")
        course.train(whole, tmp_path / "left")
    several.same(tmp_path / "left", tmp_path / "whole")
