"""Distillation: the formulas by numpy, nothing to learn from oneself, the likeliest tokens, runs and meshes."""

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from lm.experiment import Evaluation, Experiment
from lm.legal import check_mesh
from lm.machine.monitor import Bar
from lm.model.families import llama
from lm.model.positions import Learned
from lm.model.transformer import Transformer
from lm.plan.compile import batch_shapes
from lm.pretrained import load, read_config
from lm.pretrained.model import Pretrained
from lm.run import course
from lm.run.evaluate import evaluate
from lm.run.models import SavedModels
from lm.run.smoke import smoke
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.text.tokenizer import Bytes, Characters
from lm.train.step import build_step, init_state
from lm.tune.distill import Distill, Distillation, FromCache
from lm.tune.divergence import Divergence, ForwardKL, JensenShannon, ReverseKL, divergence, top
from lm.tune.lora import LoRA
from lm.tune.outputs import Outputs
from lm.tune.pretrain import Pretrain
from tests.model.reference import lively, run
from tests.tiny import experiment, lines, of, write_texts
from tests.train.test_step import ADAMW, COMPUTE, LLAMA, batch

TEACHER = llama(vocab=32, layers=1, width=24, heads=2, mlp=16, context=8, tied=True)
KINDS = (ForwardKL(), ReverseKL(), JensenShannon(0.3))


def learner_of(**settings: Any) -> Distillation:
    return Distill(None, TEACHER, **settings).build(Transformer(LLAMA, COMPUTE))


def gkd(kind: Divergence, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """TRL's `generalized_jsd_loss` of each token, where beta is 0 for the forward and 1 for the reverse KL."""
    p, q = (np.exp(x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in (student, teacher))

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a * np.log(a / b)).sum(-1))

    if not isinstance(kind, JensenShannon):
        return kl(q, p) if isinstance(kind, ForwardKL) else kl(p, q)
    mixture = (1 - kind.beta) * p + kind.beta * q
    return kind.beta * kl(q, mixture) + (1 - kind.beta) * kl(p, mixture)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_the_loss_is_the_formula_of_both_models_logits(kind: Divergence) -> None:
    learner, one = learner_of(divergence=kind, temperature=2.0, hard_weight=0.25), batch(0)
    one["weights"][:, ::3] = 0
    student, teacher = lively(LLAMA), lively(TEACHER)
    total, metrics = jax.jit(learner.loss)(student, teacher, one, None)
    read = dict(positions=one["positions"], segments=one["segment_ids"])
    logits, theirs = (
        run(model, params, one["tokens"], **read).astype(np.float64)
        for model, params in ((learner.model, student), (learner.teacher, teacher))
    )
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    hard = -(one["weights"] * np.take_along_axis(log_p, one["targets"][..., None], -1)[..., 0]).sum()
    soft = (one["weights"] * gkd(kind, logits / 2, theirs / 2)).sum()
    assert float(metrics["divergence"]) == pytest.approx(soft, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(hard, rel=1e-5)
    assert float(total) == pytest.approx(0.25 * hard + 0.75 * 4 * soft, rel=1e-4)


def logits_of(seed: int, vocab: int = 13) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(2, 3, vocab)) * 3).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 3))
@partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(kind: Divergence, student: jax.Array, teacher: jax.Array, k: int) -> jax.Array:
    return divergence(kind, student, *top(jax.nn.log_softmax(teacher), k)).sum()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_there_is_nothing_to_learn_from_oneself_and_all_are_the_likeliest(kind: Divergence) -> None:
    student, teacher = logits_of(0), logits_of(1)
    full, gradient = loss_and_gradient(kind, student, teacher, 0)
    assert float(full) > 0.1 and np.abs(gradient).max() > 0.01
    for k in (0, 1, 4, 13):
        same, none = loss_and_gradient(kind, student, student, k)
        np.testing.assert_allclose([float(same), np.abs(none).max()], 0, atol=2e-6)
    for found, expected in zip(loss_and_gradient(kind, student, teacher, 13), (full, gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_what_is_not_among_the_likeliest_is_one_outcome(kind: Divergence) -> None:
    student, teacher = logits_of(0), logits_of(1)
    likely = np.argsort(-np.asarray(teacher), -1)[..., :4]

    def bucketed(logits: np.ndarray) -> np.ndarray:
        p = softmax(logits.astype(np.float64), -1)
        kept = np.take_along_axis(p, likely, -1)
        return np.log(np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1))

    expected = gkd(kind, bucketed(student), bucketed(teacher))
    assert float(loss_and_gradient(kind, student, teacher, 4)[0]) == pytest.approx(expected.sum(), rel=1e-4)


def test_gradients_keep_their_size_at_any_temperature() -> None:
    """Equation 4 of 1503.02531: at a high temperature the gradient is the difference of the logits, less their means,
    over the number of tokens."""
    student, teacher = logits_of(0), logits_of(1)

    def loss(logits: jax.Array, temperature: float) -> jax.Array:
        log_q = jax.nn.log_softmax(teacher / temperature)
        return temperature**2 * divergence(ForwardKL(), logits / temperature, log_q).sum()

    limit = (student - student.mean(-1, keepdims=True) - teacher + teacher.mean(-1, keepdims=True)) / 13
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(student, 300.0), limit, rtol=0.05, atol=5e-3)


