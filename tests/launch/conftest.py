"""What the tests of engines share: tools that are shell scripts, and buckets that can be written."""

import shutil
from pathlib import Path

import pytest

from tests.launch.commands import Tool


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts a tool on the PATH: a shell script, which first notes its arguments in the file that is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for needed in ("cat", "dirname", "git", "gzip"):
        (folder / needed).symlink_to(shutil.which(needed) or "")
    monkeypatch.setenv("PATH", str(folder))  # this machine's own kubectl is out of sight

    def make(name: str, script: str) -> Path:
        file = folder / name
        file.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.calls\n{script}\n')
        file.chmod(0o755)
        return tmp_path / f"{name}.calls"

    return make


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bucket can be written."""
    monkeypatch.setattr("lm.machine.buckets.check_writable", lambda url: None)
