"""The processes of a study: how many there are at a time, and how often they are looked at."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import study
from lm.machine import hardware
from lm.run.folder import write_json
from lm.study import executors, forkserver, runner
from lm.study.ablation import Ablation
from lm.study.trial import Trial
from tests.study.results import BASE


def test_it_is_looked_at_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[float]()
    monkeypatch.setattr(executors, "_wait_for_one", lambda processes, seconds: waited.append(seconds))
    process = SimpleNamespace(poll=lambda: 0 if len(waited) == 3 else None)
    monkeypatch.setattr(executors.Local, "_start", lambda self, group, study: process)
    executors.Local()([[]], Path("study"), iter([6.0, 0.0, 1.0]).__next__)
    assert waited == [0.5, 6.0, 0.0]


@pytest.mark.parametrize(
    ("workers", "gigabytes", "most"),
    [(1, 1000.0, [1, 1, 1]), (2, 1000.0, [1, 2, 2]), (2, 16.0, [1, 2, 2]), (2, 15.9, [1, 1, 2]), (2, 7.9, [1, 1, 1])],
)
def test_processes_are_beside_each_other_where_memory_holds_them(
    workers: int, gigabytes: float, most: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two large runs of 2 GB each at least, one large run, and one that cannot be: a process takes three times that, a
    gigabyte, and once more for each run but one."""
    monkeypatch.setattr(executors.hardware, "host_memory", lambda: int(gigabytes * 1e9))
    monkeypatch.setattr(executors, "host_bytes", lambda experiment: 2e9 if experiment.model.width > 16 else wrong())
    alive, seen = list[SimpleNamespace](), list[int]()

    def wrong() -> float:
        raise ValueError("this one says in its process why it cannot be")

    def start(self: executors.Local, group: Sequence[Trial], study: Path) -> SimpleNamespace:
        alive.append(process := SimpleNamespace(over=False, stdin=None, wait=lambda timeout: None))
        process.poll = lambda: 0 if process.over else None
        seen.append(sum(not one.over for one in alive))
        return process

    def wait(processes: Sequence[SimpleNamespace], seconds: float) -> None:
        processes[0].over = True  # the one that was started first

    monkeypatch.setattr(executors.Local, "_start", start)
    monkeypatch.setattr(executors, "_wait_for_one", wait)
    large, broken = BASE.replace(model=dict(width=64)), BASE.replace(model=dict(width=16))
    trials = [trial for base in (large, broken) for trial in Ablation(base, {"base": {}}, seeds=range(3)).trials()]
    groups = [trials[0:2], trials[2:3], trials[3:4]]
    executors.Local(workers, fit=executors.fit_in_memory)(groups, Path("study"), lambda: 0.0)
    assert seen == most


def test_a_group_is_halved_where_memory_holds_both_halves() -> None:
    trials = Ablation(BASE, {"base": {}}, seeds=range(4)).trials()
    asked = list[executors.Groups]()
    assert executors.split([trials], 2, lambda groups: bool(asked.append(groups))) == [trials]
    assert asked == [[trials[:2], trials[2:]]]
    assert executors.split([trials], 2) == [trials[:2], trials[2:]]


@pytest.mark.parametrize(
    ("changed", "workers", "asks"),
    [
        ({}, 2, True),
        (dict(workers=1), 1, False),
        (dict(workers=3), 3, False),
        (dict(devices="gpu"), 1, True),
        (dict(together="vmap"), 1, True),
        (dict(cores=1), 1, True),
    ],
)
def test_cpus_have_two_processes_where_nobody_says(
    changed: dict[str, Any], workers: int, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "obstacle", lambda settings, devices: "no server here")
    monkeypatch.setattr(hardware, "cores", lambda: changed.get("cores", 8))
    args = dict(executor="local", workers=None, devices="cpu", together="auto") | changed
    local = study.executor(argparse.Namespace(**args), forkserver.settings())
    assert local.workers == workers and (local.fit is executors.fit_in_memory) == asks


def test_workers_are_not_of_slurm() -> None:
    args = argparse.Namespace(executor="slurm", workers=2, devices="", together="auto", sbatch="")
    with pytest.raises(ValueError, match="--workers 2: of processes here"):
        study.executor(args, forkserver.settings())


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
    ablation = Ablation(BASE, arms={"base": {}}, seeds=range(3))
    runner.run(ablation, tmp_path, {"study": "it"}, execute, lambda results: clock.__setitem__(0, clock[0] + 0.3))
    assert pauses == pytest.approx([6.0, 0.0, 6.0, 6.0]) and written == ["0", "1", "2"]
