"""GRPO: what it samples is what it learns from, to the token; nothing else changes a gradient; its runs are runs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.data.loader import Batches, prepare
from lm.data.pack import Pack
from lm.decode.sampling import Sampling
from lm.model.families import scorer
from lm.model.transformer import Transformer
from lm.run import course
from lm.run.evaluate import evaluate
from lm.run.smoke import smoke
from lm.sharding.mesh import make_mesh
from lm.tune.grpo import GRPO
from lm.tune.grpo_variants import cispo, dapo, dr_grpo, gspo, rloo
from lm.tune.lora import LoRA
from lm.tune.on_policy import OnPolicy, SamplerMismatch, importance_weights, last_scores
from lm.tune.paths import by_path
from lm.tune.policy_gradient import advantages
from lm.tune.reward_functions import ExactAnswer, RewardError, RewardFunction
from tests.model.reference import lively
from tests.tiny import lines, of
from tests.tune.rollouts import (
    COMPUTE,
    ENDS,
    EOS,
    KEY,
    LENGTH,
    MESHES,
    NEW,
    ROWS,
    TEXTS,
    batches,
    gradient_of,
    metrics_of,
    stepped,
    stopped_and_resumed,
    times,
)
from tests.tune.sums import Digits, Failing, summing

DIGITS = (Digits(),)
pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def data(file: Path) -> Batches:
    return batches(file, method())


def method(**fields: Any) -> GRPO:
    return GRPO(**{"rewards": DIGITS, "group": 4, "max_new_tokens": NEW, "sampling": ENDS, **fields})


@cache
def learner_of(data: Batches, trains: Any = None, **fields: Any) -> Any:
    learner = method(**fields).build(Transformer(TEXTS, COMPUTE), data)
    return learner if trains is None else trains.wrap(learner)


@pytest.fixture(scope="module")
def params() -> Any:
    """Some of both groups' completions have digits, so that rewards differ in each and between them."""
    return lively(TEXTS, seed=2)


def rolled(learner: Any, params: Any, data: Batches, step: int = 0, frozen: Any = ()) -> Any:
    return learner.rollout(params, frozen, {**data.batch(step)}, KEY)


def loss_of(learner: Any, params: Any, batch: Any, key: Any = None) -> Any:
    return metrics_of(learner, params, (), batch, key)


def moved(learner: Any, params: Any, batch: Any) -> Any:
    return gradient_of(learner, params, (), batch)


# ---------------------------------------------------------------- what is sampled is what is learned from


def test_a_batch_has_prompts_and_completions_token_by_token(data: Batches, params: Any) -> None:
    learner = learner_of(data)
    prompts = data.batch(0)
    completions = learner.sample(params, prompts, KEY)
    batch, ended = rolled(learner, params, data), 0
    for row in range(ROWS):
        prompt = prompts["tokens"][row][prompts["segment_ids"][row] > 0].tolist()
        assert bytes(prompt[1:]).decode() == data.record(int(batch["record"][row]))["prompt"]
        ids = completions.tokens[row, : completions.lengths[row]].tolist()
        (learned,) = np.nonzero(batch["weights"][row])
        assert batch["targets"][row, learned].tolist() == ids and learned[0] == len(prompt) - 1
        assert batch["tokens"][row][batch["segment_ids"][row] > 0].tolist() == [*prompt, *ids[:-1]]
        assert batch["truncated"][row] == (ids[-1] != EOS) and batch["completion_length"][row] == len(ids)
        ended += ids[-1] == EOS  # which carries loss, whatever pads
    assert 0 < ended and batch["completion_length"].min() < NEW
    assert [len(set(group)) for group in batch["record"].reshape(-1, 4).tolist()] == [1, 1]


def test_what_a_completion_is_worth_is_its_own(data: Batches, params: Any) -> None:
    """Rewards of the text without its end, at its own row; their advantages; and only completions' tokens count."""
    learner = learner_of(data)
    batch = rolled(learner, params, data)
    for row in range(ROWS):
        ids = batch["targets"][row][batch["weights"][row] > 0]
        text = data.tokenizer.decode([id for id in ids.tolist() if id != EOS])
        assert batch["reward"][row] == pytest.approx(sum(map(str.isdigit, text)) / len(ids))
    np.testing.assert_allclose(batch["advantages"], advantages(batch["reward"].astype(float), 4), rtol=1e-5)
    assert ((batch["loss_weights"] > 0) == (batch["weights"] > 0)).all()


