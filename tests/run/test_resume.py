"""Resumed = uninterrupted, bit for bit, however a run was ended. Each run is a process of its own, on one device; what
is refused is refused in this one."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from lm.pretrained import load
from lm.run import course
from lm.train.checkpoint import Checkpoints
from tests.forked import Process, train
from tests.tiny import STEPS, experiment, lines, of, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def uninterrupted(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    start(texts, folder).finish()
    return folder


def start(texts: Path, workdir: Path, seconds: float = 0.0) -> Process:
    """A training process, whose steps each last `seconds` longer."""
    return Process(workdir.with_suffix(".txt"), train, texts, workdir, seconds, "prompts=()", "model.layers=1")


def refused(texts: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said where the run cannot go on."""
    with pytest.raises(ValueError) as error:
        course.train(experiment(texts).replace(prompts=(), model=dict(layers=1)), workdir)
    out, err = capsys.readouterr()
    return f"{out}{err}{error.value}"


def test_stopped_by_sigterm_killed_at_any_moment_and_resumed(uninterrupted: Path, texts: Path, tmp_path: Path) -> None:
    """Killed twice: somewhere in the first two thirds of the run, then somewhere after its start."""
    folder = tmp_path / "run"
    process = start(texts, folder, 0.1)
    process.wait_for(folder, 2)
    process.terminate()
    said = process.finish(75)
    assert "stopping after this step, with a checkpoint" in said and "stopped after step" in said
    stopped = Checkpoints(folder / "checkpoints").latest
    assert stopped and stopped < STEPS
    assert list(of(lines(folder), "loss")) == list(range(1, stopped + 1))
    for least in (random.randint(stopped + 1, max(stopped + 1, 9)), None):
        process = start(texts, folder, 0.05)
        if least:
            process.wait_for(folder, least)
        delay = random.uniform(0, 0.2 if least else 3.0)
        print(f"killed {delay} s after line {least}")
        time.sleep(delay)
        process.kill()
        process.join()
        assert not least or f"resumed from checkpoint {stopped}" in process.said
    start(texts, folder).finish()
    assert lines(folder) == lines(uninterrupted)


@pytest.mark.parametrize("damaged", [1, 2], ids=["newest", "all"])
def test_a_damaged_checkpoint_falls_back(
    damaged: int, uninterrupted: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the one before it, and to the same bits; where none is whole the run refuses, and touches nothing."""
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    for step in (12, 8)[:damaged]:
        for file in (folder / "checkpoints" / str(step)).rglob("*"):
            if file.is_file() and file.stat().st_size > 1000:
                data = bytearray(file.read_bytes())
                data[len(data) // 2] ^= 0xFF
                file.write_bytes(data)
    said = refused(texts, folder, capsys) if damaged == 2 else start(texts, folder).finish()
    assert "checkpoint 12" in said and "is damaged" in said
    assert lines(folder) == lines(uninterrupted)
    if damaged == 2:
        assert "no checkpoint to read" in said and "start over in an empty folder" in said
        assert Checkpoints(folder / "checkpoints").steps() == [8, 12]
        return
    assert "going back to checkpoint 8" in said
    checkpoints = Checkpoints(folder / "checkpoints", warn=pytest.fail)
    assert checkpoints.restore({"params": load(folder).model.shapes()})[2] == STEPS


def test_a_source_that_changed_is_refused(
    uninterrupted: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    note = folder / "data.json"
    assert json.loads(note.read_text())
    note.write_text(note.read_text().replace('": "', '": "0'))
    assert "has changed since this run began" in refused(texts, folder, capsys)
