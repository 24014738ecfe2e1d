"""The report of a study, as one would put it in a paper: a page, the same in Markdown and LaTeX, and two CSV files.

It says what the data show and what they leave open. What a kind of study adds of its own are `Findings`.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.machine.monitor import duration, human
from lm.page.markup import Markup, document, header, section, table, tag, write
from lm.page.run_record import read_json
from lm.page.tables import Table, html, markdown
from lm.page.words import NONE, decimals, join_and, median, number, plural, signed, size
from lm.run.outcome import PRUNED
from lm.study import charts, tables
from lm.study.statistics import Difference, Measured, differences, measured
from lm.study.trial import MISSING, STOPPED, Result
from lm.study.verdicts import SAME, UNKNOWN, amount, best_first, direction, extreme, title, word

MOST_NAMED = 5  # arms in a sentence
MATCHED = {
    "flops": "All arms were given the FLOPs of the base.",
    "params": "All arms were given about as many parameters as the base.",
    "steps": "All arms were given the same number of steps.",
}


@dataclass(frozen=True)
class Findings:
    """What a kind of study adds to its report: a `headline`, `parts` of the page (tables are in the other forms too),
    and records, the text of `files` by name. `lists_arms`: its parts have a table of the arms."""

    headline: str = ""
    parts: Sequence[Markup | Table] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    lists_arms: bool = False


def write_study(folder: Path, study: Any, results: Sequence[Result], note: Mapping[str, Any]) -> Path:
    """Write the report of `study` in `folder`; the path of the page.

    `study` has a `measure`, and may have `base_arm`, `differences()`, `match` and `findings(results)`. `note` is the
    study.json of its folder."""
    report = StudyReport(
        str(note["study"]).rpartition(":")[2],
        results,
        getattr(study, "base_arm", ""),
        study.measure,
        declared=study.differences() if hasattr(study, "differences") else {},
        matched=getattr(study, "match", ""),
        own=study.findings(results) if hasattr(study, "findings") else Findings(),
        command=note.get("command", ""),
        folder=folder,
    )
    return report.write()


@dataclass(frozen=True)
class StudyReport:
    """What the `results` of the study `name` tell. Arms are compared with `base` ("": with none) by `measure`;
    `declared` is what each differs in, `matched` what was held equal, the headline of the study's `own` findings takes
    the place of our first sentence, `command` runs the study again in `folder`."""

    name: str
    results: Sequence[Result]
    base: str
    measure: str
    declared: tables.Declared = field(default_factory=dict)
    matched: str = ""
    own: Findings = Findings()
    command: str = ""
    folder: Path = Path()

    def write(self) -> Path:
        """Write results.csv, differences.csv, report.md, report.tex and report.html; the path of the page. Raises
        ValueError where there is no such arm or measure, or the folder cannot be written."""
        page = self.folder / "report.html"
        files = {
            "results.csv": tables.results_csv(self.results),
            "differences.csv": tables.differences_csv(self.results, self.base, self.measure),
            **self.own.files,
            "report.md": self.markdown(),
            **self.latex(),
            page.name: self.page(),
        }
        for name, text in files.items():
            write(self.folder / name, text)
        return page

    @cached_property
    def arms(self) -> dict[str, Measured]:
        return measured(self.results, self.measure)

    @cached_property
    def differences(self) -> list[Difference]:
        """How the arms differ from the base."""
        return differences(self.results, self.base, self.measure) if self.base else []

    @property
    def headline(self) -> str:
        """What the study shows, in a sentence or two."""
        own = self.own.headline or first_sentence(self.differences, self.base, self.measure)
        return own or best_arm(self.arms.values(), self.measure)

    @cached_property
    def parts(self) -> list[Markup | Table]:
        """The sections between the first screen and the last, in their order. A table without rows shows nothing."""
        arms = tables.arms_table(self.results, self.base, self.measure, self.differences)
        forest = charts.forest(self.results, self.differences, self.base, self.measure) if self.base else Markup("")
        return [
            *self.own.parts,
            replace(arms, rows=() if self.own.lists_arms else arms.rows, figure=forest),
            tables.verdicts_table(self.differences, self.measure),
            section("Training", charts.curves(self.results, self.base, self.measure)),
            *tables.judged_tables(self.results),
            tables.samples_table(self.results, self.folder),
            *tables.sources_tables(self.results, self.base, self.measure),
            tables.pairing_table(self.differences),
            tables.declared_table(self.declared, self.base),
            tables.resized_table(self.results),
            tables.unfinished_table(self.results),
        ]

    @property
    def tables(self) -> list[Table]:
        """Those with rows."""
        return [part for part in self.parts if isinstance(part, Table) and part.rows]

    # ------------------------------------------------------------ forms

    def markdown(self) -> str:
        """The report as Markdown."""
        again = f"## Run it again\n\n```\n{self._commands()}\n```\n"
        parts = [f"# {self.name}", self._lead(), *map(markdown, self.tables), again]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def latex(self) -> dict[str, str]:
        """report.tex, with the tables; nothing, where lm/page/latex.py is left out."""
        with contextlib.suppress(ModuleNotFoundError):
            from lm.page.latex import tables_document

            return {"report.tex": tables_document(self.name, [one for one in self.tables if one.paper])}
        return {}

    def page(self) -> str:
        """The page's HTML."""
        left = sum(r.status in (MISSING, STOPPED) for r in self.results)
        state = f"{len(self.results) - left} of {len(self.results)} runs" if left else "finished"
        return document(
            f"{self.name} – a study",
            header(self.name, state, not left, self._lead(), self._tiles()),
            *(html(part) if isinstance(part, Table) else part for part in self.parts),
            self._run_again(),
            tag("footer", "Made by lm report from the runs in the study's folder."),
        )

    # ------------------------------------------------------------ the first screen

    def _lead(self) -> str:
        """The headline, and how many runs it is from."""
        seeds = sorted({len(a.values) for a in self.arms.values()})
        each = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else plural(seeds[0] if seeds else 0, "seed")
        words = [self.headline, f"{self._finished()} runs finished, {each} an arm."]
        early = sum(r.status == PRUNED for r in self.results)
        words += [f"{early} were stopped early."] if early else []
        lost = [f"{n} of {arm}" for arm in self.arms if (n := self._lost(arm))]
        words += [f"Without a result, and in no mean: {join_and(lost, MOST_NAMED, 'other arms')}."] if lost else []
        return " ".join([*words, MATCHED.get(self.matched, "")]).strip()

    def _finished(self) -> str:
        return f"{sum(r.finished for r in self.results)} of {len(self.results)}"

    def _lost(self, arm: str) -> int:
        """Runs of an arm without a result, and not because the study stopped them."""
        early = {r.trial.seed for r in self.results if r.status == PRUNED and r.trial.arm == arm}
        return len(self.arms[arm].lost - early)

    def _tiles(self) -> Iterator[tuple[str, str, str]]:
        sign = direction(self.measure) or -1
        if best := max((a for a in self.arms.values() if a.values), key=lambda a: sign * a.mean, default=None):
            what = f"{extreme(sign)} {title(self.measure)}"
            yield what, number(best.mean, decimals([best.deviation])), best.arm
        if self.base:
            distinct = sum(word(d, self.measure) not in (UNKNOWN, SAME) for d in self.differences)
            yield (
                f"distinguished from {self.base}",
                f"{distinct} of {len(self.differences)}",
                "other arms, p < 0.05 after Holm",
            )
            yield self._uncertainty_tile()
        lost, seconds = sum(map(self._lost, self.arms)), sum(r.seconds for r in self.results)
        remark = f"{lost} diverged or failed" if lost else f"{duration(seconds)} in all" if seconds else "none failed"
        yield "runs finished", self._finished(), remark
        if not self.base:
            yield "FLOPs", human(sum(r.flops for r in self.results if r.finished)), "of training, in all"

    def _uncertainty_tile(self) -> tuple[str, str, str]:
        width = median(d.half_width for d in self.differences)
        gain = median(d.unpaired_half_width / d.half_width for d in self.differences if d.half_width > 0)
        if math.isnan(width):
            return "uncertainty", NONE, "no interval can be given"
        gained = f", by pairing {gain:.1f}× narrower" if gain >= 1.05 else "; pairing does not narrow it"
        return "uncertainty", f"± {width:.2g}", f"half a 95% interval{gained}"

    # ------------------------------------------------------------ the last one

    def _commands(self) -> str:
        return "\n".join([*([self.command] if self.command else []), f"lm report {self.folder}"])

    def _run_again(self) -> Markup:
        command = tag("pre", "\n".join(f"$ {line}" for line in self._commands().splitlines()), class_="command")
        known = environments(self.folder, self.results)
        rows = []
        for key in dict.fromkeys(key for one in known for key in one):
            values = [one[key] for one in known if one.get(key) not in (None, "")]
            shown = dict.fromkeys(size(v) if key.endswith("_bytes") else str(v) for v in values)
            rows += [[key.removesuffix("_bytes"), " / ".join(shown)]] if shown else []
        note = f"The runs were made in {len(known)} different environments." if len(known) > 1 else ""
        return section("Run it again", command, tag("p"), table(["environment", ""], rows, 2), note=note)


