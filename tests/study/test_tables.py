"""The CSV files are the same bytes for the same results, and every other form shows what they hold."""

import csv
import dataclasses
import io
import math
import random
import re
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.experiment import Evaluation
from lm.page.latex import escaped, latex
from lm.page.tables import Table, markdown
from lm.page.words import between, decimals, number, probability
from lm.run.outcome import DIVERGED
from lm.study.statistics import differences
from lm.study.tables import COLUMNS, arms_table, differences_csv, results_csv, sources_tables
from lm.study.trial import MISSING
from lm.study.verdicts import title
from tests.study.results import BASE, run, runs

RESULTS = [
    *runs({"base": {0: 2.0, 1: 2.3, 2: 2.1}, "an_arm": {0: 1.9, 1: 2.25, 2: 1.95}}),
    *(run("wild", 0, 9.0, DIVERGED, "loss=nan at step 50"), run("wild", 1, 2.0), run("wild", 2, 1.0, MISSING)),
]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_a_run_with_every_digit() -> None:
    rows = read(results_csv(RESULTS))
    assert [(r["arm"], r["seed"]) for r in rows] == [(a, s) for a in ("base", "an_arm", "wild") for s in "012"]
    assert [float(r["loss"]) for r in rows[:6]] == [2.0, 2.3, 2.1, 1.9, 2.25, 1.95]
    assert all(float(r["words/loss"]) == float(r["loss"]) + 0.1 for r in rows[:6])
    assert rows[0] == rows[0] | {"status": "finished", "steps": "200", "tokens": str(200 * BASE.batch_tokens)}
    assert float(rows[0]["flops"]) == RESULTS[0].flops and int(rows[0]["parameters"]) == RESULTS[0].parameters
    assert rows[6]["status"] == "diverged" and rows[6]["loss"] == "nan" and rows[8]["status"] == "missing"
    assert list(rows[0])[7:] == ["loss", "sums/accuracy", "sums/loss", "words/accuracy", "words/loss"]


def test_no_clock_and_no_order_of_the_runs_is_in_it() -> None:
    later = [replace(r, seconds=r.seconds + 5, curve=()) for r in RESULTS]
    # arms in the order in which the study has them, whatever order their seeds come in
    by_seed = sorted(later, key=lambda r: -r.trial.seed)
    for make in (results_csv, lambda results: differences_csv(results, "base", "loss")):
        assert make(later) == make(RESULTS) == make(by_seed) and make(RESULTS).endswith("\n")
        assert "\r" not in make(RESULTS)


def test_a_row_an_arm() -> None:
    rows = read(differences_csv(RESULTS, "base", "loss"))
    assert [row["arm"] for row in rows] == ["base", "an_arm", "wild"]
    found = {d.arm: d for d in differences(RESULTS, "base", "loss")}
    for row in rows[1:]:
        for column in COLUMNS[1:]:
            assert float(row[column]) == pytest.approx(getattr(found[row["arm"]], column), rel=0, abs=0, nan_ok=True)
    assert (float(rows[0]["difference"]), rows[0]["p"], rows[0]["seeds"]) == (0.0, "nan", "3")
    assert (rows[2]["seeds"], rows[2]["diverged"], rows[2]["low"]) == ("1", "1", "nan")
    assert len(COLUMNS) == len(astuple(found["wild"]))


def test_means_alone_where_nothing_is_compared() -> None:
    rows = read(differences_csv(RESULTS, "", "loss"))
    assert [row["seeds"] for row in rows] == ["3", "3", "1"] and {row["difference"] for row in rows} == {"nan"}
    assert float(rows[1]["mean"]) == pytest.approx(6.1 / 3)


def test_names_with_commas_stay_whole() -> None:
    arm = 'lr=0.1, "quoted"'
    assert read(results_csv([run(arm, 0, 2.0)]))[0]["arm"] == arm


# ---------------------------------------------------------------- tables to read


def test_the_table_of_arms_holds_what_was_computed() -> None:
    table = arms_table(RESULTS, "base", "loss", differences(RESULTS, "base", "loss"))
    assert all(len(row) == len(table.head) for row in table.rows)
    (base, arm, wild) = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    d = differences(RESULTS, "base", "loss")[0]
    assert base["verdict"] == "base" and base["difference"] == "" and base["seeds"] == "3"
    assert arm["loss"] == "2.03 ± 0.19" and arm["difference"] == "−0.10"
    assert arm["95% interval"] == f"[{number(d.low, 2)}, {number(d.high, 2)}]" == "[−0.22, 0.02]"
    assert (wild["seeds"], wild["95% interval"], wild["p"], wild["verdict"]) == ("1", "–", "–", "cannot tell")
    assert arm["wall time"] == "31 s" and arm["tokens"] == "51.2k"


def test_an_arm_s_mean_is_over_the_seeds_that_are_compared() -> None:
    results = [*runs({"base": {0: 2.0, 1: 2.0}, "arm": {1: 1.0, 2: 7.0}})]
    table = arms_table(results, "base", "loss", differences(results, "base", "loss"))
    assert table.rows[1][:4] == ("arm", "1", "1.00", "−1.00")


