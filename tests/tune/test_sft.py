"""Supervised fine-tuning: the loss of the assistant's tokens, packed as alone; a run, replies, resumed, on meshes."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.data.loader import prepare
from lm.data.objective import CausalLM, Replies, Rows
from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.compute import Compute
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained import load
from lm.run import course
from lm.run.evaluate import evaluate
from lm.text.tokenizer import Bytes
from lm.train.method import Learner
from lm.tune.sft import SFT
from tests.tiny import lines, of
from tests.tune.talks import TEMPLATE, talking, write

LENGTH = 24
MODEL = llama(vocab=258, layers=2, width=16, heads=2, mlp=32, context=LENGTH)


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return talking(write(tmp_path_factory.mktemp("talks") / "talks.jsonl"))


@pytest.fixture(scope="module")
def batches(declared: Experiment) -> Any:
    tokenizer = Bytes().make([])
    tokenizer.give_template(TEMPLATE)
    return prepare(declared.data, LENGTH, 8, objective=Replies(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return SFT().build(Transformer(MODEL, Compute(matmul="float32").resolve("cpu")))


def summed(learner: Learner, params: Any, batch: Any) -> tuple[float, float]:
    """The sum of the losses of a batch, and the number of its targets."""
    sums = jax.jit(learner.evaluate)(params, (), batch)
    return float(sums["loss"]), float(sums["tokens"])


def unpacked(rows: Rows) -> Rows:
    """Each document of `rows` in a row of its own."""
    width = rows.tokens.shape[1]
    alone = [
        [np.pad(a[i][rows.documents[i] == n], (0, width - int((rows.documents[i] == n).sum()))) for a in rows[:4]]
        for i in range(len(rows.tokens))
        for n in range(1, rows.documents[i].max() + 1)
    ]
    tokens, documents, _, loss = (np.stack(arrays) for arrays in zip(*alone, strict=True))
    return Rows(tokens, np.minimum(documents, 1), np.minimum(documents, 1), loss)


def test_the_loss_is_the_assistant_s_tokens_and_nothing_leaks(batches: Any, learner: Learner) -> None:
    """Packed = unpacked = by hand, where each conversation is read alone."""
    rows = batches.rows(0)
    assert rows.documents.max() > 1
    alone, params = unpacked(rows), learner.init(jax.random.key(0))[0]
    logits = np.asarray(learner.model(params, jax.numpy.asarray(alone.tokens[:, :-1])), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, alone.tokens[:, 1:, None], -1)[..., 0]
    expected = each[alone.loss[:, 1:] > 0].sum(), alone.loss[:, 1:].sum()
    assert summed(learner, params, Replies().batch(rows)) == pytest.approx(expected, rel=1e-5)
    assert summed(learner, params, Replies().batch(alone)) == pytest.approx(expected, rel=1e-5)


def test_user_turns_carry_no_loss_and_every_end_of_turn_does(batches: Any) -> None:
    batch = Replies().batch(batches.rows(0))
    asked = batch["targets"][batch["weights"] > 0]
    ends = (batches.rows(0).tokens[:, 1:] == 257).sum()
    assert set(asked.tolist()) <= {257, *b"bcdefghijklmnop"} and (asked == 257).sum() == ends == len(asked) / 2
    every = CausalLM().batch(batches.rows(0))["weights"]
    assert every.sum() > batch["weights"].sum() > 0 and (every >= batch["weights"]).all()


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(declared, folder)
    return folder


def test_a_run_is_measured_replies_and_is_loaded_with_its_template(finished: Path) -> None:
    last, losses = lines(finished)[-1], of(lines(finished), "loss")
    assert losses[12] < losses[1] - 0.5
    names = {name.rpartition("/")[2] for name in last if name.startswith("eval/talks/")}
    assert names == {"loss", "perplexity", "accuracy"}
    assert evaluate(finished)["talks"]["loss"] == pytest.approx(last["eval/talks/loss"], rel=1e-3)
    sample = (finished / "samples.txt").read_text()
    assert sample.startswith("c\n\n")
    assert load(finished).tokenizer.chat_template == TEMPLATE
    about = json.loads((finished / "about.json").read_text())
    learned = [text for example in about["examples"] for text, loss in example if loss]
    assert len(about["examples"]) == 3 and all(text[1:] == "<eos>" for text in learned)
    page = (finished / "report.html").read_text()
    assert "In colour, what carries loss: each assistant token." in page
    assert "nats an assistant token" in page and "always the likeliest token" not in page


@pytest.mark.slow
def test_stopped_and_resumed_it_has_the_same_bits(
    finished: Path, declared: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 7 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(declared, tmp_path / "run")
    course.train(declared, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(finished)


@pytest.mark.slow
def test_it_is_the_same_on_any_mesh(declared: Experiment, tmp_path: Path) -> None:
    """Its first three updates, in float32."""
    found = []
    for i, mesh in enumerate(({"data": 1, "fsdp": 8}, {"fsdp": 2, "tensor": 2, "context": 2})):
        exact = replace(declared.compute, matmul="float32")
        course.train(replace(declared, mesh=mesh, steps=4, compute=exact, prompts=()), tmp_path / str(i))
        found.append(of(lines(tmp_path / str(i)), "loss"))
    assert found[0] == {n: pytest.approx(loss, rel=2e-5) for n, loss in found[1].items()} and len(found[0]) == 4


def test_a_prompt_without_room_is_refused_before_the_first_step(declared: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts: 'xxx"):
        course.train(replace(declared, prompts=("x" * 30,)), tmp_path / "run")  # and the template's "="
    with pytest.raises(ValueError, match="z_loss=-1"):
        SFT(z_loss=-1)
