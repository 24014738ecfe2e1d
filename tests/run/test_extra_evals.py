"""Extra evaluations: what longer rows and other objectives ask, and what cannot be asked is said, not run into."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.data.denoise import SpanCorruption
from lm.data.loader import prepare
from lm.data.masked import MaskedLM
from lm.data.objective import PrefixLM
from lm.experiment import Evaluation, Experiment
from lm.model.positions import Alibi, Learned
from lm.page.run_report import write_report
from lm.run import course, extra_evals
from lm.run.evaluate import evaluate
from lm.study.trial import measures
from tests.tiny import experiment, lines, write_texts

ASKED = {"2x": Evaluation(2), "same": Evaluation(), "prefix": Evaluation(objective=PrefixLM())}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    return experiment(texts).replace(steps=4, ema=0.0, prompts=(), evaluations=ASKED)


@pytest.fixture(scope="module")
def finished(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(tiny.replace(model=dict(positions=Alibi())), folder)
    return folder


def test_the_same_question_has_the_same_answer(finished: Path) -> None:
    """And in longer rows too, where every document fits in a row and starts at position 0 in either."""
    found = measures(lines(finished)[-1])
    for name in ("loss", "bits_per_byte", "sums/loss", "sums/perplexity", "words/bits_per_byte"):
        assert found[f"same/{name}"] == pytest.approx(found[name], rel=1e-6)
        assert found[f"2x/{name}"] == pytest.approx(found[name], rel=1e-3)
    assert found["bits_per_byte"] == (found["sums/bits_per_byte"] + found["words/bits_per_byte"]) / 2


def test_another_objective_is_told_in_its_own_measures(finished: Path) -> None:
    found = measures(lines(finished)[-1])
    told = {name.removeprefix("prefix/") for name in found if name.startswith("prefix/")}
    assert told == {"loss", *(f"{s}/{k}" for s in ("sums", "words") for k in PrefixLM().measures)}
    assert abs(found["prefix/loss"] - found["loss"]) > 1e-3


def test_evaluate_makes_them_again(finished: Path) -> None:
    found, logged = evaluate(finished), measures(lines(finished)[-1])
    assert set(found) == {f"{at}{s}" for at in ("", "2x/", "same/", "prefix/") for s in ("sums", "words")}
    for source, values in found.items():
        assert all(
            values[k] == pytest.approx(logged[f"{source}/{k}"], rel=1e-5) for k in values if k not in ("gzip", "xz")
        )


def test_learned_positions_end(tiny: Experiment) -> None:
    learned = tiny.replace(model=dict(positions=Learned()))
    assert extra_evals.too_long_evals(learned) == {"2x": "its rows have 64 tokens, and Learned positions end at 32"}
    assert not extra_evals.too_long_evals(learned.replace(seq_len=16)) and not extra_evals.too_long_evals(tiny)
    data = prepare(learned.data, 32, 8)
    assert set(extra_evals.batches(learned, data)) == {"same", "prefix"}
    assert {name: (b.seq_len, b.batch_rows) for name, b in extra_evals.batches(tiny, data, 2).items()} == {
        "2x": (64, 4),
        "same": (32, 8),
        "prefix": (32, 8),
    }


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({"a/b": Evaluation()}, "evaluations have the name 'a/b': expected one without a /"),
        ({"words": Evaluation()}, "evaluations have the name 'words'"),
        ({"masked": Evaluation(objective=MaskedLM())}, "MaskedLM"),
    ],
)
def test_what_cannot_be(tiny: Experiment, evaluations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.replace(evaluations=evaluations)


def test_an_objective_without_room_is_refused_before_training(tiny: Experiment) -> None:
    with pytest.raises(ValueError, match="times=0: expected at least 1"):
        Evaluation(0)
    spans = tiny.replace(evaluations={"spans": Evaluation(objective=SpanCorruption(sentinels=9))})
    data = prepare(spans.data, 32, 8)
    with pytest.raises(
        ValueError, match="evaluations.spans: SpanCorruption and the tokenizer need 267 ids and model.v"
    ):
        extra_evals.batches(spans, data)
    few = tiny.replace(model=dict(vocab=300), evaluations={"spans": Evaluation(8, SpanCorruption(sentinels=9))})
    with pytest.raises(ValueError, match="evaluations.spans: a row of .* set sentinels="):
        extra_evals.batches(few, data)


def test_the_report_tells_them(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    loss = lines(finished)[-1]["evaluations/2x/words/loss"]
    assert "Extra evaluations" in page and f"{loss:.3f}" in page and "was not made" not in page
    about = json.loads((finished / "about.json").read_text())
    assert about["not_evaluated"] == {}
    (finished / "about.json").write_text(json.dumps(about | {"not_evaluated": {"4x": "rows too long"}}))
    assert "4x was not made: rows too long." in write_report(finished).read_text()
