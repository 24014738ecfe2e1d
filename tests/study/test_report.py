"""The report says what came of a study, all of it, whatever came of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lm.page import plots
from lm.page.markup import Markup, tag
from lm.page.source import as_python, with_commas
from lm.page.tables import Table
from lm.run.outcome import DIVERGED, FAILED
from lm.study import charts
from lm.study.ablation import Ablation
from lm.study.report import Findings, StudyReport, first_sentence, write_study
from lm.study.statistics import differences
from lm.study.tables import declared_table
from lm.study.trial import FINISHED, MISSING, Result, Trial
from lm.text.tokenizer import Bytes, Characters
from tests.page.test_run_report import HOSTILE, parsed
from tests.study.results import BASE, run, runs

ARMS = {
    "base": {0: 2.0, 1: 2.3, 2: 2.1, 3: 2.6},
    "good": {0: 1.9, 1: 2.19, 2: 2.01, 3: 2.49},
    "bad": {0: 2.2, 1: 2.52, 2: 2.28, 3: 2.83},
    "other": {0: 2.1, 1: 2.2, 2: 2.2, 3: 2.55},
}
FILES = ("results.csv", "differences.csv", "report.md", "report.tex", "report.html")


def text(folder: Path, results: list[Result], base: str = "base", measure: str = "loss", **others: Any) -> str:
    """The page's text, after checks that hold of any page."""
    path = StudyReport("a study", results, base, measure, folder=folder, **others).write()
    assert path == folder / "report.html" and all((folder / name).is_file() for name in FILES)
    assert not list(folder.glob(".*.part"))
    page = parsed(path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for _, a in page.tags if "href" in a} <= set(ids)
    html = path.read_text()
    assert "http:" not in html and "https:" not in html and "<script" not in html
    assert all(a.get("role") == "img" and a.get("aria-label") for name, a in page.tags if name == "svg")
    assert all(a.get("scope") == "col" for name, a in page.tags if name == "th")
    return page.text


def test_a_study_from_the_verdict_to_the_command(tmp_path: Path) -> None:
    results = runs(ARMS)
    said = text(tmp_path, results, matched="flops", command="lm study experiments.some:study")
    assert "Against base, in loss: good is better by 0.103 (95% interval 0.0873 to 0.118); bad is worse by" in said
    assert (
        "of other the data cannot tell. 16 of 16 runs finished, 4 seeds an arm. All arms were given the FLOPs" in said
    )
    for part in ("Arms", "Conclusions", "Training", "Loss by source", "Accuracy by source", "Gain from pairing"):
        assert part in said
    assert (
        "would need about" in said and "$ lm study experiments.some:study" in said and f"lm report {tmp_path}" in said
    )
    assert "Runs that did not finish" not in said and "What was resized" not in said
    for name in ("report.md", "report.tex"):
        written = (tmp_path / name).read_text()
        assert "−0.10" in written.replace("$-$", "−") and "cannot tell" in written


def test_latex_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm.page.latex", None)  # as if the file were not there
    StudyReport("a study", runs(ARMS), "base", "loss", folder=tmp_path).write()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(FILES) - {"report.tex"})


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    text(tmp_path, runs(ARMS))
    first = {name: (tmp_path / name).read_bytes() for name in FILES}
    text(tmp_path, runs(ARMS))
    assert first == {name: (tmp_path / name).read_bytes() for name in FILES}


def test_one_seed(tmp_path: Path) -> None:
    said = text(tmp_path, runs({arm: {0: losses[0]} for arm, losses in ARMS.items()}))
    assert "With one seed no interval can be given, so which arm is better remains open." in said
    assert "At that seed, in loss against base: good −0.1, other +0.1, bad +0.2." in said
    assert "1 seed an arm" in said and "Gain from pairing" not in said and "nan" not in said


def test_what_diverged_is_marked_and_in_no_mean(tmp_path: Path) -> None:
    results = [r for r in runs(ARMS) if (r.trial.arm, r.trial.seed) not in (("bad", 1), ("good", 0))]
    results += [run("bad", 1, 99.0, DIVERGED, "loss=nan at step 50"), run("good", 0, 2.0, FAILED, HOSTILE)]
    said = text(tmp_path, results)
    assert "14 of 16 runs finished, 3 to 4 seeds an arm" in said
    assert "Without a result, and in no mean: 1 of good and 1 of bad." in said
    assert "Runs that did not finish" in said and "flatters an arm that diverges" in said
    assert "loss=nan at step 50" in said and HOSTILE in said and "50 of 200" in said
    assert "thin: runs that diverged" in said and "99." not in said
    assert "1 seed was left out" in said and r"\<script\>" in (tmp_path / "report.md").read_text()


