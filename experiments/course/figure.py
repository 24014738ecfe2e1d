"""Save a chart of a report as a file of its own, as docs/course has them.

    python -m experiments.course.figure runs/order/report.html lossnarrow docs/course/positions.svg
    python -m experiments.course.figure runs/answering/differences.csv forest docs/course/fine-tuning.svg

What a report draws is SVG inside its page, in the colours of that page's style; here it stands alone, on white. The
chart of intervals, which is broad there, is drawn anew from the study's table.
"""

import csv
import re
import sys
from pathlib import Path

from lm.page.markup import STYLE
from lm.page.plots import Interval, intervals

NAMES = re.compile(r'<svg\b[^>]*>.*?id="([A-Za-z0-9]+)-', re.DOTALL)


def drawings(page: str) -> dict[str, str]:
    """The <svg> elements of a page, by the name that their ids begin with."""
    found = re.findall(r"<svg\b.*?</svg>", page, re.DOTALL)
    return {named[1]: one for one in found if (named := NAMES.match(one))}


def alone(drawing: str) -> str:
    """An <svg> element as a file: with its namespace, a white ground and the light colours in place of names."""
    colours = dict(re.findall(r"--(\w+): (#\w+)", STYLE.partition("@media")[0]))
    text = re.sub(r"var\(--(\w+)\)", lambda match: colours[match[1]], drawing)
    opening, rest = re.sub(r"\s+", " ", text[: text.index(">")]), text[text.index(">") + 1 :]
    font = 'font-family="sans-serif" xmlns="http://www.w3.org/2000/svg"'
    return f'{opening} {font}>\n<rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def forest(table: Path) -> str:
    """The differences of a study's arms to its base, of differences.csv."""
    with table.open(encoding="utf-8") as file:
        base, *arms = csv.DictReader(file)
    rows = [Interval(arm["arm"], float(arm["difference"]), float(arm["low"]), float(arm["high"])) for arm in arms]
    return intervals("forest", rows, f"less that of {base['arm']}, with 95% intervals", width=5.2)


def save(page: Path, name: str, out: Path) -> None:
    """Write the chart `name` of a page, or of a table. Raises ValueError where it has none of that name."""
    if page.suffix == ".csv":
        found = {"forest": forest(page)}
    else:
        found = drawings(page.read_text(encoding="utf-8"))
    if name not in found:
        raise ValueError(f"{page} has no chart {name!r}: it has {', '.join(sorted(found))}")
    out.write_text(alone(found[name]), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m experiments.course.figure REPORT.html|TABLE.csv CHART FILE.svg")
    save(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
