"""Sources: where documents come from.

A `Source` is a frozen value of an experiment; `documents(split)` opens it as a random-access sequence of texts, for
split "train" or "heldout". Which documents of a `Collection` are held out is decided by a hash of their text: identical
ones are never on both sides, and none changes sides when others are added, moved or renamed.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np

from lm.bounds import Share
from lm.data.encoded import Encoded, encode_texts
from lm.data.remote import is_url, mirror
from lm.text.tokenizer import Tokenizer

SPLITS = ("train", "heldout")
HASHED_BYTES = 64 * 2**20  # sources up to this size are fingerprinted by content, larger ones by sizes and mtimes


class Documents(Sequence[str]):
    """A split of a source: `count` texts, read on access. `where` says in which file, and where in it, one is ("": it
    is not known)."""

    def __init__(self, count: int, read: Callable[[int], str], where: Callable[[int], str] = lambda _: ""):
        self._count, self._read, self.where = count, read, where

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"document {index} of {self._count}")
        return self._read(int(index))

    def __iter__(self) -> Iterator[str]:
        return map(self._read, range(self._count))


@dataclass(frozen=True)
class Source:
    """Documents with a train and a held-out split; `kind` is what they are, for the objectives that read them."""

    kind: ClassVar[str] = "texts"

    def documents(self, split: str) -> Documents:
        """The texts of `split`. Raises ValueError where there are none, or where they cannot be read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits that change when the documents or their split do."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        """The tokens of each of `texts`, which are documents of this source. Raises ValueError, BadDocument for one of
        them alone, where they have none."""
        return encode_texts(texts, tokenizer)

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        """What `encode` depends on besides its arguments' fingerprints."""
        return []

    def plain_text(self, document: str) -> str:
        """The text in one of its documents."""
        return document

    def earlier(self) -> "Source | None":
        """This source as an earlier version split it, for runs that began with that; None where nothing has changed."""
        return None

    def comparable(self) -> "Source":
        """The source of the same held-out questions and answers, by which arms of a study compare: itself, unless it
        changes only what is shown beside them."""
        return self

    def left_out(self) -> str:
        """What is there and not read, in words; "" where everything is read."""
        return ""


class Collection(Source):
    """A source of many documents. `heldout` is the fraction of them that is held out, or the path of others that are.

    A subclass has these fields, and a pair of methods: `_named` is all documents at a path with their names, in which
    `hidden` files are among them or not, and `_identity` is of what determines them."""

    path: str
    heldout: Share | str

    def __post_init__(self) -> None:
        check_fraction(self.heldout)

    def _named(self, path: str, hidden: bool = False) -> tuple[Iterable[str], Documents]:
        raise NotImplementedError

    def _identity(self, hidden: bool = False) -> list[Any]:
        raise NotImplementedError

    def documents(self, split: str) -> Documents:
        if isinstance(self.heldout, str):
            return not_empty(self._named(self.path if is_train(split) else self.heldout)[1], self, split)
        limit = math.ceil(self.heldout * 2**64)
        held = _content_hashes(self, self.fingerprint()) < np.uint64(limit)
        return not_empty(_selected(self._named(self.path)[1], held != is_train(split)), self, split)

    def fingerprint(self) -> str:
        split = [] if isinstance(self.heldout, str) else ["split by content"]
        return digest(self, *self._identity(), *split)

    def earlier(self) -> Source:
        return _SplitByName(self)


@dataclass(frozen=True)
class _SplitByName(Source):
    """`source` as it was split until November 2026: by the names of files in a folder, hidden ones included, and by the
    numbers of records over all files. Runs that began with it go on with it (lm/run/folder.py)."""

    source: Collection

    def documents(self, split: str) -> Documents:
        source, heldout = self.source, self.source.heldout
        if isinstance(heldout, str):
            return not_empty(source._named(source.path if is_train(split) else heldout, hidden=True)[1], source, split)
        names, documents = source._named(source.path, hidden=True)
        chosen = np.array([held_out(name, heldout) != is_train(split) for name in names], bool)
        return not_empty(_selected(documents, chosen), source, split)

    def fingerprint(self) -> str:
        return digest(self.source, *self.source._identity(hidden=True))


