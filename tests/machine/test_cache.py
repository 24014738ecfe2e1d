import os
from pathlib import Path

import pytest

from lm.machine.cache import cache_dir, discard, is_complete, write_folder


def test_the_environment_chooses_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b" and cache_dir().is_dir()
    monkeypatch.delenv("LM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "lm"


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot write the cache .*LM_CACHE"):
        cache_dir()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def fails(made: Path) -> None:
        (made / "half").write_text("a")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="cannot write .*No space left on device"):
        write_folder(tmp_path / "x", fails)
    assert os.listdir(tmp_path) == []


def test_the_first_writer_wins_and_a_damaged_folder_shows(tmp_path: Path) -> None:
    folder = tmp_path / "x"

    def first_then_late(made: Path) -> None:
        write_folder(folder, lambda m: (m / "a").write_text("first") and None)  # another process, in the meantime
        (made / "a").write_text("late")

    write_folder(folder, first_then_late)
    assert (folder / "a").read_text() == "first" and is_complete(folder)
    assert os.listdir(tmp_path) == ["x"]
    (folder / "a").write_text("fir")
    assert not is_complete(folder) and not is_complete(tmp_path / "missing")
    discard(folder)
    discard(folder)
    assert os.listdir(tmp_path) == []
