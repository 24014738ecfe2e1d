"""A model drafts for itself: texts of plain decoding's distribution, drafts as a pass over the text has them."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.generate import generate
from lm.decode.sampling import Sampling
from lm.decode.self_draft import SelfDraft
from lm.decode.speculative import Acceptance, Text, stream
from lm.model.config import ModelConfig, MultiToken
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from tests.decode.test_generate import COMPUTE, GPT, LLAMA
from tests.decode.test_speculative import PROMPT, SAMPLINGS, TEXTS, TINY, WINDOWED, assert_drawn_from, chances
from tests.model.reference import LATENT, lively, tokens

FEW = 6  # tokens of a vocabulary, of which a module that has learned nothing is sometimes right
PROMPTS = [[1, 2, 3, 1, 2], [4], [5, 0, 5, 0, 5, 0, 5, 0, 3]]
NEW = 15


def with_modules(cfg: ModelConfig, depth: int) -> ModelConfig:
    return replace(cfg, vocab=FEW, multi_token=MultiToken(depth))


@cache
def params_of(cfg: ModelConfig) -> Any:
    """The parameters of the model without modules, and some."""
    return {**lively(replace(cfg, multi_token=None)), "multi_token": lively(cfg, 1)["multi_token"]}


def drafted(cfg: ModelConfig, n: int, sampling: Sampling, prompts: Any, new: int, **options: Any) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    model = Transformer(cfg, COMPUTE)
    for rows in stream(model, params_of(cfg), prompts, new, SelfDraft(model, n), None, sampling, **options):
        for all_ids, ids in zip(out, rows, strict=True):
            all_ids += ids
    return out


CASES = {
    "gpt": (GPT, 1, 1),
    "fewer tokens than modules": (LLAMA, 3, 2),
    "more tokens than modules": (WINDOWED, 2, 4),
    "latent": (replace(LATENT, layers=2, first_layers=(), context=48), 1, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_texts_are_those_of_plain_decoding(name: str) -> None:
    cfg, depth, n = CASES[name]
    cfg, found = with_modules(cfg, depth), Acceptance()
    wanted = generate(Transformer(cfg, COMPUTE), params_of(cfg), PROMPTS, NEW, sampling=Sampling(0))
    assert drafted(cfg, n, Sampling(0), PROMPTS, NEW, acceptance=found) == wanted
    assert 0 < found.accepted < found.drafted and found.tokens == found.calls + found.accepted


@partial(jax.jit, static_argnums=0)
def ahead(model: Transformer, params: Any, ids: jax.Array, blocks: jax.Array) -> list[jax.Array]:
    """The logits [B, T, V] of each module."""
    found = model.hidden_ahead(params, Inputs(ids, blocks=blocks))[1]
    return [model.logits({**params, "head": {**params["head"], **one.head}}, one.x) for one in found]


@partial(jax.jit, static_argnums=0)
def said(model: Transformer, params: Any, inputs: Inputs) -> jax.Array:
    """What the model says of the inputs, [B, T, D]."""
    return model.hidden(params, inputs).x


@partial(jax.jit, static_argnums=0)
def begun(drafter: SelfDraft, params: Any, inputs: Inputs, x: jax.Array) -> Any:
    return drafter.begin(params, inputs, 40, x)


@partial(jax.jit, static_argnums=0)
def draft(drafter: SelfDraft, params: Any, state: Any, text: Text) -> Any:
    return drafter.draft(params, state, text, Sampling(0), drafter.model.cfg.vocab)


@pytest.mark.parametrize(("depth", "prefix"), [(1, False), (3, False), (3, True)])
def test_drafts_are_those_of_a_pass_over_the_text(depth: int, prefix: bool) -> None:
    """Round by round, in rows of lengths and acceptances of their own: a text whose next tokens are known; behind a
    prompt that the model has read in both directions too."""
    cfg = replace(LLAMA, multi_token=MultiToken(depth))
    model, params, B = Transformer(cfg, COMPUTE), params_of(cfg), 3
    drafter, ids, keys = SelfDraft(model, depth), tokens(cfg, B, 24), jax.random.split(jax.random.key(0), B)
    length = np.array([2, 1, 7])  # one is shorter than there are modules
    blocks = ((np.arange(24) < length[:, None]) & prefix).astype(np.int32)
    states = np.asarray(said(model, params, Inputs(ids, blocks=blocks)))
    segments = (np.arange(8) < length[:, None]).astype(np.int32)
    state = begun(drafter, params, Inputs(ids[:, :8], segments=segments), states[:, :8])
    length = length + 1
    for accepted in ([0, 1, 0], [depth, 0, 1], [1, depth, 0], [0, 0, depth], [1, 1, 1]):
        last = ids[np.arange(B), length - 1]
        found, state = draft(drafter, params, state, Text(ids, length, last, keys, None))
        drawn, row = np.asarray(found.tokens), ids.copy()
        for k in range(depth):
            at = length - 1 + k
            wanted = np.asarray(ahead(model, params, row, blocks)[k])[np.arange(B), at].argmax(-1)
            np.testing.assert_array_equal(drawn[:, k], wanted)
            row[np.arange(B), at + 1] = wanted
        read = states[np.arange(B)[:, None], length[:, None] - 1 + np.arange(depth + 1)]  # those that stay are right
        length = length + np.array(accepted) + 1
        state = drafter.roll_back(state, length - 1, read)


@pytest.mark.parametrize(
    ("kind", "depth", "n"),
    [("all and a penalty", 1, 2), pytest.param("top-p", 2, 2, marks=pytest.mark.slow)],
)
def test_texts_have_the_distribution_of_plain_decoding(kind: str, depth: int, n: int) -> None:
    cfg, sampling = replace(TINY, multi_token=MultiToken(depth)), SAMPLINGS[kind]
    texts = drafted(cfg, n, sampling, [PROMPT] * 4000, 3, seed=3)
    assert_drawn_from(chances(sampling), np.bincount(np.array(texts) @ [36, 6, 1], minlength=len(TEXTS)))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    cfg, warm = with_modules(LLAMA, 2), Sampling(1.2)
    first, *_ = drafted(cfg, 3, warm, PROMPTS, NEW, seed=5)
    again, *others = drafted(cfg, 3, warm, [PROMPTS[0], [2, 2, 2, 2, 2, 2, 2], [1]], NEW, seed=5)
    assert again == first and first not in others


def test_a_model_without_modules_is_told() -> None:
    model = Transformer(LLAMA, COMPUTE)
    with pytest.raises(ValueError, match="^the model cannot draft for itself: it has no modules of multi-token"):
        list(stream(model, lively(LLAMA), PROMPTS, NEW, SelfDraft(model)))
