"""One process at a time has a run's folder, and one that died has none."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.machine import buckets, locks
from lm.run import course
from tests.tiny import experiment, write_texts

URL = "memory://leased/run"
HOLD = """
import sys, time
from lm.machine.locks import *
with exclusive(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def test_two_in_one_folder(tmp_path: Path) -> None:
    with locks.exclusive(tmp_path / "run"):
        locks.sign(tmp_path / "run")
        with pytest.raises(
            ValueError, match=r"run is in use by process \d+ on .*: wait .* or choose another --workdir"
        ):
            course.train(experiment(write_texts(tmp_path / "texts")), tmp_path / "run")
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    with locks.exclusive(tmp_path / "run"):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"1\n"
    with pytest.raises(ValueError, match="is in use by another process"), locks.exclusive(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locks.exclusive(tmp_path):
        pass


# ---------------------------------------------------------------- buckets


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import fsspec

    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.04)
    monkeypatch.setattr(locks, "VOID_SECONDS", 0.4)
    fsspec.filesystem("memory").store.clear()
    yield buckets.local_mirror(URL)
    fsspec.filesystem("memory").store.clear()


def test_a_lease_that_is_renewed_is_respected(bucket: Path) -> None:
    with locks.exclusive(bucket):
        with pytest.raises(ValueError, match="memory://leased/run is in use by process"), locks.exclusive(bucket):
            pass
        assert locks._read(URL) is not None
    assert locks._read(URL) is None


@pytest.mark.parametrize(("holder", "waits"), [("process 1 on another", True), ("process 4999999 on {node}", False)])
def test_a_lease_of_a_dead_process_is_void(holder: str, waits: bool, bucket: Path) -> None:
    """At once, where it is known to be dead."""
    locks._write(URL, {"holder": holder.format(node=locks.platform.node()), "id": "0", "renewed": 3})
    began = time.monotonic()
    with locks.exclusive(bucket):
        assert (time.monotonic() - began >= 0.4) == waits
        assert locks._read(URL)["id"] != "0"  # type: ignore[index]


def test_a_run_whose_lease_was_taken_stops(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    monkeypatch.setattr(locks.os, "kill", lambda pid, number: stopped.set())
    with locks.exclusive(bucket):
        locks._write(URL, {"holder": "process 1 on another", "id": "0", "renewed": 0})
        assert stopped.wait(5)
    assert locks._read(URL)["id"] == "0"  # type: ignore[index]  # and leaves the other's alone


def test_what_is_no_lease_is_overwritten(bucket: Path) -> None:
    with buckets.file_system("write", URL) as (fs, root):
        fs.pipe_file(f"{root}/lease.json", b'{"holder": 1}')
    with locks.exclusive(bucket):
        assert locks._read(URL) is not None