def test_neither_padding_nor_neighbours_change_a_score(data: Batches, params: Any) -> None:
    learner = learner_of(data)
    batch = rolled(learner, params, data)
    noise = np.where(batch["segment_ids"] > 0, batch["tokens"], 99).astype(np.int32)
    np.testing.assert_array_equal(learner.score(params, batch), learner.score(params, {**batch, "tokens": noise}))
    model, row = learner.model, 3
    there = batch["segment_ids"][row] > 0
    alone = jax.jit(lambda p, ids: jax.nn.log_softmax(model(p, ids)))(params, batch["tokens"][row][there][None])[0]
    expected = np.asarray(alone)[np.arange(there.sum()), batch["targets"][row][there]]
    found, real = batch["old_logprobs"][row][there], batch["weights"][row][there] > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [ENDS, Sampling(top_p=0.8), Sampling(0.7, top_k=50), Sampling(top_p=0.8, top_k=50)],
    ids=["all", "top-p", "top-k", "both"],
)
def test_before_the_first_update_the_ratio_is_one_and_the_weight_is_the_kept_mass(
    data: Batches, params: Any, sampling: Sampling
) -> None:
    """Divided by the sampler's own probabilities, it would be off by the mass that was kept."""
    learner = learner_of(data, sampling=sampling, minibatches=2)
    batch = rolled(learner, params, data)
    assert batch["sampler_gap"].max() < 1e-4
    _, metrics = loss_of(learner, params, batch)
    assert metrics["importance_ratio"] == pytest.approx(1, abs=1e-5) and metrics["clip_ratio"] == 0
    real = batch["weights"] > 0
    naive = np.exp(batch["old_logprobs"] - batch["sampler_logprobs"])[real]
    np.testing.assert_allclose(batch["importance_weights"][real], naive, rtol=1e-5)
    if sampling != ENDS:
        assert naive.min() < 0.9 and naive.max() <= 1 + 1e-4
    capped = importance_weights(np.log([[3.0, 1.0]]), np.log([[1.0, 4.0]]), np.array([[True, True]]), 2.0)
    np.testing.assert_allclose(capped, [[2.0, 0.25]])


def test_a_sampler_with_other_parameters_stops_the_run(data: Batches, params: Any) -> None:
    stale = times(1.05, params)
    learner = learner_of(data, max_sampler_gap=1e-3)
    for given in (stale, params):  # whichever are given are the ones that draw
        assert rolled(learner, given, data)["sampler_gap"].max() < 1e-4
    drawn = learner.draw(stale, (), data.batch(0), KEY)
    with pytest.raises(SamplerMismatch, match="nats apart between sampling and training"):
        learner.learned(params, (), drawn)


def test_a_batch_follows_from_key_and_parameters(data: Batches, params: Any) -> None:
    learner = learner_of(data)
    first, again = rolled(learner, params, data), rolled(learner, params, data)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = learner.rollout(params, (), data.batch(0), jax.random.key(1))
    assert (first["targets"] != other["targets"]).any()


# ---------------------------------------------------------------- the loss


