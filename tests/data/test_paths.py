"""Paths on the command line, as documents and as sources."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lm.data.paths import source_at, texts
from lm.data.records import Jsonl, Parquet
from lm.data.source import TextFile, TextFolder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus [1]"
    (folder / "inner").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "c.txt").write_text("hidden")
    (folder / "a.txt").write_text("of a")
    (folder / "inner" / "b.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(100)))
    return folder


def test_every_document_of_every_file_is_read_but_hidden_ones(corpus: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row 0", "row 1"]}), corpus / "inner" / "c.parquet")
    assert list(texts(corpus)) == ["of a", *(f"line {i}" for i in range(100)), "row 0", "row 1"]
    assert list(texts(corpus / "inner" / "b.jsonl"))[1] == "line 1"
    (corpus / "only hidden").mkdir()
    (corpus / "only hidden" / ".a.txt").write_text("a")
    with pytest.raises(ValueError, match="only hidden holds no file"):
        list(texts(corpus / "only hidden"))


def test_a_source_is_what_the_files_are_and_what_is_left_out_is_said(corpus: Path) -> None:
    (corpus / "read.md").write_text("# title")
    (corpus / "LICENSE").write_text("free")
    source, told = source_at(corpus)
    assert source == TextFolder(str(corpus))
    assert told.startswith("only its 1 .txt files are read, left out are 1 without a suffix, 1 .jsonl, 1 .md; --set ")
    (corpus / "a.txt").unlink()
    source, told = source_at(corpus)
    assert isinstance(source, Jsonl)
    assert told == (
        "the field 'text' of each record is read; only its 1 .jsonl files are read, left out are 1 without a suffix, "
        "1 .md"
    )
    documents = [*source.documents("train"), *source.documents("heldout")]
    assert sorted(documents) == sorted(f"line {i}" for i in range(100))
    (corpus / "inner" / "b.jsonl").unlink()
    source, told = source_at(corpus)
    assert source == TextFolder(str(corpus), pattern="**/*") and not told
    assert sorted([*source.documents("train")]) == ["# title", "free"] or len(source.documents("heldout"))


def test_what_is_no_text_in_a_folder_is_left_out_and_said(tmp_path: Path) -> None:
    """As a folder of code has pictures and compiled files in it."""
    for name in ("a.py", "b.py", "c.toml", "README", "NOTES", "LICENSE"):
        (tmp_path / name).write_text(f"text of {name}")
    assert source_at(tmp_path) == (TextFolder(str(tmp_path), pattern="**/*"), "")
    (tmp_path / "a.pyc").write_bytes(b"\xa7\r\r\n\0\0")
    source, told = source_at(tmp_path)
    assert source == TextFolder(str(tmp_path), pattern="**/*.py")
    assert told == (
        "only its 2 .py files are read, left out are 3 without a suffix, 1 .pyc, 1 .toml; "
        "--set data.mixture.sources.text.pattern='**/*.NAME' reads others"
    )
    with pytest.warns(UserWarning, match="left out, since no text: a.pyc$"):
        assert len(list(texts(tmp_path))) == 6
    with pytest.raises(ValueError, match="a.pyc is not UTF-8: byte 0xa7"):
        list(texts(tmp_path / "a.pyc"))


def test_a_file_is_read_by_its_kind(corpus: Path) -> None:
    assert source_at(corpus / "a.txt") == (TextFile(str(corpus / "a.txt")), "")
    file = corpus / "inner" / "b.jsonl"
    assert source_at(file) == (Jsonl(str(file)), "the field 'text' of each record is read")
    assert len(source_at(file)[0].documents("train")) > 80
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row"] * 30}), corpus / "c.parquet")
    assert isinstance(source_at(corpus / "c.parquet")[0], Parquet)
    (corpus / "b.ndjson").write_text('{"text": "a line"}\n')
    assert list(texts(corpus / "b.ndjson")) == ["a line"] and isinstance(source_at(corpus / "b.ndjson")[0], Jsonl)
    (corpus / "b.json").write_text('[{"text": "a line"}]')
    source, told = source_at(corpus / "b.json")
    assert isinstance(source, TextFile) and told.startswith("is read as plain text: records are read from .jsonl")
    with pytest.raises(ValueError, match="path of a text is empty"):
        source_at("")


def test_what_is_compressed_is_refused_with_the_cure(corpus: Path) -> None:
    file = corpus / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    for read in (lambda: source_at(file), lambda: list(texts(file)), lambda: Jsonl(str(file)).documents("train")):
        with pytest.raises(ValueError, match=r"a.jsonl.gz is compressed: unpack it first \(gunzip .*a.jsonl.gz\)"):
            read()
