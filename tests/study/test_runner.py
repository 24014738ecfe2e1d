"""Studies as a user runs them, each run a process of its own: what fails stays alone, what is killed goes on."""

import csv
import json
import os
import random
import time
from pathlib import Path

import pytest

from lm.run.folder import claim
from lm.run.outcome import DIVERGED, FAILED
from lm.study import runner
from lm.study.ablation import Ablation
from lm.study.trial import FINISHED, MISSING, STOPPED, Result, read_result
from lm.study.watch import table
from tests.forked import Process, launch
from tests.study import page
from tests.tiny import experiment, write_texts

CSVS = ("results.csv", "differences.csv")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def start(texts: Path, name: str, folder: Path, *options: str) -> Process:
    """`lm study` in a process."""
    command = ["study", f"tests.study.page:{name}", "--workdir", folder, *options]
    return Process(texts.with_suffix(".txt"), launch, *command, TEXTS=str(texts))


def rows(file: Path) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["arm"], row.get("seed", "")): row for row in csv.DictReader(file.read_text().splitlines())}


@pytest.fixture(scope="module")
def broken(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / "study"
    start(texts, "broken", folder, "--together", "no").finish()
    return folder


def test_what_fails_is_told_and_stops_no_other(broken: Path) -> None:
    found = {arm: row["status"] for (arm, _), row in rows(broken / "results.csv").items()}
    assert found == {"base": FINISHED, "small": FAILED, "wild": DIVERGED}
    report = (broken / "report.md").read_text()
    assert "the tokenizer has 258 pieces and model.vocab is 200" in report
    assert "the gradient's norm" in report
    assert rows(broken / "differences.csv")["wild", ""]["diverged"] == "1"


def test_what_is_over_is_not_run_again(broken: Path, texts: Path) -> None:
    """A run that is finished, or diverged; one that failed is tried again."""
    before = {arm: (broken / "runs" / arm / "0" / "log.txt").stat().st_size for arm in ("base", "small", "wild")}
    tables = [(broken / name).read_bytes() for name in CSVS]
    start(texts, "broken", broken, "--together", "no").finish()
    after = {arm: (broken / "runs" / arm / "0" / "log.txt").stat().st_size for arm in before}
    assert after["base"] == before["base"] and after["wild"] == before["wild"] and after["small"] > before["small"]
    assert [(broken / name).read_bytes() for name in CSVS] == tables


def test_runs_whose_process_is_gone_say_its_last_line(texts: Path, tmp_path: Path) -> None:
    trials = list(Ablation(experiment(texts), {"base": {}}, seeds=range(3)).trials())
    for trial in trials:
        claim(trial.folder(tmp_path), trial.experiment, "")
    (trials[0].folder(tmp_path) / "log.txt").write_text("first step\nno memory\n")
    for group in (trials[:2], trials[2:]):
        runner._note_failures(group, tmp_path)
    told = [read_result(trial, tmp_path).reason for trial in trials]
    assert told[0] == told[1] == "its process ended before it; the last line of its log: no memory"
    assert told[2] == "its process ended before it without a word"


def test_a_run_of_a_study_is_an_ordinary_one(broken: Path) -> None:
    folder = broken / "runs" / "base" / "0"
    assert json.loads((folder / "about.json").read_text())["finished"]
    assert {"report.html", "metrics.jsonl", "checkpoints", "experiment.json"} <= {p.name for p in folder.iterdir()}


def test_every_finished_run_has_its_report(broken: Path, texts: Path) -> None:
    """Also one that was deleted, or is of before the run's end."""
    reports = [broken / "runs" / arm / "0/report.html" for arm in ("base", "wild")]
    assert [report.exists() for report in reports] == [True, False]
    wanted = reports[0].read_bytes()
    reports[0].write_text("of before the end")
    os.utime(reports[0], ns=(0, 0))
    start(texts, "broken", broken).finish()
    assert reports[0].read_bytes() == wanted


def test_a_folder_is_of_one_study(broken: Path, texts: Path) -> None:
    told = start(texts, "pair", broken).finish(1)
    assert "holds the study tests.study.page:broken, not tests.study.page:pair: choose another --workdir" in told
    with runner.locked(broken, {"study": "tests.study.page:broken"}):
        told = start(texts, "broken", broken).finish(1)
    assert "a study is under way in" in told and "Traceback" not in told
    told = start(texts, "pair", broken / "other", "--only", "alib").finish(1)
    assert "no arm 'alib': did you mean alibi" in told


def test_a_folder_of_a_run_is_not_a_study_s_nor_the_other_way_round(broken: Path) -> None:
    run, before = broken / "runs" / "base" / "0", (broken / "runs" / "base" / "0" / "report.html").read_bytes()
    with pytest.raises(ValueError, match="is a run's folder, .*: choose another --workdir"):
        runner.run(page.pair, run, {"study": "tests.study.page:pair"}, lambda *_: None)
    assert (run / "report.html").read_bytes() == before and not (run / "study.json").exists()
    with pytest.raises(ValueError, match="is a study's folder, .*: choose another --workdir"):
        claim(broken, page.BASE, "tests.study.page:BASE")
    assert not (broken / "experiment.json").exists()


def test_new_runs_of_a_study_begin_with_the_text_of_its_first_ones(tmp_path: Path) -> None:
    first, recorded = tmp_path / "runs" / "base" / "0", '{"words": "as of before", "sums": "and its order"}'
    claim(first, page.pair.trials()[0].experiment, "tests.study.page:pair")
    (first / "data.json").write_text(recorded)
    runner.run(page.pair, tmp_path, {"study": "tests.study.page:pair"}, lambda *_: None)
    assert len(page.pair.trials()) == 4
    for trial in page.pair.trials():
        assert list(json.loads((trial.folder(tmp_path) / "data.json").read_text()).items()) == list(
            json.loads(recorded).items()
        )


@pytest.mark.slow
def test_killed_at_any_moment_and_gone_on_with(texts: Path, tmp_path: Path) -> None:
    """Its tables end with the same bytes as those of one that was left alone."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    start(texts, "pair", alone).finish()
    chance = random.Random(5)
    for _ in range(2):
        process = start(texts, "pair", killed)
        time.sleep(chance.uniform(1.0, 6.0))
        process.kill()
        process.join()
    start(texts, "pair", killed).finish()
    for name in CSVS:
        assert (killed / name).read_bytes() == (alone / name).read_bytes()


def test_the_table_tells_of_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    trials = page.pair.trials()
    with table("loss") as show:
        show([Result(t, MISSING) for t in trials])
        show([Result(trials[0], FINISHED, measures={"loss": 1.25}), *(Result(t, STOPPED) for t in trials[1:])])
        show([Result(trials[0], FINISHED, measures={"loss": 1.25}), Result(trials[1], FAILED, "no text")])
    assert capsys.readouterr().out.splitlines() == [
        "base, seed 0: finished, loss 1.2500",
        "alibi, seed 0: failed, no text",
    ]
