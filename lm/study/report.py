"""The report of a study, as one would put it in a paper: a page, the same in Markdown and LaTeX, and two CSV files.

It says what the data can tell and what it cannot. What a kind of study adds of its own are `Findings`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm.machine.monitor import duration, human
from lm.page.markup import Markup, document, section, table, tag, tiles
from lm.study import charts, tables
from lm.study.statistics import Difference, amount, differences, direction, measured, signed, verdict, word
from lm.study.tables import NONE, Findings, Table, named, number
from lm.study.trial import DIVERGED, MISSING, PRUNED, STOPPED, Result

DENSE = 8  # columns: beyond, they stand closer
MOST_NAMED = 5  # arms in a sentence
Declared = Mapping[str, Sequence[tuple[str, Any, Any]]]
NOTHING = Findings()
MATCHED = {
    "flops": "All arms were given the FLOPs of the base.",
    "params": "All arms were given about as many parameters as the base.",
    "steps": "All arms were given the same number of steps.",
}


def write_study(folder: Path, study: Any, results: Sequence[Result], note: Mapping[str, Any]) -> Path:
    """Write the report of `study`: its `measure`, and what it has of `base_arm`, `differences()`, `match`,
    `findings(results)`. `note` is the study.json of its folder."""
    return write(
        folder,
        str(note["study"]).rpartition(":")[2],
        results,
        getattr(study, "base_arm", ""),
        study.measure,
        declared=study.differences() if hasattr(study, "differences") else {},
        matched=getattr(study, "match", ""),
        own=study.findings(results) if hasattr(study, "findings") else NOTHING,
        command=note.get("command", ""),
    )


def write(
    folder: Path,
    name: str,
    results: Sequence[Result],
    base: str,
    measure: str,
    *,
    declared: Declared | None = None,
    matched: str = "",
    own: Findings = NOTHING,
    command: str = "",
) -> Path:
    """Write results.csv, differences.csv, report.md, report.tex and report.html in `folder`; the path of the page.

    Arms are compared with `base` ("": with none) by `measure`; `declared` is what each differs in, `matched` what was
    held equal, the study's `own` headline takes the place of our first sentence, `command` runs the study.
    Raises ValueError where there is no such arm or measure, or the folder cannot be written."""
    story = Story(name, results, base, measure, declared or {}, matched, own, command, folder)
    path = folder / "report.html"
    _put(folder / "results.csv", tables.results_csv(results))
    _put(folder / "differences.csv", tables.differences_csv(results, base, measure))
    for file, text in own.files.items():
        _put(folder / file, text)
    _put(folder / "report.md", story.markdown())
    _put(folder / "report.tex", story.latex())
    _put(path, story.page())
    return path


def _put(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


class Story:
    """What the results of a study tell, section by section."""

    def __init__(
        self,
        name: str,
        results: Sequence[Result],
        base: str,
        measure: str,
        declared: Declared,
        matched: str,
        own: Findings,
        command: str,
        folder: Path,
    ):
        self.name, self.results, self.base, self.measure = name, results, base, measure
        self.matched, self.extra, self.command, self.folder = matched, own.parts, command, folder
        self.arms = measured(results, measure)
        self.found = differences(results, base, measure) if base else []
        self.headline = own.headline or first_sentence(self.found, base, measure) or best_arm(results, measure)
        arms = tables.arms_table(results, base, measure, self.found)
        self.table = replace(arms, rows=()) if own.lists_arms else arms
        self.sources = tables.sources_tables(results, base, measure)
        self.verdicts, self.pairing = verdicts_table(self.found, measure), pairing_table(self.found)
        self.declared, self.resized = declared_table(declared, base), resized_table(results)
        self.unfinished = unfinished_table(results)

    def markdown(self) -> str:
        """The report as Markdown."""
        every = [self.table, self.verdicts, *self.sources, self.pairing, self.declared, self.resized, self.unfinished]
        shown = [*(e for e in self.extra if isinstance(e, Table)), *(t for t in every if t.rows)]
        again = f"## Run it again\n\n```\n{self._again()}\n```\n"
        parts = [f"# {self.name}", f"{self.headline} {self._how()}".strip(), *map(tables.markdown, shown), again]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def latex(self) -> str:
        """The tables as LaTeX, to be read with `\\input`."""
        every = [
            *(e for e in self.extra if isinstance(e, Table)),
            self.table,
            *self.sources,
            self.pairing,
            self.resized,
        ]
        head = f"% {tables.escaped(self.name)}: tables of `lm report`. They need \\usepackage{{booktabs}}.\n"
        return "\n".join([head, *(tables.latex(one) for one in every if one.rows)])

    def page(self) -> str:
        """The page's HTML."""
        lead = tag("p", f"{self.headline} {self._how()}", class_="lead")
        top = tag("div", tag("h1", self.name), self._badge(), class_="top")
        forest = charts.forest(self.results, self.found, self.base, self.measure) if self.base else ""
        return document(
            f"{self.name} – a study",
            tag("header", top, lead, tiles(self._tiles())),
            *(html(one) if isinstance(one, Table) else one for one in self.extra),
            html(self.table, before=forest),
            html(self.verdicts),
            section("Training", charts.curves(self.results, self.base, self.measure)),
            *map(html, self.sources),
            html(self.pairing),
            html(self.declared),
            html(self.resized),
            html(self.unfinished),
            self._run_again(),
            tag("footer", "Made by lm report from the runs in the study's folder."),
        )

    # ------------------------------------------------------------ the first screen

    def _how(self) -> str:
        finished = sum(r.finished for r in self.results)
        seeds = sorted({len(a.values) for a in self.arms.values()})
        each = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}" if seeds else "0"
        words = f"{finished} of {len(self.results)} runs finished, {each} seed{'s' if each != '1' else ''} an arm."
        early = sum(r.status == PRUNED for r in self.results)
        words += f" {early} were stopped early." if early else ""
        lost = [f"{n} of {arm}" for arm in self.arms if (n := self._lost(arm))]
        lost = lost if len(lost) <= MOST_NAMED else [*lost[:MOST_NAMED], f"{len(lost) - MOST_NAMED} other arms"]
        words += f" Without a result, and in no mean: {_and(lost)}." if lost else ""
        return f"{words} {MATCHED.get(self.matched, '')}".strip()

    def _lost(self, arm: str = "") -> int:
        """Runs, of an arm or of all, without a result, and not because the study stopped them."""
        early = [(r.trial.arm, r.trial.seed) for r in self.results if r.status == PRUNED]
        arms = [self.arms[arm]] if arm else list(self.arms.values())
        return sum((a.arm, seed) not in early for a in arms for seed in a.lost)

    def _badge(self) -> Markup:
        open_ = sum(r.status in (MISSING, STOPPED) for r in self.results)
        state = f"{len(self.results) - open_} of {len(self.results)} runs" if open_ else "finished"
        return tag("span", state, class_="state" if open_ else "state done")

    def _tiles(self) -> Iterable[tuple[str, str, str]]:
        finished = sum(r.finished for r in self.results)
        sign = -direction(self.measure)
        best = min((a for a in self.arms.values() if a.values), key=lambda a: (sign or 1) * a.mean, default=None)
        if best:
            most = "highest" if sign < 0 else "lowest"
            yield f"{most} {named(self.measure)}", number(best.mean, tables.decimals([best.deviation])), best.arm
        if self.base:
            apart = sum(word(d, self.measure) not in ("cannot tell", "same") for d in self.found)
            yield f"told apart from {self.base}", f"{apart} of {len(self.found)}", "other arms, p < 0.05 after Holm"
            width = _median([d.half_width for d in self.found])
            gain = _median([d.unpaired_half_width / d.half_width for d in self.found if d.half_width > 0])
            remark = _gained(gain) if width == width else "no interval can be given"
            yield "uncertainty", f"± {width:.2g}" if width == width else NONE, remark
        lost = self._lost()
        seconds = sum(r.seconds for r in self.results)
        remark = f"{lost} diverged or failed" if lost else f"{duration(seconds)} in all" if seconds else "none failed"
        yield "runs finished", f"{finished} of {len(self.results)}", remark
        if not self.base:
            yield "FLOPs", human(sum(r.flops for r in self.results if r.finished)), "of training, in all"

    # ------------------------------------------------------------ the last one

    def _again(self) -> str:
        return "\n".join([*([self.command] if self.command else []), f"lm report {self.folder}"])

    def _run_again(self) -> Markup:
        command = tag("pre", "\n".join(f"$ {line}" for line in self._again().splitlines()), class_="command")
        found = environments(self.folder, self.results)
        keys = list(dict.fromkeys(key for one in found for key in one))
        each = {
            key: list(dict.fromkeys(str(one[key]) for one in found if one.get(key) not in (None, ""))) for key in keys
        }
        rows = [[key.removesuffix("_bytes"), " / ".join(_size(key, v) for v in values)] for key, values in each.items()]
        note = f"The runs were made in {len(found)} different environments." if len(found) > 1 else ""
        return section(
            "Run it again", command, tag("p"), table(["environment", ""], [r for r in rows if r[1]], 2), note=note
        )


