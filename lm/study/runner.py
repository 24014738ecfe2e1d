"""Running what is missing of a study: nothing that is finished is run again, and no arm that fails stops the others.

The order of things: the folder is claimed, what is there is read, the missing runs are grouped into processes and
handed to an executor (local.py, slurm.py), and the study is asked again, until it has no new trials.
"""

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm.run.folder import claim, write_json
from lm.study.trial import (
    DIVERGED,
    FAILED,
    OUTCOME,
    PRUNED,
    SAID,
    STOP,
    STOPPED,
    Result,
    Trial,
    leave_word,
    read,
    stopped,
)

NOTE = "study.json"
Execute = Callable[[Sequence[Sequence[Trial]], Path, Callable[[], None]], None]


class Study(Protocol):
    """What can be run: its trials known now, given what came of those so far; it is finished when no new ones come.

    One that stops runs early has a `to_stop(results)` too: (arm, seed) -> the step at which that run is stopped."""

    @property
    def measure(self) -> str: ...

    def trials(self, results: Sequence[Result]) -> list[Trial]: ...


class Chosen:
    """`study` with only some of its `arms` (none: all)."""

    def __init__(self, study: Study, arms: Sequence[str] = ()):
        self.study, self.arms, self.measure = study, tuple(arms), study.measure
        self.to_stop = getattr(study, "to_stop", None)

    def trials(self, results: Sequence[Result]) -> list[Trial]:
        """The trials of the chosen arms. Raises ValueError for an arm that there is not."""
        from lm.value import suggest

        found = self.study.trials(results)
        known = dict.fromkeys(trial.arm for trial in found)
        for arm in self.arms:
            if arm not in known:
                raise ValueError(f"no arm {arm!r}: {suggest(arm, known)}")
        return [trial for trial in found if not self.arms or trial.arm in self.arms]


@contextlib.contextmanager
def claimed(folder: Path, note: Mapping[str, Any]) -> Iterator[None]:
    """The study's folder for this process alone, if its study.json is of the study of `note`. Raises ValueError where
    it is another's, or one is under way."""
    file = folder / NOTE
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


def results(study: Study, folder: Path) -> list[Result]:
    """What came of every trial of `study`, as far as its folder tells. A run that the study stops counts up to where it
    does, also where it had gone further before anybody looked: so what is told does not follow from who was faster."""
    found: dict[tuple[str, int], Result] = {}
    while True:
        trials = study.trials(list(found.values()))
        new = [trial for trial in trials if (trial.arm, trial.seed) not in found]
        if not new:
            return list(found.values())
        found |= {(trial.arm, trial.seed): read(trial, folder) for trial in new}
        for key, step in to_stop(study, list(found.values())).items():
            found[key] = stopped(found[key], step)


def to_stop(study: Study, found: Sequence[Result]) -> Mapping[tuple[str, int], int]:
    """The runs that the study stops, and at which step."""
    asked = getattr(study, "to_stop", None)
    return asked(found) if asked else {}


def over(result: Result) -> bool:
    """Whether there is nothing left to run of it: it is finished, or would end the same way again."""
    return result.finished or result.status in (DIVERGED, PRUNED)


def run(
    study: Study,
    folder: Path,
    note: Mapping[str, Any],
    execute: Execute,
    watch: Callable[[list[Result]], None] = lambda found: None,
    share: bool = True,
) -> list[Result]:
    """Run what is missing of `study` in `folder`; the results of all. Runs that can `share` a program do.

    `note` is kept in study.json: "study" names it (module:name). `watch` is told of all results now and then. Raises
    ValueError for anything that the user can mend."""
    tried: set[tuple[str, int]] = set()

    def look() -> None:
        found = results(study, folder)
        for result in found:
            if result.status == PRUNED:
                (result.trial.folder(folder) / STOP).touch()
        watch(found)

    with claimed(folder, note):
        while True:
            found = results(study, folder)  # raises where an arm cannot be built: then the folder is nobody's
            write_json(folder / NOTE, note)
            missing = [r.trial for r in found if not over(r) and (r.trial.arm, r.trial.seed) not in tried]
            if not missing:
                watch(found)
                return found
            for trial in missing:
                prepare(trial, folder, note["study"])
            tried |= {(trial.arm, trial.seed) for trial in missing}
            groups = grouped(missing) if share else [[trial] for trial in missing]
            how = "" if len(groups) < len(missing) else ", one a run"
            print(f"runs to do: {len(missing)}; programs: {len(groups)}{how}", flush=True)
            execute(groups, folder, look)
            for said in dict.fromkeys(how for group in groups for how in _how(group[0], folder)):
                print(said, flush=True)
            for trial in missing:
                _left(trial, folder)


def grouped(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials by the program that they share."""
    from lm.study.together import groups

    return groups(trials)


def prepare(trial: Trial, study: Path, reference: str) -> None:
    """The folder of a trial, ready for a worker."""
    folder = trial.folder(study)
    claim(folder, trial.experiment, reference)
    for word in (OUTCOME, STOP):
        (folder / word).unlink(missing_ok=True)


def _how(trial: Trial, study: Path) -> list[str]:
    """How the runs went that shared a process with `trial`, as its log says."""
    log = trial.folder(study) / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if line.startswith(SAID)][-1:]


def _left(trial: Trial, study: Path) -> None:
    """Note that a run failed whose process could not."""
    result = read(trial, study)
    if result.status == STOPPED:
        log = trial.folder(study) / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        leave_word(trial.folder(study), FAILED, lines[-1] if lines else "its process ended without a word")
