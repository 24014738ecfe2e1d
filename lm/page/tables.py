"""A table once, and its forms: HTML, Markdown and CSV here, LaTeX in latex.py."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lm.page.markup import Markup, section, table, tag

DENSE = 8  # columns: beyond, they stand closer
GOOD = "better"  # a cell that the page shows in green


@dataclass(frozen=True)
class Table:
    """Cells of text under a `head`; the first `text_columns` are words, the others numbers. `note` explains it,
    `figure` stands above it on the page, `paper` says whether it is among the LaTeX tables."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1
    figure: Markup = Markup("")
    paper: bool = True


def html(one: Table) -> Markup:
    """A section of a page with the table; nothing, where it has neither rows nor a figure."""
    rows = [[tag("span", cell, class_="win") if cell == GOOD else cell for cell in row] for row in one.rows]
    drawn = table(one.head, rows, one.text_columns)
    drawn = tag("div", drawn, class_="dense") if len(one.head) > DENSE else drawn
    return section(one.title, one.figure, tag("p") if one.figure else "", drawn, note=one.note)


def markdown(one: Table) -> str:
    """As a table of GitHub's Markdown, under its title and note."""
    rule = ["---" if i < one.text_columns else "---:" for i in range(len(one.head))]
    lines = [_row(map(_escaped, one.head)), _row(rule), *(_row(map(_escaped, row)) for row in one.rows)]
    note = f"{_escaped(one.note)}\n\n" if one.note else ""
    return f"## {_escaped(one.title)}\n\n{note}" + "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it stands."""
    escaped = re.sub(r"([\\`*|<>\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return " ".join(escaped.split())


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under a head; numbers with all their digits, so that the same results give the same bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([repr(float(cell)) if isinstance(cell, float) else cell for cell in row] for row in rows)
    return out.getvalue()