def _size(key: str, text: str) -> str:
    return f"{int(text) / 2**30:.1f} GiB" if key.endswith("_bytes") and text.isdigit() else text


def _gained(gain: float) -> str:
    said = "half a 95% interval"
    return f"{said}, by pairing {gain:.1f}× narrower" if gain >= 1.05 else f"{said}; pairing does not narrow it"


def _median(values: Sequence[float]) -> float:
    known = sorted(v for v in values if math.isfinite(v))
    return known[len(known) // 2] if known else math.nan


def html(one: Table, before: Any = "") -> Markup:
    """A section with the table; nothing, where it has no rows."""
    good = {"better": tag("span", "better", class_="win")}
    rows = [[good.get(cell, cell) for cell in row] for row in one.rows]
    drawn = table(one.head, rows, one.text_columns)
    drawn = tag("div", drawn, class_="dense") if len(one.head) > DENSE else drawn
    return section(one.title, before, tag("p") if before else "", drawn, note=one.note)


def environments(folder: Path, results: Iterable[Result]) -> list[dict[str, Any]]:
    """The different environments in which the runs were made, as far as their folders tell."""
    found: list[dict[str, Any]] = []
    for result in results:
        try:
            about = json.loads((result.trial.folder(folder) / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        environment = about.get("environment") or {}
        if environment and environment not in found:
            found.append(environment)
    return found


# ---------------------------------------------------------------- what can be said


def first_sentence(found: Sequence[Difference], base: str, measure: str) -> str:
    """What the study found, in a sentence or two; nothing, where no two arms have finished a seed."""
    if not any(d.seeds for d in found):
        return ""
    if max(d.seeds for d in found) < 2:
        shown = ", ".join(
            f"{d.arm} {signed(d.difference)}" for d in _best_first([d for d in found if d.seeds], measure)
        )
        return (
            "With one seed no interval can be given, and it cannot be told which arm is better. "
            f"At that seed, in {named(measure)} against {base}: {shown}."
        )
    groups: dict[str, list[Difference]] = {}
    for d in found:
        groups.setdefault(word(d, measure), []).append(d)
    parts = [_group(kind, groups[kind], measure) for kind in ("better", "worse", "higher", "lower") if kind in groups]
    if same := groups.get("same"):
        parts.append(f"{_and([d.arm for d in same])} {_are(same)} the same at every seed")
    if unclear := groups.get("cannot tell"):
        parts.append(f"of {_and([d.arm for d in unclear])} the data cannot tell")
    return f"Against {base}, in {named(measure)}: {'; '.join(parts)}."


def _group(kind: str, arms: Sequence[Difference], measure: str) -> str:
    ordered = _best_first(arms, measure)
    amounts = [f"{abs(d.difference):.3g}" for d in ordered] if len(ordered) > 1 else [amount(d) for d in ordered]
    return f"{_and([d.arm for d in ordered])} {_are(ordered)} {kind} by {_and(amounts)}"


def _best_first(arms: Sequence[Difference], measure: str) -> list[Difference]:
    return sorted(arms, key=lambda d: -direction(measure) * d.difference)


def best_arm(results: Sequence[Result], measure: str) -> str:
    """Which arm has the best mean, and that this alone is no proof."""
    arms = [a for a in measured(results, measure).values() if a.values]
    if not arms or not direction(measure):
        return "" if arms else "No run has finished yet."
    best = min(arms, key=lambda a: -direction(measure) * a.mean)
    most = "lowest" if direction(measure) < 0 else "highest"
    seeds = f"over {len(best.values)} seeds" if len(best.values) > 1 else "at one seed"
    return f"Of {len(arms)} arms, {best.arm} has the {most} {named(measure)}: {best.mean:.4g} {seeds}."


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _are(things: Sequence[Any]) -> str:
    return "are" if len(things) > 1 else "is"


# ---------------------------------------------------------------- tables


def verdicts_table(found: Sequence[Difference], measure: str) -> Table:
    """Arm by arm, in words."""
    rows = tuple((d.arm, verdict(d, measure)) for d in _best_first(found, measure))
    note = (
        "The number of seeds is that with which a paired t-test would see a difference as large as the observed one, "
        "relative to its spread, with power 0.8 at the 5% level."
    )
    return Table("What can be said", ("arm", named(measure)), rows, note, text_columns=2)


def pairing_table(found: Sequence[Difference]) -> Table:
    """What pairing by seed gains: the widths of both intervals."""
    rows = []
    for d in found:
        if d.half_width > 0 and d.unpaired_half_width > 0:
            digits = tables.decimals([d.half_width])
            halves = (f"± {number(half, digits)}" for half in (d.half_width, d.unpaired_half_width))
            rows.append((d.arm, str(d.seeds), *halves, f"{d.unpaired_half_width / d.half_width:.2f}×"))
    note = (
        "Half of the 95% interval of the difference: paired by seed, and by Welch's test as if the runs of the two "
        "arms were unrelated. Above 1×, pairing made it narrower."
    )
    return Table("What pairing gains", ("arm", "seeds", "paired", "unpaired", "ratio"), tuple(rows), note)


def declared_table(declared: Declared, base: str) -> Table:
    """What every arm differs in."""
    rows = tuple((arm, *change) for arm, found in declared.items() for change in _changes(found))
    head = ("arm", "field", f"in {base or 'the base'}", "in the arm")
    return Table("What the arms differ in", head, rows, "All else is equal, for each seed.", text_columns=4)


def _changes(found: Sequence[tuple[str, Any, Any]]) -> list[tuple[str, str, str]]:
    """(path, before, after) in text; where a value gave way to one of another class, both in one, with the fields that
    they do not share."""
    classes = [path.removesuffix(".type") for path, _, _ in found if path.endswith(".type")]
    values: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    rows: dict[str, tuple[Any, Any]] = {}
    for path, old, new in found:
        inside = next((above for above in classes if path.startswith(f"{above}.")), None)
        if inside is None:
            rows[path] = old, new
            continue
        rows[inside] = values.setdefault(inside, ({}, {}))
        for fields, data in zip(values[inside], (old, new), strict=True):
            fields |= {} if data is None else {path.removeprefix(f"{inside}."): data}
    return [(path, written(old), written(new)) for path, (old, new) in rows.items()]


def resized_table(results: Iterable[Result]) -> Table:
    """What was changed to match the arms."""
    first = {r.trial.arm: r.trial.resized for r in results}
    rows = tuple(
        (arm, path, written(old), written(new)) for arm, by in first.items() for path, (old, new) in by.items()
    )
    return Table("What was resized", ("arm", "field", "declared", "run as"), rows, text_columns=2)


def unfinished_table(results: Sequence[Result]) -> Table:
    """The runs without a result, and why."""
    why = {MISSING: "not run yet", STOPPED: "under way, or stopped", PRUNED: "stopped early by the study"}
    rows = tuple(
        (
            r.trial.arm,
            str(r.trial.seed),
            r.status,
            f"{r.curve[-1][0]:,} of {r.trial.experiment.steps:,}" if r.curve else NONE,
            r.reason or why.get(r.status, ""),
        )
        for r in results
        if not r.finished
    )
    lost = any(r.status == DIVERGED for r in results)
    note = "They are in no mean" + (", which flatters an arm that diverges." if lost else ".")
    return Table("Runs that did not finish", ("arm", "seed", "status", "steps", "reason"), rows, note, text_columns=5)


def written(data: Any) -> str:
    """Plain data of a value as Python would write it."""
    if isinstance(data, Mapping):
        typed = "type" in data
        inner = (f"{k}={written(v)}" if typed else f"{k!r}: {written(v)}" for k, v in data.items() if k != "type")
        name = str(data.get("type", "")).rpartition(":")[2]
        return f"{name}({', '.join(inner)})" if typed else f"{{{', '.join(inner)}}}"
    if isinstance(data, (list, tuple)):
        return f"[{', '.join(map(written, data))}]"
    return f"{data:,}" if isinstance(data, int) and not isinstance(data, bool) else repr(data)
