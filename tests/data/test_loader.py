import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lm.data.denoise import UL2, SpanCorruption
from lm.data.loader import Batches, SplitSize, prepare, training_texts
from lm.data.masked import MaskedLM
from lm.data.mixture import Breakpoint, Data, Mixture
from lm.data.objective import PrefixLM
from lm.data.pack import Chunk, Pack
from lm.data.source import TextFile, TextFolder
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    for i in range(80):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.txt").write_text(f"{name} says {i * i}.\n" * (1 + i % 7))
    sources = {name: TextFolder(str(tmp_path / name)) for name in "ab"}
    return Mixture(sources, {"a": 2.0, "b": 1.0}, (Breakpoint(20, {"a": 0.0, "b": 1.0}),))


@pytest.fixture(params=[Chunk(), Pack()], ids=str)
def batches(request: pytest.FixtureRequest, mixture: Mixture) -> Batches:
    return prepare(Data(mixture, Bytes(), request.param), seq_len=32, batch_rows=8, seed=4)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and (a[k] == b[k]).all() for k in a)


def test_a_batch_is_a_pure_function_of_seed_and_step(batches: Batches, mixture: Mixture) -> None:
    again = prepare(batches.data, seq_len=32, batch_rows=8, seed=4)
    other = prepare(batches.data, seq_len=32, batch_rows=8, seed=5)
    for step in (17, 3, 10_000, 0):
        assert same(batches.batch(step), again.batch(step))
        assert not same(batches.batch(step), other.batch(step))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_see_the_batch_of_one(batches: Batches, hosts: int) -> None:
    readers = [batches.batches(5, own) for own in np.split(np.arange(8), hosts)]
    try:
        for step in range(5, 12):
            parts = [next(reader) for reader in readers]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert same(whole, batches.batch(step))
    finally:
        for reader in readers:
            reader.close()


def test_a_token_s_document_is_named(batches: Batches, mixture: Mixture, tmp_path: Path) -> None:
    """Also where the store leaves out documents: an empty one is a file before all others."""
    (tmp_path / "a" / ".empty.txt").write_text("")
    (tmp_path / "a" / "0 empty.txt").write_text("")
    again = prepare(Data(mixture, Bytes(), batches.data.packing), seq_len=32, batch_rows=8, seed=4)
    for one in (batches, again):
        rows, named = one.rows(3), set()
        for row, token in [(0, 0), (3, 5), (7, 1)]:
            found = one.origin(3, row, token)
            assert one.stores[found.source, "train"][found.number].tolist().count(rows.tokens[row, token])
            text = (tmp_path / found.source / found.where).read_text()
            ids = one.stores[found.source, "train"][found.number].tolist()
            assert one.tokenizer.decode(ids) == text
            named.add(found)
        assert len(named) > 1


def test_reading_ahead_from_any_step_is_the_straight_run(batches: Batches) -> None:
    with batches.batches(0, threads=3, ahead=8) as straight:
        for _ in range(9):
            next(straight)
        with batches.batches(9) as resumed:
            assert all(same(next(straight), next(resumed)) for _ in range(6))


def test_a_closed_reader_leaves_no_thread(batches: Batches) -> None:
    before = threading.active_count()
    with batches.batches(0) as reader:
        next(reader)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_the_mixture_is_followed(batches: Batches) -> None:
    speakers = Counter()
    for step in range(20, 26):  # past the breakpoint: only b
        text = bytes(t for t in batches.batch(step)["tokens"].ravel().tolist() if t < 256)
        speakers.update({"a": text.count(b"a says"), "b": text.count(b"b says")})
    assert speakers["a"] == 0 and speakers["b"] > 50
    assert batches.shares(0) == pytest.approx({"a": 2 / 3, "b": 1 / 3}) and batches.shares(20) == {"a": 0, "b": 1}


def test_held_out_covers_every_token_once(batches: Batches) -> None:
    for name in "ab":
        found = list(batches.heldout(name, batch_rows=5))
        assert {b["tokens"].shape for b in found} == {(5, 32)} and len(found) == batches.heldout_batches(name, 5)
        store = batches.stores[name, "heldout"]
        asked = np.concatenate([b["targets"][b["weights"] > 0] for b in found])
        assert len(asked) == store.total_tokens - len(store)
        targets = np.concatenate([document[1:] for document in store])
        np.testing.assert_array_equal(np.bincount(asked), np.bincount(targets))
        assert batches.heldout_bytes(name) == (asked < 256).sum()  # with bytes as tokens: all but the eos