def trained(mesh: dict[str, int] | None) -> tuple[list[float], Any, Any]:
    """(the losses of three steps, the teacher before and after)."""
    learner = learner_of(top_k=5, hard_weight=0.5, temperature=2.0)
    over = make_mesh(mesh) if mesh else make_mesh({"data": 1}, jax.devices()[:1])
    chain = ADAMW.build(3, learner.axes())
    state = init_state(learner, chain, over, 0)
    before, step, losses = jax.device_get(state.frozen), build_step(learner, chain, over), []
    for n in range(3):
        state, metrics = step(state, place_batch(batch(n), over))
        losses.append(float(metrics["total"]))
    return losses, before, jax.device_get(state.frozen)


@pytest.mark.slow
def test_it_is_the_same_on_any_mesh_and_the_teacher_stays() -> None:
    alone, before, after = trained(None)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert len(set(alone)) == 3
    assert trained({"fsdp": 2, "context": 2, "tensor": 2})[0] == pytest.approx(alone, rel=2e-5)


def test_an_adapter_learns_from_a_teacher_too() -> None:
    plain, one = learner_of(), batch(0)
    adapted = LoRA(rank=2).wrap(plain)
    params, frozen = jax.jit(adapted.init)(jax.random.key(0), lively(LLAMA), {"teacher": lively(TEACHER)})
    expected = jax.jit(plain.loss)(lively(LLAMA), lively(TEACHER), one, None)[0]
    assert float(jax.jit(adapted.loss)(params, frozen, one, None)[0]) == pytest.approx(float(expected), rel=1e-6)
    drawn = jax.eval_shape(adapted.init, jax.random.key(0))[1]["method"]
    assert jax.tree.structure(drawn) == jax.tree.structure(frozen["method"])


# ---------------------------------------------------------------- runs

STEPS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    texts = write_texts(tmp_path_factory.mktemp("texts"))
    return replace(experiment(texts), steps=STEPS, eval_every_steps=STEPS, prompts=("the ",))


@pytest.fixture(scope="module")
def teacher(base: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model saved with its tokenizer, which is no run to compile."""
    folder, cfg = tmp_path_factory.mktemp("models") / "teacher", replace(base.model, dropout=0.0)
    Pretrained(cfg, lively(cfg), Bytes().make([]), Transformer(cfg, COMPUTE)).save(folder)
    return folder


@pytest.fixture(scope="module")
def declared(base: Experiment, teacher: Path) -> Experiment:
    small = base.replace(model=dict(layers=1, width=8, dropout=0.0), name="student", checkpoint_every_steps=2)
    return replace(small, method=Distill(str(teacher), read_config(teacher), temperature=2.0, top_k=20))


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(declared, folder)
    return folder


def test_a_run_learns_from_the_teacher_at_its_path(declared: Experiment, finished: Path, teacher: Path) -> None:
    run = course.Run(declared, finished)
    jax.tree.map(np.testing.assert_array_equal, run.initial_state().frozen, load(teacher).params)
    far = of(lines(finished), "divergence")
    assert far[STEPS] < far[1] and of(lines(finished), "total") == {}
    last = lines(finished)[-1]
    names = {name.rpartition("/")[2] for name in last if name.startswith("eval/words/")}
    assert names == {"loss", "perplexity", "bits_per_byte", "divergence"}
    for source, values in evaluate(finished).items():
        assert values["divergence"] == pytest.approx(last[f"eval/{source}/divergence"], rel=1e-3)
    assert load(finished).model.cfg == declared.model and (finished / "samples.txt").read_text().startswith("the ")


@pytest.mark.slow
def test_stopped_it_resumes_to_the_same_bits_without_the_teacher(
    declared: Experiment, finished: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = teacher.rename(tmp_path / "copy")
    try:
        moved = declared.replace(method=dict(teacher=str(copy)))
        with monkeypatch.context() as patch:
            once = iter([signal.SIGTERM])
            patch.setattr(Bar, "update", lambda _, n, *__: n == 3 and [signal.raise_signal(one) for one in once])
            with pytest.raises(course.Interrupted):
                course.train(moved, tmp_path / "run")
    finally:
        copy.rename(teacher)
    course.train(moved, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(finished)


def test_what_does_not_fit_is_refused_before_the_first_step(
    declared: Experiment, base: Experiment, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"model.vocab is 258 and method.teacher_model.vocab 300: expected the same"):
        declared.replace(method=dict(teacher_model=dict(vocab=300)))
    with pytest.raises(ValueError, match="method.top_k=259: the teacher has 258 tokens"):
        declared.replace(method=dict(top_k=259))
    with pytest.raises(ValueError, match="method.teacher='': expected"):
        declared.replace(method=dict(teacher=""))
    wider = declared.replace(method=dict(teacher_model=dict(ffn=dict(mlp=64))))
    with pytest.raises(ValueError, match=r"^method.teacher: .* is another model \(method.teacher_model.ffn.mlp is 64"):
        course.train(wider, tmp_path / "run")
    short = declared.replace(method=dict(teacher_model=dict(context=16)))
    course.check_models(short, course.claim(tmp_path / "short", short, ""))  # rotary positions have no end
    ends = declared.replace(method=dict(teacher_model=dict(positions=Learned())), evaluations={"far": Evaluation(2)})
    with pytest.raises(ValueError, match=r"rows have 64 tokens, and method.teacher_model.context=32: lower seq_len"):
        course.check_models(ends, course.claim(tmp_path / "ends", ends, ""))
    other = replace(declared, data=replace(declared.data, tokenizer=Characters()))
    with pytest.raises(ValueError, match=r"^method.teacher: .* learned with another vocabulary \(258 tokens\)"):
        course.train(other, tmp_path / "other")
    wide = declared.replace(model=dict(width=32), batch_tokens=32 * 32)
    with pytest.raises(ValueError, match=r"method.teacher_model.width=16 cannot be divided over mesh fsdp=32"):
        check_mesh(wide, {"fsdp": 32})


def test_a_smoke_test_has_a_small_teacher_drawn_afresh(declared: Experiment) -> None:
    small = smoke(declared.replace(method=dict(teacher_model=dict(layers=9))))
    assert small.method.teacher is None and small.method.teacher_model.layers == 2  # type: ignore[attr-defined]
    assert declared.flops_per_token > 1.3 * replace(declared, method=Pretrain()).flops_per_token


# ---------------------------------------------------------------- the teacher cached


@pytest.fixture(scope="module")
def cached(declared: Experiment) -> Experiment:
    return declared.replace(method=dict(cached=True), prompts=())


@pytest.fixture(scope="module")
def from_cache(cached: Experiment, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cached"
    course.train(cached, folder)
    return folder


def first_batches(declared: Experiment, folder: Path) -> list[Any]:
    run = course.Run(declared, course.claim(folder, declared, ""))
    reader = run.prepared.learner.batches(2)
    found = [next(reader) for _ in range(2)]
    reader.close()
    return found


def test_what_is_cached_is_what_the_teacher_says(
    finished: Path, cached: Experiment, from_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live = cached, of training; nothing is computed twice, and neither teacher nor cache is read for what is
    measured."""
    for name in ("divergence", "loss", "grad_norm"):
        expected = {n: pytest.approx(x, rel=1e-4) for n, x in of(lines(finished), name).items()}
        assert of(lines(from_cache), name) == expected and list(expected) == list(range(1, STEPS + 1))
    measured = {name.rpartition("/")[2] for name in lines(from_cache)[-1] if name.startswith("eval/words/")}
    assert measured == {"loss", "perplexity", "bits_per_byte"}
    assert evaluate(from_cache).keys() == {"sums", "words"}
    first = first_batches(cached, tmp_path / "one")
    monkeypatch.setattr(SavedModels, "params", None)
    for a, b in zip(first, first_batches(cached, tmp_path / "two"), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    shapes = {name: ((8, *shape), dtype) for name, (shape, dtype) in cached.method.arrays(32).items()}
    assert shapes == {name: (first[0][name].shape, str(first[0][name].dtype)) for name in shapes}
    assert batch_shapes(cached)["teacher_ids"] == shapes["teacher_ids"]


@pytest.mark.slow
def test_without_a_teacher_in_the_state_it_is_the_same_on_any_mesh() -> None:
    learner = learner_of(top_k=5, cached=True)
    assert isinstance(learner, FromCache) and learner.init(jax.random.key(0))[1] == ()
    one, outputs = batch(0), jax.jit(learner._outputs)
    chain, losses = ADAMW.build(3, learner.axes()), []
    said = jax.device_get(outputs(lively(TEACHER), {name: jnp.asarray(array) for name, array in one.items()}))
    for over in (make_mesh({"data": 1}, jax.devices()[:1]), make_mesh({"fsdp": 2, "context": 2, "tensor": 2})):
        state, step = init_state(learner, chain, over, 0), build_step(learner, chain, over)
        losses.append([])
        for _ in range(3):
            state, metrics = step(state, place_batch({**one, **said}, over))
            losses[-1].append(float(metrics["total"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-5) and len(set(losses[0])) == 3


@pytest.mark.slow
def test_cached_it_resumes_to_the_same_bits_without_teacher(
    cached: Experiment, from_cache: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(Bar, "update", lambda _, n, *__: n == 3 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            course.train(cached, tmp_path / "run")
    monkeypatch.setattr(SavedModels, "params", None)
    course.train(cached, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(from_cache)


def test_outputs_of_other_rows_or_another_teacher_are_not_taken(
    cached: Experiment, from_cache: Path, tmp_path: Path
) -> None:
    run = course.Run(cached, course.claim(tmp_path / "run", cached, ""))
    learner = run.prepared.learner
    outputs, one = Outputs(learner._key()), learner.data.batch(0)  # type: ignore[attr-defined]
    assert not outputs.missing(0, STEPS) and outputs.missing(0, 100) == list(range(1, 13))
    assert {*outputs.beside(0, one)} == {*one, "teacher_ids", "teacher_log_probs", "teacher_rest"}
    with pytest.raises(ValueError, match="is of other rows than those of step 1: remove it"):
        outputs.beside(1, one)
    recorded = json.loads((tmp_path / "run" / "models.json").read_text())
    recorded["teacher"]["fingerprint"] = "another"
    (tmp_path / "run" / "models.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="has changed since this run began, and what it gave is no longer in"):
        learner.batches(0)
    with pytest.raises(ValueError, match="method.cached=True keeps the teacher's likeliest tokens: set method.top_k"):
        cached.replace(method=dict(top_k=0))