def test_what_stands_in_a_source_s_column_is_that_arm_s_and_that_source_s() -> None:
    tables = sources_tables(RESULTS, "base", "sums/accuracy")
    assert [t.title for t in tables] == ["Accuracy by source", "Loss by source"]
    assert tables[1].head == ("arm", "sums", "difference", "words", "difference")
    rows = {row[0]: row[1:] for row in tables[1].rows}
    assert rows["base"] == ("2.03", "", "2.23", "") and rows["an_arm"][::2] == ("1.93", "2.13")
    assert rows["an_arm"][1].startswith("−0.10 ± 0.1") and rows["wild"][1] == "−0.30"
    alone = sources_tables(RESULTS, "", "loss")[0]
    assert alone.head == ("arm", "sums", "words") and alone.rows[1] == ("an_arm", "1.93", "2.13")


def test_further_evaluations_have_a_table_of_their_means() -> None:
    found = []
    for r in runs({"base": {0: 2.0, 1: 2.25}, "arm": {0: 1.5, 1: 2.0}}):
        e = r.trial.experiment.replace(evaluations={"2x": Evaluation(2)})
        loss = r.measures["loss"] + 1
        more = {"2x/loss": loss, "2x/sums/loss": loss} if r.trial.arm == "base" or r.trial.seed else {}
        measures = {**r.measures, **more}
        found.append(dataclasses.replace(r, trial=dataclasses.replace(r.trial, experiment=e), measures=measures))
    tables = sources_tables(found, "base", "loss")
    assert [t.title for t in tables] == ["Loss by evaluation", "Loss by source", "Accuracy by source"]
    assert tables[0].head == ("arm", "own", "difference", "2x", "difference") and tables[1].head[1::2] == (
        "sums",
        "words",
    )
    assert tables[0].rows[0] == ("base", "2.12", "", "3.12", "")
    assert tables[0].rows[1][3:] == ("3.00", "−0.25")  # of the one seed that has it


def test_no_sources_no_tables() -> None:
    assert sources_tables([run("a", 0, 1.0, MISSING)], "a", "loss") == []


TABLE = Table("A_title & more", ("arm", "100%"), (("x_y|z", "−0.1"), ("[a]", "2 ± 1")), "5 < 6.")


def test_markdown_has_a_cell_for_each() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "## A_title & more" and lines[2] == r"5 \< 6."
    assert lines[4:] == ["| arm | 100% |", "| --- | ---: |", r"| x_y\|z | −0.1 |", r"| \[a\] | 2 ± 1 |"]


def test_latex_is_what_booktabs_wants() -> None:
    text = latex(TABLE)
    assert r"\caption{A\_title \& more. 5 $<$ 6.}" in text and r"\begin{tabular}{@{}lr@{}}" in text
    assert r"{}x\_y\textbar{}z & $-$0.1 \\" in text and r"{}[a] & 2 $\pm$ 1 \\" in text
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]
    headless = latex(replace(TABLE, head=("", "")))
    assert r"\midrule" not in headless


@given(st.text(alphabet="\\&%$#_{}~^<>|\"`'-−±×–…ab 1[]", max_size=20))
def test_latex_escapes_leave_nothing_active(text: str) -> None:
    written = escaped(text)
    known = r"\\(?:text[a-z]+\{\}|ldots\{\}|[&%$#_{}])|\$(?:-|<|>|\\pm|\\times)\$"
    assert not set(re.sub(known, "", written)) & set('\\&%$#_{}~^<>|"`−±×–…')


@given(st.text(alphabet="ab|_*`<>[]~\\ \n", max_size=20))
def test_markdown_keeps_its_cells(text: str) -> None:
    line = markdown(Table("t", ("a", "b"), ((text, "1"),))).splitlines()[-1]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3


# ---------------------------------------------------------------- numbers


def test_numbers_are_written_with_as_many_digits_as_they_are_sure_of() -> None:
    assert decimals([0.0123, 0.3, 0.4]) == 2 and decimals([0.0123, 0.021, 0.4]) == 3
    assert decimals([0.5]) == 2 and decimals([1e-9]) == 6 and decimals([30.0]) == 2
    assert decimals([]) == decimals([math.nan, 0.0]) == 4
    assert number(-0.12345, 3) == "−0.123" and number(0.5, 1, sign=True) == "+0.5" and number(math.nan, 2) == "–"
    assert between(-0.1, 0.2, 2) == "[−0.10, 0.20]" and between(math.nan, math.nan, 2) == "–"


def test_p_values_never_read_zero() -> None:
    assert [probability(p) for p in (0.0, 0.0005, 0.0123, 0.049, 0.5, 1.0, math.nan)] == [
        *("< 0.001", "< 0.001", "0.012", "0.049", "0.50", "1.00", "–")
    ]


def test_measures_are_said() -> None:
    assert title("loss") == "loss" and title("code/bits_per_byte") == "bits per byte on code"


def test_the_same_bytes_in_any_order_of_the_runs() -> None:
    shuffled = RESULTS[3:6] + RESULTS[:3] + RESULTS[6:]
    random.Random(0).shuffle(shuffled)
    rows = sorted(results_csv(shuffled).splitlines())
    assert rows == sorted(results_csv(RESULTS).splitlines())