def test_the_summary_counts_the_text(batches: Batches, mixture: Mixture) -> None:
    for name, source in mixture.sources.items():
        for split in ("train", "heldout"):
            size = sum(len(text.encode()) for text in source.documents(split))
            count = len(source.documents(split))
            assert batches.summary()[name][split] == SplitSize(count, size + 2 * count, size)


def test_the_tokenizer_is_trained_on_the_train_split_and_found_again(mixture: Mixture, monkeypatch) -> None:
    data = Data(mixture, SentencePieceSpec(320))
    seen: list[tuple] = []
    first = prepare(data, 32, 8, progress=lambda *what: seen.append(what))
    assert {what for what, _, _ in seen} == {"tokenizer", "a, train", "b, train", "a, heldout", "b, heldout"}
    monkeypatch.setattr(SentencePieceSpec, "make", lambda *_: pytest.fail("trained again"))
    assert prepare(data, 32, 8).tokenizer.fingerprint == first.tokenizer.fingerprint
    kept = prepare(Data(mixture, SentencePieceSpec(340)), 32, 8, tokenizer=first.tokenizer)
    assert kept.tokenizer is first.tokenizer


def test_training_texts_take_turns_by_bytes() -> None:
    big, small = ["b" * 100] * 20, ["s" * 10] * 40
    taken = [text[0] for text, _ in zip(training_texts([big, small]), range(22), strict=False)]
    assert Counter(taken) == {"b": 2, "s": 20}
    assert Counter(t[0] for t in training_texts([big, small])) == {"b": 20, "s": 40}


