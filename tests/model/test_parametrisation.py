"""muP: at the base's width it is the standard parametrisation, and beyond it what the paper's table says."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import value
from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.families import bert, llama, mixtral, t5
from lm.model.parametrisation import MuP, Parametrisation, fan_multipliers, matrix_dims
from lm.model.parts import RMSNorm
from lm.model.transformer import Transformer
from tests.model.reference import GPT, LLAMA, MODELS, SIMPLE, lively, run, tokens

BERT = bert(vocab=29, layers=2, width=12, heads=3, mlp=20, context=16)
T5 = t5(vocab=29, layers=2, width=12, heads=3, head_dim=4, mlp=20, context=16)
PAIRED = replace(BERT, output=replace(BERT.output, next_sentence=True))


def leaves(tree: Any) -> dict[str, Any]:
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))[0]
    }


def under(cfg: ModelConfig, base: int, **others: int) -> ModelConfig:
    return replace(cfg, parametrisation=MuP(base, **others))


GROWN = {
    name: cfg for name, cfg in MODELS.items() if all(isinstance(slot.mixer, Attention) for slot in cfg.slots.values())
}
every_model = pytest.mark.parametrize("cfg", [*GROWN.values(), PAIRED, T5], ids=[*GROWN, "bert", "t5"])


def at_base(cfg: ModelConfig) -> list[ModelConfig]:
    """`cfg` under muP with itself as the base, its sizes said and unsaid."""
    a = cfg.attention
    said = under(cfg, cfg.width, base_mlp=cfg.ffn.mlp, base_heads=a.heads, base_kv_heads=a.kv, base_head_dim=a.head_dim)
    return [said, under(cfg, cfg.width)]


@every_model
def test_at_the_base_s_sizes_it_is_the_standard_one(cfg: ModelConfig) -> None:
    for same in at_base(cfg):
        assert all(fan_multipliers(axes) == (1, 1) for axes in leaves(Transformer(same, SIMPLE).axes()).values())
        scale = same.scaled.attention.scale or cfg.attention.head_dim**-0.5
        assert scale == (cfg.attention.scale or cfg.attention.head_dim**-0.5)
        assert replace(same.scaled, attention=cfg.attention) == cfg


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt", "llama"])
def test_at_the_base_s_sizes_its_numbers_are_the_standard_one_s(cfg: ModelConfig) -> None:
    models = [Transformer(c, SIMPLE) for c in (cfg, *at_base(cfg))]
    first, *others = (jax.jit(model.init)(jax.random.key(0)) for model in models)
    ids, params = tokens(cfg, 2, 7), lively(cfg)
    logits = run(models[0], params, ids)
    for model, other in zip(models[1:], others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, first, other)
        np.testing.assert_array_equal(run(model, params, ids), logits)


@every_model
def test_the_axes_are_those_of_the_standard_one(cfg: ModelConfig) -> None:
    axes, grown = (leaves(Transformer(c, SIMPLE).axes()) for c in (cfg, under(cfg, 6)))
    assert grown == axes and all(matrix_dims(grown[name]) == matrix_dims(axes[name]) for name in axes)


# what has grown at 4 times the width of the base: its inputs, its outputs, its first values' variance
WIDE: dict[str, tuple[float, float]] = {
    "stem/tokens": (1, 4),
    "stem/positions": (1, 4),
    "layers/0/attention_norm_scale": (1, 4),
    "layers/0/query": (4, 4),
    "layers/0/query_bias": (1, 4),
    "layers/0/out": (4, 4),
    "layers/0/up": (4, 4),
    "layers/0/up_bias": (1, 4),
    "layers/0/down": (4, 4),
    "layers/0/down_bias": (1, 4),
    "head/kernel": (4, 1),
}
ROUTED = {"layers/0/router": (4, 1), "layers/0/gate": (4, 4), "layers/0/down": (4, 4)}
PAIRS = {
    "head/transform": (4, 4),
    "head/transform_bias": (1, 4),
    "head/pooler": (4, 4),
    "head/next_sentence": (4, 1),
    "head/next_sentence_bias": (1, 1),
    "head/bias": (1, 1),
    "stem/token_types": (1, 4),
}
MIXTRAL = mixtral(vocab=29, layers=1, width=16, heads=4, kv_heads=2, mlp=24, experts=3, context=16)


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [(replace(GPT, tied=False), WIDE), (MIXTRAL, ROUTED), (PAIRED, PAIRS)],
    ids=["gpt", "mixtral", "bert"],
)
def test_what_has_grown(cfg: ModelConfig, expected: dict[str, tuple[float, float]]) -> None:
    found = leaves(Transformer(under(cfg, cfg.width // 4), SIMPLE).axes())
    assert {name: fan_multipliers(found[name]) for name in expected} == expected


def test_each_side_has_its_own_growth() -> None:
    cfg = replace(LLAMA, attention=replace(LLAMA.attention, qk_norm=RMSNorm()))  # D 16, N 4, H 4, F 20
    told = under(cfg, 8, base_mlp=5, base_heads=4, base_head_dim=1)
    found = {name: fan_multipliers(axes) for name, axes in leaves(Transformer(told, SIMPLE).axes()).items()}
    wanted = dict(
        query=(2, 4), out=(4, 2), up=(2, 4), down=(4, 2), query_norm_scale=(1, 4), attention_norm_scale=(1, 2)
    )
    assert {name: found[f"layers/0/{name}"] for name in wanted} == wanted
    heads = {
        name: fan_multipliers(a)
        for name, a in leaves(Transformer(under(cfg, 8, base_head_dim=1), SIMPLE).axes()).items()
    }
    assert heads["layers/0/query"] == (2, 2)  # 4 times as large, so half as many: N H has grown with the width


@pytest.mark.parametrize(("heads", "kv", "told", "grown"), [(8, 1, 0, 1), (8, 4, 0, 4), (8, 2, 0, 2), (8, 4, 2, 2)])
def test_a_key_for_all_heads_does_not_grow_with_them(heads: int, kv: int, told: int, grown: int) -> None:
    """One that feeds every head is an output of a fixed size, with 1/fan-in^2 and 1/m; its base has at least one."""
    cfg = replace(LLAMA, attention=replace(LLAMA.attention, heads=heads, kv_heads=kv))
    found = leaves(Transformer(under(cfg, cfg.width // 4, base_kv_heads=told), SIMPLE).axes())
    assert fan_multipliers(found["layers/0/key"]) == fan_multipliers(found["layers/0/value"]) == (4, grown)
    assert fan_multipliers(found["layers/0/query"]) == (4, 4)


def test_first_values_know_how_many_inputs_an_output_has() -> None:
    """All but those of an output are as they were; its variance is 1/fan-in^2."""
    cfg = MIXTRAL
    drawn, standard = (
        leaves(jax.jit(Transformer(c, SIMPLE).init)(jax.random.key(1))) for c in (under(cfg, cfg.width // 4), cfg)
    )
    outputs = {"layers/0/router", "head/kernel"}
    for name, x in drawn.items():
        np.testing.assert_allclose(x, standard[name] * (0.5 if name in outputs else 1), rtol=1e-6, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(width=st.sampled_from([4, 8, 16, 32]), head_dim=st.sampled_from([0, 2, 4, 16]), tied=st.booleans())
def test_the_multipliers(width: int, head_dim: int, tied: bool) -> None:
    """q k / H, equal at the base's head size to q k / H^0.5; a tied output's 1/m."""
    scaled = under(replace(LLAMA, tied=tied), width, base_head_dim=head_dim).scaled
    q_k = head_dim**0.5 / 4 if head_dim else 0.0
    assert scaled.attention.scale == pytest.approx(q_k)
    assert scaled.output.scale == pytest.approx(width / 16 if tied else 1.0)
    told = under(replace(T5, tied=tied), 6, base_head_dim=2).scaled  # its own: logits without 1/sqrt(H), times D^-0.5
    assert told.attention.scale == pytest.approx(0.5)
    assert told.output.scale == pytest.approx(12**-0.5 * (0.5 if tied else 1))


@pytest.mark.parametrize("tied", [False, True])
def test_the_scaled_model_computes_the_same_in_the_standard_parametrisation(tied: bool) -> None:
    cfg = under(replace(LLAMA, tied=tied), 4, base_head_dim=1)
    assert cfg.scaled.parametrisation == Parametrisation() and cfg.scaled.scaled == cfg.scaled
    params, ids = lively(replace(LLAMA, tied=tied)), tokens(cfg, 2, 9)
    logits = run(Transformer(cfg, SIMPLE), params, ids)
    np.testing.assert_array_equal(logits, run(Transformer(cfg.scaled, SIMPLE), params, ids))
    assert np.abs(logits - run(Transformer(replace(LLAMA, tied=tied), SIMPLE), params, ids)).max() > 1e-3


def test_an_encoder_s_attention_is_scaled_too() -> None:
    told, params = under(T5, 6, base_head_dim=1), lively(T5)
    ids = tokens(T5, 1, 7)
    mine, scaled, standard = (jax.jit(Transformer(c, SIMPLE).encode)(params, ids) for c in (told, told.scaled, T5))
    np.testing.assert_array_equal(mine, scaled)
    assert np.abs(mine - standard).max() > 1e-3


def test_an_untied_model_of_heads_of_one_size_is_an_ordinary_one() -> None:
    """Then only first values and rates are muP's: whoever runs the trained model needs to know nothing."""
    cfg = llama(vocab=29, layers=1, width=16, heads=4, mlp=24, context=16)
    scaled = under(cfg, 4).scaled
    assert scaled == cfg


def test_it_is_a_value() -> None:
    told = under(LLAMA, 4, base_mlp=5)
    assert value.build(ModelConfig, value.plain(told)) == told and hash(told) == hash(under(LLAMA, 4, base_mlp=5))
    assert value.parse(LLAMA, "parametrisation=MuP(base_width=4, base_mlp=5)") == told
    old = {name: field for name, field in value.plain(LLAMA).items() if name != "parametrisation"}
    assert value.build(ModelConfig, old) == LLAMA  # as runs from before it was there have it


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MuP(0), "parametrisation.base_width=0: expected at least 1"),
        (lambda: MuP(64, base_heads=-1), "parametrisation.base_heads=-1: expected at least 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
