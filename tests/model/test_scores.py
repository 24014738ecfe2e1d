"""An output of scores: beside the vocabulary, or in its place."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.denoise import UL2
from lm.data.masked import MaskedLM
from lm.decode.engine import Engine
from lm.model import count
from lm.model.families import scorer
from lm.model.output import NoOutput, Output
from lm.model.parametrisation import MuP
from lm.model.transformer import Transformer
from lm.tune.pretrain import Pretrain
from lm.tune.sft import SFT
from tests.model.reference import GPT, LLAMA, SIMPLE, close, lively

BESIDE = replace(LLAMA, output=Output(scores=2))


def test_scores_are_a_product_of_the_normed_state() -> None:
    params = lively(BESIDE)
    x = np.random.default_rng(0).standard_normal((3, 5, LLAMA.width)).astype(np.float32)
    scale, score = (np.asarray(params["head"][name], np.float64) for name in ("norm_scale", "score"))
    normed = scale * x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + LLAMA.norm.eps)
    close(Transformer(BESIDE, SIMPLE).scores(params, x), normed @ score)
    close(Transformer(BESIDE, SIMPLE).scores(params, x[:, 2]), (normed @ score)[:, 2])
    with pytest.raises(ValueError, match="no output of scores: set model.output.scores=1"):
        Transformer(LLAMA, SIMPLE).scores(params, x)


def test_scores_are_computed_in_float32() -> None:
    """Also where the model is computed in bfloat16, which has no numbers between 1 and 1 + 2^-7."""
    model = Transformer(scorer(GPT), replace(SIMPLE, dtype="bfloat16", matmul="bfloat16"))
    params = lively(model.cfg)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, GPT.width)), jnp.bfloat16)
    found = np.asarray(model.scores(params, x))
    assert found.dtype == np.float32 and (found != found.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.5


def test_other_parameters_are_as_they_were_and_the_first_scores_of_the_published_size() -> None:
    init = {cfg: jax.jit(Transformer(cfg, SIMPLE).init)(jax.random.key(0)) for cfg in (LLAMA, BESIDE, scorer(LLAMA))}
    (plain, beside, alone) = init.values()
    assert beside["head"].pop("score").shape == (LLAMA.width, 2)
    jax.tree.map(np.testing.assert_array_equal, plain, beside)
    assert alone["head"].pop("score").shape == (LLAMA.width, 1)
    assert plain["head"].pop("kernel").shape == (LLAMA.width, LLAMA.vocab)
    jax.tree.map(np.testing.assert_array_equal, plain, alone)
    wide = scorer(replace(LLAMA, layers=1, width=64), 500)
    score = jax.jit(Transformer(wide, SIMPLE).init)(jax.random.key(0))["head"]["score"]
    assert float(score.std()) == pytest.approx(65**-0.5, rel=0.02) and abs(float(score.mean())) < 0.002


def test_a_head_is_added_to_a_model_without_and_kept_where_there_is_one() -> None:
    model, base = Transformer(BESIDE, SIMPLE), lively(LLAMA)
    with_scores, key = jax.jit(model.with_scores), jax.random.key(3)
    added = with_scores(base, key)
    np.testing.assert_array_equal(added["head"].pop("score"), jax.jit(model.init)(key)["head"]["score"])
    jax.tree.map(np.testing.assert_array_equal, added, base)
    own = {**base, "head": {**base["head"], "score": jnp.ones((LLAMA.width, 2))}}
    jax.tree.map(np.testing.assert_array_equal, with_scores(own, key), own)
    assert Transformer(LLAMA, SIMPLE).with_scores(base, key) == base


def test_what_is_not_there_is_not_counted() -> None:
    cfg, tied = scorer(LLAMA), replace(LLAMA, tied=True)
    assert count.parameters(cfg) == count.parameters(tied) + LLAMA.width
    assert count.flops_per_row(tied, 8) - count.flops_per_row(cfg, 8) == 6 * LLAMA.vocab * LLAMA.width * 8


def test_it_generates_nothing_and_is_not_taught_to() -> None:
    cfg = scorer(LLAMA)
    assert not cfg.generates and BESIDE.generates and not cfg.shares_embedding
    with pytest.raises(ValueError, match="no output over the vocabulary, so it generates no text: see `lm score`"):
        Engine(Transformer(cfg, replace(SIMPLE, unroll=0)), lively(cfg))
    for method in (Pretrain(), SFT(), Pretrain(MaskedLM()), Pretrain(UL2())):
        with pytest.raises(ValueError, match="predicts tokens, and model.output=NoOutput has no logits: set model"):
            method.check(cfg)


def test_wider_models_have_smaller_first_scores_under_mup() -> None:
    cfg = replace(scorer(LLAMA), parametrisation=MuP(LLAMA.width // 4))
    params = [jax.jit(Transformer(c, SIMPLE).init)(jax.random.key(0)) for c in (scorer(LLAMA), cfg)]
    plain, scaled = (one["head"]["score"] for one in params)
    np.testing.assert_allclose(scaled, plain / 2)
    assert cfg.scaled.output == NoOutput(scores=1)  # which others read as it is
