"""What an earlier version wrote is still read: a run, a study, and the experiments of every page (tests/before.tar.xz).

The archive was made at commit cec5c3d from `tests.tiny.experiment(Path("texts"))`. The run (width 8, products in
float32, no prompts) has checkpoint 8 alone; its metrics go on to step 12, as what a resumed run is to find again.
"""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from lm import value
from lm.experiment import Experiment
from lm.model import count
from lm.model.positions import Alibi
from lm.pretrained import load, read_experiment
from lm.run import course
from lm.run.diff import compare
from lm.run.evaluate import evaluate
from lm.run.replay_report import replay
from lm.study import runner
from lm.study.ablation import Ablation
from tests.tiny import experiment, lines, write_texts

ARCHIVE = Path(__file__).with_name("before.tar.xz")
TOLERANCE = 1e-5  # another CPU and another number of devices round differently


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked archive as working directory, beside the texts that its runs name."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    write_texts(Path("texts"))
    return tmp_path


def test_experiments_are_read(before: Path) -> None:
    """Every field is known today, and the model is the same one."""
    for name, old in json.loads((before / "experiments.json").read_text()).items():
        read = value.build(Experiment, old["value"])
        assert count.parameters(read.model) == old["parameters"], name
        assert count.flops_per_token(read.model, read.length) == old["flops_per_token"], name
        assert value.build(Experiment, value.plain(read)) == read, name


def test_a_run_is_loaded_evaluated_and_resumed(before: Path) -> None:
    assert load("run").step == 8
    recorded = lines(before / "run")
    evaluated = next(line for line in recorded if line["step"] == 8 and "eval/loss" in line)
    for source, measures in evaluate("run").items():
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert measures[name] == pytest.approx(evaluated[f"eval/{source}/{name}"], rel=TOLERANCE)
    course.train(read_experiment("run"), "run")
    resumed = lines(before / "run")
    assert [line["step"] for line in resumed] == [line["step"] for line in recorded]
    for new, old in zip(resumed, recorded, strict=True):
        assert new == pytest.approx(old, rel=TOLERANCE)


@pytest.mark.slow
def test_a_step_is_computed_again_and_compared(before: Path) -> None:
    """From its checkpoint, on another machine; a run that went on here differs in nothing that was declared."""
    report, _ = replay("run", 10)
    assert report.proof.startswith("Computed from checkpoint 8: ") and "Row " in report.verdict
    shutil.copytree("run", "other")
    course.train(read_experiment("other"), "other")
    found = compare("run", "other", replay=False)
    declared, data, *_, program, losses, states, _ = found.tables
    assert not declared.rows and not data.rows and program.note == "Not recorded in A."
    assert states.note == "The same at step 8." and all(row[0] == "the first that differs" for row in losses.rows)


def test_a_finished_study_is_read_and_nothing_is_run(before: Path) -> None:
    base = experiment(Path("texts")).replace(model=dict(dropout=0.0))
    study = Ablation(base, {"base": {}, "alibi": dict(model=dict(positions=Alibi()))}, seeds=range(2))

    def run(groups: object, folder: Path, look: object) -> None:
        pytest.fail(f"runs again: {groups}")

    results = runner.run(study, before / "study", json.loads((before / "study" / "study.json").read_text()), run)
    recorded = list(csv.DictReader((before / "study" / "results.csv").read_text().splitlines()))
    found = {(r.trial.arm, str(r.trial.seed)): r for r in results}
    assert len(recorded) == len(found) == 4
    for row in recorded:
        result = found[row["arm"], row["seed"]]
        assert result.finished and result.parameters == int(row["parameters"]) and result.flops == float(row["flops"])
        for measure in result.measures:
            assert result.measures[measure] == pytest.approx(float(row[measure]), rel=1e-12)
