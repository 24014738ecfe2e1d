"""A run that starts from a model: from its values, with its tokenizer, resumed without it; another model is refused."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.quantized import NF4
from lm.model.transformer import Transformer
from lm.pretrained import load, read_config
from lm.pretrained.published import Published
from lm.run import course
from lm.run.evaluate import evaluate
from lm.run.smoke import smoke
from lm.run.start import _ids, start_tokenizer
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec, TokenizerFile
from lm.train.checkpoint import Checkpoints
from lm.tune.lora import LoRA
from lm.tune.start import Start
from lm.tune.trains import Only
from tests.run.programs import shared_programs, without_reports
from tests.tiny import experiment, lines, of, write_texts

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    with shared_programs(), without_reports():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    return replace(experiment(texts), steps=STEPS, eval_every_steps=STEPS, prompts=("the ",))


@pytest.fixture(scope="module")
def first(base: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    course.train(replace(base, prompts=()), folder)
    return folder


def tuned_from(base: Experiment, path: Any, **changes: Any) -> Experiment:
    data = replace(base.data, tokenizer=SentencePieceSpec())
    return replace(base, name="tuned", data=data, start=Start(str(path)), trains=LoRA(rank=2), **changes)


@pytest.fixture(scope="module")
def declared(base: Experiment, first: Path) -> Experiment:
    return tuned_from(base, first, checkpoint_every_steps=2)


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(declared, folder)
    return folder


def state_of(declared: Experiment, folder: Path) -> Any:
    run = course.Run(declared, folder)
    return run, Checkpoints(folder / "checkpoints").restore(run.state_shapes())[0]


def test_it_begins_with_the_model_s_values_and_its_tokenizer(declared: Experiment, first: Path, finished: Path) -> None:
    began = load(first)
    run, state = state_of(declared, finished)
    jax.tree.map(np.testing.assert_array_equal, state.frozen["base"], began.params)
    jax.tree.map(np.testing.assert_array_equal, run.initial_state().frozen["base"], began.params)
    assert {x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim} <= {
        x.shape for x in jax.tree.leaves(state.params)
    }
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
    assert (finished / "tokenizer" / "bytes.json").is_file()
    recorded = json.loads((finished / "start.json").read_text())
    assert recorded["path"] == str(first) and len(recorded["fingerprint"]) == 16


def test_it_is_loaded_evaluated_and_sampled_with_its_adapters_merged(declared: Experiment, finished: Path) -> None:
    model, (run, state) = load(finished), state_of(declared, finished)
    merged = run.prepared.learner.model_params(state.ema, state.frozen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), model.params, merged)
    before, after = (np.asarray(p["layers"]["0"]["query"]) for p in (state.frozen["base"], model.params))
    assert np.abs(before - after).max() > 1e-3
    last = lines(finished)[-1]
    for source, values in evaluate(finished).items():
        assert values["loss"] == pytest.approx(last[f"eval/{source}/loss"], rel=1e-3)
    (sample,) = json.loads((finished / "samples.json").read_text())
    same = replace(model, params=merged)  # to the bit: a token that is drawn may be another one for the last digit
    text = "".join(rows[0] for rows in same.stream("the ", declared.sample_tokens, declared.sampling, declared.seed))
    assert sample["text"] == "the " + text


def test_stopped_it_resumes_to_the_same_bits_without_the_model(
    declared: Experiment, first: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(first, tmp_path / "copy")
    moved, folder = replace(declared, start=Start(str(copy)), prompts=()), tmp_path / "run"
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 3 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(moved, folder)
    assert max(of(lines(folder), "loss")) < STEPS
    shutil.rmtree(copy)
    course.train(moved, folder)
    assert lines(folder) == lines(finished)


@pytest.mark.slow
def test_a_base_of_four_bits_is_resumed_measured_and_loaded(
    declared: Experiment, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(declared, trains=LoRA(rank=2, base="nf4"))
    course.train(few, tmp_path / "whole")
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 3 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(few, tmp_path / "run")
    course.train(few, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    last, (run, state) = lines(tmp_path / "run")[-1], state_of(few, tmp_path / "run")
    for source, values in evaluate(tmp_path / "run").items():
        assert values["loss"] == pytest.approx(last[f"eval/{source}/loss"], rel=1e-3)
    query = "layers", "0", "query"
    started, codes, loaded = load(first).params, state.frozen["base"], load(tmp_path / "run").params
    for name in query:
        started, codes, loaded = started[name], codes[name], loaded[name]
    before = NF4.of(started, ("layers", "embed", "heads", "head_dim"))
    np.testing.assert_array_equal(codes["codes"], before.codes)
    merged = jax.device_get(jax.jit(run.prepared.learner.model_params)(state.ema, state.frozen))
    np.testing.assert_allclose(loaded, merged["layers"]["0"]["query"], rtol=1e-6, atol=1e-6)


def test_a_model_that_has_changed_is_noticed(
    base: Experiment, declared: Experiment, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(first, tmp_path / "copy")
    moved, folder = replace(declared, start=Start(str(copy))), tmp_path / "run"
    course.Run(moved, course.claim(folder, moved, ""))
    course.train(replace(base, steps=STEPS + 2, prompts=()), tmp_path / "other")
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", copy / "checkpoints")
    with pytest.raises(ValueError, match="has changed since this run began: no step was taken, so remove"):
        course.Run(moved, folder)
    shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")  # any: it is as if it had begun
    course.check_start(moved, folder)
    assert "goes on from its own checkpoint" in capsys.readouterr().out


def test_a_published_model_is_a_start_with_its_ids(base: Experiment, first: Path, tmp_path: Path) -> None:
    model = load(first)
    saved = replace(model, ids={"eos_token_id": [7, 9]}, tokenizer=None)
    saved.save(tmp_path / "published")
    plain = tuned_from(base, tmp_path / "published", steps=2, prompts=())
    given = replace(plain, trains=Only("head/.*|query"), model=read_config(tmp_path / "published"))
    given = replace(given, data=replace(given.data, tokenizer=TokenizerFile(str(first / "tokenizer"))))
    course.train(given, tmp_path / "run")
    tuned = load(tmp_path / "run")
    assert tuned.stop_ids[:2] == (7, 9)
    before, after = model.params["layers"]["0"], tuned.params["layers"]["0"]
    np.testing.assert_array_equal(before["key"], after["key"])
    assert np.any(np.asarray(before["query"]) != np.asarray(after["query"]))
    with pytest.raises(ValueError, match="comes without a tokenizer: give data.tokenizer=TokenizerFile"):
        start_tokenizer(plain)


def test_the_ends_of_a_gguf_file_are_the_run_s(tmp_path: Path) -> None:
    published = Published(tmp_path, None)  # type: ignore[arg-type]
    tokenizer = Bytes().make([])
    tokenizer.stop_ids = (2, 0, 4)  # as GGUF's metadata name them, and no tokenizer's file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Published, "tokenizer", lambda _: tokenizer)
        patch.setattr(Published, "ids", lambda _: {})
        assert _ids(published) == {"eos_token_id": [2, 0, 4]}
        patch.setattr(Published, "ids", lambda _: {"eos_token_id": 7})
        assert _ids(published) == {"eos_token_id": 7}


def test_another_model_is_refused_before_the_first_step(base: Experiment, first: Path, tmp_path: Path) -> None:
    wider = tuned_from(base, first).replace(model=dict(width=32))
    with pytest.raises(
        ValueError, match=r"is another model \(model.width is 32 and not 16\): take its own, model=read_"
    ):
        course.train(wider, tmp_path / "run")
    unlike = tuned_from(base, first).replace(model=dict(dropout=0.5, init_scale=1.0, context=64), seq_len=32)
    course.check_start(unlike, course.claim(tmp_path / "other", unlike, ""))  # these may differ
    with pytest.raises(ValueError, match="nowhere is not a run"):
        course.train(tuned_from(base, tmp_path / "nowhere"), tmp_path / "third")
    with pytest.raises(ValueError, match="data.tokenizer=Bytes.*: a model that is the start has the tokenizer"):
        replace(tuned_from(base, first), data=replace(base.data, tokenizer=Bytes()))
    with pytest.raises(ValueError, match="embedding='x.npy' and start are both given"):
        replace(tuned_from(base, first), embedding="x.npy")


def test_a_vocabulary_that_is_not_the_tokenizer_s_is_refused(base: Experiment, first: Path, tmp_path: Path) -> None:
    Characters().make(["abc"]).save(tmp_path / "characters")
    e = tuned_from(base, first)
    e = replace(e, data=replace(e.data, tokenizer=TokenizerFile(str(tmp_path / "characters"))))
    with pytest.raises(
        ValueError, match=r"learned with another vocabulary \(258 tokens\) than data.tokenizer has \(3\)"
    ):
        course.train(e, tmp_path / "run")


def test_a_smoke_test_is_of_a_small_fresh_model_with_that_tokenizer(declared: Experiment, first: Path) -> None:
    small = smoke(declared)
    assert small.start is None and small.trains == declared.trains
    assert small.data.tokenizer.make([]).fingerprint == load(first).tokenizer.fingerprint  # type: ignore[union-attr]


def test_fields_of_before_have_no_start(base: Experiment) -> None:
    from lm import value

    data = value.plain(base)
    del data["start"], data["trains"]
    assert value.build(Experiment, data) == base
    learner = base.build(Transformer(base.model, base.compute.resolve("cpu")))
    assert type(learner).__name__ == "Pretraining"
