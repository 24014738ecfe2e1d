"""The parts of a transformer against numpy, and their errors."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.model import products
from lm.model.compute import Compute
from lm.model.parts import ACTIVATIONS, FeedForward, LayerNorm, Norm, RMSNorm, dropout, fan_in
from lm.model.products import linear
from lm.model.wiring import Parallel, PostNorm, PreNorm, Sandwich, Wiring
from tests.model.reference import SIMPLE, close, gelu_tanh, layer_norm, rms_norm, silu

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 12)).astype(np.float32)


class Using(nn.Module):
    """A module whose only content is `call`."""

    call: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return self.call(self, x)


def use(call: Any, x: Any, params: dict[str, Any]) -> Any:
    return Using(call).apply({"params": params}, x)


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool) -> None:
    params = {"n_scale": RNG.standard_normal(12), "n_bias": RNG.standard_normal(12)}
    params = params if bias else {"n_scale": params["n_scale"]}
    norm = LayerNorm(eps=1e-3, bias=bias)
    close(use(lambda m, x: norm(m, "n", x), X * 3 + 1, params), layer_norm(X * 3.0 + 1, params, "n", 1e-3))


@pytest.mark.parametrize("plus_one", [True, False])
def test_rms_norm(plus_one: bool) -> None:
    scale, norm = RNG.standard_normal(12), RMSNorm(eps=1e-3, plus_one=plus_one)
    found = use(lambda m, x: norm(m, "n", x), X * 3, {"n_scale": scale - plus_one})
    close(found, rms_norm(X * 3.0, {"n_scale": scale}, "n", 1e-3))


@pytest.mark.parametrize("norm", [LayerNorm(), RMSNorm(), Norm()])
def test_norms_keep_the_dtype_and_compute_in_float32(norm: Norm) -> None:
    x = jnp.asarray(X + 100, jnp.bfloat16)  # whose variance bfloat16 could not hold
    fresh = Using(lambda m, x: norm(m, "n", x))
    y = fresh.apply(fresh.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    wide = fresh.apply(fresh.init(jax.random.key(0), x), x.astype(jnp.float32))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    if isinstance(norm, LayerNorm):
        assert float(jnp.abs(y.astype(jnp.float32).std(-1) - 1).max()) < 0.02


# ---------------------------------------------------------------- products


@partial(jax.jit, static_argnums=(3, 4))
def product(x: Any, w: Any, pull: Any, compute: Compute, contract: int = 1) -> tuple[jax.Array, ...]:
    """The product of x and w, and what `pull` on it is on each."""
    y, vjp = jax.vjp(lambda x, w: linear(x, w, compute, contract), x, w)
    return y, *vjp(pull)


@pytest.mark.parametrize("contract", [1, 2])
@pytest.mark.parametrize("out", [(6, 2), (1, 2)], ids=["wider", "narrower"])
@pytest.mark.parametrize("flat", ["yes", "no"])
def test_linear_is_a_product(flat: str, out: tuple[int, int], contract: int) -> None:
    x = RNG.standard_normal((2, 5, 4, 3)).astype(np.float32)
    w = RNG.standard_normal((*x.shape[4 - contract :], *out)).astype(np.float32)
    pull = RNG.standard_normal((*x.shape[: 4 - contract], *out)).astype(np.float32)
    y, dx, dw = product(x, w, pull, replace(SIMPLE, flat=flat), contract)
    close(y, np.tensordot(x.astype(np.float64), w, contract))
    close(dx, np.tensordot(pull.astype(np.float64), w, (tuple(range(-2, 0)), tuple(range(contract, contract + 2)))))
    lead = tuple(range(4 - contract))
    close(dw, np.tensordot(x.astype(np.float64), pull, (lead, lead)))


@pytest.mark.parametrize("flat", ["yes", "no"])
def test_bfloat16_products_are_summed_in_float32(flat: str) -> None:
    """4096 ones: a bfloat16 sum would stop at 256."""
    compute = replace(SIMPLE, flat=flat, matmul="bfloat16")
    x, w, pull = (np.ones(shape, np.float32) for shape in ((2, 1, 4096), (4096, 3), (2, 1, 3)))
    y, dx, dw = found = product(x, w, 4096 * pull, compute)
    assert {a.dtype for a in found} == {np.dtype(np.float32)}
    for a, value in ((y, 4096), (dx, 3 * 4096), (dw, 2 * 4096)):
        np.testing.assert_array_equal(a, np.full(a.shape, value))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
def test_products_on_tpus_are_the_same(matmul: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to a TPU's compiler changes no number: wide products stand apart, weights are cast in place, and
    those that lead back, of 12 numbers a row, are laid out otherwise."""
    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 16), (16, 12)))
    cpu = replace(SIMPLE, matmul=matmul)
    tpu = replace(cpu, backend="tpu")

    def both(x: jax.Array, w: jax.Array, compute: Compute = tpu) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda x, w: linear(x, w, compute, back=True), x, w)
        return y, *pull(jnp.cos(y))

    wanted = jax.jit(partial(both, compute=cpu))(x, w)
    monkeypatch.setattr(products, "WIDE", 12 if wide else 13)
    for found, expected in zip(jax.jit(both)(x, w), wanted, strict=True):
        close(found, expected, 1e-6)
    program = str(jax.make_jaxpr(both)(x, w))
    assert ("optimization_barrier" in program) is wide
    assert ("reduce_precision" in program) is (matmul == "bfloat16")
    assert "layout_constraint" in program


