"""Extra evaluations: what longer rows and other objectives ask, and what cannot be asked is said, not run into."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.data.denoise import SpanCorruption
from lm.data.loader import prepare
from lm.data.masked import MaskedLM
from lm.data.mixture import Mixture
from lm.data.objective import PrefixLM
from lm.data.preferences import Preferences
from lm.data.prompts import Prompts
from lm.data.records import Jsonl
from lm.experiment import Evaluation, Experiment
from lm.model.positions import Alibi, Learned
from lm.page.run_record import RunRecord
from lm.page.run_report import write_report
from lm.pretrained import read_config
from lm.run import course, extra_evals
from lm.run.evaluate import evaluate
from lm.run.prepared import prepare_run
from lm.study.trial import measures
from lm.text.tokenizer import SentencePieceSpec
from lm.train.checkpoint import Checkpoints
from lm.tune.completion_eval import CompletionEval
from lm.tune.dpo import DPO
from lm.tune.kto import KTO
from lm.tune.lora import LoRA
from lm.tune.simpo import SimPO
from lm.tune.start import Start
from tests.model.reference import lively
from tests.tiny import experiment, lines, write_texts
from tests.tune import sums
from tests.tune.pairs import preferring, write

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


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """KTO on completions, asked for the accuracy of pairs."""
    file = write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    asked = Evaluation(method=SimPO(), sources={"answers": Preferences(Jsonl(str(file), heldout=0.2))})
    return preferring(file, KTO(), steps=4, prompts=(), evaluations={"asked": asked})


def test_another_method_asks_documents_of_its_own(labelled: Experiment, tmp_path: Path) -> None:
    """What KTO learned from labelled completions is measured by pairs, as SimPO measures itself on them."""
    kto = prepare_run(labelled, course.claim(tmp_path / "kto", labelled, ""))
    params = lively(labelled.model)
    found = kto.heldout["evaluations/asked"].by_source(params, ())
    sources = labelled.evaluations["asked"].sources
    own = replace(labelled.data, mixture=Mixture(sources, dict.fromkeys(sources, 1.0)))
    simpo = replace(labelled, method=SimPO(), data=own, evaluations={})
    prepared = prepare_run(simpo, course.claim(tmp_path / "simpo", simpo, ""))
    assert found == prepared.heldout["eval"].by_source(params, ()) and [*found] == ["answers"]
    assert [*found["answers"]] == [measure.name for measure in SimPO().measures] and found["answers"]["margin"]


def test_a_method_with_a_reference_reads_that_of_the_start(labelled: Experiment, tmp_path: Path) -> None:
    """Which is drawn from the seed, as the model is before its first step: DPO's margins are 0."""
    dpo = Evaluation(method=DPO(), sources=labelled.evaluations["asked"].sources)
    e = replace(labelled, evaluations={"asked": dpo})
    prepared = prepare_run(e, course.claim(tmp_path / "dpo", e, ""))
    start = jax.jit(prepared.learner.init)(jax.random.key(e.seed))[0]
    for params, moved in ((start, False), (lively(e.model), True)):
        found = prepared.heldout["evaluations/asked"].by_source(params, ())["answers"]
        assert (abs(found["margin"]) > 1e-3) == moved


def test_a_method_reads_its_own_kind_of_documents(labelled: Experiment, tmp_path: Path) -> None:
    e = replace(labelled, evaluations={"asked": Evaluation(method=SimPO())})
    message = "evaluations.asked: source 'pairs': UnpairedPreferences has labelled completions"
    with pytest.raises(ValueError, match=message):
        prepare_run(e, course.claim(tmp_path / "simpo", e, ""))
    with pytest.raises(ValueError, match="has an objective, which is pretraining's, or a method: leave one out"):
        Evaluation(objective=PrefixLM(), method=SimPO())


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
    assert about["not_evaluated"] == {} and about["extra_measures"] == []
    more = {"not_evaluated": {"4x": "rows too long"}, "extra_measures": [asdict(SimPO().measures[-1])]}
    (finished / "about.json").write_text(json.dumps(about | more))
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    with (finished / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({**last, "evaluations/asked/answers/margin": 0.12345}) + "\n")
    page = write_report(finished).read_text()
    assert "4x was not made: rows too long." in page and "margin" in page and "0.123" in page


# ---------------------------------------------------------------- another method


@pytest.fixture(scope="module")
def begun(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run before its second step, whose model has a score too, so that it may be a start and a scorer."""
    folder = tmp_path_factory.mktemp("begun")
    one = tiny.replace(steps=2, evaluations={}, model=dict(output=dict(scores=1), dropout=0.0))
    run, checkpoints = course.Run(one, course.claim(folder, one, "")), Checkpoints(folder / "checkpoints")
    state = run.initial_state()
    checkpoints.save(replace(state, step=jax.device_put(np.int32(1), state.step.sharding)))
    checkpoints.close()
    return folder


def judged(tiny: Experiment, begun: Path, file: Path, **given: Any) -> Experiment:
    """Adapters of rank 2 that stay as they are, judged beside the model that they adapt."""
    method = CompletionEval(
        rewards=(sums.Digits(weight=0.0),), scorer=str(begun), scorer_model=read_config(begun), max_new_tokens=5
    )
    evaluation = Evaluation(method=method, sources={"sums": Prompts(Jsonl(str(sums.write(file)), heldout=0.1))}, rows=4)
    return tiny.replace(
        steps=2,
        start=Start(str(begun)),
        model=read_config(begun),
        data=dict(tokenizer=SentencePieceSpec()),
        trains=LoRA(rank=2),
        optimizer=replace(tiny.optimizer, learning_rate=0.0),
        evaluations={"judged": replace(evaluation, **given)},
    )


@pytest.mark.slow
def test_another_method_judges_the_model_beside_its_start(tiny: Experiment, begun: Path, tmp_path: Path) -> None:
    e, folder = judged(tiny, begun, tmp_path / "sums.jsonl"), tmp_path / "run"
    course.train(e, folder)
    found = measures(lines(folder)[-1])
    told = {name.removeprefix("judged/sums/"): x for name, x in found.items() if name.startswith("judged/sums/")}
    method = e.evaluations["judged"].method
    assert method and told.keys() == {one.name for one in method.measures}
    assert told["kl"] == pytest.approx(0, abs=1e-6) and told["scorer"] != 0
    recorded = json.loads((folder / "models.json").read_text())
    assert recorded["evaluations.judged.method.scorer"]["path"] == str(begun)
    record = RunRecord(folder)
    assert [title for title, _, _ in record.titled_samples] == ["judged: sums, held out"] * 4
    assert all("scorer" in text and text.startswith(prompt) for _, prompt, text in record.titled_samples)
    data = prepare(tiny.data, 32, 8)
    assert extra_evals.batches(e, data)["judged"].batch_rows == 4
    by_tokens = judged(tiny, begun, tmp_path / "sums.jsonl", rows=0)
    assert extra_evals.batches(by_tokens, data)["judged"].batch_rows == e.rows


def test_a_model_that_an_evaluation_reads_is_missed_before_the_first_step(
    tiny: Experiment, begun: Path, tmp_path: Path
) -> None:
    gone = CompletionEval(scorer=str(tmp_path / "gone"), scorer_model=read_config(begun), max_new_tokens=5)
    e = judged(tiny, begun, tmp_path / "sums.jsonl", method=gone)
    with pytest.raises(ValueError, match="gone is not a run"):
        course.train(e, tmp_path / "run")
