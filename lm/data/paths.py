"""Paths that a user names, as documents: text files, JSONL and Parquet, or folders of them.

Of records the field "text" is read. Hidden files are left out.
"""

import glob
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from lm.data.records import Jsonl, Parquet
from lm.data.remote import is_url, names
from lm.data.source import Source, TextFile, TextFolder, check_uncompressed, existing, is_hidden, read_text

RECORDS: dict[str, type[Jsonl] | type[Parquet]] = {".jsonl": Jsonl, ".ndjson": Jsonl, ".parquet": Parquet}
PATTERN = "--set data.mixture.sources.text.pattern"
TABLES = (".json", ".csv", ".tsv")


def texts(path: str | Path) -> Iterator[str]:
    """The documents of a file, or of all files of text under a folder; others are told by a warning. Raises ValueError
    where there are none, or for what is not text."""
    path = existing(path)
    if path.is_dir():
        files = _visible(path)
        if not files:
            raise ValueError(f"{path} holds no file")
        plain = [file for file in files if file.suffix in RECORDS or is_text(file)] or files
        if others := [file for file in files if file not in plain]:
            warnings.warn(f"{path}: left out, since no text: {', '.join(one.name for one in others)}", stacklevel=2)
        for file in plain:
            yield from texts(file)
    elif path.suffix in RECORDS:
        yield from RECORDS[path.suffix](str(path), heldout=str(path)).documents("train")  # no record is held out
    else:
        yield read_text(path)


def source_at(path: str | Path) -> tuple[Source, str]:
    """The source that reads `path`, and what to tell of it ("": it is as one would think).

    A folder with .txt files is read as those alone; one without them as its .jsonl, .ndjson or .parquet files, the
    first kind that it has, else as all its files, or where some are not text as those of the commonest suffix that are.
    Raises ValueError where nothing is there, or it is compressed."""
    if is_url(path):
        root, there = str(path).rstrip("/"), names(str(path))
        found, single = Counter(PurePath(name).suffix for name in there if not is_hidden(name)), not there
    else:
        file = existing(path).resolve()
        root, single = str(file), not file.is_dir()
        found = Counter() if single else Counter(one.suffix for one in _visible(file))
    if single:
        return _of_file(root)
    suffix = next((suffix for suffix in (".txt", *RECORDS) if found[suffix]), None)
    if suffix is None:
        suffix = "" if is_url(path) else _commonest_of_text(_visible(Path(root)))
        told = f"{_left_out(suffix, found)}; {PATTERN}='**/*.NAME' reads others" if suffix else ""
        return TextFolder(root, pattern=f"**/*{suffix}"), told
    told = _left_out(suffix, found)
    if suffix == ".txt":
        cure = f"; {PATTERN}='**/*' reads all" if told else ""
        return TextFolder(root), told + cure
    told = f"the field 'text' of each record is read{'; ' * bool(told)}{told}"
    return RECORDS[suffix](f"{glob.escape(root)}/**/*{suffix}"), told


def _of_file(path: str) -> tuple[Source, str]:
    suffix = PurePath(path).suffix
    if not is_url(path):
        check_uncompressed(Path(path))
    if kind := RECORDS.get(suffix):
        return kind(path), "the field 'text' of each record is read"
    plain = "is read as plain text: records are read from .jsonl and .parquet"
    return TextFile(path), plain if suffix in TABLES else ""


def _left_out(suffix: str, found: Counter[str]) -> str:
    others = [f"{n} {other or 'without a suffix'}" for other, n in sorted(found.items()) if other != suffix]
    return f"only its {found[suffix]} {suffix} files are read, left out are {', '.join(others)}" if others else ""


def is_text(file: Path) -> bool:
    """Whether a file looks like text: by its first bytes, of which none is zero."""
    with file.open("rb") as opened:
        return b"\0" not in opened.read(1024)


def _commonest_of_text(files: Sequence[Path]) -> str:
    """The suffix that most files of text have, where some files are not text; else ""."""
    plain = [file for file in files if is_text(file)]
    counts = Counter(file.suffix for file in plain if file.suffix)
    return counts.most_common(1)[0][0] if counts and len(plain) < len(files) else ""


def _visible(folder: Path) -> Sequence[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not is_hidden(p.relative_to(folder).as_posix()))