def test_there_is_no_dropout_in_policy_or_reference(data: Batches, params: Any) -> None:
    learner = learner_of(data, beta=0.1)
    batch = rolled(learner, params, data, frozen=params)
    without, metrics = loss_of(learner, params, batch, None)
    with_key, _ = loss_of(learner, params, batch, jax.random.key(3))
    assert without == with_key and metrics["kl"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(batch["reference_logprobs"], batch["old_logprobs"])


def test_a_rewarded_completion_becomes_likelier_and_the_others_rarer(data: Batches, params: Any) -> None:
    learner = learner_of(data)
    batch = rolled(learner, params, data)
    batch |= {"advantages": np.where(np.arange(ROWS) == 2, 1, 0).astype(np.float32)}
    for sign in (1, -1):
        _, _, gradient = moved(learner, params, {**batch, "advantages": sign * batch["advantages"]})
        after = jax.tree.map(lambda x, g: np.asarray(x) - np.float32(1e-3) * g, params, gradient)
        change = (batch["importance_weights"] * (learner.score(after, batch) - batch["old_logprobs"]))[2].sum()
        assert sign * change > 0
    loss = moved(learner, params, batch)[0]
    doubled = {**batch, "importance_weights": 2 * batch["importance_weights"]}
    assert loss != 0 and moved(learner, params, doubled)[0] == pytest.approx(2 * loss)


def test_groups_that_are_equal_move_nothing(data: Batches, params: Any) -> None:
    learner = learner_of(data, rewards=(Constant(),))
    batch = rolled(learner, params, data)
    _, metrics, gradient = moved(learner, params, batch)
    assert metrics["zero_std"] == 1 and not batch["advantages"].any()
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_what_was_cut_carries_no_loss_where_that_is_asked(data: Batches, params: Any) -> None:
    learner = learner_of(data, drop_truncated=True)
    batch = rolled(learner, params, data)
    cut = batch["truncated"] > 0
    assert cut.any() and not cut.all()
    assert not batch["weights"][cut].any() and not batch["loss_weights"][cut].any() and batch["weights"].any()
    none = learner_of(data, drop_truncated=True, sampling=Sampling(logit_bias=((EOS, float("-inf")),)))
    loss, metrics, gradient = moved(none, params, rolled(none, params, data))
    assert loss == 0 and metrics["truncated"] == 1
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@dataclass(frozen=True)
class Constant(RewardFunction):
    """The same for all."""

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        return [1.0] * len(completions)


@dataclass(frozen=True)
class Late(RewardFunction):
    """Whether the prompt's first number is more than 4; in a group all are equal, unless it is `mixed`."""

    mixed: bool = False

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        found = [float(prompt[0] > "4") for prompt in prompts]
        return [x * (i % 2) for i, x in enumerate(found)] if self.mixed else list(found)


def test_dynamic_sampling_replaces_equal_groups(data: Batches, params: Any) -> None:
    """Those of late prompts have one; the others are replaced until all have, or as often as declared."""
    kept, once = (learner_of(data, rewards=(Late(mixed=True),), resample=n) for n in (9, 0))
    before, after = rolled(once, params, data, 1), rolled(kept, params, data, 1)
    assert 0 < before["zero_std"].mean() and after["zero_std"].mean() == 0
    firsts = [data.record(int(number))["prompt"][0] for number in after["record"]]
    assert all(first > "4" for first in firsts)
    same = before["zero_std"] == 0
    np.testing.assert_array_equal(before["targets"][same], after["targets"][same])
    jax.tree.map(np.testing.assert_array_equal, after, rolled(kept, params, data, 1))
    never = rolled(learner_of(data, rewards=(Late(),), resample=2), params, data)
    assert never["zero_std"].mean() == 1 and not never["advantages"].any()


def test_kl_off_the_reward_is_the_completion_s(data: Batches, params: Any) -> None:
    far = times(1.2, params)
    learner = learner_of(data, kl="reward", beta=0.3, scale="none")
    batch = rolled(learner, params, data, frozen=far)
    kl = (batch["old_logprobs"] - batch["reference_logprobs"]).sum(1)
    np.testing.assert_allclose(batch["advantages"], advantages(batch["reward"] - 0.3 * kl, 4, "none"), atol=1e-5)
    inside = learner_of(data, kl="loss", beta=0.3, scale="none")
    (a, _), (b, metrics) = (loss_of(one, params, rolled(one, params, data, frozen=far)) for one in (learner, inside))
    assert metrics["kl"] > 0.01 and a != b


# ---------------------------------------------------------------- updates, adapters, meshes


def test_several_updates_of_a_rollout(data: Batches, params: Any) -> None:
    """Minibatches are parts of the batch, and in later epochs the policy has left that which was sampled from."""
    state, metrics = stepped(learner_of(data, minibatches=2, epochs=3), data)
    assert int(state.step) == 1 and {int(x) for x in counts(state.opt_state)} == {6}
    assert metrics["importance_ratio"] != pytest.approx(1, abs=1e-4)
    halves, whole = learner_of(data, minibatches=2), learner_of(data)
    batch, parts = (rolled(one, params, data) for one in (whole, halves))
    one = moved(whole, params, batch)[2]
    two = [moved(whole, params, {name: a[i::2] for name, a in parts.items()})[2] for i in (0, 1)]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-5), one, *two)


def counts(opt_state: Any) -> list[Any]:
    flat = jax.tree_util.tree_flatten_with_path(opt_state)[0]
    return [leaf for path, leaf in flat if getattr(path[-1], "name", "") == "count"]