def test_a_study_under_way(tmp_path: Path) -> None:
    results = [replace(r, status=MISSING, measures={}, curve=()) if r.trial.seed else r for r in runs(ARMS)]
    said = text(tmp_path, results)
    assert "4 of 16 runs" in said and "not run yet" in said


def test_before_any_run(tmp_path: Path) -> None:
    results = [replace(r, status=MISSING, measures={}, curve=(), evaluations=()) for r in runs(ARMS)]
    assert "No run has finished yet." in text(tmp_path, results)


def test_a_base_without_results(tmp_path: Path) -> None:
    results = [replace(r, status=FAILED, measures={}) if r.trial.arm == "base" else r for r in runs(ARMS)]
    said = text(tmp_path, results)
    assert "Of 3 arms, good has the lowest loss: 2.147 over 4 seeds." in said and "at no seed have both" in said


def test_nothing_to_compare_with_and_parts_of_one_s_own(tmp_path: Path) -> None:
    extra = [Table("Best settings", ("field", "best"), (("lr", "0.1"),)), tag("section", "drawn <here>")]
    said = text(tmp_path, runs(ARMS), base="", own=Findings("The best learning rate is 0.1.", extra))
    assert said.index("The best learning rate is 0.1.") < said.index("Best settings") < said.index("Arms")
    assert "drawn <here>" in said and "Conclusions" not in said and "Difference to" not in said
    for name in ("report.md", "report.tex"):
        assert "Best settings" in (tmp_path / name).read_text() and "drawn" not in (tmp_path / name).read_text()
    assert "Of 4 arms, good has the highest accuracy on sums" not in said
    assert "Of 4 arms, good has the highest accuracy on sums" in text(tmp_path, runs(ARMS), "", "sums/accuracy")


def test_an_ablation_is_reported_as_it_declares(tmp_path: Path) -> None:
    study = Ablation(BASE, {"deep": dict(model=dict(layers=4))}, seeds=range(2))
    results = [
        Result(t, FINISHED, "", {"loss": 2.0 + 0.1 * t.seed - 0.03 * i}, ((1, 3.0),), ((1, {"loss": 3.0}),))
        for i, t in enumerate(study.trials())
    ]
    where = {0: {"device": "cpu", "memory_bytes": 2**33}, 1: {"device": "TPU v5 lite", "memory_bytes": 2**33}}
    for trial in study.trials():
        trial.folder(tmp_path).mkdir(parents=True)
        about = json.dumps({"environment": where[trial.seed]})
        (trial.folder(tmp_path) / "about.json").write_text(about)
    note = {"study": "experiments.some:depth", "command": "lm study experiments.some:depth"}
    page = parsed(write_study(tmp_path, study, results, note)).text
    assert "depth" in page and "model.layers24" in page  # field, in the base, in the arm
    steps = study.resolved["deep"][0].steps
    assert "What was resized" in page and f"deepsteps200{steps}" in page
    assert "The runs were made in 2 different environments." in page and "cpu / TPU v5 lite" in page
    assert "memory8.0 GiB" in page and "training FLOPs" in page


def test_what_a_study_adds_is_asked_for(tmp_path: Path) -> None:
    own = Findings("So it is.", [tag("p", "more")], {"own.csv": "a\n"})
    study = SimpleNamespace(measure="loss", findings=lambda results: own)
    page = parsed(write_study(tmp_path, study, runs(ARMS), {"study": "a:b"})).text
    assert "So it is." in page and "more" in page and "Difference to" not in page
    assert (tmp_path / "own.csv").read_text() == "a\n"


def test_many_arms_are_drawn_as_far_as_colours_go(tmp_path: Path) -> None:
    arms = {f"a{i}": {0: 3.0 - 0.1 * i, 1: 3.0 - 0.1 * i} for i in range(10)}
    results = runs(arms)
    assert charts.chosen(results, "a0", "loss") == ["a0", "a9", "a8", "a7", "a6", "a5", "a4"]
    assert "the 7 best arms, 3 are left out" in text(tmp_path, results, "a0")


