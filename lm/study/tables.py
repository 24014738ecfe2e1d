"""The tables of a study: two records as CSV, and what is read: the arms, their sources, what they differ in.

The CSV files are the same bytes for the same results, whatever the clock and the machine: they hold no times, numbers
are written with all their digits, and one that there is not is written nan.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lm.machine.monitor import duration, human
from lm.page.measure import Measure
from lm.page.run_record import RunRecord
from lm.page.source import as_python, with_commas
from lm.page.tables import Table, csv_text
from lm.page.words import NONE, between, decimals, number, probability
from lm.run.outcome import DIVERGED, PRUNED
from lm.study.statistics import Difference, Measured, differences, measured, shared
from lm.study.trial import MISSING, STOPPED, Result
from lm.study.verdicts import best_first, title, verdict, word

FIRST = ("loss", "bits_per_byte")  # of the measures: those that are over all sources
COLUMNS = tuple(field.name for field in fields(Difference))
WIDE = 3  # columns of measures: beyond, each holds its differences too
WHY = {MISSING: "not run yet", STOPPED: "under way, or stopped", PRUNED: "stopped early by the study"}
SPREAD = "Mean and standard deviation over the seeds."
code = partial(as_python, write=with_commas)
Declared = Mapping[str, Sequence[tuple[str, Any, Any]]]  # arm -> (path, base's value, the arm's)


# ---------------------------------------------------------------- CSV


def results_csv(results: Sequence[Result]) -> str:
    """A row a run, arm by arm and seed by seed: what it was, how it ended, and every measure of those that finished.
    Tokens and FLOPs are those of the whole run."""
    names = measures(results)
    arms = {arm: i for i, arm in enumerate(dict.fromkeys(r.trial.arm for r in results))}
    rows = [
        [
            *(r.trial.arm, r.trial.seed, r.status, r.trial.experiment.steps, r.tokens, r.flops, r.parameters),
            *(float(r.measures.get(name, math.nan)) for name in names),
        ]
        for r in sorted(results, key=lambda r: (arms[r.trial.arm], r.trial.seed))
    ]
    return csv_text(["arm", "seed", "status", "steps", "tokens", "flops", "parameters", *names], rows)


def measures(results: Iterable[Result]) -> list[str]:
    """The measures that any run has: those over all sources, then the others by name."""
    known = {name for result in results for name in result.measures}
    return [*(name for name in FIRST if name in known), *sorted(known - {*FIRST})]


def differences_csv(results: Sequence[Result], base: str, measure: str) -> str:
    """A row an arm, the base's first: see `Difference`. The base differs from itself by 0. Without a `base` there are
    no differences, only means."""
    arms = measured(results, measure)
    alone = [
        Difference(name, arm.mean, 0.0 if base else math.nan, seeds=len(arm.values), diverged=len(arm.lost))
        for name, arm in arms.items()
        if name == base or not base
    ]
    return csv_text(COLUMNS, map(astuple, [*alone, *(differences(results, base, measure) if base else [])]))


# ---------------------------------------------------------------- arms and sources


def arms_table(results: Sequence[Result], base: str, measure: str, compared: Sequence[Difference]) -> Table:
    """The table of arms, the base first: what each reached, how it differs from the base, and what it took."""
    arms = measured(results, measure)
    first = {r.trial.arm: r for r in reversed(results)}
    digits = decimals([*(d.half_width for d in compared), *(a.deviation for a in arms.values())])
    by_arm = {d.arm: d for d in compared}
    rows = []
    for arm in sorted(arms, key=lambda arm: arm != base):
        d = by_arm.get(arm)
        one = shared(arms[base], arms[arm]) if d else arms[arm]
        spread = f" ± {number(one.deviation, digits)}" if math.isfinite(one.deviation) else ""
        against = _against(d, measure, digits) if base else ()
        reached = number(one.mean, digits) + spread
        rows.append((arm, str(len(one.values)), reached, *against, *_took(first[arm], results)))
    note = "Mean and standard deviation over the seeds"
    if base:
        note += (
            f", the difference to {base} paired by seed with its 95% interval (Student's t), and p of the paired "
            "t-test after Holm's correction over the arms. An arm is called better or worse where p is below 0.05"
        )
    columns = ("difference", "95% interval", "p", "verdict") if base else ()
    head = ("arm", "seeds", title(measure), *columns, "tokens", "FLOPs", "parameters", "wall time")
    return Table("Arms", head, tuple(rows), f"{note}. Wall time is the mean of a run.")


def _against(d: Difference | None, measure: str, digits: int) -> tuple[str, ...]:
    if d is None:
        return ("", "", "", "base")
    shown = number(d.difference, digits, True), between(d.low, d.high, digits), probability(d.p_holm)
    return *shown, word(d, measure)


def _took(one: Result, results: Sequence[Result]) -> tuple[str, ...]:
    seconds = [r.seconds for r in results if r.trial.arm == one.trial.arm and r.seconds]
    time = duration(sum(seconds) / len(seconds)) if seconds else NONE
    return human(one.tokens), human(one.flops), human(one.parameters), time


def sources_tables(results: Sequence[Result], base: str, measure: str) -> list[Table]:
    """What each arm reached in each extra evaluation, and on each source: a table for each kind of measure, that of
    `measure` first."""
    evaluations = list(dict.fromkeys(name for r in results for name in r.trial.experiment.evaluations))
    known = [name for name in measures(results) if not name.endswith("perplexity")]
    own = [name for name in known if "/" in name and name.partition("/")[0] not in evaluations]
    wanted = measure.rpartition("/")[2]
    kinds = sorted(dict.fromkeys(name.rpartition("/")[2] for name in known), key=lambda kind: kind != wanted)
    fair = [kind for kind in kinds if kind in ("bits_per_byte", wanted) or alike(results)]
    note = "Means over the sources; own is the arm's own evaluation."
    tables: list[Table] = []
    for kind in kinds:
        extra = {f"{name}/{kind}": name for name in evaluations if f"{name}/{kind}" in known}
        columns = ({kind: "own"} if kind in known and kind in fair else {}) | extra
        table = _columns(results, base, f"{title(kind)} by evaluation", columns) if extra else None
        tables += [replace(table, note=f"{note} {table.note}".strip())] if table else []
    for kind in fair:
        columns = {name: name.rpartition("/")[0] for name in own if name.rpartition("/")[2] == kind}
        tables += [_columns(results, base, f"{title(kind)} by source", columns)] if columns else []
    return tables


def judged_tables(results: Sequence[Result]) -> list[Table]:
    """What each arm reached by each evaluation that has a method of its own: a table a source, of all its measures."""
    arms = {r.trial.arm: r.trial.experiment for r in reversed(results)}
    own = {name: one for e in arms.values() for name, one in e.evaluations.items() if one.method}
    return [
        Table(f"{name}: {source}", ("arm", *(one.title for one in shown)), _judged(results, path, shown), SPREAD)
        for name, evaluation in own.items()
        for source in evaluation.sources
        if (path := f"{name}/{source}") and evaluation.method
        if (shown := [one for one in evaluation.method.measures if f"{path}/{one.name}" in measures(results)])
    ]


def _judged(results: Sequence[Result], path: str, shown: Sequence[Measure]) -> tuple[tuple[str, ...], ...]:
    columns = [(one, measured(results, f"{path}/{one.name}")) for one in shown]
    return tuple((arm, *(_spread(one, values[arm]) for one, values in columns)) for arm in columns[0][1])


def _spread(one: Measure, arm: Measured) -> str:
    """The mean of a measure, and its deviation where there is one."""
    if not arm.values:
        return NONE
    return one.format(arm.mean) + (f" ± {one.format(arm.deviation)}" if len(arm.values) > 1 else "")


def samples_table(results: Sequence[Result], study: Path) -> Table:
    """Samples of the evaluations with a method, side by side: those of the first seed at which all arms that have any
    finished, for prompts that they share."""
    seeds: dict[int, dict[str, dict[str, str]]] = {}
    for r in results:
        names = tuple(f"{name}: " for name, one in r.trial.experiment.evaluations.items() if one.method)
        known = RunRecord(r.trial.folder(study)).titled_samples if r.finished and names else []
        own = {prompt: text.removeprefix(prompt) for title, prompt, text in known if title.startswith(names)}
        if own:
            seeds.setdefault(r.trial.seed, {})[r.trial.arm] = own
    by_arm = max(seeds.values(), key=len, default={})
    shared = [prompt for prompt in next(iter(by_arm.values()), {}) if all(prompt in own for own in by_arm.values())]
    rows = tuple((prompt, arm, " ".join(own[prompt].split())) for prompt in shared for arm, own in by_arm.items())
    return Table("Samples side by side", ("prompt", "arm", "completion"), rows, text_columns=3, paper=False)


def alike(results: Sequence[Result]) -> bool:
    """Whether all arms have one objective and one tokenizer: else a loss a token is of another question, or another
    token, and compares nothing."""
    of = lambda e: (e.method.objective, e.method.measures, e.data.tokenizer)  # noqa: E731
    return len({repr(of(r.trial.experiment)) for r in results}) < 2


def _columns(results: Sequence[Result], base: str, name: str, heads: Mapping[str, str]) -> Table:
    """A table `name` with a column for each measure of `heads`, under its head, and the differences to the base."""
    columns = {measure: measured(results, measure) for measure in heads}
    against = {measure: {d.arm: d for d in differences(results, base, measure)} if base else {} for measure in heads}
    widths = [d.half_width for by_arm in against.values() for d in by_arm.values()]
    digits = decimals(widths or [a.deviation for arms in columns.values() for a in arms.values()])
    narrow, rows = len(heads) > WIDE, []
    for arm in sorted(next(iter(columns.values())), key=lambda arm: arm != base):
        cells = [_source(columns[measure][arm], against[measure], digits, base) for measure in heads]
        cells = [(f"{one[0]} ({one[1]})" if one[1:] and one[1] else one[0],) for one in cells] if narrow else cells
        rows.append((arm, *(cell for one in cells for cell in one)))
    each = ("difference",) if base and not narrow else ()
    head = ("arm", *(cell for name in heads.values() for cell in (name, *each)))
    where = f"Differences to {base}{' (in brackets)' if narrow else ''}"
    explained = f"{where}, paired by seed, with half of their 95% interval, uncorrected." if base else ""
    return Table(name.capitalize(), head, tuple(rows), explained)


def _source(arm: Measured, against: Mapping[str, Difference], digits: int, base: str) -> tuple[str, ...]:
    d = against.get(arm.arm)
    if d is None:
        return (number(arm.mean, digits), *([""] if base else []))
    half = "" if math.isnan(d.half_width) else f" ± {number(d.half_width, digits)}"
    return number(d.mean, digits), number(d.difference, digits, True) + half


# ---------------------------------------------------------------- the others


def verdicts_table(compared: Sequence[Difference], measure: str) -> Table:
    """Arm by arm, in words."""
    rows = tuple((d.arm, verdict(d, measure)) for d in best_first(compared, measure))
    note = (
        "The number of seeds is that with which a paired t-test would see a difference as large as the observed one, "
        "relative to its spread, with power 0.8 at the 5% level."
    )
    return Table("Conclusions", ("arm", title(measure)), rows, note, text_columns=2, paper=False)


def pairing_table(compared: Sequence[Difference]) -> Table:
    """What pairing by seed gains: the widths of both intervals."""
    rows = []
    for d in compared:
        if d.half_width > 0 and d.unpaired_half_width > 0:
            halves = (f"± {number(half, decimals([d.half_width]))}" for half in (d.half_width, d.unpaired_half_width))
            rows.append((d.arm, str(d.seeds), *halves, f"{d.unpaired_half_width / d.half_width:.2f}×"))
    note = (
        "Half of the 95% interval of the difference: paired by seed, and by Welch's test as if the runs of the two "
        "arms were unrelated. Above 1×, pairing made it narrower."
    )
    return Table("Gain from pairing", ("arm", "seeds", "paired", "unpaired", "ratio"), tuple(rows), note)


def declared_table(declared: Declared, base: str) -> Table:
    """What every arm differs in."""
    rows = tuple((arm, *change) for arm, changes in declared.items() for change in _changes(changes))
    head = ("arm", "field", f"in {base or 'the base'}", "in the arm")
    note = "All else is equal, for each seed."
    return Table("What the arms differ in", head, rows, note, text_columns=4, paper=False)


def _changes(changes: Sequence[tuple[str, Any, Any]]) -> Iterator[tuple[str, str, str]]:
    """(path, before, after) in text; where a value gave way to one of another class, both in one, with the fields that
    they do not share."""
    classes = [path.removesuffix(".type") for path, _, _ in changes if path.endswith(".type")]
    values: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    rows: dict[str, tuple[Any, Any]] = {}
    for path, old, new in changes:
        inside = next((above for above in classes if path.startswith(f"{above}.")), None)
        if inside is None:
            rows[path] = old, new
            continue
        rows[inside] = values.setdefault(inside, ({}, {}))
        for side, data in zip(values[inside], (old, new), strict=True):
            side |= {} if data is None else {path.removeprefix(f"{inside}."): data}
    for path, (old, new) in rows.items():
        yield path, code(old), code(new)


def resized_table(results: Iterable[Result]) -> Table:
    """What was changed to match the arms."""
    first = {r.trial.arm: r.trial.resized for r in results}
    rows = tuple((arm, path, code(old), code(new)) for arm, by in first.items() for path, (old, new) in by.items())
    return Table("What was resized", ("arm", "field", "declared", "run as"), rows, text_columns=2)


def unfinished_table(results: Sequence[Result]) -> Table:
    """The runs without a result, and why."""
    rows = tuple(
        (
            *(r.trial.arm, str(r.trial.seed), r.status),
            f"{r.curve[-1][0]:,} of {r.trial.experiment.steps:,}" if r.curve else NONE,
            r.reason or WHY.get(r.status, ""),
        )
        for r in results
        if not r.finished
    )
    lost = any(r.status == DIVERGED for r in results)
    note = "They are in no mean" + (", which flatters an arm that diverges." if lost else ".")
    head = ("arm", "seed", "status", "steps", "reason")
    return Table("Runs that did not finish", head, rows, note, text_columns=5, paper=False)
