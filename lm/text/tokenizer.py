"""Tokenizers: text to ids and back.

A `TokenizerSpec` is the frozen value that an experiment holds; `make` turns it, with a training text, into a
`Tokenizer`, which saves itself into a folder that `load_tokenizer` reads. Every tokenizer is a table from id to bytes
with an `encode` of its own, so that decoding, also one id at a time (`Stream`), is written once, and decode(encode(x))
== x for every tokenizer trained here. A new kind of file (tokenizer.json, tiktoken ranks) is a new `Tokenizer` and a
line in `read`.
"""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from lm.text.train import SPACE, train_sentencepiece


class Tokenizer:
    """Text to ids and back: a table of the bytes of every id (empty for bos, eos and other controls), and `encode`."""

    def __init__(self, table: Sequence[bytes], bos: int | None = None, eos: int | None = None):
        self.table = tuple(table)
        self.vocab_size = len(self.table)
        self.bos, self.eos = bos, eos

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without bos or eos. Raises ValueError for text that has no UTF-8 form (a lone
        surrogate)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel where that helps."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bos and eos are skipped, incomplete UTF-8 becomes U+FFFD.

        Raises ValueError for an id outside the vocabulary."""
        return b"".join(self.bytes_of(i) for i in ids).decode("utf-8", "replace")

    def bytes_of(self, id: int) -> bytes:
        """The UTF-8 bytes of one id, possibly a part of a character."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary: expected 0 to {self.vocab_size - 1}")
        return self.table[id]

    def piece(self, id: int) -> str:
        """How one id reads to a person: its text, <0x..> for a byte of a longer character, <bos> and <eos>."""
        raw = self.bytes_of(id)
        if id in (self.bos, self.eos):
            return "<bos>" if id == self.bos else "<eos>"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{b:02X}>" for b in raw)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into `folder` (made if missing) for `load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """What `save` writes: file name to content."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """16 hex digits of its content: the same for two tokenizers exactly when they save the same files."""
        return hashlib.sha256(repr(sorted(self.files().items())).encode()).hexdigest()[:16]


class Stream:
    """Decodes ids as they arrive: `push` returns the text that is complete so far, `close` the rest. Joined they are
    `decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = isinstance(tokenizer, SentencePiece) and tokenizer.dummy_prefix

    def push(self, id: int) -> str:
        raw = self._tokenizer.bytes_of(id)
        if self._strip and raw:
            raw, self._strip = raw.removeprefix(b" "), False
        return self._decoder.decode(raw)

    def close(self) -> str:
        return self._decoder.decode(b"", final=True)


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226), `model` the content of its file."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = p = sentencepiece.SentencePieceProcessor(model_proto=model)
        super().__init__(
            [self._surface(i) for i in range(p.vocab_size())],
            bos=p.bos_id() if p.bos_id() >= 0 else None,
            eos=p.eos_id() if p.eos_id() >= 0 else None,
        )
        # models of other people may write "a" as "▁a": that space is not the text's
        self.dummy_prefix = p.encode("a", out_type=str)[0].startswith(SPACE)
        self._space_symbol = [p.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._bytes = all(p.is_byte(i) for i in self._space_symbol)

    def _surface(self, id: int) -> bytes:
        p = self._processor
        if p.is_byte(id):
            return bytes([int(p.id_to_piece(id)[3:5], 16)])
        if p.is_control(id):
            return b""
        return " \u2047 ".encode() if p.is_unknown(id) else p.id_to_piece(id).replace(SPACE, " ").encode()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            _check_text(text)
        if self.dummy_prefix or not self._bytes or not any(SPACE in text for text in texts):
            return self._processor.encode(list(texts), num_threads=-1)
        # a real U+2581 would come back as a space: spell it in bytes, as any character outside the vocabulary
        return [self._encode_around_space_symbol(text) for text in texts]

    def _encode_around_space_symbol(self, text: str) -> list[int]:
        first, *others = self._processor.encode(text.split(SPACE), num_threads=-1)
        return first + [i for part in others for i in (*self._space_symbol, *part)]

    def decode(self, ids: Iterable[int]) -> str:
        raw = b"".join(self.bytes_of(i) for i in ids)
        return (raw.removeprefix(b" ") if self.dummy_prefix else raw).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        raw = self.bytes_of(id)
        hidden = not raw and id not in (self.bos, self.eos)
        return self._processor.id_to_piece(id) if hidden else super().piece(id)

    def files(self) -> dict[str, bytes]:
        return {"sentencepiece.model": self._model}


class CharacterTokenizer(Tokenizer):
    """One id a character, in the order of their code points; no bos or eos (nanoGPT's shakespeare_char)."""

    def __init__(self, characters: Iterable[str]):
        self.characters = "".join(sorted(set(characters)))
        super().__init__([c.encode() for c in self.characters])
        self._codes = _code_points(self.characters)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text).tolist() for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        _check_text(text)
        codes = _code_points(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if unknown.size:
            raise ValueError(
                f"character {text[unknown[0]]!r} at position {unknown[0]} is not one of the {self.vocab_size} "
                "characters of the training text: take it out, or use Bytes() or SentencePieceSpec(), "
                "which write any text"
            )
        return ids

    def files(self) -> dict[str, bytes]:
        return {"characters.json": json.dumps(self.characters).encode()}


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then bos 256 and eos 257 (ByT5, Xue et al. 2021, arXiv:2105.13626, with its own
    order)."""

    def __init__(self) -> None:
        super().__init__([*(bytes([b]) for b in range(256)), b"", b""], bos=256, eos=257)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(_check_text(text)) for text in texts]

    def files(self) -> dict[str, bytes]:
        return {"bytes.json": b"{}"}


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer an experiment uses; a subclass says how it is made."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer, trained on `texts` where it needs training. `texts` is read only as far as needed."""
        raise NotImplementedError


@dataclass(frozen=True)
class SentencePieceSpec(TokenizerSpec):
    """SentencePiece trained on at most `train_bytes` of the text, so that every text survives encoding exactly:
    identity normalisation, no white space added or collapsed, bytes for rare characters."""

    vocab_size: int = 4096
    model: str = "bpe"
    byte_fallback: bool = True
    train_bytes: int = 10_000_000
    indentations: int = 24  # pieces kept for the most frequent "newline and indentation", which code is full of

    def __post_init__(self) -> None:
        if self.model not in ("bpe", "unigram"):
            raise ValueError(f"SentencePieceSpec model={self.model!r}: expected bpe or unigram")
        if self.vocab_size < 300 and self.byte_fallback:
            raise ValueError(f"vocab_size={self.vocab_size}: 256 bytes and 3 specials leave too few, take at least 300")
        if self.train_bytes < 1 or self.indentations < 0:
            raise ValueError(
                f"train_bytes={self.train_bytes}, indentations={self.indentations}: expected 1 and 0 or more"
            )

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return SentencePiece(
            train_sentencepiece(
                texts, self.vocab_size, self.model, self.byte_fallback, self.train_bytes, self.indentations
            )
        )


@dataclass(frozen=True)
class Characters(TokenizerSpec):
    """One id for every character that occurs in the training text (all of it is read)."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        characters: set[str] = set().union(*(set(text) for text in texts))
        if not characters:
            raise ValueError("no text to take characters from: every training document is empty")
        return CharacterTokenizer(characters)


@dataclass(frozen=True)
class Bytes(TokenizerSpec):
    """One id a byte, 258 in all."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return ByteTokenizer()


@dataclass(frozen=True)
class TokenizerFile(TokenizerSpec):
    """A tokenizer that exists: the file of a SentencePiece model, or a folder written by `Tokenizer.save`."""

    path: str

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return read(self.path)


def read(path: str | Path) -> Tokenizer:
    """The tokenizer in the file, or the folder, `path`. Raises ValueError where there is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        return load_tokenizer(path)
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}: expected the file of a SentencePiece model, or a folder that holds one"
        )
    try:
        return SentencePiece(path.read_bytes())
    except RuntimeError:
        raise ValueError(
            f"{path} is not a SentencePiece model: expected the .model file that its trainer writes"
        ) from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `folder`. Raises ValueError where there is none."""
    readers: dict[str, Callable[[bytes], Tokenizer]] = {
        "sentencepiece.model": SentencePiece,
        "characters.json": lambda data: CharacterTokenizer(json.loads(data)),
        "bytes.json": lambda data: ByteTokenizer(),
    }
    for name, reader in readers.items():
        if (file := Path(folder) / name).is_file():
            try:
                return reader(file.read_bytes())
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{file} is damaged: {str(error).splitlines()[-1]}") from None
    raise ValueError(f"no tokenizer in {folder}: expected one of {', '.join(readers)}")


def _check_text(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has no UTF-8 form: lone surrogate {text[error.start]!r} at position {error.start}"
        ) from None


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
