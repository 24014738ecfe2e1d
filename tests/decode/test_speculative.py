"""Speculative decoding: the distribution of plain decoding, whatever drafts; greedy, its text."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lm.decode.filters import Counts
from lm.decode.generate import NonFiniteLogits, generate
from lm.decode.sampling import NONE, Sampling
from lm.decode.speculative import (
    Acceptance,
    Draft,
    DraftModel,
    PromptLookup,
    Text,
    _distributions,
    _Row,
    distribution,
    stream,
    verify,
)
from lm.model.config import LayerKind, ModelConfig
from lm.model.families import t5
from lm.model.inputs import Inputs
from lm.model.positions import Rotary
from lm.model.scaling import Dynamic
from lm.model.transformer import Transformer
from tests.decode.test_generate import COMPUTE, GPT, LLAMA, PROMPTS
from tests.model.reference import DELTA, SIMPLE, lively, run, tokens

WINDOWED = replace(LLAMA, pattern=(LayerKind(window=6), LayerKind()))
SMALL = replace(LLAMA, layers=1, vocab=29)  # of fewer ids
LOOK_UP = PromptLookup(3)
ENCODED = t5(vocab=31, layers=1, width=8, heads=2, head_dim=4, mlp=8, context=48)
PLAIN = Sampling(temperature=0)
NEW = 32  # two whole chunks of plain decoding: one program

looked_up = jax.jit(PromptLookup.look_up, static_argnums=0)


def drafted(
    cfg: ModelConfig,
    drafter: Any = LOOK_UP,
    sampling: Sampling = PLAIN,
    prompts: Any = PROMPTS,
    new: int = NEW,
    draft_params: Any = None,
    **options: Any,
) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    for rows in stream(
        Transformer(cfg, COMPUTE), lively(cfg), prompts, new, drafter, draft_params, sampling, **options
    ):
        for all_ids, ids in zip(out, rows, strict=True):
            all_ids += ids
    return out


@cache
def plain(cfg: ModelConfig, sampling: Sampling = PLAIN) -> list[list[int]]:
    return generate(Transformer(cfg, COMPUTE), lively(cfg), PROMPTS, NEW, sampling=sampling)


@pytest.mark.parametrize("cfg", [GPT, LLAMA, WINDOWED], ids=["gpt", "llama", "windowed"])
def test_greedy_texts_are_those_of_plain_decoding(cfg: ModelConfig) -> None:
    """By look-up, in rows of lengths and acceptances of their own, up to the end of the context."""
    found = Acceptance()
    assert drafted(cfg, acceptance=found) == plain(cfg)
    assert 0 < found.accepted < found.drafted and found.tokens == found.calls + found.accepted


@pytest.mark.parametrize("own", [False, True], ids=["a smaller model", "the model itself"])
def test_greedy_texts_by_a_draft_model_are_those_of_plain_decoding(own: bool) -> None:
    """A draft that is always right is always accepted, so that its cache and the model's are as they should be."""
    cfg, found = LLAMA if own else SMALL, Acceptance()
    drafter = DraftModel(Transformer(cfg, COMPUTE), 3)
    assert drafted(LLAMA, drafter, draft_params=lively(cfg), acceptance=found) == plain(LLAMA)
    assert (found.rate == 1) is own
    assert str(found).startswith(f"{found.accepted} of {found.drafted} drafted tokens accepted (")


def test_penalties_count_the_drafted_tokens() -> None:
    sampling = Sampling(0, repetition_penalty=1.7, frequency_penalty=0.4, vocab_size=30)
    assert plain(LLAMA, sampling) != plain(LLAMA)
    assert drafted(LLAMA, sampling=sampling) == plain(LLAMA, sampling)


@partial(jax.jit, static_argnums=2)
def one_by_one(logits: jax.Array, ids: jax.Array, sampling: Sampling, counts: Counts) -> jax.Array:
    """The distributions [B, n, V] of ids [B, n] after logits [B, n, V], each counting the ids before it."""
    found = []
    for i in range(ids.shape[1]):
        found.append(distribution(logits[:, i], sampling, counts))
        counts = counts.add(ids[:, i])
    return jnp.stack(found, 1)


def test_a_distribution_counts_the_drafted_tokens_before_it() -> None:
    sampling, rng = Sampling(0.8, repetition_penalty=1.7, frequency_penalty=0.4), np.random.default_rng(0)
    logits, ids = rng.standard_normal((2, 4, 9)).astype(np.float32), rng.integers(0, 9, (2, 3))
    counts = Counts(*rng.integers(0, 3, (2, 2, 9), np.int32))  # type: ignore[arg-type]
    found = jax.jit(_distributions, static_argnums=2)(logits, ids, sampling, counts)
    np.testing.assert_allclose(found, one_by_one(logits, np.pad(ids, ((0, 0), (0, 1))), sampling, counts), rtol=1e-6)