def test_losses_of_other_tokenizers_are_no_comparison(tmp_path: Path) -> None:
    """Neither as curves nor in a table; the measure itself is shown, with the arms named."""
    results = runs({"base": {0: 2.0, 1: 2.1}, "other": {0: 1.9, 1: 2.05}})
    page = text(tmp_path, results, measure="sums/accuracy")
    assert "Training loss" in page and "Loss by source" in page
    tokenizer = Bytes() if not isinstance(BASE.data.tokenizer, Bytes) else Characters()

    def with_other(r: Result) -> Result:
        return replace(r, trial=replace(r.trial, experiment=r.trial.experiment.replace(data=dict(tokenizer=tokenizer))))

    unlike = [with_other(r) if r.trial.arm == "other" else r for r in results]
    page = text(tmp_path, unlike, measure="sums/accuracy")
    assert "Training loss" not in page and "Loss by source" not in page
    assert "Held-out accuracy on sums" in page and "Accuracy by source" in page


def test_an_arm_far_from_the_others_is_an_arrow() -> None:
    near = [plots.Interval(name, x, x - 0.1, x + 0.1) for name, x in (("a", 0.1), ("b", -0.2), ("c", 0.3))]
    far = plots.Interval("far", 40, 39, 41)
    alone, beside = plots.intervals("x", near, "m"), plots.intervals("x", [*near, far], "m")
    assert "+40" in beside and "+40" not in alone
    assert plots.intervals("x", [plots.Interval("zero", 0.0, 0.0, 0.0)], "m")


def test_a_value_of_another_class_is_one_change() -> None:
    found = [("m.p.type", "Rotary", "Learned"), ("m.p.theta", 1e4, None), ("m.p.scale", None, 0.02), ("m.layers", 2, 4)]
    assert declared_table({"arm": found}, "b").rows == (
        ("arm", "m.p", "Rotary(theta=10000.0)", "Learned(scale=0.02)"),
        ("arm", "m.layers", "2", "4"),
    )
    assert (
        as_python({"a": [1, True, "x"], "b": {"type": "m:C", "n": 5000}}, with_commas)
        == "{'a': [1, True, 'x'], 'b': C(n=5,000)}"
    )


def test_bands_are_over_what_all_seeds_have() -> None:
    x, mean, low, high = charts.band([[(1, 2.0), (2, 4.0), (3, 1.0)], [(1, 4.0), (2, 2.0)]])
    assert (x, mean, low, high) == ([1, 2], [3.0, 3.0], [2.0, 2.0], [4.0, 4.0])
    assert charts.band([]) == charts.band([[(1, 2.0)], [(2, 2.0)]]) == ([], [], [], [])
    x, mean, _, _ = charts.band([[(i, float(i)) for i in range(5000)]])
    assert len(x) == charts.POINTS and x[0] == 0 and x[-1] == 4999 and mean == [float(i) for i in x]


def test_the_first_sentence_of_nothing_is_none() -> None:
    assert first_sentence([], "base", "loss") == ""
    same = differences(runs({"base": ARMS["base"], "twin": ARMS["base"]}), "base", "loss")
    assert first_sentence(same, "base", "loss") == "Against base, in loss: twin is the same at every seed."


def test_names_are_escaped(tmp_path: Path) -> None:
    results = runs({HOSTILE: {0: 2.0, 1: 2.1}, "base": {0: 2.2, 1: 2.0}})
    declared = {HOSTILE: [("model.layers", HOSTILE, 1)]}
    assert HOSTILE in text(tmp_path, results, declared=declared, command=HOSTILE, own=Findings(HOSTILE))
    assert isinstance(charts.curves(results, "base", "loss"), Markup)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no arm 'bse' to compare with: did you mean base"):
        StudyReport("s", runs(ARMS), "bse", "loss", folder=tmp_path).write()
    with pytest.raises(ValueError, match="no run has the measure 'los'"):
        StudyReport("s", runs(ARMS), "base", "los", folder=tmp_path).write()
    with pytest.raises(ValueError, match=r"cannot write .*results.csv: No such file"):
        StudyReport("s", runs(ARMS), "base", "loss", folder=tmp_path / "nowhere").write()
    assert not list(tmp_path.iterdir())


def test_trials_of_other_kinds_need_no_curve(tmp_path: Path) -> None:
    results = [Result(Trial("a", s, BASE.replace(seed=s)), FINISHED, "", {"loss": 2.0 + s}) for s in (0, 1)]
    assert "Training loss" not in text(tmp_path, results, "a")
