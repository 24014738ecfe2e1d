"""Running what is missing of a study: nothing that is finished is run again, and no arm that fails stops the others.

The order of things: the folder is locked, what is there is read, the missing runs are grouped into processes and
handed to an executor (executors.py); then the study is asked for trials again, until it has no new ones.
"""

import contextlib
import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm.page import svg
from lm.page.run_report import write_report
from lm.run.folder import begin_alike, claim, write_json
from lm.run.outcome import FAILED, OUTCOME, PRUNED, STOP, write_outcome
from lm.run.together import MOST, PROGRAM, program_key
from lm.study import statistics
from lm.study.trial import STOPPED, Result, Trial, read_result
from lm.value import suggest

NOTE, ABOUT, REPORT = "study.json", "about.json", "report.html"
LOOK_SECONDS = 0.5  # between two looks at the runs
LOOK_SHARE = 0.05  # of the time of a core, the most that looks at the runs take
REPORT_SECONDS = 0.5  # of a look, for the reports of those that have ended
Execute = Callable[[Sequence[Sequence[Trial]], Path, Callable[[], float]], None]


class Study(Protocol):
    """What can be run: its trials known now, given what came of those so far; it is finished when no new ones come.

    One that stops runs early has a `to_stop(results)` too: (arm, seed) -> the step at which that run is stopped."""

    @property
    def measure(self) -> str: ...

    def trials(self, results: Sequence[Result]) -> list[Trial]: ...


class SomeArms:
    """`study` with only some of its `arms` (none: all)."""

    def __init__(self, study: Study, arms: Sequence[str] = ()):
        self.study, self.arms, self.measure = study, tuple(arms), study.measure
        self.to_stop = getattr(study, "to_stop", None)

    def trials(self, results: Sequence[Result]) -> list[Trial]:
        """The trials of these arms. Raises ValueError for an arm that there is not."""
        trials = self.study.trials(results)
        known = dict.fromkeys(trial.arm for trial in trials)
        for arm in self.arms:
            if arm not in known:
                raise ValueError(f"no arm {arm!r}: {suggest(arm, known)}")
        return [trial for trial in trials if not self.arms or trial.arm in self.arms]