def test_under_adapters_the_reference_is_the_model_without_them(data: Batches) -> None:
    learner = learner_of(data, LoRA(rank=2, full="head/.*"), beta=0.1)
    params, frozen = jax.jit(learner.init)(KEY, lively(TEXTS))
    assert set(by_path(frozen["method"])) == set(by_path(params)) & set(
        by_path(learner.learner.axes())
    )  # trained whole
    later = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), params)
    batch = learner.rollout(later, frozen, data.batch(0), KEY)
    start = jax.jit(learner.model_params)(params, frozen)
    np.testing.assert_allclose(batch["reference_logprobs"], learner.learner.score(start, batch), atol=1e-5)
    assert np.abs(batch["reference_logprobs"] - batch["old_logprobs"]).max() > 0.01
    none = learner_of(data, LoRA(rank=2))
    assert jax.eval_shape(none.init, KEY)[1]["method"] == ()


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_three_updates_on_eight_devices_are_those_of_one(data: Batches, shape: dict[str, int]) -> None:
    learner = learner_of(data, beta=0.1)
    (one, first), (many, second) = (stepped(learner, data, 3, mesh) for mesh in (None, make_mesh(shape)))
    assert first == {name: pytest.approx(x, rel=1e-3, abs=1e-4) for name, x in second.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one.params, jax.device_get(many.params))


