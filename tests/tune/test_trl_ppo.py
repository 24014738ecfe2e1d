"""PPO's rewards, advantages, losses, gradients and metrics are those of TRL's trainer, as certificates/ppo.py recorded.

Two things are TRL's own (docs/peers.md). Its variance is unbiased: `unbiased` makes ours so. And where a completion is
shorter than the longest its score stands on the token behind it, which counts in the value loss: there the functions
get TRL's masks. Where all are of one length the learner as it is gives TRL's numbers.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.sampling import Sampling
from lm.model.transformer import Hidden
from lm.tune import gae
from lm.tune import policy_gradient as pg
from lm.tune.kl_control import FixedKL
from lm.tune.on_policy import Drawn
from lm.tune.ppo import KEPT, PPO, STATE, ActorCritic
from tests.tune.sums import Digits

RECORD = json.loads((Path(__file__).parent / "trl_ppo.json").read_text())
FIRST = RECORD["prompt"]
CASES = RECORD["cases"]
OURS = {
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "clip_ratio",
    "val/clipfrac_avg": "value_clip_ratio",
    "policy/entropy_avg": "entropy",
    "val/ratio": "importance_ratio",
    "objective/kl": "kl",
    "objective/scores": "score",
}


def arrays(case: Any) -> dict[str, np.ndarray]:
    found = {name: np.array(values) for name, values in RECORD["arrays"][case["ragged"]].items()}
    return {name: a if a.dtype == int else a.astype(np.float32) for name, a in found.items()}


def unbiased(whitened: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What was divided by the biased deviation of the numbers in `mask` as if by the unbiased one."""
    mean, n = whitened[mask].mean(), mask.sum()
    return np.where(mask, mean + (whitened - mean) * np.sqrt((n - 1) / n), 0)


@pytest.mark.parametrize("name", CASES)
def test_functions_of_arrays_are_trl_s(name: str) -> None:
    case = CASES[name]
    a, options = arrays(case), case["options"]
    tokens, before = a["tokens"][:, FIRST:], slice(FIRST - 1, -1)
    lengths = np.where((tokens == RECORD["eos"]).any(1), (tokens == RECORD["eos"]).argmax(1) + 1, tokens.shape[1])
    mask, and_one = (np.arange(tokens.shape[1]) < lengths[:, None] + n for n in (0, 1))

    @jax.jit
    def logprobs(logits: Any) -> jax.Array:
        each = jax.nn.log_softmax(logits[:, before] / options["temperature"])
        return jnp.take_along_axis(each, tokens[..., None], axis=2)[..., 0]

    old, reference = (np.asarray(logprobs(a[which])) for which in ("old", "reference"))
    kl, values = np.where(mask, old - reference, 0), np.where(and_one, a["old_values"][:, before], 0)
    rewards = gae.token_rewards(a["scores"], kl, options["kl_coef"], and_one)
    if options["whiten_rewards"]:
        np.testing.assert_allclose(rewards, case["whitened"][0]["values"], atol=1e-5)
        rewards = unbiased(gae.whiten(rewards, and_one, shift_mean=False), and_one)
        np.testing.assert_allclose(rewards[and_one], np.array(case["whitened"][0]["whitened"])[and_one], atol=1e-5)
    found = gae.advantages(rewards, values, and_one, options["gamma"], options["lam"])
    np.testing.assert_allclose(found, case["whitened"][-1]["values"], atol=1e-5)
    advantages = unbiased(gae.whiten(found, mask), mask)
    np.testing.assert_allclose(advantages[mask], np.array(case["whitened"][-1]["whitened"])[mask], atol=1e-5)

    def loss(logits: jax.Array, all_values: jax.Array) -> Any:
        ratio = pg.policy_ratio(logprobs(logits), old, mask, "token")
        policy, clipped = pg.clipped_surrogate(ratio, advantages, options["cliprange"], options["cliprange"])
        new = jnp.where(and_one, all_values[:, before], 0)
        value, far = gae.clipped_value_loss(new, values, found + values, options["cliprange_value"])
        each = [jnp.where(m, x, 0).sum() / m.sum() for x, m in zip((policy, clipped, value, far), MASKS, strict=True)]
        return each[0] + options["vf_coef"] * each[2], each

    MASKS = (mask, mask, and_one, and_one)
    (total, each), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(a["new"], a["new_values"])
    assert float(total) == pytest.approx(case["loss"][0], abs=1e-5)
    names = ("loss/policy_avg", "policy/clipfrac_avg", "loss/value_avg", "val/clipfrac_avg")
    assert [float(x) for x in each] == pytest.approx([case["metrics"][name] for name in names], abs=1e-5)
    assert kl.sum(1).mean() == pytest.approx(case["metrics"]["objective/kl"], abs=1e-5)
    for got, expected in zip(gradients, case["gradients"], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


class Recorded:
    """A model whose parameters are its logits [B, T, V] and its values [B, T, 1], side by side."""

    cfg = SimpleNamespace(causal=True, output=SimpleNamespace(scores=1))
    compute = SimpleNamespace(loss_chunk=0, backend="none")

    def hidden(self, params: Any, inputs: Any) -> Hidden:
        return Hidden(params["given"], None, {}, {})

    def logits(self, params: jax.Array, x: jax.Array) -> jax.Array:
        return x[..., :-1]

    def scores(self, params: jax.Array, x: jax.Array) -> jax.Array:
        return x[..., -1:]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["ragged"]])
