"""What a policy of rematerialisation keeps for the backward pass."""

import math
import re
from dataclasses import replace
from typing import Any

import jax
import pytest
from jax._src.ad_checkpoint import saved_residuals

from lm.model import stack
from lm.model.compute import NAMES, OUTER, Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.native import has_kernel
from lm.model.transformer import Transformer
from tests.model.reference import LATENT, LLAMA, SIMPLE, tokens

T, B = 24, 2


def saved(remat: str, cfg: ModelConfig = LLAMA, **options: Any) -> dict[tuple[int, ...], int]:
    """How many arrays of each shape a loss of `cfg` keeps of its layers, less its arguments."""
    model = Transformer(cfg, replace(SIMPLE, remat=remat, **options))
    loss = lambda p: (model(p, tokens(cfg, B, T)) ** 2).mean()  # noqa: E731
    found: dict[tuple[int, ...], int] = {}
    for value, source in saved_residuals(loss, model.shapes()):
        if "argument" not in source and value.shape[:1] == (cfg.layers,):
            found[value.shape] = found.get(value.shape, 0) + 1
    return found


LATENT_DENSE = replace(LATENT, layers=3, pattern=(LayerKind(),), first_layers=())
STREAM, QUERY = (3, B, T, 16), (3, B, T, 4, 4)
KEY, INNER = (3, B, T, 2, 4), (3, B, T, 20)


def test_full_keeps_the_residual_stream() -> None:
    assert saved("full") == {STREAM: 1}


def test_minimal_keeps_all_products_but_the_inner_ones() -> None:
    """What the last one gives is the next layer's residual stream, kept already."""
    assert saved("minimal") == {STREAM: 2, QUERY: 1, KEY: 2}


def test_names_keep_what_they_name() -> None:
    assert saved("names", keep=("mlp_in", "key")) == {STREAM: 1, KEY: 1, INNER: 2}
    assert saved("names", keep=("attention",)) == {STREAM: 1, (3, B, 2, 2, T, 4): 1}  # heads before tokens


@pytest.mark.skipif(not has_kernel(), reason="no C compiler")
def test_attention_that_is_kept_is_not_computed_again() -> None:
    """The kernel in C needs its result, and the logarithm of each query's sum."""

    def calls(*keep: str) -> int:
        model = Transformer(LLAMA, replace(SIMPLE, attention="native", remat="names", keep=keep))
        gradient = jax.grad(lambda p: (model(p, tokens(LLAMA, B, T)) ** 2).mean())
        return len(re.findall(r"lm_attention\b", str(jax.make_jaxpr(gradient)(model.shapes()))))

    assert calls("attention") == calls() - 1 == 1


def numbers(*args: Any, **options: Any) -> int:
    """How many numbers `saved` counts."""
    return sum(n * math.prod(shape) for shape, n in saved(*args, **options).items())


@pytest.mark.parametrize("cfg", [LLAMA, LATENT_DENSE], ids=["llama", "latent"])
def test_what_a_mixer_says_is_what_is_kept(cfg: ModelConfig) -> None:
    for name, size in (cfg.attention.activations() | dict(out=cfg.width)).items():
        assert numbers("names", cfg, keep=(name,)) - numbers("full", cfg) == cfg.layers * B * T * size


def test_more_is_kept_of_more() -> None:
    sizes = [numbers(remat) for remat in ("full", "minimal", "dots", "nothing")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_offloaded_products_wait_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(LLAMA, replace(SIMPLE, remat="offload"))
    loss = lambda p: (model(p, tokens(LLAMA, B, T)) ** 2).mean()  # noqa: E731
    moved = str(jax.make_jaxpr(jax.grad(loss))(model.shapes()))
    assert "float32<host>[3,2,24,4,4]" in moved or "f32<host>[3,2,24,4,4]" in moved
    monkeypatch.setattr(stack, "has_host_memory", lambda: False)
    with pytest.raises(ValueError, match="compute.remat='offload': cpu has no memory .* choose minimal or full"):
        jax.make_jaxpr(jax.grad(loss))(model.shapes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(remat="minimum"), "compute.remat='minimum': did you mean minimal"),
        (dict(keep=("query",)), "compute.keep and compute.offload are for remat='names', and remat='nothing'"),
        (dict(remat="names", keep=("mlp",)), "unknown activation did you mean mlp_in or mlp_out"),
        (dict(remat="names", keep=("key",), offload=("key",)), "both name key: choose one"),
    ],
    ids=str,
)
def test_bad_policies(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compute(**options)
    assert set(OUTER) < set(NAMES)
