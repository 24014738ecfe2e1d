import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from lm.data.source import Documents, TextFolder
from lm.data.store import TokenStore, open_store, write_store
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec, Tokenizer

TEXTS = ["hello", "", "naïve\n", "x" * 300, "b"]
BYTES = Bytes().make([])


def test_documents_come_back_between_bos_and_eos(tmp_path: Path) -> None:
    store = write_store(TEXTS, BYTES, tmp_path / "store")
    kept = [text for text in TEXTS if text]
    assert [BYTES.decode(document) for document in store] == kept
    assert all(d[0] == 256 and d[-1] == 257 for d in store)
    assert store.lengths.tolist() == [len(t.encode()) + 2 for t in kept]
    assert store.bytes.tolist() == [len(t.encode()) for t in kept]
    assert (store.total_tokens, store.total_bytes) == (store.lengths.sum(), store.bytes.sum())
    assert store.tokens.dtype == np.uint16


def test_a_tokenizer_without_specials_adds_none(tmp_path: Path) -> None:
    store = write_store(["abba"], Characters().make(["ab"]), tmp_path / "store")
    assert store[0].tolist() == [0, 1, 1, 0]


def test_a_large_vocabulary_takes_more_bits(tmp_path: Path) -> None:
    tokenizer = Tokenizer([b"a"] * 70_000)
    tokenizer.encode_batch = lambda texts: [[69_999] for _ in texts]  # type: ignore[method-assign]
    store = write_store(["a"], tokenizer, tmp_path / "store")
    assert store.tokens.dtype == np.uint32 and store[0].tolist() == [69_999]


@pytest.fixture
def source(tmp_path: Path) -> TextFolder:
    for i in range(50):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * (i + 1))
    return TextFolder(str(tmp_path))


def test_cached_and_fresh_are_equal(source: TextFolder, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = open_store(source, "train", BYTES)
    monkeypatch.setattr(Documents, "__iter__", lambda _: pytest.fail("tokenised again"))
    cached = open_store(source, "train", BYTES)
    assert cached.folder == fresh.folder
    np.testing.assert_array_equal(cached.tokens, fresh.tokens)
    np.testing.assert_array_equal(cached.offsets, fresh.offsets)


def test_the_split_the_tokenizer_and_the_text_each_have_a_store(source: TextFolder) -> None:
    stores = [open_store(source, "train", BYTES), open_store(source, "heldout", BYTES)]
    stores.append(open_store(source, "train", Characters().make(source.documents("train"))))
    (Path(source.path) / "0.txt").write_text("documents 0 ")
    stores.append(open_store(source, "train", BYTES))
    assert len({store.folder for store in stores}) == 4


@pytest.mark.parametrize("file", ["tokens.bin", "offsets.npy", "bytes.npy", "store.json"])
def test_a_damaged_store_is_refused_and_written_again(source: TextFolder, file: str) -> None:
    store = open_store(source, "train", BYTES)
    wanted = np.array(store.tokens)
    damaged = store.folder / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged"):
        TokenStore(store.folder)
    np.testing.assert_array_equal(open_store(source, "train", BYTES).tokens, wanted)


def _open(path: str, cache: str, out) -> None:
    os.environ["LM_CACHE"] = cache
    out.put(int(open_store(TextFolder(path), "train", Bytes().make([])).tokens.sum()))


def test_two_processes_may_write_the_same_store(source: TextFolder, cache: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    out = spawn.Queue()
    processes = [spawn.Process(target=_open, args=(source.path, str(cache), out)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {out.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert sums == {int(open_store(source, "train", BYTES).tokens.sum())}
    assert len(list((cache / "tokens").iterdir())) == 1


def test_no_tokens_and_foreign_ids_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokens in the train split of X: its 2 documents are empty"):
        write_store(["", ""], BYTES, tmp_path / "a", "train split of X")
    tokenizer = Tokenizer([b"a"] * 5)
    tokenizer.encode_batch = lambda texts: [[5] for _ in texts]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="token id 5 is outside the vocabulary: expected 0 to 4"):
        write_store(["a"], tokenizer, tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_progress_reaches_the_number_of_documents(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_store(TEXTS, BYTES, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)


def test_a_document_s_first_token_is_coded_where_a_begin_token_is_before_it(tmp_path: Path) -> None:
    texts = ["éab", "b", "ab"]
    with_begin = write_store(texts, BYTES, tmp_path / "bytes")
    assert with_begin.coded_bytes == with_begin.total_bytes == 7
    assert write_store(texts, Characters().make(texts), tmp_path / "characters").coded_bytes == 7 - 2 - 1 - 1


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    tokenizer = SentencePieceSpec(40, byte_fallback=False).make(["the quick brown fox jumps over the lazy dog\n" * 9])
    assert write_store(["the fox", "é the é"], tokenizer, tmp_path / "store").unknown == 2
    assert write_store(["the fox", "é"], BYTES, tmp_path / "bytes").unknown == 0


def test_duplicates_are_counted(tmp_path: Path) -> None:
    assert write_store(["a", "b", "a", "", "", "a"], BYTES, tmp_path / "store").duplicates == 2
    (tmp_path / "store" / "hashes.npy").unlink()
    assert TokenStore(tmp_path / "store").duplicates is None
