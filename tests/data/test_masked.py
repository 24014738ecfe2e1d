"""What is hidden, behind what, and that nothing else is changed or asked."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.masked import MaskedLM
from lm.data.objective import ObjectiveContext, Rows, objective_context
from lm.model.families import bert, llama
from lm.text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
BYTES = objective_context(TOKENIZER, 64)
MASK = 258  # the id after the vocabulary


def rows_of(*texts: str, width: int = 65) -> Rows:
    """Each text as a document of its own in a row of its own, with bos and eos, then padding."""
    tokens = np.zeros((len(texts), width), np.int32)
    documents = np.zeros_like(tokens)
    for i, text in enumerate(texts):
        ids = [256, *TOKENIZER.encode(text), 257]
        tokens[i, : len(ids)], documents[i, : len(ids)] = ids, 1
    return Rows(tokens, documents, documents, documents)


def seeded(seed: int):
    return lambda row: np.random.default_rng([seed, row])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab \n", max_size=40), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    rate=st.floats(0.01, 0.99),
    words=st.booleans(),
)
def test_only_chosen_tokens_change_and_only_they_are_asked(texts, seed, rate, words) -> None:
    rows = rows_of(*texts)
    batch = MaskedLM(rate, words).batch(rows, BYTES, seeded(seed))
    asked = batch["weights"] > 0
    np.testing.assert_array_equal(batch["targets"], rows.tokens[:, :-1])
    np.testing.assert_array_equal(batch["tokens"][~asked], batch["targets"][~asked])
    assert not asked[(batch["targets"] >= 256) | (rows.documents[:, :-1] == 0)].any()  # bos, eos, padding
    expected = [min(len(t), max(1, round(rate * len(t)))) for t in texts]
    if words:
        assert (asked.sum(1) <= expected).all()
    else:
        assert asked.sum(1).tolist() == expected


def test_eighty_ten_ten() -> None:
    texts = ["x" * 60] * 400
    batch = MaskedLM(0.5).batch(rows_of(*texts), BYTES, seeded(0))
    there = batch["tokens"][batch["weights"] > 0]
    share = {"mask": (there == MASK).mean(), "same": (there == ord("x")).mean()}
    assert len(there) == 400 * 30
    assert share["mask"] == pytest.approx(0.8, abs=0.015)
    assert share["same"] == pytest.approx(0.1 + 0.1 / 258, abs=0.012)
    others = np.unique(there[(there != MASK) & (there != ord("x"))])
    assert len(others) > 200 and others.max() < 258


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=6), min_size=3, max_size=9), seed=st.integers(0, 9))
def test_whole_words_are_chosen_together(words: list[str], seed: int) -> None:
    text = " ".join(words)[:62]
    batch = MaskedLM(0.4, whole_words=True).batch(rows_of(text), BYTES, seeded(seed))
    asked = batch["weights"][0, 1 : 1 + len(text)] > 0
    word = np.cumsum([c == " " for c in text])
    assert all(len(set(asked[word == w])) == 1 for w in word)


def test_whole_words_are_chosen_at_the_rate() -> None:
    texts = ["ab cde f ghij " * 4] * 300
    asked = MaskedLM(0.3, whole_words=True).batch(rows_of(*texts), BYTES, seeded(1))["weights"]
    assert asked.sum() / (300 * 56) == pytest.approx(0.3, abs=0.02)


def test_a_row_is_masked_alike_whatever_is_beside_it() -> None:
    rows = rows_of("one row", "and another one", "the third")
    whole = MaskedLM().batch(rows, BYTES, seeded(3))
    second = MaskedLM().batch(Rows(*(a[1:2] for a in rows)), BYTES, lambda _: np.random.default_rng([3, 1]))
    assert all((whole[name][1] == second[name][0]).all() for name in whole)


def test_the_tokenizer_s_own_mask_is_taken() -> None:
    own: ObjectiveContext = replace(BYTES, mask=7)
    assert MaskedLM().extra_tokens(own) == 0 and MaskedLM().extra_tokens(BYTES) == 1
    batch = MaskedLM(0.9).batch(rows_of("x" * 50), own, seeded(0))
    assert (batch["tokens"] == 7).sum() > 25 and batch["tokens"].max() < 258


PAIRS = MaskedLM(0.3, next_sentence=True)


def test_a_pair_of_texts_is_masked_like_any_row() -> None:
    rows = rows_of("one row of text", "another one", "what is beside it", "and beside that", width=62)
    batch = PAIRS.batch(rows, BYTES, seeded(3))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        **dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "token_types"), ((2, 64), "int32")),
        "weights": ((2, 64), "float32"),
        "next_sentence": ((2,), "int32"),
        "next_sentence_weights": ((2,), "float32"),
    }
    asked, there = batch["weights"] > 0, batch["segment_ids"] > 0
    np.testing.assert_array_equal(batch["tokens"][~asked], batch["targets"][~asked])
    text = there & (batch["targets"] < 256)
    assert not asked[~text].any() and asked.sum(1).tolist() == [round(0.3 * n) for n in text.sum(1)]
    assert (batch["targets"][:, 0] == 256).all() and ((batch["targets"] == 257) & there).sum(1).tolist() == [2, 2]
    assert (batch["positions"][there] == np.nonzero(there)[1]).all()  # the texts see each other


def test_a_pair_is_alike_whatever_is_beside_it() -> None:
    rows = rows_of("one row", "and another one", "the third", "the fourth", width=62)
    whole = PAIRS.batch(rows, BYTES, seeded(3))
    second = PAIRS.batch(Rows(*(a[1::2] for a in rows)), BYTES, lambda _: np.random.default_rng([3, 1]))
    assert all((whole[name][1] == second[name][0]).all() for name in whole)


def test_next_sentences_are_asked_of_a_model_that_can_tell() -> None:
    assert PAIRS.measures == (*MaskedLM().measures, "next_sentence")
    model = bert(vocab=9, layers=1, width=8, heads=1, mlp=8, context=8)
    able = replace(model, output=replace(model.output, next_sentence=True))
    PAIRS.check(able)
    MaskedLM().check(able)
    for unable in (model, replace(able, token_types=1)):
        with pytest.raises(ValueError, match="MaskedLM with next_sentence .*set model.output.next_sentence=True and"):
            PAIRS.check(unable)
    with pytest.raises(ValueError, match="needs an encoder alone"):
        PAIRS.check(llama(vocab=9, layers=1, width=8, heads=1, mlp=8, context=8))


def test_a_rate_must_leave_something() -> None:
    with pytest.raises(ValueError, match="MaskedLM.rate=1.0: expected a fraction between 0 and 1"):
        MaskedLM(rate=1.0)
