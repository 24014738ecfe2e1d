"""The processes of a study: how often they are looked at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.run.folder import write_json
from lm.study import executors, runner
from lm.study.ablation import Ablation
from lm.study.trial import Trial
from tests.study.results import BASE


def test_it_is_looked_at_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[float]()
    monkeypatch.setattr(executors, "_wait_for_one", lambda processes, seconds: waited.append(seconds))
    process = SimpleNamespace(poll=lambda: 0 if len(waited) == 3 else None)
    monkeypatch.setattr(executors.Local, "_start", lambda self, group, study, cores: process)
    executors.Local()([[]], Path("study"), iter([6.0, 0.0, 1.0]).__next__)
    assert waited == [0.5, 6.0, 0.0]


def test_looks_take_a_twentieth_of_a_core_but_for_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of runs: these are to have the rest. A run that has ended has no report yet, and while one is
    missing the next look is now."""
    clock, written, pauses = [0.0, 0.0], list[str](), list[float]()
    monkeypatch.setattr(runner.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[1])
    monkeypatch.setattr(runner.svg, "load", lambda: None)

    def write_report(folder: Path) -> None:
        clock[1] += 0.4
        written.append(folder.name)
        (folder / "report.html").touch()

    def execute(groups: Sequence[Sequence[Trial]], study: Path, watch: Callable[[], float]) -> None:
        pauses.append(watch())
        for trial in groups[0]:
            write_json(trial.folder(study) / "about.json", {"finished": "now", "seconds": 1.0})
            (trial.folder(study) / "metrics.jsonl").write_text('{"step": 200, "loss": 1.0, "eval/loss": 1.0}\n')
        pauses.extend([watch(), watch(), watch()])

    monkeypatch.setattr(runner, "write_report", write_report)
    study = Ablation(BASE, arms={"base": {}}, seeds=range(3))
    runner.run(study, tmp_path, {"study": "it"}, execute, lambda results: clock.__setitem__(0, clock[0] + 0.3))
    assert pauses == pytest.approx([6.0, 0.0, 6.0, 6.0]) and written == ["0", "1", "2"]
