"""Supervised fine-tuning: TRL's loss, that of the assistant's tokens, packed as alone; a run, replies, resumed."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.loader import prepare
from lm.data.objective import CausalLM, Replies, Rows
from lm.experiment import Experiment
from lm.machine.monitor import Bar
from lm.model.compute import Compute
from lm.model.families import llama
from lm.model.parts import Norm
from lm.model.transformer import Hidden, Transformer
from lm.pretrained import load
from lm.run import course
from lm.run.evaluate import evaluate
from lm.text.tokenizer import Bytes
from lm.train.method import Learner
from lm.tune.sft import SFT
from tests.model.reference import lively
from tests.tiny import lines, of
from tests.tune.talks import TEMPLATE, talking, write

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "trl_sft.json").read_text())
LENGTH = 24
MODEL = llama(vocab=258, layers=2, width=16, heads=2, mlp=32, context=LENGTH)


def trl_rows(mask: str, packed: bool) -> tuple[Rows, np.ndarray]:
    """The recorded rows of tokens, as they are or packed into one; and the index of each token in the record."""
    count, width = np.shape(TRL["tokens"])
    real = np.arange(width) < np.array(TRL["lengths"])[:, None]
    where = np.where(real, np.arange(count * width).reshape(count, width), count * width)
    where = where[real][None] if packed else where
    documents = np.where(real, np.arange(count)[:, None] + 1 if packed else 1, 0)
    loss = TRL[mask] if mask else real
    arrays = [np.append(array, 0)[where].astype(np.int32) for array in (TRL["tokens"], documents, documents, loss)]
    return Rows(*(np.pad(array, ((0, 0), (0, 1))) for array in arrays)), where


@pytest.mark.parametrize("name", TRL["cases"])
def test_loss_gradients_and_accuracy_are_trl_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TRL["cases"][name]
    rows, where = trl_rows(case["mask"], case["packed"])
    batch, hidden = Replies().batch(rows), np.array(TRL["hidden"], np.float32)
    labels = [label for own in case["labels"] for label in own[1:] if label != -100]
    assert batch["targets"][batch["weights"] > 0].tolist() == labels and labels.count(1) >= 3
    batch["weights"] = batch["weights"] / len(labels)
    cfg = replace(llama(vocab=11, layers=1, width=6, heads=1, mlp=6, context=20), norm=Norm())
    learner = SFT().build(Transformer(cfg, Compute(matmul="float32", loss_chunk=4).resolve("cpu")))
    flat = jnp.append(hidden.reshape(-1, 6), jnp.zeros((1, 6)), axis=0)

    def loss(flat: jax.Array, kernel: jax.Array) -> Any:
        monkeypatch.setattr(Transformer, "hidden", lambda *_, **__: Hidden(flat[where], None, {}, {}))
        return learner.loss({"head": {"kernel": kernel}, "stem": {"tokens": jnp.zeros((11, 6))}}, (), batch, None)

    function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (total, metrics), (by_hidden, by_head) = function(flat, jnp.asarray(TRL["head"]).T)
    assert float(total) == float(metrics["loss"]) == pytest.approx(case["loss"], rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(case["accuracy"], rel=1e-5)
    np.testing.assert_allclose(by_hidden[:-1].reshape(hidden.shape), case["by_hidden"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_head.T, case["by_head"], rtol=1e-5, atol=1e-6)
    assert np.abs(case["by_hidden"]).max() > 0.01


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
    alone, params = unpacked(rows), lively(learner.model.cfg)
    logits = np.asarray(jax.jit(learner.model)(params, alone.tokens[:, :-1]), np.float64)
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