def test_one_text_by_characters_is_nanogpts_data(tmp_path: Path) -> None:
    text = "".join(f"{i} green bottles\n" for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    data = Data(
        Mixture({"text": TextFile(str(tmp_path / "a.txt"))}, {"text": 1.0}), Characters(), Chunk(across_documents=True)
    )
    batches = prepare(data, seq_len=64, batch_rows=12)
    assert batches.tokenizer.vocab_size == len(set(text))
    assert batches.summary()["text"]["train"] == SplitSize(1, int(0.9 * len(text)), int(0.9 * len(text)))
    batch = batches.batch(10**6)
    for row, weights in zip(batch["tokens"], batch["weights"], strict=True):
        if weights.all():  # the seam between two rounds of the text is in at most one row an epoch
            assert batches.tokenizer.decode(row) in text
    assert batch["weights"].all(axis=1).sum() >= 10
    assert (batch["positions"][batch["segment_ids"][:, -1] > 0] == np.arange(64)).all()


def test_compression_is_that_of_the_held_out_text(batches: Batches) -> None:
    assert 0 < batches.compression("a")["gzip"] < 60
    with pytest.raises(ValueError, match="no source 'c': .*known: a, b"):
        batches.compression("c")


def test_bad_input_names_the_source(mixture: Mixture, tmp_path: Path) -> None:
    (tmp_path / "a" / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "a" / "bad2.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"source 'a': .*bad2?.txt is not UTF-8"):
        prepare(Data(mixture, Bytes()), 32, 8)


def test_rows_of_a_batch_need_not_lie_together(batches: Batches) -> None:
    own = np.array([1, 4, 7])
    with batches.batches(3, own) as reader:
        found = next(reader)
    assert same(found, {name: array[own] for name, array in batches.batch(3).items()})


ASKED = [
    (PrefixLM(), False),
    (MaskedLM(), False),
    (MaskedLM(whole_words=True), False),
    (MaskedLM(next_sentence=True), False),
    (SpanCorruption(), True),
    (SpanCorruption(), False),
    (UL2(), True),
]


@pytest.fixture(params=ASKED, ids=str)
def asked(request: pytest.FixtureRequest, mixture: Mixture) -> Batches:
    objective, encoder = request.param
    return prepare(Data(mixture, Bytes(), Chunk()), 64, 8, seed=4, objective=objective, encoder=encoder)


def test_what_is_random_in_an_objective_belongs_to_its_row(asked: Batches, mixture: Mixture) -> None:
    """The same numbers again, on any number of hosts, and others at the next step and in the next epoch."""
    again = prepare(asked.data, 64, 8, seed=4, objective=asked.objective, encoder=asked.context.encoder)
    for step in (700, 3):
        whole = asked.batch(step)
        assert same(whole, again.batch(step))
        halves = [again.batch(step, slice(4 * i, 4 * i + 4)) for i in range(2)]
        assert same(whole, {name: np.concatenate([half[name] for half in halves]) for name in whole})
        assert not same(whole, asked.batch(step + 1))


def test_held_out_text_is_always_asked_the_same(asked: Batches) -> None:
    other = prepare(asked.data, 64, 8, seed=9, objective=asked.objective, encoder=asked.context.encoder)
    assert all(same(a, b) for a, b in zip(asked.heldout("a"), other.heldout("a"), strict=True))
    by_row = [{name: array[[i]] for name, array in batch.items()} for batch in asked.heldout("a") for i in range(8)]
    assert all(same(a, b) for a, b in zip(list(asked.heldout("a"))[1:], asked.heldout("a", first=1), strict=True))
    for one, alone in zip(by_row, asked.heldout("a", batch_rows=1), strict=False):
        assert same(one, alone)


@pytest.mark.parametrize("packing", [Chunk(), Pack()], ids=str)
def test_the_second_of_two_texts_is_of_the_row_s_own_source(mixture: Mixture, packing) -> None:
    """And in half of the rows it is the first one's end."""
    batches = prepare(Data(mixture, Bytes(), packing), 64, 8, seed=4, objective=MaskedLM(next_sentence=True))
    follows = 0
    for step in range(12):
        batch = batches.batch(step)
        for i in range(8):
            row = batch["targets"][i]
            first, second = (
                bytes(t for t in row[(batch["token_types"][i] == kind)].tolist() if t < 256) for kind in (0, 1)
            )
            assert not any(a in first + second and b in first + second for a, b in ((b"a s", b"b s"), (b"b s", b"a s")))
            follows += int(batch["next_sentence_weights"][i] * (1 - batch["next_sentence"][i]))
    assert 30 <= follows <= 66  # of 96
    for found in batches.heldout("a", batch_rows=5):
        padding = found["segment_ids"].sum(1) == 0
        assert not found["next_sentence_weights"][padding].any() and found["next_sentence_weights"][~padding].all()


def test_a_lone_row_has_no_other_to_be_set_beside(mixture: Mixture) -> None:
    with pytest.raises(
        ValueError, match="source '[ab]' has one row of heldout text, and next-sentence prediction needs two"
    ):
        prepare(Data(mixture, Bytes()), 2048, 8, objective=MaskedLM(next_sentence=True))


def test_unknown_tokens_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 9 + "é")
    (tmp_path / "b.txt").write_text("the é fox")
    source = TextFile(str(tmp_path / "a.txt"), heldout=str(tmp_path / "b.txt"))
    spec = SentencePieceSpec(40, byte_fallback=False, train_bytes=300)
    (said,) = prepare(Data(Mixture({"text": source}, {"text": 1.0}), spec), 8, 8).remarks()[1:]
    assert said.startswith("source 'text', heldout: 1 of ") and "tokens are unknown" in said


def test_what_one_should_know_of_the_documents_is_said(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"document {i % 18}")
    (tmp_path / "other").mkdir()
    for i in (3, 100):
        (tmp_path / "other" / f".{i}.txt").write_text(f"document {i}")
        (tmp_path / "other" / f"{i}.txt").write_text(f"document {i}")
    source = TextFolder(str(tmp_path), pattern="*.txt", heldout=str(tmp_path / "other"))
    batches = prepare(Data(Mixture({"text": source}, {"text": 1.0}), Bytes()), 32, 8)
    assert batches.remarks() == [
        "source 'text': left out: 2 hidden files (.100.txt, …)",
        "source 'text', train: 2 of 20 documents equal another",
        "source 'text': 1 of 2 held-out documents are trained on too",
    ]
    assert batches.summary()["text"]["train"].duplicates == 2
