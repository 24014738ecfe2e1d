from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.denoise import UL2, SpanCorruption
from lm.data.masked import MaskedLM
from lm.data.objective import CausalLM, Objective, PrefixLM, Rows, objective_context, padded, positions
from lm.model.output import Output
from lm.text.tokenizer import ByteTokenizer


def test_causal_targets_are_the_next_tokens_of_the_same_document() -> None:
    tokens = np.array([[1, 5, 6, 2, 1, 7, 2, 0, 0]], np.int32)  # bos 1, eos 2
    documents = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    batch = CausalLM().batch(Rows(tokens, documents, documents, documents))
    assert batch["tokens"].tolist() == [[1, 5, 6, 2, 1, 7, 2, 0]]
    assert batch["targets"].tolist() == [[5, 6, 2, 1, 7, 2, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]  # nothing is asked where the input is eos
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }


def test_positions_count_from_each_segments_start() -> None:
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.random((5, 40)) < 0.2, axis=1)
    counted = positions(segments)
    for row, segment in zip(counted, segments, strict=True):
        for s in np.unique(segment):
            assert row[segment == s].tolist() == list(range((segment == s).sum()))


def test_padding_has_no_weight_and_no_segment() -> None:
    ones = np.ones((2, 3), np.int32)
    batch = padded(CausalLM().batch(Rows(ones, ones, ones, ones)), 4)
    assert all(array.shape == (4, 2) for array in batch.values())
    assert batch["weights"].sum() == 4 and not batch["segment_ids"][2:].any()


@st.composite
def rows_of_documents(draw: st.DrawFn) -> Rows:
    """A row of documents of these lengths, all tokens different, then padding."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    documents = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    documents = np.pad(documents, (0, draw(st.integers(0, 3))))[None].astype(np.int32)
    tokens = np.where(documents > 0, np.arange(1, documents.size + 1), 0).astype(np.int32)
    segments = np.minimum(documents, 1) if draw(st.booleans()) else documents
    return Rows(tokens, documents, segments, np.minimum(documents, 1))


@settings(max_examples=100, deadline=None)
@given(rows=rows_of_documents(), seed=st.integers(0, 9))
def test_a_prefix_is_the_start_of_its_segment_and_all_after_it_is_asked(rows: Rows, seed: int) -> None:
    batch = PrefixLM().batch(rows, row_rng=lambda row: np.random.default_rng(seed + row))
    plain = CausalLM().batch(rows)
    assert all((batch[name] == plain[name]).all() for name in ("tokens", "targets", "segment_ids", "positions"))
    prefix, segments = batch["prefix"], batch["segment_ids"]
    for segment in np.unique(segments[segments > 0]):
        inside = segments == segment
        length, whole = prefix[inside].sum(), (rows.segments == segment).sum()
        assert 1 <= length <= max(1, whole - 1) and prefix[inside][:length].all()
        asked = plain["weights"][inside] * (np.arange(inside.sum()) >= length - 1)
        np.testing.assert_array_equal(batch["weights"][inside], asked)
    assert not prefix[segments == 0].any()


def test_prefix_lengths_are_uniform() -> None:
    ones = np.ones((1, 9), np.int32)
    generator = np.random.default_rng(0)
    lengths = [
        PrefixLM().batch(Rows(ones, ones, ones, ones), row_rng=lambda _: generator)["prefix"].sum() for _ in range(4000)
    ]
    counts = np.bincount(lengths, minlength=9)
    assert counts[0] == 0 and (np.abs(counts[1:] / 4000 - 1 / 8) < 0.03).all()


class Shape(NamedTuple):
    causal: bool
    has_encoder: bool
    output: Output = Output()


DECODER, ENCODER, BOTH = Shape(True, False), Shape(False, False), Shape(True, True)
LEGAL = {
    CausalLM(): {DECODER},
    PrefixLM(): {DECODER},
    MaskedLM(): {ENCODER},
    SpanCorruption(): {DECODER, BOTH},
    UL2(): {DECODER, BOTH},
}


@pytest.mark.parametrize("shape", [DECODER, ENCODER, BOTH], ids=str)
@pytest.mark.parametrize("objective", LEGAL, ids=str)
def test_an_objective_meets_the_models_it_is_legal_for(objective: Objective, shape: Shape) -> None:
    if shape in LEGAL[objective]:
        objective.check(shape)
    else:
        with pytest.raises(ValueError, match=f"^{type(objective).__name__} .*take ") as error:
            objective.check(shape)
        assert "\n" not in str(error.value)


def test_a_setting_is_what_the_tokenizer_says() -> None:
    found = objective_context(ByteTokenizer(), 16)
    assert (found.vocab, found.bos, found.eos, found.mask) == (258, 256, 257, None)
    assert np.flatnonzero(found.special).tolist() == [256, 257]
    assert {*b" \n\t", 256, 257} <= set(np.flatnonzero(found.word_starts).tolist()) and not found.word_starts[ord("a")]
