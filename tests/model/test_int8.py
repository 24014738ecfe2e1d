"""Weights of 8 bits: the kernel is the product with the rounded weights, each row by itself; how far they are off."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.engine import Engine, Request
from lm.decode.generate import generate
from lm.decode.layout import for_decoding
from lm.decode.sampling import Sampling
from lm.machine import native
from lm.model import int8
from lm.model import native as kernels
from lm.model.products import linear
from lm.model.transformer import Transformer
from tests.model.reference import LLAMA, MODELS, SIMPLE, close, lively, run

with_kernel = pytest.mark.skipif(not kernels.has_kernel(), reason="no C compiler, or another processor")
product = jax.jit(linear, static_argnums=(2, 3))


def weights(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@with_kernel
@pytest.mark.parametrize("rows", [1, 4, 7, kernels.FEW, kernels.FEW + 1])
@pytest.mark.parametrize("sizes", [(16, 8), (5, 3), (50, 37), (576, 200)])
def test_the_kernel_is_the_product(rows: int, sizes: tuple[int, int]) -> None:
    """Of inputs that are no whole vectors and outputs that are no whole tiles, on one thread and on several."""
    w, x = int8.quantize(weights(*sizes)), weights(rows, 1, sizes[0], seed=1)
    close(product(x, w, SIMPLE, 1), np.asarray(x, np.float64) @ np.asarray(w.rounded(), np.float64), 1e-5)


@with_kernel
def test_a_row_has_the_same_bits_in_any_company() -> None:
    w, x = int8.quantize(weights(576, 300)), weights(13, 1, 576, seed=1)
    alone = np.concatenate([product(x[i : i + 1], w, SIMPLE, 1) for i in range(13)])
    for rows in (2, 4, 13):
        np.testing.assert_array_equal(product(x[:rows], w, SIMPLE, 1), alone[:rows])


@with_kernel
def test_inputs_of_two_axes() -> None:
    w, x = weights(3, 4, 7), weights(2, 5, 3, 4, seed=1)
    kept = int8.quantize(w, 2)
    assert kept.values.shape == (7, 12) and kept.shape == w.shape
    close(product(x, kept, SIMPLE, 2), np.einsum("btnh,nhd->btd", x, kept.rounded()), 1e-5)


def test_a_weight_is_off_by_half_a_step_of_its_output() -> None:
    w = weights(40, 6) * np.array([1e-3, 1, 0, 10, 100, 1e4], np.float32)
    kept = int8.quantize(w)
    steps = np.abs(w).max(0) / 127
    assert (np.abs(kept.rounded() - w) <= 0.5001 * steps).all()
    assert np.abs(np.asarray(kept.values)).max(1).tolist() == [127, 127, 0, 127, 127, 127]


def rounded(params: Any) -> Any:
    """Unstacked parameters with float32 in place of 8 bits."""
    is_int8 = lambda w: isinstance(w, int8.Int8)  # noqa: E731
    return jax.tree.map(lambda w: w.rounded() if is_int8(w) else w, params, is_leaf=is_int8)


@with_kernel
@pytest.mark.parametrize("name", ["gpt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "mixtral"))])
def test_a_model_decodes_by_8_bits(name: str) -> None:
    cfg = MODELS[name]
    decoder = for_decoding(Transformer(cfg, SIMPLE), lively(cfg), "int8")
    layer = decoder.params["layers"]["0"][0]
    assert isinstance(layer["query"], int8.Int8) and isinstance(layer["up"], int8.Int8) == (name != "mixtral")
    ids = np.array([[3, 1, 4, 1, 5, 9]], np.int32)
    found = run(decoder.model, decoder.params, ids)
    close(found, run(decoder.model, rounded(decoder.params), ids), 1e-5)
    assert np.abs(found - run(decoder.model, lively(cfg), ids)).max() > 1e-4


@with_kernel
@pytest.mark.parametrize(
    "weights", ["float32", *(pytest.param(w, marks=pytest.mark.slow) for w in ("bfloat16", "int8"))]
)
def test_the_engine_gives_the_same_bits_alone_and_in_company(weights: str) -> None:
    decoder = for_decoding(Transformer(LLAMA, SIMPLE), lively(LLAMA), weights)
    requests = [Request([3, 1, 4][: i + 1], 5, Sampling(0.7), seed=i, top_logprobs=2) for i in range(3)]
    engine = Engine(decoder.model, decoder.params, slots=3)
    assert [engine.generate([request])[0] for request in requests] == [
        [output._replace(number=i) for output in outputs] for i, outputs in enumerate(engine.generate(requests))
    ]


@pytest.fixture
def no_compiler() -> Iterator[None]:
    def forget() -> None:
        for function in (native.library, kernels.has_kernel):
            function.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.shutil, "which", lambda _: None)
        forget()
        yield
    forget()


def test_without_a_compiler_the_rounded_weights_are_float32(no_compiler: None) -> None:
    model, params = Transformer(LLAMA, SIMPLE), lively(LLAMA)
    assert not kernels.has_kernel()
    decoder = for_decoding(model, params, "int8")
    expected = int8.quantize(params["layers"]["0"]["out"][1], 2).rounded()
    np.testing.assert_array_equal(decoder.params["layers"]["0"][1]["out"], expected)
    half = for_decoding(model, params, "bfloat16").params["head"]["kernel"]
    np.testing.assert_array_equal(half, params["head"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32))
    assert len(generate(*decoder, [[3, 1, 4]], 6, sampling=Sampling(0.0))[0]) == 6


def test_what_a_compiler_cannot_build_is_not_missed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "broken.c"
    source.write_text("this is not C")
    assert native.library(source, "/nowhere") is None


@pytest.mark.parametrize(
    ("compute", "kind", "said"),
    [
        (SIMPLE, "int4", "weights='int4': expected float32, bfloat16 or int8"),
        (
            replace(SIMPLE, backend="tpu"),
            "int8",
            "weights='int8' are for decoding on one CPU: leave them out here",
        ),
    ],
)
def test_what_it_does_not_take(compute: Any, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        for_decoding(Transformer(LLAMA, compute), lively(LLAMA), kind)