def _selected(documents: Documents, chosen: np.ndarray) -> Documents:
    """Those of `documents` where `chosen` [N] is true."""
    indices = np.flatnonzero(chosen)
    return Documents(len(indices), lambda i: documents[int(indices[i])], lambda i: documents.where(int(indices[i])))


@functools.lru_cache(maxsize=8)
def _content_hashes(source: Collection, fingerprint: str) -> np.ndarray:
    """[N] uint64: a hash of the text of each document of `source`, which has that `fingerprint` now."""
    return np.array([text_hash(text) for text in source._named(source.path)[1]], np.uint64)


@dataclass(frozen=True)
class TextFile(Source):
    """One UTF-8 file as one document. The last fraction `heldout` of its characters is held out, or the file of that
    path. nanoGPT's split of tinyshakespeare is TextFile(path, heldout=0.1)."""

    path: str
    heldout: Share | str = 0.1

    def __post_init__(self) -> None:
        check_fraction(self.heldout)

    def documents(self, split: str) -> Documents:
        if isinstance(self.heldout, str):
            text = read_text(existing(self.path if is_train(split) else self.heldout))
        else:
            text = read_text(existing(self.path))
            cut = int((1 - self.heldout) * len(text))
            text = text[:cut] if is_train(split) else text[cut:]
        return not_empty(Documents(1 if text else 0, lambda _: text), self, split)

    def fingerprint(self) -> str:
        return digest(self, content([existing(p) for p in paths(self.path, self.heldout)]))


@dataclass(frozen=True)
class TextFolder(Collection):
    """A document for every UTF-8 file under `path` that matches `pattern`, without hidden ones (.git/,
    .ipynb_checkpoints/) unless the pattern names them. A fraction `heldout` of the documents is held out, or those of
    the folder of that path."""

    path: str
    pattern: str = "**/*.txt"
    heldout: Share | str = 0.1

    def _files(self, path: str, hidden: bool = False) -> tuple[Path, list[str]]:
        folder = Path(mirror(path, self.pattern)) if is_url(path) else existing(path)
        if not folder.is_dir():
            raise ValueError(f"{path} is a file: expected a folder of them, or TextFile({str(path)!r})")
        try:
            names = sorted(p.relative_to(folder).as_posix() for p in folder.glob(self.pattern) if p.is_file())
        except (ValueError, NotImplementedError) as error:  # a pattern that is absolute, or none
            raise ValueError(f"pattern={self.pattern!r}: {error}; expected one as **/*.txt, relative to path") from None
        kept = [name for name in names if hidden or not self._is_hidden(name)]
        if not kept:
            others = f" but {len(names)} hidden ones" if names else ""
            raise ValueError(
                f"no file in {folder} matches {self.pattern!r}{others}: expected text files, or another pattern"
            )
        return folder, kept

    def _is_hidden(self, name: str) -> bool:
        return is_hidden(name) and not is_hidden(self.pattern)

    def _named(self, path: str, hidden: bool = False) -> tuple[Iterable[str], Documents]:
        folder, names = self._files(path, hidden)
        return names, Documents(len(names), lambda i: read_text(folder / names[i]), names.__getitem__)

    def _identity(self, hidden: bool = False) -> list[Any]:
        folders = [self._files(path, hidden) for path in paths(self.path, self.heldout)]
        files = [folder / name for folder, names in folders for name in names]
        return [[name for _, names in folders for name in names], content(files)]

    def left_out(self) -> str:
        every = [name for path in paths(self.path, self.heldout) for name in self._files(path, hidden=True)[1]]
        names = [name for name in every if self._is_hidden(name)]
        if not names:
            return ""
        return f"1 hidden file ({names[0]})" if len(names) == 1 else f"{len(names)} hidden files ({names[0]}, …)"


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that begins with a dot; `path` is relative to the whole."""
    return any(part.startswith(".") for part in PurePath(path).parts)


def text_hash(text: str) -> int:
    """64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(name: str, fraction: float) -> bool:
    """Whether the document `name` is in the held-out split, by a hash of its name."""
    return text_hash(name) < fraction * 2**64


