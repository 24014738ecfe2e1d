"""Corrupted rows can be mended, have the counts and lengths that were promised, and are T5's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.denoise import TABLE_1, UL2, Denoiser, SpanCorruption, corrupt, max_row_tokens
from lm.data.objective import Batch, ObjectiveContext, Rows

VOCAB, EOS, SENTINELS = 1000, 1, 100
FIRST = VOCAB + SENTINELS - 1
DENOISERS = st.builds(Denoiser, st.floats(0.02, 0.9), st.just(0.0) | st.floats(1, 70), st.sampled_from([-1, 0]))


def context(seq_len: int, encoder: bool = True, eos: int | None = EOS) -> ObjectiveContext:
    return ObjectiveContext(seq_len, VOCAB, eos=eos, encoder=encoder)


def mended(inputs: list[int], targets: list[int], sentinels: int = SENTINELS) -> list[int]:
    """The text that inputs and targets (without mode and end) were made from."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if VOCAB <= token < VOCAB + sentinels:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    return [t for token in inputs for t in spans.get(token, [token])]


@settings(max_examples=150, deadline=None)
@given(denoiser=DENOISERS, length=st.integers(2, 300), seed=st.integers(0, 99))
def test_what_is_taken_out_is_what_was_promised(denoiser: Denoiser, length: int, seed: int) -> None:
    noise = denoiser.mask(length, np.random.default_rng(seed))
    count, spans = denoiser.counts(length)
    starts = noise & ~np.concatenate([[False], noise[:-1]])
    assert len(noise) == length and noise.sum() == count and starts.sum() == spans
    assert not noise[0] and noise[-1] and 1 <= spans <= count < length


