"""Sources whose documents are records: lines of JSON, rows of Parquet, examples of a TFDS data set.

A document is the text in the field `field` of a record, or for field="" the whole record as JSON, as `WholeRecords`
read them (lm/data/conversations.py, lm/data/prompts.py).
"""

import bisect
import functools
import glob
import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.bounds import Share
from lm.data.source import (
    Collection,
    Documents,
    Source,
    check_uncompressed,
    content,
    digest,
    expand,
    first_line,
    is_train,
    not_empty,
    paths,
    text_of,
)


@dataclass(frozen=True)
class Jsonl(Collection):
    """A document for every line of a JSONL file: the text in `field` of its object ("": the object). `path` may be a
    glob pattern. A fraction `heldout` of the documents is held out, or the file of that path."""

    path: str
    field: str = "text"
    heldout: Share | str = 0.05

    def _named(self, path: str, hidden: bool = False) -> tuple[Iterable[str], Documents]:
        return _numbered([(file, _line_starts(file)) for file in _matching(path)], self._line, _line_number)

    def _line(self, file: Path, start: int) -> str:
        with file.open("rb") as stream:
            stream.seek(start)
            raw = stream.readline()
        try:
            return self._text(raw, f"the line at byte {start}")
        except ValueError as error:
            raise ValueError(f"{file}: {error} (line {_line(file, start)})") from None

    def _text(self, raw: bytes, where: str) -> str:
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            wanted = f" with {self.field!r}" if self.field else ""
            raise ValueError(f"{where} is {type(record).__name__}, expected an object{wanted}")
        return text_of(record, self.field, where)

    def _identity(self, hidden: bool = False) -> list[Any]:
        return [content([f for p in paths(self.path, self.heldout) for f in _matching(p)])]


@dataclass(frozen=True)
class Parquet(Collection):
    """A document for every row of a Parquet file: the text in column `field` ("": the row). `path` may be a glob
    pattern. A fraction `heldout` of the documents is held out, or the file of that path."""

    path: str
    field: str = "text"
    heldout: Share | str = 0.05

    def _named(self, path: str, hidden: bool = False) -> tuple[Iterable[str], Documents]:
        files = [(file, np.arange(_parquet_starts(file, self.field)[-1])) for file in _matching(path)]
        return _numbered(files, self._row, _row_number)

    def _row(self, file: Path, row: int) -> str:
        starts = _parquet_starts(file, self.field)
        group = bisect.bisect_right(starts, row) - 1
        record = _parquet_group(file, group, self.field).slice(row - starts[group], 1).to_pylist()[0]
        return self._document(record, _row_number(file, row))

    def _document(self, record: dict[str, Any], where: str) -> str:
        return text_of(record, self.field, where)

    def _identity(self, hidden: bool = False) -> list[Any]:
        return [content([f for p in paths(self.path, self.heldout) for f in _matching(p)])]


@dataclass(frozen=True)
class Tfds(Source):
    """A TFDS data set by name (or name/config:version), read from array_record files without TensorFlow; where it is
    not under `data_dir` it is prepared there, and downloaded first. `train` and `heldout` are TFDS splits
    ("train[:90%]")."""

    name: str
    field: str = "text"
    data_dir: str | None = None
    train: str = "train"
    heldout: str = "validation"

    def documents(self, split: str) -> Documents:
        name = self.train if is_train(split) else self.heldout
        try:
            records = self._records(self._builder(), name)
        except (KeyError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.name} has no split {name!r} that can be read: {first_line(error)}") from None
        where = f"{self.name}, {name}, example {{}}".format
        return not_empty(Documents(len(records), lambda i: self._document(records[i], self.name), where), self, split)

    def _records(self, builder: Any, split: str) -> Any:
        return builder.as_data_source(split=split)

    def _document(self, record: dict[str, Any], where: str) -> str:
        return text_of(record, self.field, where)

    def _builder(self) -> Any:
        tfds = extra("tensorflow_datasets")
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record")
            builder.download_and_prepare()
            return builder
        except Exception as error:  # TFDS, its downloads and the data set's own code raise any
            raise ValueError(
                f"cannot get the TFDS data set {self.name!r} (it has to be in "
                f"{self.data_dir or '~/tensorflow_datasets'}, or there has to be a network to download it): "
                f"{first_line(error)}"
            ) from None

    def fingerprint(self) -> str:
        info = self._builder().info
        return digest(self, info.full_name, {n: [s.num_examples, s.num_bytes] for n, s in info.splits.items()})


@dataclass(frozen=True)
class WholeRecords(Source):
    """The `records` of a Jsonl, Parquet or Tfds, whole; of another source, its documents. The base class of sources
    that read more of a record than a text; `document_name` is what they make of one."""

    records: Source

    document_name: ClassVar[str] = "document"

    def __post_init__(self) -> None:
        if isinstance(self.records, Jsonl | Parquet | Tfds) and self.records.field not in ("", "text"):
            raise ValueError(
                f"records.field={self.records.field!r}: a {self.document_name} is a whole record, leave field out"
            )

    @property
    def _whole(self) -> Source:
        """The records as JSON."""
        return replace(self.records, field="") if isinstance(self.records, Jsonl | Parquet | Tfds) else self.records

    def documents(self, split: str) -> Documents:
        return self._whole.documents(split)

    def fingerprint(self) -> str:
        return self._whole.fingerprint()

    def left_out(self) -> str:
        return self._whole.left_out()


def extra(module: str) -> Any:
    """A module of the extra "datasets". Raises ValueError, with how to install it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        cure = 'pip install -e ".[datasets]"'
        raise ValueError(f"Parquet files and TFDS data sets need the extra datasets: {cure} ({error})") from None


def _matching(pattern: str) -> list[Path]:
    path = expand(pattern)
    if path.is_dir():
        raise ValueError(f"{pattern} is a folder: expected a file, or a pattern of files as in {pattern}/*.jsonl")
    named = [path] if path.is_file() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in named if file.is_file())
    if not files:
        raise ValueError(f"no such file: {pattern}")
    for file in files:
        check_uncompressed(file)
    return files


def _numbered(
    files: list[tuple[Path, np.ndarray]], read: Callable[[Path, int], str], where: Callable[[Path, int], str]
) -> tuple[Iterable[str], Documents]:
    """The records of `files`, each a file with the locations of its records, which `read` takes, and of which `where`
    says in words where they are; and their numbers."""
    which = np.repeat(np.arange(len(files)), [len(records) for _, records in files])
    records = np.concatenate([records for _, records in files])
    documents = Documents(
        len(records),
        lambda i: read(files[which[i]][0], int(records[i])),
        lambda i: where(files[which[i]][0], int(records[i])),
    )
    return map(str, range(len(records))), documents


def _line(file: Path, start: int) -> int:
    """The number of the line at byte `start`, from 1."""
    with file.open("rb") as stream:
        return stream.read(start).count(b"\n") + 1


def _line_number(file: Path, start: int) -> str:
    return f"{file}, line {_line(file, start)}"


def _row_number(file: Path, row: int) -> str:
    return f"{file}, row {row}"


def _line_starts(file: Path) -> np.ndarray:
    """The byte offsets of the lines that are not blank."""
    starts, at = [], 0
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                starts.append(at)
            at += len(line)
    return np.array(starts, np.int64)


@functools.lru_cache(maxsize=64)
def _parquet_starts(file: Path, field: str) -> list[int]:
    """The first row of each row group, then the number of rows."""
    pyarrow, parquet = extra("pyarrow"), extra("pyarrow.parquet")
    try:
        opened = parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file: {first_line(error)}") from None
    if field and field not in opened.schema_arrow.names:
        raise ValueError(f"{file}: no field {field!r}; there are: {', '.join(opened.schema_arrow.names)}")
    rows = [opened.metadata.row_group(g).num_rows for g in range(opened.metadata.num_row_groups)]
    return [0, *np.cumsum(rows).tolist()]


@functools.lru_cache(maxsize=4)
def _parquet_group(file: Path, group: int, field: str) -> Any:
    return extra("pyarrow.parquet").ParquetFile(file).read_row_group(group, columns=[field] if field else None)