# ---------------------------------------------------------------- feed-forward


EXACT = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    x = np.linspace(-6, 6, 101)
    close(ACTIVATIONS[activation](x.astype(np.float32)), EXACT[activation](x))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(gated: bool, bias: bool) -> None:
    ffn = FeedForward(mlp=7, activation="silu", gated=gated, bias=bias)
    module = Using(lambda m, x: ffn(m, x, SIMPLE, 2))
    params = nn.meta.unbox(module.init(jax.random.key(0), X))["params"]
    assert set(params) == {f"{n}{b}" for n in ("gate", "up", "down")[not gated :] for b in ("", "_bias")[: 1 + bias]}
    p = {n: RNG.standard_normal(a.shape) for n, a in params.items()}
    up = X @ p["up"] + p.get("up_bias", 0)
    hidden = silu(X @ p["gate"] + p.get("gate_bias", 0)) * up if gated else silu(up)
    close(module.apply({"params": p}, X), hidden @ p["down"] + p.get("down_bias", 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp": 0}, "ffn.mlp=0: expected at least 1"),
        (
            {"mlp": 4, "activation": "glu"},
            r"unknown activation 'glu': did you mean .*known: relu, gelu, gelu_tanh, silu",
        ),
    ],
)
def test_feed_forward_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedForward(**fields)


# ---------------------------------------------------------------- the rest


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean() -> None:
    x = jnp.ones((200, 200))
    module = Using(lambda m, x: dropout(m, x, 0.25))
    y = module.apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float((y == 0).mean()) - 0.25) < 4 * (0.25 * 0.75 / x.size) ** 0.5
    np.testing.assert_array_equal(module.apply({}, x), x)


def test_first_values_keep_the_variance() -> None:
    """Inputs of unit variance give outputs of unit variance, times the square of the scale."""
    x = jax.random.normal(jax.random.key(1), (64, 900))
    for scale in (1.0, 0.5):
        kernel = fan_in(900, scale)(jax.random.key(0), (900, 400), jnp.float32)
        assert float((x @ kernel).std()) == pytest.approx(scale, rel=0.03)


def halved(module: Any, name: str, x: float) -> float:
    """A norm."""
    return x / 2


@pytest.mark.parametrize(
    ("wiring", "after", "final"),
    [
        (Wiring(), 50, 25),
        (PreNorm(), (4 + 3) + 10 * 3.5, 21),
        (PostNorm(), (4.5 + 45) / 2, 24.75),  # after attention (4 + 5) / 2
        (Sandwich(), (4 + 1.5) + 27.5 / 2, 9.625),
        (Parallel(), 4 + 3 + 20, 13.5),
    ],
    ids=lambda v: type(v).__name__,
)
def test_wirings(wiring: Wiring, after: float, final: float) -> None:
    """Of 4, through x + 1 and 10 x, with a norm that halves."""
    module = nn.Dense(1).bind({})  # that nobody watches
    found = wiring(module, halved, 4.0, {"attention": lambda x: x + 1, "ffn": lambda x: x * 10})  # type: ignore[arg-type]
    assert found == after and wiring.final(module, halved, found) == final  # type: ignore[arg-type]
