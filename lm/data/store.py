"""The token store: a split of a source, tokenised once and cached by the fingerprints of source and tokenizer.

A folder with `tokens.bin` (the ids of all documents, concatenated and memory-mapped), `offsets.npy`, `bytes.npy` and
`store.json`. Each document is [bos] + its tokens + [eos], where the tokenizer has them. Empty documents are left out.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lm.data.source import Documents, Source, text_hash
from lm.machine.cache import cache_dir, discard, is_complete, locked, write_folder
from lm.text.protocol import first_token_bytes
from lm.text.tokenizer import Tokenizer

FORMAT = 1  # of the files: raise it when it changes
BATCH_CHARACTERS = 2_000_000  # tokenised together

Progress = Callable[[int, int], None]  # (documents done, documents in all)


class TokenStore:
    """N tokenised documents. `store[i]` is an array of ids; `lengths` [N] in tokens and `bytes` [N] in UTF-8 bytes are
    the sizes of the documents; `tokens` the ids of all, of which document i has `offsets[i]` to `offsets[i + 1]`.
    `coded_bytes` are those of the text that has a token before it: without a begin token, a document's first token is
    not predicted, and its bytes are not among them. `unknown` is how many tokens stand for text outside the vocabulary.
    `hashes` [N] are of the documents' texts (None where an earlier version wrote the store).

    Raises ValueError where the files are damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "store.json").read_text())
            self.offsets: np.ndarray = np.load(self.folder / "offsets.npy")
            self.bytes: np.ndarray = np.load(self.folder / "bytes.npy")
            self.tokens: np.ndarray = np.memmap(self.folder / "tokens.bin", dtype=about["dtype"], mode="r")
            consistent = about["tokens"] == len(self.tokens) == self.offsets[-1]
            consistent &= about["documents"] == len(self.bytes) == len(self.offsets) - 1
        except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
            raise ValueError(f"the token store {folder} is damaged: {error}") from None
        if not consistent:
            raise ValueError(f"the token store {folder} is damaged: its files are not of the sizes in store.json")
        self.vocab_size: int = about["vocab_size"]
        self.coded_bytes: int = self.total_bytes - about.get("first_bytes", 0)
        self.unknown: int = about.get("unknown", 0)
        hashes = self.folder / "hashes.npy"
        self.hashes: np.ndarray | None = np.load(hashes) if hashes.exists() else None
        self.lengths: np.ndarray = np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def total_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def total_bytes(self) -> int:
        return int(self.bytes.sum())

    @property
    def duplicates(self) -> int | None:
        """How many documents are equal to an earlier one (None: not known)."""
        return None if self.hashes is None else len(self) - len(np.unique(self.hashes))


def open_store(source: Source, split: str, tokenizer: Tokenizer, progress: Progress | None = None) -> TokenStore:
    """The store of a split, from the cache or written now. Only one process writes it; a damaged one is rewritten.

    Raises ValueError where the source has no tokens."""
    counted = [] if tokenizer.bos is not None else ["first bytes"]  # stores of before have no such count
    key = json.dumps([FORMAT, source.fingerprint(), split, tokenizer.fingerprint, *counted])
    folder = cache_dir() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if is_complete(folder):
        return TokenStore(folder)
    with locked(folder):
        if is_complete(folder):  # another process has written it meanwhile
            return TokenStore(folder)
        discard(folder)
        return write_store(source.documents(split), tokenizer, folder, f"{split} split of {source}", progress)


def write_store(
    documents: Documents | list[str],
    tokenizer: Tokenizer,
    folder: Path,
    name: str = "documents",
    progress: Progress | None = None,
) -> TokenStore:
    """Tokenise `documents` into `folder`.

    Args:
      documents: texts.
      tokenizer: the token ids are its.
      folder: of the store.
      name: of the documents, for messages.
      progress: called with (documents done, documents in all).

    Raises:
      ValueError: where there are no tokens at all, an id is outside the vocabulary, or the disk is full.
    """

    def fill(temporary: Path) -> None:
        counts = _write_tokens(temporary / "tokens.bin", documents, tokenizer, progress)
        tokens = sum(counts.lengths)
        if not tokens:
            raise ValueError(f"no tokens in the {name}: its {len(documents)} documents are empty")
        np.save(temporary / "offsets.npy", np.concatenate([[0], np.cumsum(counts.lengths)]).astype(np.int64))
        np.save(temporary / "bytes.npy", np.array(counts.sizes, np.int64))
        np.save(temporary / "hashes.npy", np.array(counts.hashes, np.uint64))
        about = {"dtype": np.dtype(_dtype(tokenizer)).name, "documents": len(counts.lengths), "tokens": tokens}
        about |= {"vocab_size": tokenizer.vocab_size, "first_bytes": counts.first_bytes, "unknown": counts.unknown}
        (temporary / "store.json").write_text(json.dumps(about))

    return TokenStore(write_folder(folder, fill))


def _dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


@dataclass
class _Counts:
    """The size of each document in tokens and in bytes, the hash of its text, the bytes of all first tokens that
    nothing comes before, and the number of unknown tokens."""

    lengths: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    first_bytes: int = 0
    unknown: int = 0


def _write_tokens(
    file: Path, documents: Documents | list[str], tokenizer: Tokenizer, progress: Progress | None
) -> _Counts:
    """Write every document's ids to `file`."""
    counts, done = _Counts(), 0
    with file.open("wb") as out:
        for texts in _batches(documents):
            done += len(texts)
            texts = [text for text in texts if text]
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                framed = _framed(ids, tokenizer)
                out.write(framed.astype(_dtype(tokenizer)).tobytes())
                counts.lengths.append(len(framed))
                counts.sizes.append(len(text.encode()))
                counts.hashes.append(text_hash(text))
                counts.unknown += 0 if tokenizer.unk is None else ids.count(tokenizer.unk)
                counts.first_bytes += first_token_bytes(tokenizer, text, ids) if tokenizer.bos is None else 0
            if progress:
                progress(done, len(documents))
    return counts


def _framed(ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
    """[bos] + ids + [eos], checked against the vocabulary."""
    parts = [[] if tokenizer.bos is None else [tokenizer.bos], ids, [] if tokenizer.eos is None else [tokenizer.eos]]
    array = np.fromiter(itertools.chain(*parts), np.int64)
    wrong = array[(array < 0) | (array >= tokenizer.vocab_size)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is outside the vocabulary: expected 0 to {tokenizer.vocab_size - 1}")
    return array


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
