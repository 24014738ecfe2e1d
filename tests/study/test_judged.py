"""Tables of evaluations by a method of their own: every measure of all arms in one, and samples side by side."""

from dataclasses import replace
from pathlib import Path

from lm import value
from lm.data.prompts import Prompts
from lm.data.records import Jsonl
from lm.experiment import Evaluation
from lm.page.tables import markdown
from lm.run.folder import write_json
from lm.study.ablation import Ablation
from lm.study.tables import judged_tables, samples_table
from lm.study.trial import FINISHED, Result
from lm.tune.completion_eval import CompletionEval
from tests.study.results import BASE
from tests.tune.sums import Digits

METHOD = CompletionEval(rewards=(Digits(),), max_new_tokens=5)
JUDGED = BASE.replace(evaluations={"told": Evaluation(method=METHOD, sources={"sums": Prompts(Jsonl("sums.jsonl"))})})
VALUES = {0: 0.25, 1: 0.75}  # of the win rate, by seed


def results() -> list[Result]:
    study = Ablation(JUDGED, {"one": {}, "two": dict(steps=100)}, (0, 1), "steps", "told/sums/Digits")
    found = []
    for trial in study.trials():
        own = {f"told/sums/{one.name}": 1.5 for one in METHOD.measures if one.name != "kl"}
        found.append(Result(trial, FINISHED, "", {**own, "told/sums/Digits_win_rate": VALUES[trial.seed]}))
    return found


def test_a_row_has_every_measure_of_an_arm() -> None:
    (table,) = judged_tables(results())
    assert table.head[:3] == ("arm", "Digits", "Digits: win rate") and "KL from the start" not in table.head
    assert "| one | 1.500 ± 0.000 | 50.0% ± 35.4% |" in markdown(table)
    assert [row[0] for row in table.rows] == ["one", "two"]
    plain = [Result(replace(r.trial, experiment=BASE), FINISHED, "", r.measures) for r in results()]
    assert judged_tables(plain) == []


def test_samples_of_the_same_prompts_stand_together(tmp_path: Path) -> None:
    for result in results():
        folder, name = result.trial.folder(tmp_path), "/".join(map(str, result.key))
        folder.mkdir(parents=True)
        write_json(folder / "experiment.json", {"value": value.plain(result.trial.experiment)})
        shown = [("told: sums, held out", "1+1=", f"1+1={name}"), ("sums, held out", "1+1=", "1+1=its own")]
        shown += [("told: sums, held out", f"{name}?", f"{name}?")]
        samples = [dict(zip(("title", "prompt", "text"), one, strict=True)) for one in shown]
        write_json(folder / "samples.json", [*samples, {"prompt": "1+1=", "text": "of a version without titles"}])
    assert samples_table(results(), tmp_path).rows == (("1+1=", "one", "one/0"), ("1+1=", "two", "two/0"))
    assert samples_table([], tmp_path).rows == ()
