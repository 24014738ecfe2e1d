"""A run that was declared longer is that run from the start, or it is refused."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.experiment import Experiment
from lm.run import course
from lm.run.history import HISTORY
from lm.run.lengthen import shared_steps
from lm.study.trial import LEAN, MISSING, STOPPED, Trial, read_result
from lm.train.checkpoint import Checkpoints
from lm.train.schedule import WSD, Constant, Cosine, InverseSquareRoot, Linear, Schedule
from tests.run.programs import shared_programs, without_reports
from tests.tiny import experiment, lines, write_texts


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    with shared_programs(), without_reports():
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def declared(texts: Path, schedule: Schedule, steps: int, **changes: Any) -> Experiment:
    base = experiment(texts).replace(optimizer=dict(schedule=schedule), model=dict(layers=1), prompts=())
    return base.replace(
        steps=steps, eval_every_steps=100, checkpoint_every_steps=3, keep_last=2, keep_best=0, **changes
    )


@pytest.fixture(scope="module")
def seven(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 7 steps."""
    folder = tmp_path_factory.mktemp("runs") / "seven"
    course.train(declared(texts, Constant(2), 7, ema=0.0), folder)
    return folder


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(Constant(2), marks=pytest.mark.slow), WSD(2, decay_steps=2)],
    ids=lambda s: type(s).__name__,
)
def test_a_longer_run_is_one_from_the_start(
    schedule: Schedule, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says where it went on in another environment."""
    shorter, longest = (declared(texts, schedule, n).replace(prompts=("the ",), sample_tokens=4) for n in (7, 10))
    course.train(shorter, tmp_path / "run")
    entries = json.loads((file := tmp_path / "run" / HISTORY).read_text())
    entries[-1]["environment"] |= dict(memory_bytes=1, cores=99)
    file.write_text(json.dumps(entries))
    assert "since checkpoint" not in capsys.readouterr().out
    course.train(longest, tmp_path / "run")
    assert re.search(r"since checkpoint \d other: cores \(99, now \d+\); from here", capsys.readouterr().out)
    course.train(longest, tmp_path / "whole")
    longer, whole = (lines(tmp_path / name) for name in ("run", "whole"))
    assert [line for line in longer if "loss" in line] == [line for line in whole if "loss" in line]
    assert longer[-1] == whole[-1]
    files = ["samples.json", "samples.txt", "report.html"]
    assert [(tmp_path / "run" / f).read_text() for f in files[:2]] == [
        (tmp_path / "whole" / f).read_text() for f in files[:2]
    ]
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["finished"] and json.loads((tmp_path / "run" / "experiment.json").read_text())["value"]["steps"] == 10


def test_a_decay_is_set_aside_and_not_lost(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, schedule = tmp_path / "run", WSD(2, decay_steps=3)
    course.train(declared(texts, schedule, 7), folder)
    before = (folder / "metrics.jsonl").read_text()
    assert Checkpoints(folder / "checkpoints").steps() == [4, 6, 7]
    course.claim(folder, declared(texts, schedule, 12), "")
    assert "going on from checkpoint 4" in capsys.readouterr().out
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"4", "6.of-7-steps", "7.of-7-steps"}
    assert (folder / "metrics.of-7-steps.jsonl").read_text() == before
    assert not (folder / "samples.json").exists()


def test_a_run_of_a_study_keeps_its_newest_checkpoint_alone(texts: Path, tmp_path: Path) -> None:
    lean = declared(texts, WSD(2, decay_steps=3), 7, ema=0.0).replace(LEAN)
    course.train(lean, tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [7]


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (Cosine(2), 10, "Cosine would have had other learning rates from the start.*choose another --workdir"),
        (Linear(2), 10, "Linear would have had other learning rates from the start"),
        (Constant(2), 5, "steps was 7, is 5, and step 7 is done already"),
    ],
)
def test_what_cannot_go_on_is_refused(
    schedule: Schedule, steps: int, message: str, texts: Path, seven: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(seven, tmp_path / "run")
    (folder / "experiment.json").unlink()  # the schedule stands nowhere else
    course.claim(folder, declared(texts, schedule, 7, ema=0.0), "")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(ValueError, match=message) as error:
        course.train(declared(texts, schedule, steps, ema=0.0), folder)
    assert "\n" not in str(error.value)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_an_arm_that_failed_at_its_start_may_be_corrected(texts: Path, tmp_path: Path) -> None:
    wrong, right = (Trial("arm", 0, experiment(texts).replace(model=dict(width=width))) for width in (18, 16))
    folder = course.claim(right.folder(tmp_path), wrong.experiment, "")
    assert read_result(right, tmp_path).status == MISSING and read_result(wrong, tmp_path).status == STOPPED
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    with pytest.raises(ValueError, match="holds a run of a different experiment .model.width was 18, is 16"):
        read_result(right, tmp_path)


def test_the_steps_that_two_lengths_share(texts: Path) -> None:
    def shared(schedule: Schedule, old: int, new: int) -> int:
        return shared_steps(declared(texts, schedule, old), declared(texts, schedule, new))

    assert shared(InverseSquareRoot(3), 20, 30) == 20
    assert shared(Constant(3), 20, 30) == 20 and shared(Constant(3), 20, 10) == 10
    assert shared(WSD(3, decay_steps=4), 20, 30) == 17  # at the step where it begins, the decay has not yet lowered it
    assert shared(WSD(3, decay_fraction=0.5), 20, 30) == 11
    assert shared(Cosine(3), 20, 30) == 4 and shared(Cosine(3, final=1.0), 20, 30) == 20
