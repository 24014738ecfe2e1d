"""What differs between two runs, from their folders: declared, read, run on, compiled, logged, and computed again.

The runs of one experiment have the same bits, so that whatever differs in them has a first place: a field, a step's
rows, a version, a flag, and after these the step, layer and array where their computation parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lm import value
from lm.experiment import INERT
from lm.machine import buckets, hardware
from lm.page.markup import document, header, tag
from lm.page.run_record import RunRecord
from lm.page.source import as_python
from lm.page.tables import Table, html
from lm.page.words import join_and, plural
from lm.pretrained import read_experiment
from lm.run.batch_diff import BatchDifference, first_difference
from lm.run.divergence import Divergence, differing, divergence
from lm.run.history import IRRELEVANT, at_step, read_history
from lm.run.prepared import open_data
from lm.run.replay import Replay, kept_states, training_lines

HEAD = ("", "A", "B")
LONGEST = 72  # characters of a value
SHOWN, LISTED = 3, 6  # differences in the verdict, and arrays in a table
FINE, COARSE = 1e-5, 1e-3  # how far apart two orders of summing a loss are, of it: in float32, and with bfloat16
RAN_ON = ("environment", "compute", "mesh")


@dataclass(frozen=True)
class Comparison:
    """The `verdict` in a sentence or two, and a table of each kind of difference; one without rows says in its note
    that there is none, or why it is not known."""

    verdict: str
    tables: tuple[Table, ...]


class Side:
    """The files of one of the two runs. Raises ValueError for a folder that is no run."""

    def __init__(self, letter: str, folder: str | Path):
        self.letter, self.folder = letter, buckets.local_mirror(folder)
        self.record = RunRecord(self.folder)
        self.experiment = read_experiment(self.folder)
        self.history = read_history(self.folder)
        name = self.record.loss.name
        self.losses = {n: line[name] for n, line in training_lines(self.folder, name).items()}

    def entry(self, step: int) -> dict[str, Any]:
        """What the process that computed `step` began with."""
        return at_step(self.history, step) or {
            k: self.record.about.get(k, {}) for k in ("environment", "compute", "mesh")
        }


def compare(first: str | Path, second: str | Path, replay: bool = True) -> Comparison:
    """The differences of the run in the folder `first` (A) and that in `second` (B); their steps are computed again
    where `replay`. Raises ValueError where one is no run."""
    a, b = Side("A", first), Side("B", second)
    hardware.check_backend()
    declared, data = _experiments(a, b), _data(a, b)
    parting = parting_step(a, b)
    step = parting or max([1, *a.losses.keys() & b.losses.keys()])
    environment, program, states = _environments(a, b, step), _programs(a, b, step), _states(a, b)
    last = parting or (max(1, states.step) if states.apart else 0)
    computed = _again(a, b, last) if replay and last else None
    losses = _losses(a, b, parting)
    again = _computed(computed, last)
    tables = (declared, _data_table(data), environment, program, losses, _states_table(states), again)
    return Comparison(_verdict(a, b, parting, tables, data, computed), tables)


def page(found: Comparison, first: str, second: str) -> str:
    """The comparison as a web page, of the runs that the user called so."""
    title = f"{first} and {second}"
    tables = (html(replace(one, figure=tag("p", one.note), note="") if not one.rows else one) for one in found.tables)
    return document(f"{title} – two runs", header(title, "two runs", False, found.verdict, ()), *tables)


# ---------------------------------------------------------------- what was declared and read


def _experiments(a: Side, b: Side) -> Table:
    """The fields that differ, those that can change no number last."""
    found = value.differences(value.plain(a.experiment), value.plain(b.experiment))
    found.sort(key=lambda difference: difference[0].split(".")[0] in INERT)
    rows = tuple((path, _short(x), _short(y)) for path, x, y in found)
    inert = [path for path, _, _ in found if path.split(".")[0] in INERT]
    note = f"{join_and(inert)} can change no number." if inert else "" if rows else "The same."
    return Table("Experiment", ("field", "A", "B"), rows, note, text_columns=3)


def _short(data: Any) -> str:
    text = as_python(data)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _data(a: Side, b: Side) -> BatchDifference | str | None:
    """The first step whose rows differ; None where none does; in words why it is not known."""
    steps = min(max(side.losses, default=side.experiment.steps) for side in (a, b))
    opened = []
    for side in (a, b):
        try:
            opened.append(open_data(side.experiment, side.folder))
        except (ValueError, OSError) as error:
            return f"Not compared: {side.letter}: {error}"
    return first_difference(opened[0], opened[1], steps)


def _data_table(data: BatchDifference | str | None) -> Table:
    if isinstance(data, BatchDifference):
        return Table("Data", ("row", "A", "B"), data.rows, f"First in step {data.step}: {data.what}.", text_columns=3)
    return Table("Data", HEAD, (), data or "The same rows in every step of both.")


# ---------------------------------------------------------------- what it ran on


def _environments(a: Side, b: Side, step: int) -> Table:
    """Versions, devices, flags, mesh and resolved compute of the processes that computed `step`."""
    x, y = (_flat(side.entry(step)) for side in (a, b))
    names = [name for name in {**x, **y} if x.get(name) != y.get(name) and name not in IRRELEVANT]
    rows = tuple((name, str(x.get(name, "")), str(y.get(name, ""))) for name in names)
    changes = [f"{s.letter} went on in another environment from step {n}" for s in (a, b) for n in _changes(s)]
    missing = [side.letter for side in (a, b) if not side.entry(step).get("environment")]
    note = f"Not recorded in {join_and(missing)}." if missing else "" if rows else "The same."
    return Table("Environment", HEAD, rows, " ".join([note, *(f"{c}." for c in changes)]).strip(), text_columns=3)


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    parts = {name: entry.get(name, {}) for name in RAN_ON}
    own = {f"{part}.{k}": v for part in ("compute", "mesh") for k, v in parts[part].items() if k != "type"}
    return {**parts["environment"], **own}


def _changes(side: Side) -> list[int]:
    """The steps from which a run went on in another environment than before."""
    pairs = zip(side.history, side.history[1:], strict=False)
    return [after["step"] for before, after in pairs if _flat(before) != _flat(after)]


def _programs(a: Side, b: Side, step: int) -> Table:
    """The fingerprints of the lowered step."""
    x, y = (side.entry(step).get("program", "") for side in (a, b))
    rows = (("lowered step", x, y),) if x and y and x != y else ()
    missing = [letter for letter, recorded in (("A", x), ("B", y)) if not recorded]
    note = f"Not recorded in {join_and(missing)}." if missing else "" if rows else f"The same ({x})."
    return Table("Compiled program", HEAD, rows, note, text_columns=3)


# ---------------------------------------------------------------- what came of it


def parting_step(a: Side, b: Side) -> int:
    """The first step that both have logged, and whose losses differ by a bit; 0 where none does."""
    return next((n for n in sorted(a.losses.keys() & b.losses.keys()) if a.losses[n] != b.losses[n]), 0)


def _losses(a: Side, b: Side, parting: int) -> Table:
    """The first losses that differ by a bit, and by more than rounding."""
    both = sorted(a.losses.keys() & b.losses.keys())
    computes = [side.record.about.get("compute", {}) for side in (a, b)]
    rounding = COARSE if any("bfloat16" in (c.get("dtype"), c.get("matmul")) for c in computes) else FINE
    far = next((n for n in both if _distance(a.losses[n], b.losses[n]) > rounding), 0)
    found = {"the first that differs": parting, f"the first by more than rounding ({rounding:g} of it)": far}
    rows = tuple(
        (what, str(n), repr(a.losses[n]), repr(b.losses[n]), f"{_distance(a.losses[n], b.losses[n]):.2g}")
        for what, n in found.items()
        if n
    )
    same = f"The same to the bit in {plural(len(both), 'step')}." if both else "No step is in both logs."
    return Table("Training loss", ("", "step", "A", "B", "relative"), rows, "" if rows else same)


def _distance(x: float | None, y: float | None) -> float:
    """Relative; infinite where one is not finite (None)."""
    if x is None or y is None:
        return 0.0 if x == y else math.inf
    return abs(x - y) / (max(abs(x), abs(y)) or 1.0)


class _States(NamedTuple):
    """The first step after which both have kept their state's checksums, and these differ: the arrays that are `apart`,
    with their checksums in A and in B. Where none differ, the steps that were `compared`."""

    step: int
    apart: list[tuple[str, str, str]]
    compared: list[int]


def _states(a: Side, b: Side) -> _States:
    """Of the checkpoints that both have, and of the states before the first step."""
    first, second = (kept_states(side.folder) for side in (a, b))
    both = sorted(first.keys() & second.keys())
    for step in both:
        x, y = first[step], second[step]
        if names := differing(x, y):
            return _States(step, [(n, _hex(x.get(n)), _hex(y.get(n))) for n in names], both)
    return _States(0, [], both)


def _hex(checksum: int | None) -> str:
    return "" if checksum is None else f"{checksum:08x}"


def _states_table(states: _States) -> Table:
    if states.apart:
        when = f"after step {states.step}" if states.step else "before the first step"
        note = f"First {when}: {plural(len(states.apart), 'array')}, by their checksums."
        return Table("States", ("array", "A", "B"), tuple(states.apart[:LISTED]), note)
    both = [f"step {step}" if step else "the start" for step in states.compared]
    return Table("States", HEAD, (), f"The same at {join_and(both)}." if both else "No step has a checkpoint in both.")


# ---------------------------------------------------------------- computed again


def _again(a: Side, b: Side, last: int) -> Divergence | str:
    """Where the two part when they are computed again up to the step `last`; or why they cannot be."""
    if len(devices := {side.experiment.compute.devices for side in (a, b)}) > 1:
        return f"Not computed: one process has either compute.devices={' or '.join(map(str, sorted(devices)))}."
    replays: list[Replay] = []
    for side in (a, b):
        try:
            replays.append(Replay(side.folder, *replays))
        except (ValueError, OSError) as error:
            return f"Not computed: {side.letter}: {error}"
    return divergence(replays[0], replays[1], last)


def _computed(found: Divergence | str | None, last: int) -> Table:
    title = "Computed again"
    if not isinstance(found, Divergence):
        return Table(title, HEAD, (), found or ("Not asked for." if last else "There is nothing to look for."))
    return Table(title, HEAD, found.rows, _reproduced(found), text_columns=3)


def _reproduced(found: Divergence) -> str:
    """What the replay found, and whether it is what the runs have logged."""
    first = f"First {found.what}." if found.step >= 0 else "Here both have the same bits."
    unlike = {letter: n for letter, n in zip("AB", found.unlike, strict=True) if n is not None}
    if not unlike:
        return f"{first} Both are reproduced to the bit, as they were logged and kept."
    said = [f"{letter} was another {f'from step {n} on' if n else 'from the start'}" for letter, n in unlike.items()]
    kept = [f"; {letter} is reproduced to the bit" for letter in "AB" if letter not in unlike]
    return f"{first} By log and checkpoints {join_and(said)}{''.join(kept)}."


# ---------------------------------------------------------------- the verdict


def _verdict(
    a: Side,
    b: Side,
    parting: int,
    tables: Sequence[Table],
    data: BatchDifference | str | None,
    computed: Divergence | str | None,
) -> str:
    declared, _, environment, program, losses, states, _ = tables
    if not parting and not states.rows:
        return f"A and B are the same: {losses.note.lower()}{_ends(a, b)}{_but(declared)}"
    begin = f"A and B part at step {parting}" if parting else "The losses are the same and the states are not"
    causes = [f"{path} ({x} and {y})" for path, x, y in declared.rows if path.split(".")[0] not in INERT]
    parts = [f"{begin}."]
    if causes:
        parts.append(f"The experiments differ in {join_and(causes, SHOWN)}.")
    if isinstance(data, BatchDifference):
        parts.append(f"Their rows differ from step {data.step} on: {data.what}.")
    if isinstance(computed, Divergence) and computed.step >= 0:
        parts.append(f"What differs first is {computed.what}.")
    elif not causes and not isinstance(data, BatchDifference):
        outside = [name for name, table in (("environment", environment), ("program", program)) if table.rows]
        what = f"{join_and([f'the {one}' for one in outside])} differ{'s' * (len(outside) == 1)}"
        what = what if outside else "so is all else that is recorded"
        parts.append(f"The experiment and the rows are the same; {what}{_culprit(computed)}.")
    return " ".join(parts)


def _ends(a: Side, b: Side) -> str:
    """The last steps of two runs, where they are others."""
    first, second = (max(side.losses, default=0) for side in (a, b))
    return f" A has logged {plural(first, 'step')}, B {second:,}." if first != second else ""


def _but(declared: Table) -> str:
    return (
        f" Their experiments differ in {join_and([row[0] for row in declared.rows], SHOWN)}." if declared.rows else ""
    )


def _culprit(computed: Divergence | str | None) -> str:
    """Which of two runs that are the same here has logged what is computed here."""
    if not isinstance(computed, Divergence):
        return ""
    like = [letter for letter, n in zip("AB", computed.unlike, strict=True) if n is None]
    return f". Computed again here, both give what {like[0] if like else 'neither'} has logged and kept"