def test_a_draft_model_forgets_what_was_rejected() -> None:
    """Its drafts behind a text do not depend on what it had drafted there before."""
    drafter, params, ids = DraftModel(Transformer(LLAMA, COMPUTE), 3), lively(LLAMA), tokens(LLAMA, 2, 7)
    keys = jax.random.split(jax.random.key(0), 2)
    following = jax.jit(lambda state, text: drafter.draft(params, state, text, Sampling(), LLAMA.vocab))
    begin = jax.jit(lambda segments: drafter.begin(params, Inputs(ids[:, :6], segments=segments), 16, None))

    def begun(length: int) -> Any:
        return begin(np.tile(np.arange(6) < length, (2, 1)).astype(np.int32))

    def draft(state: Any, length: int) -> Any:
        return following(state, Text(ids, np.full(2, length, np.int32), ids[:, length - 1], keys, None))

    _, state = draft(begun(5), 6)
    found, _ = draft(drafter.roll_back(state, np.full(2, 6, np.int32), None), 7)
    expected, _ = draft(begun(6), 7)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)


def test_a_text_ends_at_its_stop_token_or_length() -> None:
    stop = plain(LLAMA)[0][4]
    wanted = [row[: row.index(stop)] if stop in row else row for row in plain(LLAMA)]
    assert drafted(LLAMA, stop=[stop]) == wanted
    for new in (0, 17, 22):
        assert drafted(LLAMA, new=new) == [row[:new] for row in plain(LLAMA)]
    only = _Row(1, ())
    assert only.take([5, 6]) == [5] and only.ended


SAMPLINGS = {
    "temperature": Sampling(0.7),
    "top-k": Sampling(1.0, top_k=4),
    "top-p": Sampling(1.3, top_p=0.6),
    "all and a penalty": Sampling(0.9, 5, 0.8, frequency_penalty=1.0),
}
TINY = replace(LLAMA, vocab=6, layers=1, context=16)
TEXTS = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)  # all of three tokens
PROMPT = [1, 4, 2, 1, 4]


def chances(sampling: Sampling) -> np.ndarray:
    """The probability of each of TEXTS after PROMPT, by the whole texts' logits."""
    prompts = np.tile(np.array(PROMPT, np.int32), (len(TEXTS), 1))
    logits = run(Transformer(TINY, COMPUTE), lively(TINY), np.concatenate([prompts, TEXTS.astype(np.int32)], axis=1))
    seen = np.bincount(PROMPT, minlength=6) + np.zeros_like(prompts[:, :1])
    counts = Counts(seen, np.zeros_like(seen))  # type: ignore[arg-type]
    probs = np.asarray(one_by_one(logits[:, len(PROMPT) - 1 : -1], TEXTS, sampling, counts), np.float64)
    chance: np.ndarray = np.take_along_axis(probs, TEXTS[..., None], -1).prod((1, 2))
    return chance


def assert_drawn_from(chance: np.ndarray, seen: np.ndarray) -> None:
    """A chi-square test of the counts `seen`; what is expected less than ten times is put together."""
    assert seen[chance < 1e-12].sum() == 0
    expected = chance / chance.sum() * seen.sum()
    rare = expected < 10
    if rare.any():
        seen, expected = (np.append(a[~rare], a[rare].sum()) for a in (seen, expected))
    assert stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "by_model"),
    [
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("temperature", "top-k", "top-p")),
        ("all and a penalty", True),
        ("top-p", False),
    ],
)
def test_texts_have_the_distribution_of_plain_decoding(kind: str, by_model: bool) -> None:
    cfg, sampling = replace(TINY, layers=2), SAMPLINGS[kind]
    drafter = DraftModel(Transformer(cfg, COMPUTE), 2) if by_model else PromptLookup(2)
    texts = drafted(TINY, drafter, sampling, [PROMPT] * 4000, 3, lively(cfg) if by_model else None, seed=3)
    assert_drawn_from(chances(sampling), np.bincount(np.array(texts) @ [36, 6, 1], minlength=len(TEXTS)))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_verified_token_has_the_target_s_distribution(seed: int, share: float) -> None:
    """Of any two distributions, also where one has none of what the other has, and where both are the same."""
    rng, rows = np.random.default_rng(seed), 20_000
    p, q = (rng.dirichlet(np.full(5, 0.5)) * (rng.random(5) < 0.8) + 1e-9 for _ in range(2))
    q = share * p + (1 - share) * q
    p, q = (np.where(a / a.sum() > 1e-6, a, 0) for a in (p, q))
    p, q = p / p.sum(), q / q.sum()
    tokens = rng.choice(5, (rows, 1), p=q).astype(np.int32)
    probs = [np.broadcast_to(a.astype(np.float32), (rows, n, 5)) for a, n in ((p, 2), (q, 1))]
    keys = jax.random.split(jax.random.key(seed), rows)
    accepted, last = map(np.asarray, jax.jit(verify)(probs[0], Draft(tokens, probs[1], np.ones(rows, bool)), keys))
    first = np.where(accepted == 1, tokens[:, 0], last)
    chi2 = stats.chisquare(np.bincount(first, minlength=5)[p > 0], p[p > 0] * rows)
    assert p[first].min() > 0 and (chi2.pvalue > 1e-6 or (p > 0).sum() == 1)
    assert np.mean(accepted) == pytest.approx(np.minimum(p, q).sum(), abs=0.03)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([(1, 4), (2, 1), (3, 3), (4, 5)]))
@settings(max_examples=60, deadline=None)
def test_a_look_up_gives_what_followed_the_longest_and_newest_match(text: list[int], sizes: tuple[int, int]) -> None:
    ngram, n = sizes

    def wanted() -> list[int]:
        for size in range(min(ngram, len(text) - 1), 0, -1):
            for end in range(len(text) - 1, size - 1, -1):
                if text[end - size : end] == text[len(text) - size :]:
                    return (text[end:] * n)[:n]
        return []

    tokens = np.array([text + [text[-1]] * (16 - len(text))], np.int32)  # what is behind the text is not read
    given, found = map(np.asarray, looked_up(PromptLookup(n, ngram), tokens, np.array([len(text)])))
    assert bool(found[0]) is bool(wanted())
    if wanted():
        assert given[0].tolist() == wanted()


def test_a_row_does_not_depend_on_the_rows_beside_it_and_a_seed_gives_the_same() -> None:
    warm = Sampling(1.2)
    both = drafted(LLAMA, sampling=warm, seed=5)
    assert both == drafted(LLAMA, sampling=warm, seed=5) != drafted(LLAMA, sampling=warm, seed=6)
    assert drafted(LLAMA, sampling=warm, seed=5, prompts=PROMPTS[:1]) == both[:1]


def test_a_draft_that_is_not_finite_changes_nothing_and_a_model_that_is_not_is_told() -> None:
    broken = jax.tree.map(lambda a: np.full_like(a, np.nan), lively(SMALL))
    drafter = DraftModel(Transformer(SMALL, COMPUTE), 3)
    assert drafted(LLAMA, drafter, draft_params=broken) == plain(LLAMA)
    broken = jax.tree.map(lambda a: np.full_like(a, np.nan), lively(LLAMA))
    with pytest.raises(NonFiniteLogits, match="^the logits of new token 1 are NaN or infinite"):
        list(stream(Transformer(LLAMA, COMPUTE), broken, PROMPTS, NEW, PromptLookup(3)))
    row = _Row(9, ())
    assert row.take([5, 6]) == [5, 6]
    with pytest.raises(NonFiniteLogits, match="^the logits of new token 4 are"):
        row.take([7, NONE])
    target = np.full((1, 2, 5), np.nan, np.float32)
    draft = Draft(np.array([[1]]), np.full((1, 1, 5), 0.2, np.float32), np.array([True]))  # type: ignore[arg-type]
    found = jax.jit(verify)(target, draft, jax.random.split(jax.random.key(0), 1))
    assert [a.tolist() for a in found] == [[0], [NONE]]


@pytest.mark.parametrize(
    ("cfg", "drafter", "said"),
    [
        (DELTA, PromptLookup(), "the model has a recurrent state, from which drafted tokens cannot be taken back"),
        (LLAMA, DraftModel(Transformer(DELTA, SIMPLE)), "the draft model has a recurrent state"),
        (ENCODED, PromptLookup(), "speculative decoding is for decoders: the model has an encoder"),
        (replace(LLAMA, positions=Rotary(scaling=Dynamic(2.0, 8))), PromptLookup(), "the model has dynamic positions"),
        (LLAMA, DraftModel(Transformer(replace(SMALL, context=20), COMPUTE)), "the draft model has a context of 20"),
    ],
)
def test_what_cannot_be_taken_back_is_refused(cfg: ModelConfig, drafter: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(stream(Transformer(cfg, SIMPLE), {}, PROMPTS, NEW, drafter))
