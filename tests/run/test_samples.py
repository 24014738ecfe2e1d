"""Runs of every objective from end to end: each is told in its own measures, and shows what its model makes of text."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.data.denoise import UL2, SpanCorruption
from lm.data.masked import MaskedLM
from lm.data.objective import Objective, PrefixLM
from lm.data.pack import Chunk
from lm.decode.sampling import Sampling
from lm.experiment import Experiment
from lm.model.config import ModelConfig
from lm.model.families import bert, llama, t5
from lm.model.output import Output
from lm.pretrained import load
from lm.pretrained.fill import fill_masks, fill_spans
from lm.pretrained.inside import Look
from lm.run import course
from lm.run.evaluate import evaluate
from lm.text.tokenizer import ByteTokenizer
from lm.tune.pretrain import Pretrain
from lm.tune.samples import render_ids
from tests.tiny import experiment, lines, write_texts

STEPS = 6
SIZES: dict[str, Any] = dict(layers=1, width=16, heads=2, mlp=32, context=48)
CASES = {
    "prefix": (PrefixLM(), llama(vocab=258, **SIZES)),
    "masked": (MaskedLM(), bert(vocab=259, **SIZES)),
    "masked pairs": (
        MaskedLM(next_sentence=True),
        bert(vocab=259, **SIZES, output=Output(bias=True, transform="gelu", next_sentence=True)),
    ),
    "spans": (SpanCorruption(), t5(vocab=358, head_dim=8, **SIZES)),
    "spans, decoder": (SpanCorruption(sentinels=10), llama(vocab=268, **SIZES)),
    "ul2": (UL2(), t5(vocab=361, head_dim=8, **SIZES)),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def asking(objective: Objective, model: ModelConfig, texts: Path) -> Experiment:
    base = experiment(texts)
    changes = dict(
        method=Pretrain(objective), model=model, data=base.data.__class__(**vars(base.data) | {"packing": Chunk()})
    )
    return base.replace(
        **changes, batch_tokens=8 * 48, steps=STEPS, eval_every_steps=STEPS, checkpoint_every_steps=STEPS
    )


SLOW = ("masked pairs", "spans, decoder", "ul2")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]


@pytest.fixture(scope="module", params=NAMES)
def done(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    declared = asking(*CASES[request.param], texts)
    folder = tmp_path_factory.mktemp("runs") / "run"
    course.train(declared, folder)
    return declared, folder, load(folder)


def test_a_run_is_sampled_as_it_was_trained(done: Any) -> None:
    """`lm sample`: the prompt as a prefix, masks and sentinels by names, though the tokenizer has none."""
    declared, _, model = done
    objective = declared.method.objective
    assert model.prefix == (isinstance(objective, (PrefixLM, SpanCorruption)) and not model.config.has_encoder)
    if isinstance(objective, MaskedLM):
        assert len(fill_masks(model, "the [MASK]at", 2).candidates[0]) == 2
    elif model.config.has_encoder:
        assert model.markers["<extra_id_0>"] == 357 and model.markers["<extra_id_99>"] == 258
        assert fill_spans(model, "the <extra_id_0>.", 4, Sampling(0))[0].startswith("the ")
    else:
        assert isinstance(model.generate("the ", 4), str)


def test_a_run_is_told_in_its_own_measures(done: Any) -> None:
    declared, folder, _ = done
    found = lines(folder)
    losses = [line["loss"] for line in found if "loss" in line]
    assert len(losses) == STEPS and losses[-1] < losses[0]
    last, measures = found[-1], set(declared.method.objective.measures)
    assert "bits_per_byte" not in measures
    for source in ("sums", "words"):
        assert {k.rpartition("/")[2] for k in last if k.startswith(f"eval/{source}/")} == measures
        assert 0 < last[f"eval/{source}/loss"] < 1.2 * math.log(declared.model.vocab)
        assert 0 <= last[f"eval/{source}/accuracy"] <= 1
    evaluated = evaluate(folder)
    assert evaluated["sums"] == {k: pytest.approx(last[f"eval/sums/{k}"], rel=1e-4) for k in measures}
    page = (folder / "report.html").read_text()
    assert f"of each held-out {declared.method.target_name}" in page and "bits per byte, " not in page
    assert not json.loads((folder / "about.json").read_text())["baselines"]


def test_its_samples_are_held_out_text_and_an_answer(done: Any) -> None:
    declared, folder, model = done
    found = json.loads((folder / "samples.json").read_text())
    assert len(found) == 2
    for sample in found:
        answer = sample["text"].removeprefix(sample["prompt"] + "\n\n")
        assert answer and answer != sample["text"]
        if isinstance(declared.method.objective, MaskedLM):
            assert "[" in sample["prompt"] and sample["prompt"].count("[") == answer.count("[")
            assert "[MASK]" in sample["inspect"]
        elif not isinstance(declared.method.objective, PrefixLM):
            assert "<0>" in sample["prompt"] and "<extra_id_0>" in sample["inspect"]
        assert len(Look(model, sample["inspect"]).read) <= declared.length


def test_a_vocabulary_without_room_for_the_objective(texts: Path, tmp_path: Path) -> None:
    declared = asking(MaskedLM(), bert(vocab=258, **SIZES), texts)
    with pytest.raises(ValueError, match="has 258 pieces, MaskedLM adds 1 and model.vocab is 258: .* at least 259"):
        course.train(declared, tmp_path / "run")


def test_an_experiment_refuses_a_question_that_its_model_cannot_be_asked(texts: Path) -> None:
    with pytest.raises(ValueError, match="MaskedLM needs an encoder alone"):
        experiment(texts).replace(method=dict(objective=MaskedLM()))


def test_an_embedding_starts_from_a_file(texts: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(258, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    declared = experiment(texts).replace(embedding=str(tmp_path / "vectors.npy"))
    run = course.Run(declared, course.claim(tmp_path / "run", declared, ""))
    fresh = run.initial_state()
    table = np.asarray(fresh.params["stem"]["tokens"])
    assert np.corrcoef(table.ravel(), (vectors - vectors.mean(0)).ravel())[0, 1] > 0.999
    np.testing.assert_array_equal(table, fresh.ema["stem"]["tokens"])
    missing = declared.replace(embedding="nowhere.npy")
    with pytest.raises(ValueError, match="embedding=nowhere.npy: .*No such file"):
        course.Run(missing, course.claim(tmp_path / "other", missing, ""), like=run).initial_state()


def test_ids_are_spelled_with_brackets_and_names() -> None:
    ids = np.array([256, *b"ab", 300, *b"cd", 257])
    marked = np.arange(len(ids)) == 4
    assert render_ids(ByteTokenizer(), ids, marked, {300: "<0>"}) == "ab<0>[c]d"
    assert render_ids(ByteTokenizer(), ids, None, {}) == "ab<300>cd"
