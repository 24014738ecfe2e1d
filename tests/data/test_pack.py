from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lm.data.objective import CausalLM
from lm.data.pack import Chunk, OnePerRow, Pack, best_fit

PACKINGS = pytest.mark.parametrize("packing", [Chunk(), Chunk(across_documents=True), Pack()], ids=str)
documents = st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: max(lengths) > 1)


def pairs_of(batch: dict) -> Counter:
    """How often each (token, next token) is asked for."""
    asked = batch["weights"] > 0
    return Counter(zip(batch["tokens"][asked].tolist(), batch["targets"][asked].tolist(), strict=True))


def all_pairs(store) -> Counter:
    return Counter(
        (int(d[i]), int(d[i + 1])) for d in map(store.__getitem__, range(len(store))) for i in range(len(d) - 1)
    )


@PACKINGS
@settings(max_examples=60, deadline=None)
@given(lengths=documents, seq_len=st.integers(1, 24), seed=st.none() | st.integers(0, 3), epoch=st.integers(0, 4))
def test_each_epoch_asks_for_every_target_exactly_once(packing, make_store, lengths, seq_len, seed, epoch) -> None:
    store = make_store(lengths)
    plan = packing.plan(store, seq_len)
    numbers = epoch * plan.rows_per_epoch + np.arange(plan.rows_per_epoch)
    batch = CausalLM().batch(plan.rows(numbers, seed))
    assert pairs_of(batch) == all_pairs(store)


@PACKINGS
@settings(max_examples=40, deadline=None)
@given(lengths=documents, seq_len=st.integers(1, 24), numbers=st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_row_depends_on_its_number_alone(packing, make_store, lengths, seq_len, numbers) -> None:
    plan = packing.plan(make_store(lengths), seq_len)
    together = plan.rows(np.array(numbers), 7)
    for i, number in enumerate(numbers):
        alone = packing.plan(plan._store, seq_len).rows(np.array([number]), 7)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[i], b[0])


@pytest.mark.parametrize("packing", [Chunk(), Chunk(across_documents=True), Pack(), OnePerRow()], ids=str)
@settings(max_examples=40, deadline=None)
@given(lengths=documents, seq_len=st.integers(1, 24), seed=st.none() | st.integers(0, 3))
def test_each_token_s_document_is_known(packing, make_store, lengths, seq_len, seed) -> None:
    """All tokens of these stores are different, so that each says where it is from."""
    assume(packing != OnePerRow() or min(lengths) <= seq_len)
    plan = packing.plan(make_store(lengths), seq_len)
    numbers = np.arange(2 * plan.rows_per_epoch)[::-1]
    rows, found = plan.rows(numbers, seed), plan.documents(numbers, seed)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(found, np.where(rows.documents > 0, document_of[rows.tokens - 1], -1))


@pytest.mark.parametrize("packing", [Chunk(), Pack()], ids=str)
@settings(max_examples=40, deadline=None)
@given(lengths=documents, seq_len=st.integers(2, 24))
def test_a_segment_is_a_stretch_of_one_document(packing, make_store, lengths, seq_len) -> None:
    """Packed = unpacked: what may attend to each other is a slice of a document, with positions from 0."""
    store = make_store(lengths)
    plan = packing.plan(store, seq_len)
    batch = CausalLM().batch(plan.rows(np.arange(2 * plan.rows_per_epoch), 3))
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in range(len(batch["tokens"])):
        segments = batch["segment_ids"][row]
        present = segments[segments > 0]
        assert (np.diff(present) >= 0).all() and (present[:1] == 1).all() and (np.diff(present) <= 1).all()
        assert (segments[len(present) :] == 0).all()  # padding comes last
        for segment in np.unique(present):
            inside = segments == segment
            tokens = batch["tokens"][row][inside]
            np.testing.assert_array_equal(np.diff(tokens), 1)
            assert len(set(document_of[tokens - 1])) == 1
            np.testing.assert_array_equal(batch["positions"][row][inside], np.arange(len(tokens)))


def test_across_documents_is_one_segment_but_nothing_is_asked_over_the_border(make_store) -> None:
    store = make_store([5, 6, 7])
    batch = CausalLM().batch(Chunk(across_documents=True).plan(store, 18).rows(np.array([0]), None))
    assert batch["segment_ids"].tolist() == [[1] * 18]
    assert batch["positions"].tolist() == [list(range(18))]
    assert np.flatnonzero(batch["weights"][0] == 0).tolist() == [4, 10, 17]  # the last token of each


