"""The token store: a split of a source, tokenised once and cached by the fingerprints of source and tokenizer.

A folder with `tokens.bin` (the ids of all documents, concatenated and memory-mapped), `offsets.npy`, `bytes.npy` and
`store.json`; where some tokens carry no loss, as in conversations, also `loss.bin`, one byte a token; where documents
are preference pairs, also `second.npy` and `values.npy`. A text is [bos] +
its tokens + [eos], where the tokenizer has them. Empty documents are left out.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lm.data.encoded import BadDocument, Encoded, encode_texts
from lm.data.source import Documents, Source, text_hash
from lm.machine.cache import cache_dir, discard, is_complete, locked, write_folder
from lm.text.tokenizer import Tokenizer

FORMAT = 1  # of the files: raise it when it changes
BATCH_CHARACTERS = 2_000_000  # tokenised together

Progress = Callable[[int, int], None]  # (documents done, documents in all)
Encode = Callable[[Sequence[str], Tokenizer], Iterator[Encoded]]


class TokenStore:
    """N tokenised documents. `store[i]` is an array of ids; `lengths` [N] in tokens and `bytes` [N] in UTF-8 bytes are
    the sizes of the documents; `tokens` the ids of all, of which document i has `offsets[i]` to `offsets[i + 1]`.
    `coded_bytes` are those of the text that has a token before it: without a begin token, a document's first token is
    not predicted, and its bytes are not among them. `unknown` is how many tokens stand for text outside the vocabulary.
    `hashes` [N] are of the documents' texts (None where an earlier version wrote the store). `loss` is 1 for tokens
    that carry loss, 0 for others (None: all do). `second` [N] is where in a preference pair its second side begins, and
    `values` [N] its number (None: documents are no pairs). `dropped` says which documents are left out, and why.

    Raises ValueError where the files are damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "store.json").read_text())
            self.offsets: np.ndarray = np.load(self.folder / "offsets.npy")
            self.bytes: np.ndarray = np.load(self.folder / "bytes.npy")
            self.tokens: np.ndarray = np.memmap(self.folder / "tokens.bin", dtype=about["dtype"], mode="r")
            loss = self.folder / "loss.bin"
            masks = loss.stat().st_size if about.get("masked") else about["tokens"]
            consistent = about["tokens"] == len(self.tokens) == self.offsets[-1] == masks
            consistent &= about["documents"] == len(self.bytes) == len(self.offsets) - 1
            self.second: np.ndarray | None = np.load(self.folder / "second.npy") if about.get("paired") else None
            self.values: np.ndarray | None = np.load(self.folder / "values.npy") if about.get("paired") else None
            consistent &= self.second is None or len(self.second) == len(self.bytes)
            consistent &= self.values is None or len(self.values) == len(self.bytes)
        except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
            raise ValueError(f"the token store {folder} is damaged: {error}") from None
        if not consistent:
            raise ValueError(f"the token store {folder} is damaged: its files are not of the sizes in store.json")
        self.vocab_size: int = about["vocab_size"]
        self.coded_bytes: int = self.total_bytes - about.get("first_bytes", 0)
        self.unknown: int = about.get("unknown", 0)
        self.dropped: str = about.get("without_loss", "")
        self.loss: np.ndarray | None = np.memmap(loss, np.uint8, "r") if about.get("masked") else None
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
    counted += source.encoding(tokenizer)
    key = json.dumps([FORMAT, source.fingerprint(), split, tokenizer.fingerprint, *counted])
    folder = cache_dir() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if is_complete(folder):
        return TokenStore(folder)
    with locked(folder):
        if is_complete(folder):  # another process has written it meanwhile
            return TokenStore(folder)
        discard(folder)
        documents, name = source.documents(split), f"{split} split of {source}"
        return write_store(documents, tokenizer, folder, name, progress, source.encode)


