import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.data.source import Source, TextFile, TextFolder, held_out
from lm.value import build, parse, plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(60):
        file = tmp_path / "texts" / f"{i % 3}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text {i}\r\n\tnext line\n", newline="")
    return tmp_path / "texts"


def test_a_folder_is_split_by_file_and_nothing_is_lost(folder: Path) -> None:
    source = TextFolder(str(folder), heldout=0.2)
    train, heldout = (list(source.documents(split)) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(f"text {i}\r\n\tnext line\n" for i in range(60))
    assert 3 <= len(heldout) <= 24


def test_another_file_moves_none_to_the_other_split(folder: Path) -> None:
    source = TextFolder(str(folder), heldout=0.2)
    before = {split: set(source.documents(split)) for split in ("train", "heldout")}
    for i in range(60, 90):
        (folder / f"{i}.txt").write_text(f"text {i}")
    assert all(before[split] <= set(source.documents(split)) for split in before)


def test_the_share_held_out_is_the_share_asked_for() -> None:
    share = sum(held_out(str(i), 0.1) for i in range(20_000)) / 20_000
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


def test_a_file_keeps_its_last_tenth_as_nanogpt_does(tmp_path: Path) -> None:
    text = "".join(f"line {i} é\n" for i in range(777))
    (tmp_path / "a.txt").write_text(text)
    source = TextFile(str(tmp_path / "a.txt"))
    cut = int(0.9 * len(text))
    assert list(source.documents("train")) == [text[:cut]]
    assert list(source.documents("heldout")) == [text[cut:]]


def test_held_out_text_may_be_elsewhere(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.txt").write_text("train on me")
    (tmp_path / "b.txt").write_text("hold me out")
    source = TextFile(str(tmp_path / "a.txt"), heldout=str(tmp_path / "b.txt"))
    assert [source.documents(s)[0] for s in ("train", "heldout")] == ["train on me", "hold me out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.txt").write_text("other")
    both = TextFolder(str(folder), heldout=str(tmp_path / "other"))
    assert len(both.documents("train")) == 60 and list(both.documents("heldout")) == ["other"]


def test_the_fingerprint_is_of_the_content(tmp_path: Path, folder: Path) -> None:
    source = TextFolder(str(folder))
    before = source.fingerprint()
    os.utime(folder / "0" / "0.txt", (1, 1))
    assert source.fingerprint() == before
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert TextFolder(str(moved)).fingerprint() == before
    assert TextFolder(str(moved), heldout=0.3).fingerprint() != before
    (moved / "0" / "0.txt").write_text("tExt 0\r\n\tnext line\n", newline="")  # of the same size
    assert TextFolder(str(moved)).fingerprint() != before


def test_unreadable_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xffdef")
    (tmp_path / "empty.txt").write_bytes(b"")
    cases = {
        "no such file or folder: .*missing": TextFile(str(tmp_path / "missing")),
        r"bad.txt is not UTF-8: byte 0xff at offset 3": TextFile(str(tmp_path / "bad.txt")),
        "has no train documents": TextFile(str(tmp_path / "empty.txt")),
        r"no file in .* matches '\*.md'": TextFolder(str(tmp_path), pattern="*.md"),
        "bad.txt is a file: expected a folder of them, or TextFile": TextFolder(str(tmp_path / "bad.txt")),
        "pattern='': .* expected one as .*, relative to path": TextFolder(str(tmp_path), pattern=""),
        "~nobody-of-this-name/a: ": TextFile("~nobody-of-this-name/a"),
        r"pattern='/a/\*': .*; expected one as \*\*/\*.txt": TextFolder(str(tmp_path), pattern="/a/*"),
        r"pattern='': .*; expected one as \*\*/\*.txt": TextFolder(str(tmp_path), pattern=""),
    }
    for message, source in cases.items():
        with pytest.raises(ValueError, match=message):
            list(source.documents("train"))


def test_impossible_splits_are_refused(folder: Path) -> None:
    for share in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="expected a fraction between 0 and 1"):
            TextFolder(str(folder), heldout=share)
    with pytest.raises(ValueError, match="unknown split 'test': expected train or heldout"):
        TextFolder(str(folder)).documents("test")


def test_documents_are_a_sequence(folder: Path) -> None:
    documents = TextFolder(str(folder)).documents("train")
    assert [documents[i] for i in range(len(documents))] == list(documents)
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_sources_are_plain_values() -> None:
    for source in (TextFile("a", heldout=0.2), TextFile("a", heldout="b"), TextFolder("a", "*.md")):
        assert build(Source, plain(source)) == source
    assert parse(TextFile("a"), "heldout=0.25").heldout == 0.25
    assert dataclasses.replace(TextFile("a"), path="b") == TextFile("b")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    for read in (TextFile(str(tmp_path)).fingerprint, lambda: TextFile(str(tmp_path)).documents("train")):
        with pytest.raises(ValueError, match="cannot read .*: Is a directory"):
            read()


def test_identical_documents_are_never_on_both_sides(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
        (tmp_path / f"copy of {i}.txt").write_text(f"document {i}")
    source = TextFolder(str(tmp_path), heldout=0.3)
    train, heldout = (list(source.documents(split)) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 80 and heldout and not set(train) & set(heldout)


def test_neither_a_name_nor_other_files_change_the_side_of_a_document(tmp_path: Path, folder: Path) -> None:
    before = list(TextFolder(str(folder)).documents("heldout"))
    for i, file in enumerate(sorted(folder.rglob("*.txt"))):
        file.rename(folder / f"{i:03}.txt")
    (folder / "a copy.txt").write_text(before[0], newline="")  # before the others by name
    assert sorted({*TextFolder(str(folder)).documents("heldout")}) == sorted(before)


def test_hidden_files_are_left_out_and_said(folder: Path) -> None:
    (folder / ".ipynb_checkpoints").mkdir()
    for file in (folder / ".ipynb_checkpoints" / "0-checkpoint.txt", folder / "1" / ".draft.txt"):
        file.write_text("hidden")
    source = TextFolder(str(folder))
    texts = [*source.documents("train"), *source.documents("heldout")]
    assert len(texts) == 60 and "hidden" not in texts
    assert source.left_out() == "2 hidden files (.ipynb_checkpoints/0-checkpoint.txt, …)"
    (folder / "1" / ".draft.txt").unlink()
    assert source.left_out() == "1 hidden file (.ipynb_checkpoints/0-checkpoint.txt)"
    named = TextFolder(str(folder), pattern=".ipynb_checkpoints/*.txt", heldout=str(folder))
    assert list(named.documents("train")) == ["hidden"] and not named.left_out()
    with pytest.raises(ValueError, match=r"matches '\*\*/0-\*' but 1 hidden ones"):
        TextFolder(str(folder), pattern="**/0-*").documents("train")


def test_a_source_of_before_has_its_split_and_its_fingerprint(folder: Path) -> None:
    (folder / ".hidden.txt").write_text("hidden")
    before = TextFolder(str(folder), heldout=0.2).earlier()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    for split in ("train", "heldout"):
        wanted = [
            (folder / name).read_bytes().decode() for name in names if held_out(name, 0.2) == (split == "heldout")
        ]
        assert list(before.documents(split)) == wanted
    fields = {"pattern": "**/*.txt", "heldout": 0.2}
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    text = json.dumps(["TextFolder", fields, names, hashes], sort_keys=True)
    assert before.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert before.fingerprint() != TextFolder(str(folder), heldout=0.2).fingerprint()
    assert TextFile("a").earlier() is None


def test_an_experiment_s_file_names_every_source_without_the_page_that_declares_it() -> None:
    """A study's processes read experiment.json alone."""
    code = (
        "import importlib, pkgutil, lm.data, lm.experiment\n"
        "from lm.data.source import Source\n"
        "from lm.value import subclasses\n"
        "known = set(subclasses(Source))\n"
        "for module in pkgutil.iter_modules(lm.data.__path__): importlib.import_module('lm.data.' + module.name)\n"
        "print(sorted(set(subclasses(Source)) - known))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr
