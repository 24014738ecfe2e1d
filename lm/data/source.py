"""Sources: where documents come from.

A `Source` is a frozen value of an experiment; `documents(split)` opens it as a random-access sequence of texts, for
split "train" or "heldout". The split of a document is a hash of its name or index, so that it does not change when
others are added.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("train", "heldout")
HASHED_BYTES = 64 * 2**20  # sources up to this size are fingerprinted by content, larger ones by sizes and mtimes


class Documents(Sequence[str]):
    """A split of a source: `count` texts, read on access."""

    def __init__(self, count: int, read: Callable[[int], str]):
        self._count, self._read = count, read

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
    """Documents with a train and a held-out split."""

    def documents(self, split: str) -> Documents:
        """The texts of `split`. Raises ValueError where there are none, or where they cannot be read."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits that change when the documents do."""
        raise NotImplementedError


@dataclass(frozen=True)
class TextFile(Source):
    """One UTF-8 file as one document. The last fraction `heldout` of its characters is held out, or the file of that
    path. nanoGPT's split of tinyshakespeare is TextFile(path, heldout=0.1)."""

    path: str
    heldout: float | str = 0.1

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
class TextFolder(Source):
    """A document for every UTF-8 file under `path` that matches `pattern`. A fraction `heldout` of the files is held
    out, or those of the folder of that path."""

    path: str
    pattern: str = "**/*.txt"
    heldout: float | str = 0.1

    def __post_init__(self) -> None:
        check_fraction(self.heldout)

    def _files(self, path: str) -> tuple[Path, list[str]]:
        folder = existing(path)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.glob(self.pattern) if p.is_file())
        if not names:
            raise ValueError(f"no file in {folder} matches {self.pattern!r}: expected text files, or another pattern")
        return folder, names

    def documents(self, split: str) -> Documents:
        folder, names = self._files(
            self.heldout if isinstance(self.heldout, str) and not is_train(split) else self.path
        )
        if not isinstance(self.heldout, str):
            names = [n for n in names if held_out(n, self.heldout) != is_train(split)]
        return not_empty(Documents(len(names), lambda i: read_text(folder / names[i])), self, split)

    def fingerprint(self) -> str:
        folders = [self._files(path) for path in paths(self.path, self.heldout)]
        files = [folder / name for folder, names in folders for name in names]
        return digest(self, [name for _, names in folders for name in names], content(files))


def held_out(name: str, fraction: float) -> bool:
    """Whether the document `name` is in the held-out split, by a hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < fraction * 2**64


def existing(path: str | Path) -> Path:
    """`path` with ~ expanded. Raises ValueError where nothing is there."""
    expanded = Path(path).expanduser()
    if not expanded.exists():
        raise ValueError(f"no such file or folder: {path}")
    return expanded


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, line endings unchanged. Raises ValueError naming the file and the first bad byte."""
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "convert the file, or leave it out"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None


def text_of(record: dict[str, Any], field: str, where: str) -> str:
    """The text in `field` of one record. Raises ValueError, which begins with `where`, if there is none."""
    if field not in record:
        raise ValueError(f"{where}: no field {field!r}; there are: {', '.join(map(str, record)) or 'none'}")
    text = record[field]
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{where}: field {field!r} holds {type(text).__name__}, expected text")
    return text if isinstance(text, str) else text.decode()


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