def test_the_learner_s_numbers_are_trl_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From drawn completions and their scores to the gradient, as it runs, but for the variance."""
    whiten, case = gae.whiten, CASES[name]
    monkeypatch.setattr(gae, "whiten", lambda x, mask, *how, **named: unbiased(whiten(x, mask, *how, **named), mask))
    a, options = arrays(case), case["options"]

    def params(policy: str, critic: str) -> dict[str, Any]:
        return {"given": jnp.concatenate([a[policy], a[critic][..., None]], axis=2)[:, :-1]}

    learner: Any = ActorCritic(Recorded(), None, method(options))  # type: ignore[arg-type]
    old, frozen = params("old", "old_values"), params("reference", "old_values")
    kept = dict(zip(KEPT, (options["kl_coef"], 0.0, 0.0), strict=True))
    frozen |= {STATE: {name: jnp.full(1, x) for name, x in kept.items()}}
    batch = drawn(a)
    batch["sampler_logprobs"] = batch["policy_logprobs"] = learner.score(old, batch)
    batch = learner.learned(old, frozen, Drawn(batch, a["scores"]))
    whitened = np.array(case["whitened"][-1]["whitened"])
    np.testing.assert_allclose(batch["advantages"][:, FIRST - 1 :], whitened, atol=1e-5)
    scaled = {name: x / x.sum() if name in learner.weights else x for name, x in batch.items()}
    loss = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
    (total, metrics), gradient = loss(params("new", "new_values"), frozen, scaled, None)
    assert float(total) == pytest.approx(case["loss"][0], abs=1e-5)
    expected = {ours: pytest.approx(case["metrics"][trl], abs=1e-5) for trl, ours in OURS.items()}
    assert {ours: float(metrics[ours]) for ours in expected} == expected
    for got, of in zip((gradient["given"][..., :-1], gradient["given"][..., -1]), case["gradients"], strict=True):
        np.testing.assert_allclose(got, np.array(of)[:, :-1], atol=1e-5)


def drawn(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The host batch of prompts and completions that all end in the last column."""
    rows, T = a["tokens"][:, 1:].shape
    learned = np.broadcast_to(np.arange(T) >= FIRST - 1, (rows, T)).astype(np.float32)
    return {
        "tokens": a["tokens"][:, :-1],
        "targets": a["tokens"][:, 1:],
        "weights": learned,
        "row_weights": np.ones(rows, np.float32),
        **dict.fromkeys(("segment_ids", "positions"), np.ones((rows, T), np.int32)),
        **dict.fromkeys(("reward", "Digits"), a["scores"]),
        **dict.fromkeys(("truncated", "completion_length"), np.zeros(rows, np.float32)),
    }


def method(options: dict[str, Any]) -> PPO:
    names = dict(gamma="discount", lam="decay", cliprange="clip", cliprange_value="clip_value", vf_coef="value_weight")
    given = {ours: options[theirs] for theirs, ours in names.items()}
    sampling, kl = Sampling(options["temperature"]), FixedKL(options["kl_coef"])
    whiten = dict(whiten_rewards=options["whiten_rewards"], missing_stop=None)
    return PPO(rewards=(Digits(),), sampling=sampling, kl=kl, **whiten, **given)