def environments(folder: Path, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The different environments in which the runs were made, as far as their folders say."""
    metadata = [read_json(result.trial.folder(folder) / "about.json", {}) for result in results]
    known = [one["environment"] for one in metadata if one.get("environment")]
    return [one for i, one in enumerate(known) if one not in known[:i]]


# ---------------------------------------------------------------- headlines


def first_sentence(compared: Sequence[Difference], base: str, measure: str) -> str:
    """How the arms differ from the base, in a sentence or two; nothing, where no two arms have finished a seed."""
    known = best_first([d for d in compared if d.seeds], measure)
    if not known:
        return ""
    if max(d.seeds for d in known) < 2:
        shown = ", ".join(f"{d.arm} {signed(d.difference)}" for d in known)
        return (
            "With one seed no interval can be given, so which arm is better remains open. "
            f"At that seed, in {title(measure)} against {base}: {shown}."
        )
    groups: dict[str, list[Difference]] = {}
    for d in compared:
        groups.setdefault(word(d, measure), []).append(d)
    kinds = [kind for kind in ("better", "worse", "higher", "lower", SAME, UNKNOWN) if kind in groups]
    return f"Against {base}, in {title(measure)}: {'; '.join(_group(kind, groups[kind], measure) for kind in kinds)}."


def _group(kind: str, arms: Sequence[Difference], measure: str) -> str:
    """The clause on all arms of one verdict."""
    if kind == UNKNOWN:
        return f"of {join_and(d.arm for d in arms)} the data cannot tell"
    if kind == SAME:
        return f"{join_and(d.arm for d in arms)} {'are' if len(arms) > 1 else 'is'} the same at every seed"
    ordered = best_first(arms, measure)
    amounts = [f"{abs(d.difference):.3g}" for d in ordered] if len(ordered) > 1 else [amount(d) for d in ordered]
    names, are = join_and(d.arm for d in ordered), "are" if len(ordered) > 1 else "is"
    return f"{names} {are} {kind} by {join_and(amounts)}"


def best_arm(arms: Iterable[Measured], measure: str) -> str:
    """Which arm has the best mean, and that this alone is no proof."""
    known = [arm for arm in arms if arm.values]
    if not known or not (sign := direction(measure)):
        return "" if known else "No run has finished yet."
    best = max(known, key=lambda arm: sign * arm.mean)
    seeds = f"over {len(best.values)} seeds" if len(best.values) > 1 else "at one seed"
    return f"Of {len(known)} arms, {best.arm} has the {extreme(sign)} {title(measure)}: {best.mean:.4g} {seeds}."