FIELDS: dict[str, Any] = {
    "rewards": (Constant(),),
    "scorer_model": scorer(TEXTS),
    "beta": 0.2,
    "kl": "reward",
    "scale": "none",
    "baseline": "leave_one_out",
    "aggregation": "token",
    "ratio": "sequence",
    "surrogate": "cispo",
    "sampling": Sampling(0.5),
    "drop_truncated": True,
    "truncate_importance": 0.5,
    "clip_low": 0.01,
    "clip_high": 0.01,
    "group": 2,
    "max_new_tokens": 5,
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_changes_the_gradient(name: str, data: Batches, params: Any) -> None:
    """By what it makes of completions, or in the loss."""
    context: dict[str, Any] = {"minibatches": 2, **({"beta": 0.2} if name == "kl" else {})}
    found = []
    for fields in (context, context | {name: FIELDS[name]}):
        made = method(**fields)
        own = prepare(data.data, LENGTH, ROWS, objective=made.objective, tokenizer=data.tokenizer)
        learner = made.build(Transformer(TEXTS, COMPUTE), own)
        frozen = {**times(1.1, params), "scorer": lively(scorer(TEXTS))}
        batch = rolled(learner, params, own, frozen=frozen)
        program = str(jax.make_jaxpr(learner.loss)(params, params, batch, KEY))
        found.append({"program": program, **{name: a.tolist() for name, a in batch.items()}})
    assert found[0] != found[1]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_reward_model_is_a_reward_beside_the_reference(beta: float, data: Batches) -> None:
    """It is frozen, in checkpoints, and under adapters whole."""
    learner = learner_of(data, LoRA(rank=2), rewards=(), scorer_model=scorer(TEXTS), beta=beta)
    params, frozen = jax.eval_shape(learner.init, KEY)
    assert "scorer" in frozen["method"] and set(frozen["method"]) <= {"scorer", "head"}
    assert jax.tree.structure(frozen) == jax.tree.structure(learner.frozen_axes(), is_leaf=lambda x: type(x) is tuple)
    own = learner.learner
    params, frozen = jax.jit(own.init)(KEY, lively(TEXTS), {"scorer": lively(scorer(TEXTS))})
    batch = own.rollout(params, frozen, data.batch(0), KEY)
    np.testing.assert_array_equal(batch["reward"], last_scores(own.scorer, frozen["scorer"], batch))
    np.testing.assert_array_equal(own.heldout_rollout(params, frozen, data.batch(0), KEY)["reward"], batch["reward"])
    assert batch["reward"].std() > 0 and [one.name for one in own.method.measures] == ["reward", "completion_length"]


def test_the_values_of_other_papers(data: Batches, params: Any) -> None:
    for make in (dr_grpo, dapo, rloo, gspo, cispo):
        value = make(rewards=DIGITS, group=4, max_new_tokens=NEW, sampling=ENDS)
        assert isinstance(value, GRPO) and value != method()
        learner = value.build(Transformer(TEXTS, COMPUTE), data)
        batch = rolled(learner, params, data, frozen=params)
        assert all(np.isfinite(array).all() for array in batch.values())
    assert dapo(rewards=DIGITS, clip_high=0.5).clip_high == 0.5


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    course.train(summing(file), folder)
    return folder


def test_it_learns_from_rewards_and_is_told_in_them(finished: Path) -> None:
    reward = of(lines(finished), "Digits")
    assert np.mean([reward[n] for n in (10, 11, 12)]) > np.mean([reward[n] for n in (1, 2, 3)]) + 0.05
    gaps = of(lines(finished), "sampler_gap")
    assert list(gaps) == list(range(1, 13)) and max(gaps.values()) < 0.2
    last = lines(finished)[-1]
    told = {name.rpartition("/")[2] for name in last if name.startswith("eval/sums/")}
    assert told == {"reward", "Digits", "ExactAnswer", "completion_length"}
    assert evaluate(finished)["sums"]["Digits"] == pytest.approx(last["eval/sums/Digits"])
    samples = json.loads((finished / "samples.json").read_text())
    assert len(samples) == 4 and "[reward " in samples[0]["text"] and "ExactAnswer 0" in samples[0]["text"]
    assert samples[0]["text"].startswith(samples[0]["prompt"])
    assert samples[0]["inspect"] == samples[0]["text"].partition("\n\n[reward ")[0]
    page = (finished / "report.html").read_text()
    assert "[reward " in page and "completion length" in page and "bits per byte" not in page


def test_stopped_and_resumed_it_has_the_same_bits(
    finished: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped_and_resumed(lambda: summing(file), tmp_path / "run", monkeypatch) == lines(finished)


def test_a_smoke_test_of_it_has_whole_groups(file: Path) -> None:
    small = smoke(summing(file, group=16, minibatches=2).replace(batch_tokens=64 * 12)).on(1)
    assert small.rows % small.method.objective.row_copies == 0 and small.method.updates == (1, 1)
    long = summing(file, max_new_tokens=200).replace(seq_len=256, batch_tokens=256 * 8, model=dict(context=256))
    assert small.steps <= 20 and smoke(long).method.objective.new_tokens < smoke(long).length


def wrong_inputs(file: Path) -> list[tuple[Callable[[], Any], str]]:
    unanswered = file.parent / "unanswered.jsonl"
    rows = [{"prompt": f"{a}+{b}=", **({"answer": a + b} if a else {})} for a in range(3) for b in range(9)]
    unanswered.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = file.parent / "other.jsonl"
    other.write_text('{"question": "x"}\n' * 30)
    run = lambda e: course.train(e, file.parent / "refused" / str(hash(e.fingerprint)))  # noqa: E731
    return [
        (lambda: run(summing(unanswered)), r"unanswered.jsonl, line \d+: the record has no 'answer', which the reward"),
        (lambda: run(summing(other)), r"other.jsonl, line \d+: .*: expected an object with a prompt"),
        (lambda: summing(file, group=5), "32 rows of 12 tokens, no whole number of groups of 5: try 420"),
        (lambda: run(summing(file, max_new_tokens=12)), "leave no room for prompts beside max_new_tokens=12"),
        (lambda: run(summing(file, max_new_tokens=9)), "none of its .* documents fits in 3 tokens, the shortest has 5"),
        (lambda: run(summing(file).replace(data=dict(packing=Pack()))), "packing=OnePerRow"),
        (lambda: summing(file, minibatches=3), "minibatches"),
        (lambda: run(summing(file, rewards=(Failing(),))), "reward Failing raised ZeroDivisionError: by zero"),
        (lambda: run(summing(file, max_sampler_gap=1e-12)), "apart between sampling and training, more than max_sam"),
    ]


@pytest.mark.parametrize("case", range(9))
def test_what_cannot_be_learned_from_is_refused_in_a_line(case: int, file: Path) -> None:
    run, reason = wrong_inputs(file)[case]
    with pytest.raises(ValueError, match=reason) as raised:
        run()
    assert "\n" not in str(raised.value)


def test_a_reward_that_fails_is_left_out_where_that_is_declared(data: Batches, params: Any) -> None:
    learner = learner_of(data, rewards=(Failing(), Digits()), on_reward_error="skip")
    batch = rolled(learner, params, data)
    assert np.isfinite(batch["advantages"]).all() and (batch["reward"] == batch["Digits"]).all()
    silent = learner_of(data, rewards=(Failing(),), on_reward_error="skip")
    loss, _, gradient = moved(silent, params, rolled(silent, params, data))
    assert loss == 0 and all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(RewardError):
        rolled(learner_of(data, rewards=(Failing(),)), params, data)
    assert isinstance(silent, OnPolicy) and ExactAnswer().columns == ("answer",)
