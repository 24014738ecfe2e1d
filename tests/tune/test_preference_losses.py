"""Losses, gradients and metrics of DPO, KTO, SimPO and ORPO: TRL's (certificates/preferences.py), and by hand."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.train.logprobs import TokenLogprobs
from lm.tune import preferences
from lm.tune.dpo import DPO, apo_down_loss, apo_zero_loss, dpo_loss
from lm.tune.kto import KTO, reference_point
from lm.tune.orpo import ORPO, log1mexp, log_odds_ratio
from lm.tune.preferences import REFERENCE, Preference
from lm.tune.simpo import SimPO

RECORD: Any = json.loads((Path(__file__).parent / "trl_preferences.json").read_text())
KINDS: dict[str, Any] = {"DPO": DPO, "KTO": KTO, "SimPO": SimPO, "ORPO": ORPO}
CASES = [(kind, name) for kind, cases in RECORD["losses"].items() for name in cases]
POLICY, REFERENCES, MASK = (np.array(RECORD["arrays"][name]) for name in ("policy", "reference", "mask"))


def loss_of(method: Preference, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(loss, metrics) and gradient by the log-probabilities [4, 2, 6] of the recorded pairs, one a row."""
    learner = method.build(None)  # type: ignore[arg-type]
    first, pairs = MASK.reshape(4, 12) * np.repeat([1, 0], 6), MASK.sum(-1)
    batch = {
        "loss_mask": jnp.asarray(MASK.reshape(4, 12), jnp.float32),
        "segment_ids": jnp.asarray(np.tile(np.repeat([1, 2], 6), (4, 1))),
        "weights": jnp.full((4, 1), 0.25),
        "values": jnp.asarray(RECORD["labels"], jnp.float32)[:, None],
        "first_weights": jnp.asarray(first / pairs[:, 0].sum(), jnp.float32),
    }
    if method.reads_reference:
        batch[REFERENCE] = jnp.asarray(REFERENCES.sum(-1), jnp.float32)[:, None]

    def loss(logprobs: jax.Array) -> Any:
        given = TokenLogprobs(logprobs.reshape(4, 12), jnp.zeros(()), {})
        monkeypatch.setattr(preferences, "token_logprobs", lambda *_: given)
        return learner.loss({}, (), batch, None)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(POLICY, jnp.float32))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_loss_gradient_and_metrics_are_those_of_trl(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = RECORD["losses"][kind][name]
    (loss, metrics), gradient = loss_of(KINDS[kind](**recorded["ours"]), monkeypatch)
    assert float(loss) == pytest.approx(recorded["loss"], rel=1e-5)
    np.testing.assert_allclose(gradient, recorded["gradient"], rtol=1e-5, atol=1e-6)
    assert len(recorded["metrics"]) >= 4 - (kind == "KTO") and np.abs(gradient).max() > 1e-3
    for metric, value in recorded["metrics"].items():
        assert float(metrics[metric]) == pytest.approx(value, rel=1e-5, abs=1e-6), metric


FIELDS = {
    "DPO": {"beta": 0.3, "loss": "hinge", "label_smoothing": 0.2},
    "KTO": {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 0.5},
    "SimPO": {"beta": 1.0, "gamma": 0.3, "sft_weight": 1.0},
    "ORPO": {"beta": 0.3},
}


def test_every_field_changes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, changes in FIELDS.items():
        assert set(changes) == {field.name for field in dataclasses.fields(KINDS[kind])}
        before = loss_of(KINDS[kind](), monkeypatch)[1]
        for name, value in changes.items():
            after = loss_of(KINDS[kind](**{name: value}), monkeypatch)[1]
            assert np.abs(after - before).max() > 1e-4, (kind, name)


def test_label_smoothing_is_the_paper_s_where_trl_has_none() -> None:
    """The expected loss of labels of which a share is wrong; its least is where the policy is as sure as they are."""
    d = jnp.linspace(-3, 3, 7)
    mixed = 0.9 * dpo_loss(d, -d, 0.5) + 0.1 * dpo_loss(-d, d, 0.5)
    np.testing.assert_allclose(dpo_loss(d, -d, 0.5, 0.1), mixed, rtol=1e-6)
    best = math.log(0.9 / 0.1)
    assert float(jax.grad(lambda d: dpo_loss(d, 0.0, 1.0, 0.1))(best)) == pytest.approx(0, abs=1e-6)


def test_at_the_reference_losses_are_known() -> None:
    zero = jnp.zeros(())
    assert float(dpo_loss(zero, zero, 0.1, 0.3)) == pytest.approx(math.log(2))
    assert float(apo_zero_loss(zero, zero, 0.1)) == float(apo_down_loss(zero, zero, 0.1)) == 1


def test_the_reference_point_of_kto_is_a_weighted_mean_and_not_negative() -> None:
    ratios, weights = jnp.array([[1.0, 4.0, 9.0]]), jnp.array([[0.5, 0.25, 0.0]])
    assert float(reference_point(ratios, weights)) == 2 and float(reference_point(-ratios, weights)) == 0


def test_odds_are_exact_near_certainty_and_impossibility() -> None:
    x = np.array([-1e-6, -0.1, -0.7, -5.0, -80.0])
    exact = [*np.log(-np.expm1(x[:2])), *np.log1p(-np.exp(x[2:]))]
    np.testing.assert_allclose(jax.jit(log1mexp)(x.astype(np.float32)), exact, rtol=2e-6)
    assert np.isfinite(jax.jit(jax.grad(log_odds_ratio))(0.0, np.float32(-1e-7)))
    p, q = 0.3, 0.1
    odds = math.log(p / (1 - p) / (q / (1 - q)))
    assert float(jax.jit(log_odds_ratio)(np.log(p), np.log(q))) == pytest.approx(odds, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="sigmod"), "method.loss='sigmod': did you mean sigmoid"),
        (dict(loss="ipo", label_smoothing=0.1), "method.label_smoothing=0.1: the loss ipo has none, only sigmoid and"),
        (dict(label_smoothing=0.5), "method.label_smoothing=0.5: expected at least 0 and less than 0.5"),
        (dict(beta=0.0), "method.beta=0.0: expected more than 0"),
    ],
)
def test_what_a_method_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**fields)
