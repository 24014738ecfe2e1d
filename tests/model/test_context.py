"""Attention over a mesh is attention: zigzag or in order, whatever shapes the logits, and with equal work for all."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.context import attend, zigzag_shard, zigzag_unshard
from lm.model.kernels import KERNELS
from lm.model.scoring import Mask, Scoring
from lm.sharding.mesh import make_mesh
from lm.sharding.tracing import use_mesh
from tests.model.reference import SIMPLE, close, trees_close

RNG = np.random.default_rng(0)
T, N = 16, 4
SEGMENTS = np.repeat([[1] * 7 + [2] * 6 + [0] * 3, [1] * 16], 1, axis=0).astype(np.int32)
BLOCKS = np.array([[1] * 3 + [0] * 4 + [1] * 2 + [0] * 7, [0] * 4 + [3] * 8 + [0] * 4], np.int32)
BIAS, SINKS = RNG.standard_normal((N, 2 * T - 1)).astype(np.float32), RNG.standard_normal(N).astype(np.float32)


def arrays(length: int, H: int = 4, K: int = 2) -> Any:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, length, n, H)).astype(np.float32) for n in (N, K, K))
    return q / 2, k, v


def scoring(zigzag: int = 0, length: int = T, **options: Any) -> Scoring:
    """Of two documents and padding; with `zigzag`, its arrays in the order of so many devices."""
    order = lambda x: np.asarray(zigzag_shard(x, zigzag) if zigzag else x)  # noqa: E731
    shaped = {name: options.pop(name) for name in ("bias", "softcap", "sinks") if name in options}
    segments = order(np.repeat(SEGMENTS, length // T, axis=1))
    if "blocks" in options:
        options["query_blocks"] = options["key_blocks"] = order(options.pop("blocks"))
    return Scoring(Mask(segments, segments, zigzag=zigzag > 1, **options), **shaped)


def test_zigzag_shards_are_first_and_last_chunks_in_pairs() -> None:
    x = jnp.arange(24).reshape(2, 12)
    zigzag = zigzag_shard(x, 3)
    assert zigzag[0].tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    np.testing.assert_array_equal(zigzag_unshard(zigzag, 3), x)
    np.testing.assert_array_equal(zigzag_unshard(zigzag_shard(x.T, 2, 0), 2, 0), x.T)


def test_each_device_has_the_same_causal_work() -> None:
    places = zigzag_shard(jnp.arange(32)[None], 4)[0].reshape(4, 8)
    assert len(set(np.asarray((places + 1).sum(1)).tolist())) == 1


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("plain", {"bias": BIAS, "window": 5}),
    "sinks": ("blocked", {"softcap": 2.0, "sinks": SINKS}),
    "blocks": ("flash", {"bias": BIAS, "blocks": BLOCKS, "sinks": SINKS}),
    "both ways": ("flash", {"causal": False, "bias": BIAS, "window": 6}),
}


def differentiated(options: dict[str, Any]) -> tuple[int, ...]:
    return (0, 1, 2, 3) if "bias" in options else (0, 1, 2)


@cache
def on_one_device(case: str) -> Any:
    """The gradients of queries, keys, values and of a bias where there is one; what they read."""
    options = CASES[case][1]
    whole, given = scoring(**options), (*arrays(T), options.get("bias"))

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any) -> Any:
        y = KERNELS["plain"](q, k, v, replace(whole, bias=bias), SIMPLE)
        return (y[:, :13] ** 2).sum(), y

    return jax.device_get(jax.jit(jax.grad(loss, differentiated(options), has_aux=True))(*given))


@pytest.mark.parametrize("mesh", [{"context": 4, "data": 2}, {"context": 2, "tensor": 4}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_spread_is_whole(case: str, mesh: dict[str, int]) -> None:
    """And so are the gradients; with four devices for two kv heads, each finds its own."""
    name, options = CASES[case]
    compute, C = replace(SIMPLE, attention=name, block=4), mesh["context"]
    causal = options.get("causal", True)
    shared = scoring(C if causal else 0, **options)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any) -> Any:
        q, k, v = (zigzag_shard(a, C) if causal else a for a in (q, k, v))
        y = attend(q, k, v, replace(shared, bias=bias), compute)
        y = zigzag_unshard(y, C) if causal else y
        return (y[:, :13] ** 2).sum(), y

    given = (*arrays(T), options.get("bias"))
    with use_mesh(make_mesh(mesh)):
        gradients, found = jax.device_get(jax.jit(jax.grad(loss, differentiated(options), has_aux=True))(*given))
    more, right = on_one_device(case)
    close(found[:, :13], right[:, :13])
    trees_close(gradients, more, 1e-4)


@pytest.mark.parametrize("options", [{"window": 200, "softcap": 2.0}, {"causal": False}], ids=str)
def test_splash_spread_is_whole(options: dict[str, Any]) -> None:
    """Interpreted on the CPU: zigzag chunks of 128 queries, or halves of the sequence in order."""
    q, k, v = arrays(512, 16)
    causal = options.get("causal", True)
    shared, whole = scoring(2 if causal else 0, 512, **options), scoring(0, 512, **options)
    compute = replace(SIMPLE, attention="splash")

    def shard_sequence(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not causal:
            return attend(q, k, v, shared, compute)
        return zigzag_unshard(attend(*(zigzag_shard(a, 2) for a in (q, k, v)), shared, compute), 2)

    with use_mesh(make_mesh({"context": 2, "tensor": 2}, jax.devices()[:4])):
        traced = jax.jit(shard_sequence).trace(q, k, v)
        found = traced.lower().compile()(q, k, v)
    assert "splash" in str(traced.jaxpr)
    expected = jax.jit(lambda q, k, v: KERNELS["plain"](q, k, v, whole, SIMPLE))(q, k, v)
    close(found[:, :400], expected[:, :400])
