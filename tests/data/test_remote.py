"""Sources of any file system that fsspec knows: the same documents as of files here, fetched once."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from launch.find import changed, find
from lm.data import remote
from lm.data.conversations import Conversations
from lm.data.paths import source_at, texts
from lm.data.records import Jsonl, Parquet
from lm.data.source import Source, TextFile, TextFolder
from lm.value import build, plain

LINES = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(40))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    remote.mirror.cache_clear()
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    remote.mirror.cache_clear()


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, str]:
    """The same files here and behind a URL."""
    here = tmp_path / "here"
    (here / "inner").mkdir(parents=True)
    for i in range(12):
        (here / f"{i}.txt").write_text(f"text {i} é\n")
    (here / "inner" / "a.jsonl").write_text(LINES)
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {i}" for i in range(30)]}), here / "inner" / "b.parquet")
    for file in filter(Path.is_file, here.rglob("*")):
        fsspec.filesystem("memory").pipe_file(f"/there/{file.relative_to(here)}", file.read_bytes())
    return str(here), "memory://there"


SOURCES = {
    "folder": lambda at: TextFolder(at, heldout=0.4),
    "file": lambda at: TextFile(f"{at}/0.txt", heldout=0.5),
    "files": lambda at: TextFile(f"{at}/0.txt", heldout=f"{at}/1.txt"),
    "jsonl": lambda at: Jsonl(f"{at}/inner/a.jsonl", heldout=0.3),
    "jsonl by pattern": lambda at: Jsonl(f"{at}/**/*.jsonl", heldout=0.3),
    "parquet": lambda at: Parquet(f"{at}/inner/*.parquet", heldout=0.3),
    "whole records": lambda at: Conversations(Jsonl(f"{at}/inner/a.jsonl", heldout=0.3)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_documents_and_fingerprint_are_those_of_the_files(kind: str, both: tuple[str, str]) -> None:
    here, there = map(SOURCES[kind], both)
    for split in ("train", "heldout"):
        assert list(there.documents(split)) == list(here.documents(split))
    assert there.fingerprint() == here.fingerprint()
    assert build(Source, plain(there)) == there and "memory://" in json.dumps(plain(there))


def test_what_is_unchanged_is_fetched_once(
    both: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = TextFolder(both[1], heldout=0.4)
    first = source.fingerprint()
    assert "fetching memory://there: 12 files, 0.0 MB" in capsys.readouterr().out
    times = {f.name: f.stat().st_mtime_ns for f in Path(remote.mirror(both[1], "**/*.txt")).iterdir()}
    remote.mirror.cache_clear()  # as another process
    assert source.fingerprint() == first and capsys.readouterr().out == ""
    store = fsspec.filesystem("memory")
    store.pipe_file("/there/1.txt", b"another text\n")
    store.rm_file("/there/2.txt")
    remote.mirror.cache_clear()
    assert source.fingerprint() != first and "fetching memory://there: 1 files" in capsys.readouterr().out
    now = {f.name: f.stat().st_mtime_ns for f in Path(remote.mirror(both[1], "**/*.txt")).iterdir()}
    assert {name for name in times if times[name] != now.get(name)} == {"1.txt", "2.txt"}
    assert sum(len(source.documents(split)) for split in ("train", "heldout")) == 11


def test_two_patterns_are_two_folders(both: tuple[str, str]) -> None:
    TextFolder(both[1], pattern="**/*", heldout=0.4).fingerprint()
    assert len(TextFolder(both[1], pattern="*.txt", heldout=0.01).documents("train")) <= 12
    assert {f.name for f in Path(remote.mirror(both[1], "*.txt")).iterdir()} == {f"{i}.txt" for i in range(12)}


def test_without_the_network_what_was_fetched_is_read(both: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Jsonl(f"{both[1]}/inner/*.jsonl", heldout=0.3)
    before = list(source.documents("train"))
    remote.mirror.cache_clear()

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "glob", unreachable)
    with pytest.warns(UserWarning, match="no route to host.*what was fetched from there before is read"):
        assert list(source.documents("train")) == before
    with pytest.raises(ValueError, match="no route to host"):
        Jsonl(f"{both[1]}/*.jsonl").documents("train")


def test_the_command_line_keeps_the_url(both: tuple[str, str]) -> None:
    base, _ = find("experiments.quickstart")
    with pytest.warns(UserWarning, match="only its 12 .txt files are read, left out are 1 .jsonl, 1 .parquet"):
        assert changed(base, [], both[1]).data.mixture.sources["text"] == TextFolder("memory://there")
    assert source_at("memory://there/inner/a.jsonl")[0] == Jsonl("memory://there/inner/a.jsonl")
    assert source_at("memory://there/inner/")[0] == Jsonl("memory://there/inner/**/*.jsonl")
    assert source_at("memory://there/0.txt") == (TextFile("memory://there/0.txt"), "")
    assert list(texts("memory://there/inner/a.jsonl"))[:2] == ["line 0", "line 1"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere/a.txt", "no such file or folder: memory://nowhere/a.txt"),
        ("nonsense://a", "cannot read nonsense://a.*Protocol not known: nonsense|nonsense://a needs another package"),
    ],
)
def test_what_is_not_there(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextFile(url).documents("train")
    with pytest.raises(ValueError, match=said):
        source_at(url)


def test_names_that_lead_out_are_refused(both: tuple[str, str]) -> None:
    fsspec.filesystem("memory").store["/there/../../out.txt"] = fsspec.filesystem("memory").store["/there/0.txt"]
    with pytest.raises(ValueError, match="not named as a file of a run's folder|cannot read"):
        TextFolder("memory://there").documents("train")
    assert not list(Path(os.environ["LM_CACHE"]).parent.glob("out.txt"))


def test_a_pattern_and_what_stands_before_it() -> None:
    assert remote.split_pattern("hf://datasets/o/n/data/*.parquet") == ("hf://datasets/o/n/data", "*.parquet")
    assert remote.split_pattern("s3://b/**/x-[0-9].jsonl") == ("s3://b", "**/x-[0-9].jsonl")
    assert remote.split_pattern("https://h/a.txt") == ("https://h/a.txt", "")