def existing(path: str | Path) -> Path:
    """`path` with ~ expanded. Raises ValueError where nothing is there, or it is empty."""
    if not str(path):
        raise ValueError("the path of a text is empty: expected a file or a folder")
    expanded = expand(path)
    if not expanded.exists():
        raise ValueError(f"no such file or folder: {path}")
    return expanded


def expand(path: str | Path) -> Path:
    """`path` with ~ expanded, or of a URL what was fetched. Raises ValueError where nobody has that name."""
    if is_url(path):
        return Path(mirror(str(path)))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, line endings unchanged. Raises ValueError naming the file and the first bad byte."""
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        check_uncompressed(file)
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}, in line {line}; "
            "convert the file, or leave it out"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None


# the first bytes of a compressed file -> what makes it a plain one
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"PK\x03\x04": "unzip",
}


def check_uncompressed(file: Path) -> None:
    """Raises ValueError for a compressed file: documents are read at random, which it does not allow."""
    with file.open("rb") as stream:
        start = stream.read(8)
    for magic, command in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{file} is compressed: unpack it first ({command} {file}) and give the file that is in it"
            )


def text_of(record: dict[str, Any], field: str, where: str) -> str:
    """The text in `field` of one record; for the field "" the whole record as JSON. Raises ValueError, which begins
    with `where`, if there is none."""
    if not field:
        return json.dumps(record, default=_as_json, ensure_ascii=False, sort_keys=True)
    if field not in record:
        raise ValueError(f"{where}: no field {field!r}; there are: {', '.join(map(str, record)) or 'none'}")
    text = record[field]
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{where}: field {field!r} holds {type(text).__name__}, expected text")
    try:
        text = text if isinstance(text, str) else text.decode()
        text.encode()
    except UnicodeError as error:
        bad = f"lone surrogate {error.object[error.start]!r}" if isinstance(error, UnicodeEncodeError) else str(error)
        raise ValueError(f"{where}: field {field!r} has no UTF-8 form, remove what is broken: {bad}") from None
    return text


def _as_json(value: Any) -> Any:
    """What Parquet and TFDS have and JSON has not: bytes as text, arrays as lists, others as text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def not_empty(documents: Documents, source: Source, split: str) -> Documents:
    """`documents`. Raises ValueError where there are none."""
    if not len(documents):
        raise ValueError(f"{source} has no {split} documents: give it more documents, or another fraction heldout")
    return documents


def is_train(split: str) -> bool:
    """Whether `split` is "train". Raises ValueError where it is not one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected train or heldout")
    return split == "train"


def check_fraction(heldout: float | str) -> None:
    """Raises ValueError where `heldout` is neither a path nor a fraction between 0 and 1."""
    if not isinstance(heldout, str) and not 0 < heldout < 1:
        raise ValueError(f"heldout={heldout}: expected a fraction between 0 and 1, or the path of the held-out text")


def paths(path: str, heldout: float | str) -> list[str]:
    """The paths that a source reads: its own, and that of the held-out documents where it has one."""
    return [path, heldout] if isinstance(heldout, str) else [path]


def content(files: Sequence[Path]) -> list[str]:
    """The identity of the content of `files`: a hash of each, or its size and mtime where they are large. Raises
    ValueError where one cannot be read."""
    try:
        states = [f.stat() for f in files]
        if sum(s.st_size for s in states) <= HASHED_BYTES:
            return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None
    return [f"{f.name} {s.st_size} {s.st_mtime_ns}" for f, s in zip(files, states, strict=True)]


def digest(source: Source, *content: Any) -> str:
    """A fingerprint of the source's fields, except its location, and of its content."""
    fields = {k: v for k, v in vars(source).items() if k not in ("path", "data_dir")}
    if "path" in vars(source) and isinstance(fields.get("heldout"), str):
        del fields["heldout"]  # a path: its content counts, not its name
    text = json.dumps([type(source).__name__, fields, *content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_line(error: Exception) -> str:
    """The first line of the message of an error from another library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