def write_store(
    documents: Documents | list[str],
    tokenizer: Tokenizer,
    folder: Path,
    name: str = "documents",
    progress: Progress | None = None,
    encode: Encode = encode_texts,
) -> TokenStore:
    """Tokenise `documents` into `folder`.

    Args:
      documents: texts.
      tokenizer: the token ids are its.
      folder: of the store.
      name: of the documents, for messages.
      progress: called with (documents done, documents in all).
      encode: texts to tokens.

    Raises:
      ValueError: where there are no tokens at all, an id is outside the vocabulary, or the disk is full.
    """
    listed = documents if isinstance(documents, Documents) else Documents(len(documents), documents.__getitem__)

    def fill(temporary: Path) -> None:
        counts = _write_tokens(temporary, listed, tokenizer, encode, progress)
        tokens, dropped = sum(counts.lengths), _in_words(listed, counts.dropped)
        if dropped and not tokens:
            raise ValueError(f"nothing to learn in the {name}: {dropped}")
        if not tokens:
            raise ValueError(f"no tokens in the {name}: its {len(documents)} documents are empty")
        np.save(temporary / "offsets.npy", np.concatenate([[0], np.cumsum(counts.lengths)]).astype(np.int64))
        np.save(temporary / "bytes.npy", np.array(counts.sizes, np.int64))
        np.save(temporary / "hashes.npy", np.array(counts.hashes, np.uint64))
        about = {"dtype": np.dtype(_dtype(tokenizer)).name, "documents": len(counts.lengths), "tokens": tokens}
        about |= {"vocab_size": tokenizer.vocab_size, "first_bytes": counts.first_bytes, "unknown": counts.unknown}
        about |= {"masked": True, "without_loss": dropped} if counts.masked else {}
        if any(counts.seconds):
            about["paired"] = True
            np.save(temporary / "second.npy", np.array(counts.seconds, np.int64))
            np.save(temporary / "values.npy", np.array(counts.values, np.float32))
        (temporary / "store.json").write_text(json.dumps(about))

    return TokenStore(write_folder(folder, fill))


def _dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32


@dataclass
class _Counts:
    """The size of each document in tokens and in bytes, the hash of its text, the bytes of all first tokens that
    nothing comes before, and the number of unknown tokens. `masked`: whether a document has tokens without loss;
    `seconds` and `values`: of pairs; `dropped`: why -> the documents that are left out for it."""

    lengths: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    first_bytes: int = 0
    unknown: int = 0
    masked: bool = False
    seconds: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)

    def add(self, text: str, one: Encoded, unk: int | None) -> None:
        self.lengths.append(len(one.ids))
        self.sizes.append(one.bytes)
        self.hashes.append(text_hash(text))
        self.unknown += 0 if unk is None else int((one.ids == unk).sum())
        self.first_bytes += one.first_bytes
        self.masked |= one.loss is not None
        self.seconds.append(one.second)
        self.values.append(one.value)


def _in_words(documents: Documents, dropped: Mapping[str, list[int]]) -> str:
    """How many of `documents` are left out, by reason."""
    told = []
    for why, numbers in dropped.items():
        where = documents.where(numbers[0]) or f"number {numbers[0]}"
        told.append(f"{len(numbers):,} of {len(documents):,} documents {why} (the first: {where})")
    return "; ".join(told)


def _why_dropped(one: Encoded) -> str:
    """Why a document is left out, "" where it is not."""
    return one.dropped or ("have no token with loss" if one.loss is not None and not one.loss[1:].any() else "")


def _write_tokens(
    folder: Path, documents: Documents, tokenizer: Tokenizer, encode: Encode, progress: Progress | None
) -> _Counts:
    """Write every document's ids to tokens.bin, and which carry loss to loss.bin, in `folder`."""
    counts, done = _Counts(), 0
    with (folder / "tokens.bin").open("wb") as out, (folder / "loss.bin").open("wb") as masks:
        for texts in _batches(documents):
            kept = [(number, text) for number, text in enumerate(texts, start=done) if text]
            encoded = encode([text for _, text in kept], tokenizer)
            for number, text in kept:
                one = _encoded(encoded, documents, number)
                if why := _why_dropped(one):
                    counts.dropped.setdefault(why, []).append(number)
                    continue
                out.write(one.ids.astype(_dtype(tokenizer)).tobytes())
                masks.write(np.ones(len(one.ids), bool).tobytes() if one.loss is None else one.loss.tobytes())
                counts.add(text, one, tokenizer.unk)
            done += len(texts)
            if progress:
                progress(done, len(documents))
    if not counts.masked:
        (folder / "loss.bin").unlink()
    return counts


def _encoded(encoded: Iterator[Encoded], documents: Documents, number: int) -> Encoded:
    """The next of `encoded`, which is document `number`. Raises ValueError, which begins with where that is."""
    try:
        return next(encoded)
    except BadDocument as error:
        where = documents.where(number)
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


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