def test_one_long_document_is_cut_elsewhere_in_every_epoch(make_store) -> None:
    plan = Chunk(across_documents=True).plan(make_store([1000]), 64)
    assert plan.rows_per_epoch == 16
    starts = [set(plan.rows(e * 16 + np.arange(16), 0).tokens[:, 0].tolist()) for e in range(6)]
    assert len(set(map(frozenset, starts))) == 6


@PACKINGS
def test_the_seed_and_the_epoch_change_the_order(packing, make_store) -> None:
    plan = packing.plan(make_store([9, 5, 9, 5, 7, 7, 9] * 5), 16)
    k = plan.rows_per_epoch
    epochs = [plan.rows(e * k + np.arange(k), seed).tokens.tobytes() for seed in (0, 1) for e in (0, 1)]
    assert len(set(epochs)) == 4


def documents_in_turn(tokens: np.ndarray) -> object:
    """The order of documents in the ring, from document 0 on."""
    order = list(dict.fromkeys(tokens[tokens % 9 == 5].tolist()))  # each document's fifth token
    return tuple(order[order.index(5) :] + order[: order.index(5)])


def windows_in_turn(tokens: np.ndarray) -> object:
    """Which windows of the ring the rows are, counted from the first row's."""
    rank = np.argsort(np.argsort(tokens[:, 0]))
    return tuple((rank - rank[0]) % len(rank))


def rows_in_turn(tokens: np.ndarray) -> object:
    return tuple(tokens[:, 0])


def companions(tokens: np.ndarray) -> object:
    """Which documents share a row, in whatever order the rows are."""
    return frozenset(frozenset(row[row % 8 == 1].tolist()) for row in tokens)


@pytest.mark.parametrize(
    ("packing", "lengths", "seq_len", "order"),
    [
        (Chunk(), [9] * 12, 108, documents_in_turn),
        (Chunk(across_documents=True), [1000], 50, windows_in_turn),
        (Pack(), list(range(20, 32)), 31, rows_in_turn),
        (Pack(), [8] * 24, 15, companions),
    ],
    ids=["documents", "windows", "rows", "companions"],
)
def test_each_order_is_drawn_anew_for_each_seed_and_epoch(packing, lengths, seq_len, order, make_store) -> None:
    """Where it is the only thing that is random."""
    plan = packing.plan(make_store(lengths), seq_len)
    k = plan.rows_per_epoch
    orders = [order(plan.rows(e * k + np.arange(k), seed).tokens) for seed in (0, 1) for e in (0, 1, 2)]
    assert len(set(orders)) == 6


def test_names_make_orders_of_their_own(make_store) -> None:
    store = make_store([9] * 50)
    a, b = (Chunk().plan(store, 16, name).rows(np.arange(8), 0).tokens for name in ("a", "b"))
    assert (a != b).any()


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(2, 33), min_size=1, max_size=60))
def test_best_fit_fits_and_wastes_little(lengths: list[int]) -> None:
    sorted_lengths = np.sort(np.array(lengths))[::-1]
    row = best_fit(sorted_lengths, 33)
    filled = np.bincount(row, weights=sorted_lengths)
    assert filled.max() <= 33 and set(row.tolist()) == set(range(len(filled)))
    assert (filled > 16).sum() >= len(filled) - 1  # two rows less than half full would have been one


def test_pack_keeps_short_documents_whole(make_store) -> None:
    plan = Pack().plan(make_store([10, 20, 30, 2]), 31)
    rows = plan.rows(np.arange(plan.rows_per_epoch), None)
    assert plan.rows_per_epoch == 2
    whole = [np.unique(row[row > 0], return_counts=True)[1].tolist() for row in rows.documents]
    assert sorted(n for lengths in whole for n in lengths) == [2, 10, 20, 30]


@PACKINGS
def test_nothing_to_predict_is_an_error(packing, make_store) -> None:
    with pytest.raises(ValueError, match="nothing to predict"):
        packing.plan(make_store([1, 1]), 4)
    with pytest.raises(ValueError, match="seq_len=0"):
        packing.plan(make_store([5]), 0)
