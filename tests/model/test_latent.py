"""Multi-head latent attention: the paper's equations, a cache of latents, and what others ask of it."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lm import value
from lm.model import count
from lm.model.config import ModelConfig
from lm.model.families import deepseek_v2
from lm.model.latent import LatentAttention
from lm.model.parametrisation import MuP
from lm.model.positions import Alibi, Positions
from lm.model.transformer import Transformer
from tests.model.reference import LATENT, SIMPLE, attend, close, lively, rms_norm, run, silu, tokens, turned
from tests.test_legal import DENSE

SIZES: dict[str, Any] = dict(qk_nope_head_dim=2, qk_rope_head_dim=4, v_head_dim=5, kv_lora_rank=8)
FULL = deepseek_v2(vocab=29, layers=2, width=12, heads=3, mlp=10, context=24, theta=100.0, **SIZES)
LOW = replace(FULL, attention=LatentAttention(3, **SIZES, q_lora_rank=7, scale=0.3))
# DeepSeek-V2-Lite's (2405.04434, appendix B), all layers dense
LITE = deepseek_v2(vocab=102400, layers=27, width=2048, heads=16, mlp=10944, context=163840)
MIXER = LITE.attention
assert isinstance(MIXER, LatentAttention)


def by_the_paper(x: np.ndarray, p: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """Equations 9 to 19 for one sequence [T, D], a head at a time; the rotary key is that of all heads."""
    queries = rms_norm(x @ p["query_down"], p, "query_norm", 1e-6) if "query_down" in p else x
    latent, rope, y = rms_norm(x @ p["kv_down"], p, "kv_norm", 1e-6), turned(x @ p["key_rope"], 100.0), np.zeros_like(x)
    for n in range(p["out"].shape[0]):
        q = np.concatenate([queries @ p["query"][:, n], turned(queries @ p["query_rope"][:, n], 100.0)], axis=-1)
        k = np.concatenate([latent @ p["key"][:, n], rope], axis=-1)
        y = y + attend(q * scale * q.shape[1] ** 0.5, k, latent @ p["value"][:, n]) @ p["out"][n]
    return y


def forward(cfg: ModelConfig, params: Any, ids: np.ndarray, scale: float) -> np.ndarray:
    """Logits [T, V] of one sequence [T]."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = params["stem"]["tokens"][ids]
    for i in range(cfg.layers):
        p = {name: stack[i] for name, stack in params["layers"]["0"].items()}
        x = x + by_the_paper(rms_norm(x, p, "attention_norm", 1e-6), p, scale)
        h = rms_norm(x, p, "ffn_norm", 1e-6)
        x = x + (silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
    return rms_norm(x, params["head"], "norm", 1e-6) @ params["head"]["kernel"]


@pytest.mark.parametrize(("cfg", "scale"), [(FULL, 6**-0.5), (LOW, 0.3)], ids=["full", "low-rank queries"])
def test_logits_are_the_paper_s(cfg: ModelConfig, scale: float) -> None:
    params, ids = lively(cfg), tokens(cfg, 2, 11)
    close(run(Transformer(cfg, SIMPLE), params, ids), np.stack([forward(cfg, params, row, scale) for row in ids]))


def test_a_dense_layer_and_experts_after_it_are_scanned() -> None:
    """However many repetitions of the pattern there are, the program is one of them."""

    def program(layers: int) -> str:
        model = Transformer(replace(LATENT, layers=layers), SIMPLE)
        return str(jax.make_jaxpr(model)(model.shapes(), tokens(LATENT, 1, 11)))

    assert re.search(r"length=2\b", program(5)) and re.search(r"length=4\b", program(9))
    assert program(5).count(" = ") == program(9).count(" = ")
    layers = Transformer(LATENT, SIMPLE).shapes()["layers"]
    assert "router" not in layers["first0"] and layers["0"]["router"].shape == layers["1"]["router"].shape
    assert all("kv_down" in slot for slot in layers.values())


# ---------------------------------------------------------------- the cache


def test_a_cache_keeps_the_latent_and_the_rotary_key_alone() -> None:
    for unroll, stack in ((1, (1,)), (0, ())):
        layers = Transformer(LATENT, replace(SIMPLE, unroll=unroll)).empty_cache(2, 15).layers
        shapes = {name: [a.shape for a in jax.tree.leaves(cache)] for name, cache in layers.items()}
        assert shapes["first0"] == [(*stack, 2, 1, 15, 12)]
        assert shapes["0"][0][-3:] == (1, 3, 12) and shapes["1"][0][-3:] == (1, 15, 12)  # one is in windows of 3
    assert sum(a.size for a in jax.tree.leaves(MIXER.empty_cache(1, 7, 0, 0, "float32"))) == 7 * (512 + 64)


@pytest.mark.parametrize("absorbs", [True, False])
def test_absorbed_or_expanded_it_is_the_same(absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a cache of 6 tokens, one and then four."""
    model, params, ids = Transformer(LOW, SIMPLE), lively(LOW), tokens(LOW, 2, 11)
    asked: list[int] = []
    monkeypatch.setattr(LatentAttention, "absorbs", lambda self, queries: asked.append(queries) or absorbs)
    x, cache = jax.jit(lambda params: model.hidden(params, ids[:, :6], model.empty_cache(2, 15))[:2])(params)
    step, parts = jax.jit(lambda params, ids, cache: model.hidden(params, ids, cache)[:2]), [x]
    for start, stop in ((6, 7), (7, 11)):
        x, cache = step(params, ids[:, start:stop], cache)
        parts.append(x)
    assert set(asked) == {1, 4}  # the first tokens read no cache
    close(np.concatenate(parts, axis=1), jax.jit(model.hidden)(params, ids).x, 3e-5)


@pytest.mark.parametrize("mixer", [MIXER, LATENT.attention, LatentAttention(4, 6, 2, 6, kv_lora_rank=5)], ids=str)
def test_what_is_cheaper_is_done(mixer: LatentAttention) -> None:
    """FLOPs of so many queries for a token in the cache: over latents, or making its keys and values and over these."""
    C, rope, head = mixer.kv_lora_rank, mixer.qk_rope_head_dim, mixer.qk_nope_head_dim + mixer.v_head_dim
    for queries in (1, 2, 3, 4, 5, 170, 171, 10_000):
        absorbed, expanded = queries * (C + rope + C), C * head + queries * (head + rope)
        assert mixer.absorbs(queries) == (absorbed < expanded)
    assert mixer.absorbs(1)


# ---------------------------------------------------------------- what others ask


def test_deepseek_v2_lite_s_sizes() -> None:
    query, down, up, out = 2048 * 16 * (128 + 64), 2048 * (512 + 64), 512 * 16 * (128 + 128), 16 * 128 * 2048
    names = ("query", "query_rope", "kv_down", "key_rope", "kv_norm_scale", "key", "value", "out")
    parts = count.by_part(LITE)
    assert sum(parts[f"layers/0/{name}"] for name in names) == 27 * (query + down + 512 + up + out) == 371_602_944
    others = 3 * 2048 * 10944 + 2 * 2048
    assert count.parameters(LITE) == 371_602_944 + 27 * others + 2 * 102400 * 2048 + 2048
    weights = 27 * (query + down + up + out + 3 * 2048 * 10944) + 102400 * 2048
    attention = 3 * 27 * 16 * 4096 * 2 * (128 + 64 + 128)
    assert count.flops_per_token(LITE, 4096) == 6 * weights + attention
    assert sum(MIXER.products(2048).values()) == 2 * (query + down + up + out)
    low = replace(MIXER, q_lora_rank=1536)
    assert low.activations(4) == dict(query=4 * 192 + 1536, key=4 * 128 + 576, value=4 * 128, attention=4 * 128)
    assert low.products(2048)["query"] == 2 * (2048 * 1536 + 1536 * 16 * 192)


def test_first_values_have_the_variance_of_their_inputs() -> None:
    mixer = replace(MIXER, q_lora_rank=48, kv_lora_rank=80)
    cfg = deepseek_v2(vocab=9, layers=2, width=64, heads=16, mlp=8, context=8, attention=mixer)
    params = jax.jit(Transformer(cfg, SIMPLE).init)(jax.random.key(0))["layers"]["0"]
    inputs = dict(query_down=64, kv_down=64, key_rope=64, query=48, query_rope=48, key=80, value=80, out=4 * 16 * 128)
    for name, size in inputs.items():
        assert float(params[name].std()) == pytest.approx(size**-0.5, rel=0.04), name
    assert all((params[f"{name}_norm_scale"] == 1).all() for name in ("query", "kv"))


def test_it_is_chosen_by_value() -> None:
    assert value.parse(DENSE, f"model.attention={MIXER!r}").model.attention == MIXER


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(replace, MIXER, heads=0), "attention.heads=0: expected at least 1"),
        (partial(replace, MIXER, kv_lora_rank=0), "attention.kv_lora_rank=0: expected at least 1"),
        (partial(replace, MIXER, qk_rope_head_dim=5), "attention.qk_rope_head_dim=5 is odd: .* try 6"),
        (partial(replace, MIXER, q_lora_rank=-1), "attention.q_lora_rank=-1: expected at least 0"),
        (partial(replace, LITE, parametrisation=MuP(64)), r"MuP says nothing of LatentAttention: use Parametrisation"),
        (
            lambda: Transformer(replace(FULL, encoder_layers=1), SIMPLE).shapes(),
            "LatentAttention reads no encoder: give these layers another mixer",
        ),
    ],
)
def test_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bias_by_distance_reaches_its_logits() -> None:
    ids = tokens(FULL, 1, 11)
    plain, biased = (
        run(Transformer(replace(FULL, positions=p), SIMPLE), lively(FULL), ids) for p in (Positions(), Alibi())
    )
    close(biased[:, :1], plain[:, :1])
    assert np.abs(biased[:, 1:] - plain[:, 1:]).max() > 0.01
