"""The report of a coordinate check: coordinates.csv, a row a measurement, and a page."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lm.page import plots
from lm.page.markup import Markup, document, figure, section, table, tag, tiles
from lm.page.plots import Line
from lm.study.drift import Analysis, Row, Slope

KINDS = {
    "": "Residual stream",
    "embedding": "Embedding",
    "encoder": "Encoder's output",
    "attention": "Attention",
    "attention logits": "Logits of attention",
    "cross": "Cross-attention",
    "ffn": "Feed-forward",
    "logits": "Logits",
}
GREY, ROOM = -1, 1.25
Course = tuple[list[float], list[float], list[float], list[float]]


def write(folder: Path, name: str, analysis: Analysis, trained: Iterable[tuple[str, str]]) -> Path:
    """Write both in `folder`, for the model `name`, of which `trained` tells what and how; the path of the page. Raises
    ValueError where it cannot be written."""
    page = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "coordinates.csv").write_text(_csv(analysis.rows), encoding="utf-8")
        page.write_text(html(name, analysis, trained), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}; choose another --workdir") from None
    return page


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows([repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows)
    return out.getvalue()


def html(name: str, analysis: Analysis, trained: Iterable[tuple[str, str]]) -> str:
    """The page."""
    state = tag("span", "drifts" if analysis.drift else "stands", class_="state" if analysis.drift else "state done")
    top = tag("div", tag("h1", f"Coordinates of {name}"), state, class_="top")
    return document(
        f"Coordinates of {name}",
        tag("header", top, tag("p", headline(analysis), class_="lead"), tiles(_tiles(analysis))),
        section("How far activations move", plot(analysis), note=_note(analysis)),
        section("Exponents of the width", _table(analysis), note=_how(analysis)),
        section("What was trained", table(["", ""], trained, 2)),
        tag("footer", "Made by lm study; the numbers are in coordinates.csv."),
    )


def headline(analysis: Analysis) -> str:
    """What was found, in a sentence."""
    widths = f"from width {min(_widths(analysis))} to {max(_widths(analysis))}"
    if not analysis.drift:
        return f"Under {analysis.judged} no activation drifts with the width, {widths}."
    worst = _worst(analysis.drift)
    others = len(analysis.drift) - 1
    more = f", and {others} other place{'s' if others > 1 else ''} drift{'' if others > 1 else 's'}" if others else ""
    return f"Under {analysis.judged} {worst.place} {_drifts(worst)} {widths}{more}."


def _drifts(slope: Slope) -> str:
    if slope.verdict == "not finite":
        return "is not finite"
    return f"{slope.verdict} as width^{slope.change:.2f}"


def _worst(slopes: Sequence[Slope]) -> Slope:
    return max(slopes, key=lambda s: abs(s.change) if math.isfinite(s.change) else math.inf)


def _judged(analysis: Analysis) -> list[Slope]:
    return [s for s in analysis.slopes if s.parametrisation == analysis.judged]


def _tiles(analysis: Analysis) -> Iterator[tuple[str, str, str]]:
    judged = _judged(analysis)
    finite = [s for s in judged if math.isfinite(s.change)]
    if finite:
        most = max(finite, key=lambda s: s.change)
        yield "largest exponent", f"{most.change:+.2f}", f"{most.place}; {analysis.tolerance:g} is allowed"
    yield "places that drift", f"{len(analysis.drift)} of {len(judged)}", f"under {analysis.judged}"
    widths, seeds = _widths(analysis), len({row.seed for row in analysis.rows})
    yield "widths", str(len(widths)), f"{widths[0]} to {widths[-1]}"
    yield "steps", str(_steps(analysis)), f"at each width, from {seeds} seed{'s' if seeds > 1 else ''}"


def _widths(analysis: Analysis) -> list[int]:
    return sorted({row.width for row in analysis.rows})


def _steps(analysis: Analysis) -> int:
    return max(row.step for row in analysis.rows)


def _note(analysis: Analysis) -> str:
    twin = "; grey: in the standard parametrisation" if len({s.parametrisation for s in analysis.slopes}) > 1 else ""
    return (
        f"The mean absolute change of a coordinate after {_steps(analysis)} steps, relative to that at width "
        f"{_widths(analysis)[0]}: a line a layer, its band the range over seeds{twin}."
    )


def _how(analysis: Analysis) -> str:
    return (
        "The exponent a of width^a, by least squares over widths and seeds, with half of its 95% interval. The change "
        f"may grow with an exponent of at most {analysis.tolerance:g}, and fall with one as much below that of the "
        "first value: what begins as a sum of random terms over the width, as logits do under muP, falls by design."
    )


def _table(analysis: Analysis) -> Markup:
    twins = {s.place: s for s in analysis.slopes if s.parametrisation != analysis.judged}
    head = ["place", "verdict", "first value", "change", "±", *(["standard: change"] if twins else [])]
    rows = [
        [
            s.place,
            tag("span", "flat", class_="win") if s.verdict == "flat" else s.verdict,
            *(f"{number:+.2f}" for number in (s.at_first, s.change)),
            f"{s.half_width:.2f}",
            *([f"{twins[s.place].change:+.2f}"] if twins else []),
        ]
        for s in _judged(analysis)
    ]
    return table(head, rows, text_columns=2)


# ---------------------------------------------------------------- charts


def plot(analysis: Analysis) -> Markup:
    """A chart for each kind of place: the change at each width, relative to the smallest."""
    places = dict.fromkeys(row.place for row in analysis.rows)
    kinds: dict[str, list[str]] = {}
    for place in places:
        kinds.setdefault(re.sub(r"^layer \d+ ?", "", place), []).append(place)
    drawn = [_chart(kind, kinds[kind], analysis) for kind in kinds]
    return tag("div", *drawn, class_="charts")


def _chart(kind: str, places: Sequence[str], analysis: Analysis) -> Markup:
    courses = {place: _course(analysis, place, True) for place in places}
    twins = [_course(analysis, place, False) for place in places]
    many = len(places) > 1
    lines = [Line(x, y, colour=GREY) for x, y, _, _ in twins if x]
    for i, (place, (x, y, low, high)) in enumerate(courses.items()):
        if x:
            lines.append(Line(x, y, place.removesuffix(kind).strip() if many else "", i, dots=True, low=low, high=high))
    most = max([2.0, *(v for x, *ys in courses.values() for y in ys for v in y)])
    name = "c" + re.sub(r"\W", "", kind or "stream")
    title = KINDS.get(kind, kind)
    return figure(title, plots.chart(name, lines, from_zero=True, top=ROOM * most, across="width"))


def _course(analysis: Analysis, place: str, judged: bool) -> Course:
    """(widths, mean, least, most over seeds) of the change after the last step, relative to the smallest width's."""
    last = _steps(analysis)
    by_width: dict[int, list[float]] = {}
    for row in analysis.rows:
        mine = (row.parametrisation == analysis.judged) == judged
        if mine and row.place == place and row.step == last and row.change > 0 and math.isfinite(row.change):
            by_width.setdefault(row.width, []).append(row.change)
    means = {width: _geometric(changes) for width, changes in by_width.items()}
    base = means[min(means)] if means else 1.0
    return (
        [float(width) for width in means],
        [mean / base for mean in means.values()],
        [min(changes) / base for changes in by_width.values()],
        [max(changes) / base for changes in by_width.values()],
    )


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
