"""history.json in a run's folder: what each process that trained it began with.

An entry a process: the step it went on from, its environment and mesh, the fingerprint of its compiled program, and at
step 0 the checksums of the initial state. about.json knows the last process alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.page.run_record import check, fitted, read_json
from lm.run.folder import write_json

HISTORY = "history.json"
IRRELEVANT = ("memory_bytes",)  # of an environment: it changes no number
ENTRY: dict[str, Any] = {
    "step": int,
    "environment": dict[str, str | int | float | None],
    "compute": dict[str, Any],
    "mesh": dict[str, int],
    "program": str,
    "initial": dict[str, int],
}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run, in the order of their steps; none where an earlier version began it. Raises ValueError
    where the file is damaged."""
    file = folder / HISTORY
    listed = fitted(tuple[dict[str, Any], ...], read_json(file, []), f"{file} cannot be read")
    return [check(ENTRY, entry, file, every=True) for entry in listed]


def begin(folder: Path, step: int, metadata: Mapping[str, Any], initial: Mapping[str, int]) -> None:
    """Add the entry of a process that goes on from `step`; those of steps that are trained again go.

    Args:
      folder: the run's.
      step: after which the process begins.
      metadata: the content of about.json.
      initial: array -> checksum, of the state before the first step."""
    began = {name: metadata[name] for name in ("environment", "compute", "mesh")}
    earlier = [entry for entry in read_history(folder) if entry["step"] < step]
    write_json(folder / HISTORY, [*earlier, {"step": step, **began, "program": "", "initial": dict(initial)}])


def note_program(folder: Path, fingerprint: str) -> None:
    """Enter the fingerprint of the program of the process that began last."""
    *earlier, last = read_history(folder)
    write_json(folder / HISTORY, [*earlier, {**last, "program": fingerprint}])


def at_step(history: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The entry of the process that computed `step`; empty where there is none."""
    return next((entry for entry in reversed(history) if entry["step"] < step), {})


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a process's environment is another now, as "cores (8, now 2)"."""
    other = [name for name in then if name in now and now[name] != then[name] and name not in IRRELEVANT]
    return [f"{name} ({then[name]}, now {now[name]})" for name in other]
