"""The report of a coordinate check: coordinates.csv, a row a measurement, and a page."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lm.coordinates.drift import Analysis, Row, Slope
from lm.page import plots
from lm.page.markup import Markup, charts, document, figure, header, section, table, tag, write
from lm.page.plots import Line
from lm.page.tables import csv_text
from lm.page.words import plural

KINDS: Mapping[str, str] = {
    "": "Residual stream",
    "encoder": "Encoder's output",
    "attention logits": "Logits of attention",
    "cross": "Cross-attention",
    "ffn": "Feed-forward",
}
GREY, ROOM = -1, 1.25
HOW = (
    "The exponent a of width^a, by least squares over widths and seeds, with half of its 95% interval. The change may "
    "grow with an exponent of at most {tolerance:g}, and fall with one as much below that of the first value: what "
    "begins as a sum of random terms over the width, as logits do under muP, falls by design."
)


def write_report(folder: Path, name: str, analysis: Analysis, trained: Iterable[tuple[str, str]]) -> Path:
    """Write both in `folder`, for the model `name`, trained as `trained` says; the path of the page. Raises
    ValueError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}; choose another --workdir") from None
    write(folder / "coordinates.csv", csv_text(Row._fields, analysis.rows))
    write(folder / "report.html", html(name, analysis, trained))
    return folder / "report.html"


def html(name: str, analysis: Analysis, trained: Iterable[tuple[str, str]]) -> str:
    """The page."""
    title, drift = f"Coordinates of {name}", analysis.drift
    return document(
        title,
        header(title, "drifts" if drift else "stands", not drift, headline(analysis), _tiles(analysis)),
        section("How far activations move", _charts(analysis), note=_note(analysis)),
        section("Exponents of the width", _table(analysis), note=HOW.format(tolerance=analysis.tolerance)),
        section("What was trained", table(["", ""], trained, 2)),
        tag("footer", "Made by lm study; the numbers are in coordinates.csv."),
    )


def headline(analysis: Analysis) -> str:
    """The outcome, in a sentence."""
    widths = f"from width {analysis.widths[0]} to {analysis.widths[-1]}"
    if not analysis.drift:
        return f"Under {analysis.judged} no activation drifts with the width, {widths}."
    worst = max(analysis.drift, key=lambda s: abs(s.change) if math.isfinite(s.change) else math.inf)
    drifts = "is not finite" if worst.verdict == "not finite" else f"{worst.verdict} as width^{worst.change:.2f}"
    others = len(analysis.drift) - 1
    more = f", and {plural(others, 'other place')} drift{'' if others > 1 else 's'}" if others else ""
    return f"Under {analysis.judged} {worst.place} {drifts} {widths}{more}."


def _tiles(analysis: Analysis) -> Iterator[tuple[str, str, str]]:
    judged, widths = analysis.of(analysis.judged), analysis.widths
    if finite := [slope for slope in judged if math.isfinite(slope.change)]:
        most = max(finite, key=lambda slope: slope.change)
        yield "largest exponent", f"{most.change:+.2f}", f"{most.place}; {analysis.tolerance:g} is allowed"
    yield "places that drift", f"{len(analysis.drift)} of {len(judged)}", f"under {analysis.judged}"
    yield "widths", str(len(widths)), f"{widths[0]} to {widths[-1]}"
    seeds = len({row.seed for row in analysis.rows})
    yield "steps", str(analysis.steps), f"at each width, from {plural(seeds, 'seed')}"


def _note(analysis: Analysis) -> str:
    twin = "; grey: in the standard parametrisation" if analysis.twins else ""
    return (
        f"The mean absolute change of a coordinate after {analysis.steps} steps, relative to that at width "
        f"{analysis.widths[0]}: a line a layer, its band the range over seeds{twin}."
    )


def _table(analysis: Analysis) -> Markup:
    twins = {slope.place: slope for slope in analysis.twins}
    rows = [
        [
            slope.place,
            tag("span", "flat", class_="win") if slope.verdict == "flat" else slope.verdict,
            *(f"{slope.at_first:+.2f}", f"{slope.change:+.2f}", f"{slope.half_width:.2f}"),
            *([f"{twins[slope.place].change:+.2f}"] if twins else []),
        ]
        for slope in analysis.of(analysis.judged)
    ]
    head = ["place", "verdict", "first value", "change", "±", *(["standard: change"] if twins else [])]
    return table(head, rows, text_columns=2)


def _charts(analysis: Analysis) -> Markup:
    """A chart for each kind of place: the change at each width, relative to the smallest."""
    kinds: dict[str, list[Slope]] = {}
    for slope in analysis.slopes:
        kinds.setdefault(re.sub(r"^layer \d+ ?", "", slope.place), []).append(slope)
    return charts(_chart(kind, slopes, analysis) for kind, slopes in kinds.items())


def _chart(kind: str, slopes: Sequence[Slope], analysis: Analysis) -> Markup:
    judged = [slope for slope in slopes if slope.parametrisation == analysis.judged]
    lines = [_line(analysis, slope, "", GREY) for slope in slopes if slope not in judged]
    for i, slope in enumerate(judged):
        lines.append(_line(analysis, slope, slope.place.removesuffix(kind).strip() if len(judged) > 1 else "", i))
    lines = [line for line in lines if line.x]
    most = max([2.0, *(y for line in lines if line.dots for y in (*line.y, *line.low, *line.high))])
    name = "c" + re.sub(r"\W", "", kind or "stream")
    drawn = plots.chart(name, lines, from_zero=True, top=ROOM * most, across="width")
    return figure(KINDS.get(kind, kind.capitalize()), drawn)


def _line(analysis: Analysis, slope: Slope, label: str, colour: int) -> Line:
    """The change after the last step over the width, relative to the smallest width's; of those judged its dots and the
    band of its seeds too."""
    by_width: dict[int, list[float]] = {}
    for row in analysis.rows:
        mine = (row.parametrisation, row.place) == (slope.parametrisation, slope.place)
        if mine and row.step == analysis.steps and row.change > 0 and math.isfinite(row.change):
            by_width.setdefault(row.width, []).append(row.change)
    means = {width: math.exp(sum(map(math.log, changes)) / len(changes)) for width, changes in by_width.items()}
    least = means[min(means)] if means else 1.0
    x, y = [float(width) for width in means], [mean / least for mean in means.values()]
    if colour == GREY:
        return Line(x, y, colour=GREY)
    low, high = ([end(changes) / least for changes in by_width.values()] for end in (min, max))
    return Line(x, y, label, colour, dots=True, low=low, high=high)