@settings(max_examples=150, deadline=None)
@given(denoiser=DENOISERS, length=st.integers(2, 300), seed=st.integers(0, 99))
def test_mended_is_the_text_and_the_lengths_are_those_told(denoiser: Denoiser, length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(2, VOCAB, length)
    inputs, targets = corrupt(tokens, denoiser.mask(length, random), VOCAB + 500, EOS)
    assert (len(inputs) + (denoiser.mode >= 0), len(targets)) == denoiser.lengths(length)
    assert inputs[-1] == targets[-1] == EOS
    assert mended(inputs[:-1].tolist(), targets[:-1].tolist(), 501) == tokens.tolist()


def test_t5_s_lengths() -> None:
    """512 inputs are of 568 tokens and have 114 targets, as the configurations of T5 say."""
    assert max_row_tokens((Denoiser(0.15, 3.0),), 512, True) == 568
    assert Denoiser(0.15, 3.0).lengths(568) == (512, 114)


@settings(max_examples=60, deadline=None)
@given(denoiser=DENOISERS, length=st.integers(2, 200))
def test_a_shorter_text_never_becomes_longer(denoiser: Denoiser, length: int) -> None:
    assert all(a <= b for a, b in zip(denoiser.lengths(length), denoiser.lengths(length + 1), strict=True))


def test_every_partition_is_as_likely() -> None:
    random, denoiser = np.random.default_rng(0), Denoiser(0.5, 2.0)
    seen: dict[bytes, int] = {}
    for _ in range(4500):
        mask = denoiser.mask(8, random).tobytes()  # 4 kept and 4 taken in 2 spans each: 3 x 3 ways
        seen[mask] = seen.get(mask, 0) + 1
    assert len(seen) == 9 and max(seen.values()) < 1.25 * min(seen.values())


def rows_of(count: int, width: int, filled: int | None = None) -> Rows:
    tokens = np.random.default_rng(5).integers(2, VOCAB, (count, width + 1)).astype(np.int32)
    documents = np.broadcast_to(np.arange(width + 1) < (width if filled is None else filled), tokens.shape)
    documents = documents.astype(np.int32)
    return Rows(tokens * documents, documents, documents, documents)


def texts(batch: Batch, row: int) -> tuple[list[int], list[int]]:
    """The inputs and the targets of a row, of either kind of batch, without their ends."""
    asked = batch["weights"][row] > 0
    targets = batch["targets"][row][asked]
    if "encoder_tokens" in batch:
        inputs = batch["encoder_tokens"][row][batch["encoder_segment_ids"][row] > 0]
    else:
        inputs = batch["tokens"][row][batch["prefix"][row]]
    assert not len(inputs) or inputs[-1] == targets[-1] == EOS
    return inputs[:-1].tolist(), targets[:-1].tolist()


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("objective", [SpanCorruption(), SpanCorruption(rate=0.5, mean_length=8.0), UL2()], ids=str)
@pytest.mark.parametrize("filled", [None, 40, 2, 1, 0])
def test_a_batch_can_be_mended(objective: SpanCorruption | UL2, encoder: bool, filled: int | None) -> None:
    found = context(128, encoder)
    width = objective.row_tokens(found)
    rows = rows_of(12, width, filled)
    batch = objective.batch(rows, found, lambda row: np.random.default_rng(row))
    for row in range(12):
        inputs, targets = texts(batch, row)
        if isinstance(objective, UL2) and inputs:
            assert inputs.pop(0) in (VOCAB + SENTINELS, VOCAB + SENTINELS + 1, VOCAB + SENTINELS + 2)
        expected = rows.tokens[row, :width][rows.documents[row, :width] > 0].tolist()
        assert mended(inputs, targets) == (expected if len(expected) > 1 else [])
    shapes = {name: array.shape for name, array in batch.items()}
    assert {array.dtype.name for array in batch.values()} <= {"int32", "float32", "bool"}
    assert shapes["encoder_tokens" if encoder else "tokens"] == (12, 128)
    ours = {k: s for k, s in shapes.items() if not k.startswith("encoder")}
    assert len(set(ours.values())) == 1


def test_t5_s_batch_wastes_nothing_and_reads_its_targets_one_late() -> None:
    found = context(128)
    batch = SpanCorruption().batch(rows_of(4, SpanCorruption().row_tokens(found)), found)
    assert batch["encoder_segment_ids"].all() and batch["segment_ids"].all() and batch["weights"].all()
    assert (batch["tokens"][:, 0] == 0).all()
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert (batch["targets"][:, 0] == FIRST).all() and (batch["targets"][:, -1] == EOS).all()


def test_a_decoder_reads_the_inputs_as_a_prefix_and_is_asked_for_all_after() -> None:
    found = context(128, encoder=False)
    batch = SpanCorruption().batch(rows_of(4, SpanCorruption().row_tokens(found)), found)
    last = batch["prefix"].sum(1) - 1
    assert (batch["targets"][np.arange(4), last] == FIRST).all()
    np.testing.assert_array_equal(batch["weights"] > 0, np.arange(128) >= last[:, None])
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


def test_ul2_draws_its_seven_denoisers_alike_and_says_which() -> None:
    found = context(256)
    batch = UL2().batch(rows_of(700, UL2().row_tokens(found)), found, lambda row: np.random.default_rng(row))
    modes = batch["encoder_tokens"][:, 0] - VOCAB - SENTINELS
    assert np.bincount(modes) / 700 == pytest.approx(np.array([2, 1, 4]) / 7, abs=0.06)
    assert UL2().extra_tokens(found) == SENTINELS + 3
    sequential = modes == 1  # one span, at the end
    inputs = batch["encoder_tokens"][sequential]
    length = batch["encoder_segment_ids"][sequential].sum(1)
    assert (((inputs >= VOCAB) & (inputs < VOCAB + SENTINELS)).sum(1) == 1).all()
    assert (inputs[np.arange(len(inputs)), length - 2] == FIRST).all()
    assert {d.counts(400)[0] for d in TABLE_1 if d.mode == 1} == {100}


@pytest.mark.parametrize("encoder", [True, False])
def test_a_row_is_corrupted_alike_whatever_is_beside_it(encoder: bool) -> None:
    found = context(64, encoder)
    rows = rows_of(3, UL2().row_tokens(found))
    whole = UL2().batch(rows, found, lambda row: np.random.default_rng(row))
    last = UL2().batch(Rows(*(a[2:] for a in rows)), found, lambda _: np.random.default_rng(2))
    assert all((whole[name][2] == last[name][0]).all() for name in whole)


def test_without_eos_the_last_sentinel_ends() -> None:
    found = context(64, eos=None)
    batch = SpanCorruption().batch(rows_of(2, SpanCorruption().row_tokens(found)), found)
    assert (batch["targets"][:, -1] == VOCAB).all()
    with pytest.raises(ValueError, match="up to 3 spans and sentinels=3: set sentinels=4 in"):
        SpanCorruption(sentinels=3).row_tokens(found)


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="up to 28 spans and sentinels=10: set sentinels=28 in"):
        SpanCorruption(sentinels=10).row_tokens(context(512))
    with pytest.raises(ValueError, match="seq_len=2: no corrupted row fits"):
        SpanCorruption().row_tokens(context(2))
    with pytest.raises(ValueError, match="rate=0"):
        SpanCorruption(rate=0)


def test_t5_s_own_sentinels_are_taken() -> None:
    own = ObjectiveContext(64, 1100, eos=EOS, encoder=True, sentinel=1099)
    rows = rows_of(2, SpanCorruption().row_tokens(own))
    assert SpanCorruption().extra_tokens(own) == 0 and UL2().extra_tokens(own) == 3
    ours, theirs = SpanCorruption().batch(rows, context(64)), SpanCorruption().batch(rows, own)
    assert all((ours[name] == theirs[name]).all() for name in ours)
