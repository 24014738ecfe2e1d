"""The processes of a study: how often they are looked at."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.study import executors


def test_a_study_that_is_long_to_look_at_is_looked_at_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks take a twentieth of a core, whatever the number of runs: the runs are to have the rest."""
    waited, clock = list[float](), [0.0]
    monkeypatch.setattr(executors, "_wait_for_one", lambda processes, seconds: waited.append(seconds))
    monkeypatch.setattr(executors.time, "process_time", lambda: clock[0])
    process = SimpleNamespace(poll=lambda: 0 if len(waited) == 3 else None)
    monkeypatch.setattr(executors.Local, "_start", lambda self, group, study, cores: process)
    executors.Local()([[]], Path("study"), lambda: clock.__setitem__(0, clock[0] + 0.3))
    assert waited == pytest.approx([0.5, 6.0, 6.0])