@contextlib.contextmanager
def locked(folder: Path, note: Mapping[str, Any]) -> Iterator[None]:
    """The study's folder for this process alone, if its study.json is of the study of `note`. Raises ValueError where
    it is another's or a run's, or one is under way."""
    file = folder / NOTE
    if (folder / "experiment.json").exists():
        raise ValueError(f"{folder} is a run's folder, whose report this would replace: choose another --workdir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"cannot use {folder} as a study's folder: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"a study is under way in {folder}: wait for it, or choose another --workdir") from None
        there = json.loads(file.read_text())["study"] if file.exists() else note["study"]
        if there != note["study"]:
            raise ValueError(f"{folder} holds the study {there}, not {note['study']}: choose another --workdir")
        yield


def read_results(study: Study, folder: Path) -> list[Result]:
    """What came of every trial of `study`, as far as its folder says. A run that the study stops counts up to where it
    does, also where it had gone further before anybody looked: so results do not follow from which run was faster."""
    results: dict[tuple[str, int], Result] = {}
    to_stop = getattr(study, "to_stop", None)
    while True:
        new = [read_result(t, folder) for t in study.trials(list(results.values())) if (t.arm, t.seed) not in results]
        if not new:
            return list(results.values())
        results |= {result.key: result for result in new}
        for key, step in (to_stop(list(results.values())) if to_stop else {}).items():
            results[key] = results[key].until(step)


def groups(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials by the program that they share, in their order, at most MOST in a process."""
    by_key: dict[str, list[Trial]] = {}
    for trial in trials:
        by_key.setdefault(program_key(trial.experiment), []).append(trial)
    return [same[i : i + MOST] for same in by_key.values() for i in range(0, len(same), MOST)]


def run(
    study: Study,
    folder: Path,
    note: Mapping[str, Any],
    execute: Execute,
    watch: Callable[[list[Result]], None] = lambda results: None,
    share: bool = True,
) -> list[Result]:
    """Run what is missing of a study.

    Args:
      study: what has the trials.
      folder: where its runs are kept.
      note: is kept in study.json; "study" names the study (module:name).
      execute: runs groups of trials, each in a process, and now and then calls back, which returns after how many
        seconds it would be called again (executors.py).
      watch: gets all results now and then.
      share: whether runs that can share a program do.

    Returns: the results of all trials.

    Raises:
      ValueError: anything that the user can correct.
    """
    tried: set[tuple[str, int]] = set()

    def look() -> float:
        svg.load()  # there is time, and the reports are waited for
        if len({seed for _, seed in tried}) > 1:
            statistics.load()
        began = time.process_time()
        results = read_results(study, folder)
        for result in results:
            if result.status == PRUNED:
                (result.trial.folder(folder) / STOP).touch()
        watch(results)
        pause = max(LOOK_SECONDS, (time.process_time() - began) / LOOK_SHARE)
        return pause if _write_reports(results, folder, REPORT_SECONDS) else 0.0

    with locked(folder, note):
        while True:
            results = read_results(study, folder)  # raises where an arm cannot be built: then the folder is nobody's
            write_json(folder / NOTE, note)
            missing = [r.trial for r in results if not r.over and r.key not in tried]
            if not missing:
                watch(results)
                _write_reports(results, folder)
                return results
            for trial in missing:
                _prepare(trial, folder, note["study"])
            tried |= {(trial.arm, trial.seed) for trial in missing}
            processes = groups(missing) if share else [[trial] for trial in missing]
            how = "" if len(processes) < len(missing) else ", one a run"
            print(f"runs to do: {len(missing)}; programs: {len(processes)}{how}", flush=True)
            execute(processes, folder, look)
            for line in dict.fromkeys(line for group in processes for line in _program_line(group[0], folder)):
                print(line, flush=True)
            for group in processes:
                _note_failures(group, folder)


def _prepare(trial: Trial, study: Path, reference: str) -> None:
    """Make the folder of a trial ready for a worker."""
    folder = trial.folder(study)
    claim(folder, trial.experiment, reference)
    begin_alike(folder, (study / "runs").glob("*/*"))
    for name in (OUTCOME, STOP):
        (folder / name).unlink(missing_ok=True)


def _write_reports(results: Sequence[Result], study: Path, seconds: float = math.inf) -> bool:
    """Write the reports of finished runs that have none since they ended, for about `seconds` at most; whether none is
    left. The processes of the runs have better things to do, and this one is waiting for them."""
    until = time.monotonic() + seconds
    folders = [result.trial.folder(study) for result in results if result.finished]
    wanted = [folder for folder in folders if not _is_newer(folder / REPORT, folder / ABOUT)]
    for folder in wanted:
        if time.monotonic() > until:
            return False
        write_report(folder)
    return True


def _is_newer(file: Path, other: Path) -> bool:
    return file.exists() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _log(trial: Trial, study: Path) -> list[str]:
    file = trial.folder(study) / "log.txt"
    return file.read_text(errors="replace").strip().splitlines() if file.exists() else []


def _program_line(trial: Trial, study: Path) -> list[str]:
    """How the runs went that shared a process with `trial`, as its log says."""
    return [line for line in _log(trial, study) if line.startswith(PROGRAM)][-1:]


def _note_failures(group: Sequence[Trial], study: Path) -> None:
    """Write of the runs of one process which failed without its saying so."""
    for trial in group:
        if read_result(trial, study).status == STOPPED:
            said = _log(trial, study) or _log(group[0], study)  # the first of a process has its log
            last = f"; the last line of its log: {said[-1]}" if said else " without a word"
            write_outcome(trial.folder(study), FAILED, f"its process ended before it{last}")
