"""Learning rates under muP: what each optimizer makes of a parameter that has grown over the base model."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import value
from lm.model.families import mixtral
from lm.model.parametrisation import MuP, Parametrisation
from lm.model.transformer import Transformer
from lm.train.optim import Adafactor, AdamW, Lion, Muon, Optimizer
from lm.train.schedule import Constant
from tests.model.reference import SIMPLE

WIDER = 4
CFG = mixtral(vocab=29, layers=2, width=16, heads=4, kv_heads=2, mlp=24, experts=3, context=16)
SGD = Optimizer(clip=0.0)
OPTIMIZERS = {type(o).__name__: o for o in (SGD, AdamW(), Lion(), Adafactor(min_side=2), Muon())}
IN, HIDDEN, OUT = ("stem/tokens", "layers/0/ffn_norm_scale"), ("layers/0/query", "layers/0/down"), ("head/kernel",)
EVERY = (*IN, *HIDDEN, *OUT, "layers/0/router")
# plain descent: fan-out / fan-in; Adam and the like: 1 / fan-in, which Adafactor's matrices bring along in part and
# Muon's by the spectral norm
FACTORS: dict[str, tuple[float, float, float]] = {
    "Optimizer": (WIDER, 1, 1 / WIDER),
    "AdamW": (1, 1 / WIDER, 1 / WIDER),
    "Lion": (1, 1 / WIDER, 1 / WIDER),
    "Adafactor": (1, WIDER**-0.5, 1),
    "Muon": (1, WIDER**-0.5, 1 / WIDER),
}


@cache
def axes(rule: Parametrisation) -> Any:
    return Transformer(replace(CFG, parametrisation=rule), SIMPLE).axes()


@cache
def params(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    shapes = Transformer(CFG, SIMPLE).shapes()
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def update(optimizer: Optimizer, rule: Parametrisation, grads: Any) -> dict[str, np.ndarray]:
    chain = replace(optimizer, schedule=Constant()).build(3, axes(rule))
    first = jax.jit(lambda grads, params: chain.update(grads, chain.init(params), params)[0])
    found = jax.device_get(first(grads, params(0)))
    return {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_flatten_with_path(found)[0]}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rates_of_what_has_grown(name: str) -> None:
    optimizer = replace(OPTIMIZERS[name], weight_decay=0.0)
    standard, grown = (update(optimizer, r, params(1)) for r in (Parametrisation(), MuP(CFG.width // WIDER)))
    entering, hidden, leaving = FACTORS[name]
    wanted = {**dict.fromkeys(IN, entering), **dict.fromkeys(HIDDEN, hidden), **dict.fromkeys(EVERY[-2:], leaving)}
    for path, factor in wanted.items():
        np.testing.assert_allclose(grown[path], standard[path] * factor, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_the_base_s_width_nothing_changes(name: str) -> None:
    standard, same = (update(OPTIMIZERS[name], r, params(1)) for r in (Parametrisation(), MuP(CFG.width)))
    for path in standard:
        np.testing.assert_array_equal(same[path], standard[path], err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_decays_in_a_step_is_the_same_at_every_width(name: str) -> None:
    """The share of a weight is learning_rate x weight_decay, whatever rate its gradient has (2405.13698)."""
    optimizer, nothing = replace(OPTIMIZERS[name], weight_decay=0.3), jax.tree.map(np.zeros_like, params(0))
    standard, grown = (update(optimizer, r, nothing) for r in (Parametrisation(), MuP(2)))
    for path in EVERY:
        np.testing.assert_allclose(grown[path], standard[path], rtol=1e-6, err_msg=path)
    assert np.abs(standard["layers/0/query"]).max() > 0


def test_muon_s_updates_have_the_spectral_norm_that_features_ask_for() -> None:
    """sqrt(fan-out / fan-in) of what it has in the base model, whatever the shape (2310.17813)."""
    optimizer = Muon(learning_rate=1.0, weight_decay=0.0)
    rule = MuP(4, base_mlp=2)  # D has grown 4 times, F 12 times
    found = update(optimizer, rule, params(1))
    for path, (rows, columns), growth in (("layers/0/gate", (4, 2), 3.0), ("layers/0/down", (2, 4), 1 / 3)):
        norms = np.linalg.norm(found[path].reshape(-1, *found[path].shape[-2:]), ord=2, axis=(1, 2))
        wanted = 0.2 * max(rows, columns) ** 0.5 * growth**0.5
        assert (0.6 * wanted < norms).all() and (norms < 1.3 * wanted).all(), path


def test_every_optimizer_has_a_rule_or_says_that_it_has_none() -> None:
    known = {cls for cls in value.subclasses(Optimizer).values() if cls.__module__.startswith("lm.")}
    assert {cls.__name__ for cls in known} == set(OPTIMIZERS)
    assert all(cls is Optimizer or "lr_multiplier" in vars(cls) for cls in known)


@dataclass(frozen=True)
class Signed(Optimizer):
    """One of a user's own, that has no rule."""

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        return optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Signed(), "Signed has no lr_multiplier, which MuP needs"),
        (Optimizer(clip=1.0), "optimizer.clip=1.0: plain gradient descent .* set clip=0"),
    ],
)
def test_what_has_no_rule_is_refused_at_any_width(optimizer: Optimizer, message: str) -> None:
    optimizer.build(3, axes(Parametrisation()))
    for width in (CFG.width, 4):
        with pytest.raises(ValueError, match=message):
            optimizer.build(3, axes(MuP(width)))
