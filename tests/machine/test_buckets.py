"""A run's folder in a bucket, for which fsspec's file system in memory stands in."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main
from lm.machine import buckets
from lm.machine.monitor import read_metrics
from lm.run import course
from lm.run.evaluate import evaluate
from tests.tiny import experiment, lines, write_texts

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def test_a_folder_here_is_itself(tmp_path: Path) -> None:
    assert buckets.local_mirror(tmp_path) == tmp_path and buckets.remote_url(tmp_path) == ""
    assert buckets.checkpoint_path(tmp_path) == str(tmp_path / "checkpoints")
    buckets.upload(tmp_path)
    buckets.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["gs://", "s3:///", "://bucket/run"])
def test_a_url_names_a_bucket(url: str) -> None:
    with pytest.raises(ValueError, match="expected a bucket and a folder in it, as in gs://BUCKET/RUN"):
        buckets.local_mirror(url)


def test_what_changed_is_sent_and_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = buckets.local_mirror(URL)
    assert (buckets.remote_url(folder), buckets.checkpoint_path(folder)) == (URL, f"{URL}/checkpoints")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "a").write_text("1")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "half.part").write_text("")
    buckets.upload(folder)
    sent: list[str] = []
    from fsspec.implementations.memory import MemoryFileSystem

    put = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda fs, here, there: (sent.append(there), put(fs, here, there))
    )
    (folder / "metrics.jsonl").write_text("{}\n{}\n")
    buckets.upload(folder)
    assert sent == ["/bucket/run/metrics.jsonl"]
    again = buckets.local_mirror(URL)
    there = sorted(p.relative_to(again).as_posix() for p in again.rglob("*") if p.is_file())
    assert there == ["metrics.jsonl", "remote.txt", "tokenizer/a"]
    assert (again / "metrics.jsonl").read_text() == "{}\n{}\n"


def test_another_process_reads_a_mirror_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves alone the one that a run writes to."""
    running = buckets.local_mirror(URL)
    (running / "metrics.jsonl").write_text("{}\n")
    with monkeypatch.context() as other:
        other.setattr(buckets, "_mirrors", {})
        read = buckets.local_mirror(URL)
        assert read != running and not (read / "metrics.jsonl").exists()
        (read / "report.html").write_text("")
        buckets.upload(read)
    assert (running / "metrics.jsonl").read_text() == "{}\n" and not (running / "report.html").exists()
    assert buckets.local_mirror(URL) == running


@pytest.mark.parametrize("name", ["../../out", "a/../../../out", "..", "a//b", "./a", "..\\..\\out", "a/\0"])
def test_no_object_is_written_outside_the_mirror(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    written: list[str] = []
    monkeypatch.setattr(MemoryFileSystem, "exists", lambda *_: True)
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_: [f"/bucket/run/{name}"])
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda fs, there, here: written.append(here))
    with pytest.raises(ValueError, match="is not named as a file of a run's folder is") as raised:
        buckets.local_mirror(URL)
    assert not written and "\n" not in str(raised.value)


def test_no_object_names_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe_file("/bucket/run/remote.txt", b"memory://elsewhere")
    assert buckets.remote_url(buckets.local_mirror(URL)) == URL


def test_what_cannot_be_written_or_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets.check_writable(URL)
    from fsspec.implementations.memory import MemoryFileSystem

    def refused(*_: object) -> None:
        raise PermissionError("403, forbidden\nmore")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    with pytest.raises(ValueError, match=r"cannot write memory://bucket/run \(403, forbidden\): is the bucket there"):
        buckets.check_writable(URL)
    with pytest.raises(ValueError, match="cannot read nowhere://bucket"):
        buckets.local_mirror("nowhere://bucket")


def test_a_run_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its small files; Orbax writes checkpoints to stores of its own, so these stay here."""
    monkeypatch.setattr(buckets, "checkpoint_path", lambda folder: str(tmp_path / "checkpoints"))
    declared = experiment(write_texts(tmp_path / "texts")).replace(steps=8, prompts=())
    course.train(declared, URL)
    found = buckets.local_mirror(URL)
    assert {"experiment.json", "metrics.jsonl", "about.json", "data.json", "report.html"} <= {
        p.name for p in found.iterdir()
    }
    assert json.loads((found / "about.json").read_text())["finished"] and (found / "tokenizer").is_dir()
    before = lines(found)
    assert [line["step"] for line in read_metrics(found) if "loss" in line] == list(range(1, 9))
    course.train(declared, URL)  # finished: left as it is
    assert lines(buckets.local_mirror(URL)) == before
    assert evaluate(URL)["sums"]["loss"] == pytest.approx(before[-1]["eval/sums/loss"], rel=1e-5)
    capsys.readouterr()
    assert main(["sample", URL, "--prompt", "the ", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the ")
