"""The tables of a study: as CSV for programs, and as one `Table` that is written as HTML, Markdown or LaTeX.

The two CSV files are records: the same results give the same bytes, whatever the clock and the machine. So they hold no
times, numbers are written with all their digits, and one that there is not is written nan.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lm.machine.monitor import duration, human
from lm.page.markup import Markup
from lm.study.statistics import Difference, Measured, differences, measured, shared, uncorrected, word
from lm.study.trial import Result

FIRST = ("loss", "bits_per_byte")  # of the measures: those that are over all sources
COLUMNS = (
    *("arm", "mean", "difference", "low", "high", "p", "p_holm", "seeds", "seeds_needed", "diverged"),
    *("unpaired_low", "unpaired_high"),
)
NONE = "–"
WIDE = 3  # columns of measures: beyond, each holds its differences too
Rows = tuple[tuple[str, ...], ...]


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
    found = {name for result in results for name in result.measures}
    return [*(name for name in FIRST if name in found), *sorted(found - {*FIRST})]


def differences_csv(results: Sequence[Result], base: str, measure: str) -> str:
    """A row an arm, the base's first: see `Difference`. The base differs from itself by 0. Without a `base` there are
    no differences, only means."""
    arms = measured(results, measure)
    alone = [_alone(arm, 0.0 if base else math.nan) for name, arm in arms.items() if name == base or not base]
    found = [*alone, *(differences(results, base, measure) if base else [])]
    return csv_text(COLUMNS, [[getattr(d, column) for column in COLUMNS] for d in found])


def _alone(arm: Measured, difference: float) -> Difference:
    """The row of an arm that is compared with nothing."""
    nan = math.nan
    return Difference(arm.arm, len(arm.values), arm.mean, difference, nan, nan, nan, nan, nan, len(arm.lost), nan, nan)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a head; numbers with all their digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([repr(float(cell)) if isinstance(cell, float) else cell for cell in row] for row in rows)
    return out.getvalue()


# ---------------------------------------------------------------- tables to read


@dataclass(frozen=True)
class Table:
    """Cells of text under a `head`; the first `text_columns` are words, the others numbers. `note` explains it."""

    title: str
    head: tuple[str, ...]
    rows: Rows
    note: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Findings:
    """What a kind of study tells of its own: a `headline`, `parts` of the page (tables are in the other forms too), and
    records, the text of `files` by name. `lists_arms`: its parts have a table of the arms."""

    headline: str = ""
    parts: Sequence[Markup | Table] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    lists_arms: bool = False


def markdown(table: Table) -> str:
    """As a table of GitHub's Markdown, under its title and note."""
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.head))]
    lines = [_row(map(_markdown, table.head)), _row(rule), *(_row(map(_markdown, row)) for row in table.rows)]
    note = f"{_markdown(table.note)}\n\n" if table.note else ""
    return f"## {_markdown(table.title)}\n\n{note}" + "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it stands."""
    escaped = re.sub(r"([\\`*|<>\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(escaped.split())


def latex(table: Table) -> str:
    """As a LaTeX table with the rules of booktabs."""
    columns = "l" * table.text_columns + "r" * (len(table.head) - table.text_columns)
    caption = f"{escaped(table.title)}. {escaped(table.note)}".strip()
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"    \toprule",
        *([_latex_row(table.head), r"    \midrule"] if any(table.head) else []),
        *(_latex_row(row) for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    # a row that begins with a bracket would be taken as the option of the \\ before it
    return f"    {{}}{' & '.join(map(escaped, cells))} \\\\"


LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{"<": "$<$", ">": "$>$", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}"},
        **{"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "–": "--", "’": "'", "…": r"\ldots{}"},
    }
)


def escaped(text: str) -> str:
    """Text that LaTeX shows as it stands."""
    return " ".join(text.split()).translate(LATEX)


# ---------------------------------------------------------------- what they hold


def named(measure: str) -> str:
    """`code/bits_per_byte` as a person says it: bits per byte on code."""
    source, _, kind = measure.rpartition("/")
    return kind.replace("_", " ") + (f" on {source}" if source else "")


def number(value: float, decimals: int, sign: bool = False) -> str:
    """With a true minus; a dash where it is not finite."""
    written = f"{value:{'+' if sign else ''}.{decimals}f}" if math.isfinite(value) else NONE
    return written.replace("-", "−")


def decimals(spreads: Iterable[float]) -> int:
    """How many show the middle one of the `spreads` with two digits: from 2 to 6, and 4 where none is known."""
    known = sorted(s for s in spreads if math.isfinite(s) and s > 0)
    return min(6, max(2, 1 - math.floor(math.log10(known[len(known) // 2])))) if known else 4


def probability(p: float) -> str:
    """A p-value with two or three digits."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def between(low: float, high: float, digits: int) -> str:
    """An interval; a dash where there is none."""
    return NONE if math.isnan(low) else f"[{number(low, digits)}, {number(high, digits)}]"


def arms_table(results: Sequence[Result], base: str, measure: str, found: Sequence[Difference]) -> Table:
    """The table of arms, the base first: what each reached, how it differs from the base, and what it took."""
    arms = measured(results, measure)
    first = {r.trial.arm: r for r in reversed(results)}
    digits = decimals([*(d.half_width for d in found), *(a.deviation for a in arms.values())])
    by_arm = {d.arm: d for d in found}
    order = sorted(arms, key=lambda arm: arm != base)
    compared = ("difference", "95% interval", "p", "verdict") if base else ()
    rows = []
    for arm in order:
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
    head = ("arm", "seeds", named(measure), *compared, "tokens", "FLOPs", "parameters", "wall time")
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
    """What each arm reached in each evaluation, where there are further ones, and on each source: a table for each kind
    of measure, that of `measure` first."""
    evaluations = list(dict.fromkeys(name for r in results for name in r.trial.experiment.evaluations))
    known = [name for name in measures(results) if not name.endswith("perplexity")]
    own = [name for name in known if "/" in name and name.partition("/")[0] not in evaluations]
    wanted = measure.rpartition("/")[2]
    kinds = sorted(dict.fromkeys(name.rpartition("/")[2] for name in known), key=lambda kind: kind != wanted)
    fair = [kind for kind in kinds if kind in ("bits_per_byte", wanted) or alike(results)]
    note = "Means over the sources; own is the arm's own evaluation."
    found: list[Table] = []
    for kind in kinds:
        further = {f"{name}/{kind}": name for name in evaluations if f"{name}/{kind}" in known}
        columns = ({kind: "own"} if kind in known and kind in fair else {}) | further
        found += [_columns(results, base, f"{named(kind)} by evaluation", columns, note)] if further else []
    for kind in fair:
        columns = {name: name.rpartition("/")[0] for name in own if name.rpartition("/")[2] == kind}
        found += [_columns(results, base, f"{named(kind)} by source", columns)] if columns else []
    return found


def alike(results: Sequence[Result]) -> bool:
    """Whether all arms have one objective and one tokenizer: else a loss a token is of another question, or another
    token, and compares nothing."""
    return len({repr((r.trial.experiment.objective, r.trial.experiment.data.tokenizer)) for r in results}) < 2


def _columns(results: Sequence[Result], base: str, title: str, heads: Mapping[str, str], note: str = "") -> Table:
    """A table with a column for each of the measures, under its head, and the differences to the base."""
    columns = {name: measured(results, name) for name in heads}
    against = {name: {d.arm: d for d in uncorrected(results, base, name)} if base else {} for name in heads}
    widths = [d.half_width for found in against.values() for d in found.values()]
    digits = decimals(widths or [a.deviation for arms in columns.values() for a in arms.values()])
    order = sorted(next(iter(columns.values())), key=lambda arm: arm != base)
    narrow, rows = len(heads) > WIDE, []
    for arm in order:
        cells = [_source(columns[name][arm], against[name], digits, base) for name in heads]
        cells = [(f"{one[0]} ({one[1]})" if one[1:] and one[1] else one[0],) for one in cells] if narrow else cells
        rows.append((arm, *(cell for one in cells for cell in one)))
    each = ("difference",) if base and not narrow else ()
    head = ("arm", *(cell for name in heads.values() for cell in (name, *each)))
    where = f"Differences to {base}{' (in brackets)' if narrow else ''}"
    compared = f"{where}, paired by seed, with half of their 95% interval, uncorrected." if base else ""
    return Table(title.capitalize(), head, tuple(rows), f"{note} {compared}".strip())


def _source(arm: Measured, against: Mapping[str, Difference], digits: int, base: str) -> tuple[str, ...]:
    d = against.get(arm.arm)
    if d is None:
        return (number(arm.mean, digits), *([""] if base else []))
    half = "" if math.isnan(d.half_width) else f" ± {number(d.half_width, digits)}"
    return number(d.mean, digits), number(d.difference, digits, True) + half
