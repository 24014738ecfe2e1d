"""A process of a study: what it sets up before it works."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.study import executors, worker


def test_memory_is_set_up_before_a_thread_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that allocates first has an arena, which XLA's threads then share: each step faults its pages in."""
    done: list[str] = []
    monkeypatch.setattr(worker.hardware, "prepare", lambda devices: done.append("prepare"))
    monkeypatch.setattr(worker, "_end_with_parent", lambda: done.append("watch"))
    monkeypatch.setattr(worker, "work", lambda folders, how: done.append("work") or 0)
    monkeypatch.setattr(sys, "argv", ["worker", "--watched", "folder"])
    monkeypatch.setenv(worker.value.TRUST, "")
    assert worker.main() == 0
    assert done == ["prepare", "watch", "work"]


def test_a_study_that_is_long_to_look_at_is_looked_at_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks take a twentieth of a core, whatever the number of runs: the runs are to have the rest."""
    waited, clock = list[float](), [0.0]
    monkeypatch.setattr(executors, "_wait_for_one", lambda processes, seconds: waited.append(seconds))
    monkeypatch.setattr(executors.time, "process_time", lambda: clock[0])
    process = SimpleNamespace(poll=lambda: 0 if len(waited) == 3 else None)
    monkeypatch.setattr(executors.Local, "_start", lambda self, group, study, cores: process)
    executors.Local()([[]], Path("study"), lambda: clock.__setitem__(0, clock[0] + 0.3))
    assert waited == pytest.approx([0.5, 6.0, 6.0])
