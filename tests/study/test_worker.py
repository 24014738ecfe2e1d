"""A process of a study: what it sets up before it works."""

import sys

import pytest

from lm.study import worker


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
