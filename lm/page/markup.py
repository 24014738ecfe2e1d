"""A web page as one file: elements that escape what they hold, and the style sheet.

`tag` builds elements; only what `tag` built (a `Markup`) is taken as HTML, all other text is escaped. The page asks
for nothing from elsewhere: it can be mailed, printed and opened without a network."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: Any, **attributes: str) -> Markup:
    """<name attributes>children</name>. `class_` is the attribute class. A child that is no Markup is text, and
    escaped."""
    written = "".join(f' {key.rstrip("_")}="{html.escape(text)}"' for key, text in attributes.items())
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """Children one after the other, text escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children))


def section(title: str, *children: Any, note: str = "") -> Markup:
    """A part of the page under a heading; nothing, where it has nothing to show."""
    if not any(children):
        return Markup("")
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else "", *children)


def figure(title: str, svg: str, note: str = "", narrow: str = "") -> Markup:
    """A chart with its title; `narrow` is drawn in its place where the window is narrow."""
    caption = tag("figcaption", tag("b", title), tag("span", f" {note}") if note else "")

    def labelled(drawn: str) -> Markup:
        return Markup(drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1))

    if not narrow:
        return tag("figure", caption, labelled(svg))
    both = tag("div", labelled(svg), class_="broad"), tag("div", labelled(narrow), class_="narrow")
    return tag("figure", caption, *both)


def charts(figures: Iterable[Markup]) -> Markup:
    """Figures in two columns; nothing, where there are none."""
    shown = [one for one in figures if one]
    return tag("div", *shown, class_="charts") if shown else Markup("")


def wide(figure: Markup) -> Markup:
    """A figure over both columns of `charts`."""
    return tag("div", figure, class_="wide")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> Markup:
    """A table whose first `text_columns` columns are words, and the others numbers, aligned right."""

    def row(cells: Sequence[Any], cell: str) -> Markup:
        scope = {"scope": "col"} if cell == "th" else {}
        aligned = ({} if i < text_columns else {"class_": "n"} for i in range(len(cells)))
        return tag("tr", *(tag(cell, c, **scope, **how) for c, how in zip(cells, aligned, strict=True)))

    body = [row(cells, "td") for cells in rows]
    if not body:
        return Markup("")
    return tag("div", tag("table", tag("thead", row(head, "th")), tag("tbody", *body)), class_="scroll")


def tiles(values: Iterable[tuple[str, str, str]]) -> Markup:
    """(what, value, remark) as a row of tiles."""
    each = [
        tag("div", tag("span", what), tag("b", value), tag("small", remark), class_="tile")
        for what, value, remark in values
    ]
    return tag("div", *each, class_="tiles")


def header(title: str, state: str, done: bool, lead: str, values: Iterable[tuple[str, str, str]]) -> Markup:
    """The first screen.

    Args:
      title: the page's heading.
      state: a word or two in a badge beside it.
      done: whether the badge is green.
      lead: the outcome, in a sentence or two.
      values: the tiles: (what, value, remark).
    """
    badge = tag("span", state, class_="state done" if done else "state")
    top = tag("div", tag("h1", title), badge, class_="top")
    return tag("header", top, tag("p", lead, class_="lead"), tiles(values))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises ValueError where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def document(title: str, *children: Any) -> str:
    """The whole page."""
    head = joined(
        [
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="color-scheme" content="light dark">'),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{joined(children)}</main></body></html>\n'
    )


STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1c2024; --muted: #676e76; --line: #e3e5e8;
  --accent: #2563c9; --good: #15803d; --c0: #2563c9; --c1: #d9730d; --c2: #0f8a7d; --c3: #a03fb5; --c4: #c22f4f;
  --c5: #7a6a12; --bar: 140px; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e8eaed; --muted: #9aa2ab;
  --line: #30363c;
  --accent: #79a8ff; --good: #5fd38a; --c0: #79a8ff; --c1: #f5a25d; --c2: #4fd0c0; --c3: #d69be6; --c4: #ff8fa6;
  --c5: #d8c45f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto,
  "Helvetica Neue", Arial, "Liberation Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1040px; margin: 0 auto; padding: 44px 32px 64px; }
h1 { font-size: 32px; line-height: 1.2; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 0 0 14px; }
section { margin-top: 44px; }
.top { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px 14px; }
.state { font-size: 13px; padding: 1px 10px; border: 1px solid currentColor; border-radius: 99px; color:
  var(--muted); }
.state.done { color: var(--good); }
.lead { font-size: 17px; margin: 12px 0 26px; max-width: 66em; text-wrap: pretty; }
.note { color: var(--muted); margin: -8px 0 14px; max-width: 62em; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; }
.tile, figure, .sample { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 13px 16px 12px; display: flex; flex-direction: column; }
.tile span, .tile small { color: var(--muted); font-size: 13px; }
.tile b { font-size: 25px; font-weight: 600; letter-spacing: -.02em; line-height: 1.35; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.charts .wide { grid-column: 1 / -1; }
figure { margin: 0; padding: 13px 16px 6px; min-width: 0; }
figcaption { margin-bottom: 6px; } figcaption span { color: var(--muted); font-size: 13.5px; }
figure svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
.narrow { display: none; }
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) local 0 0 / 40px 100%,
  linear-gradient(to left, var(--paper) 40%, transparent) local 100% 0 / 40px 100%,
  linear-gradient(to right, var(--line), transparent) scroll 0 0 / 14px 100%,
  linear-gradient(to left, var(--line), transparent) scroll 100% 0 / 14px 100%; background-repeat: no-repeat; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--muted); }
td, th { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.dense table { font-size: 13px; } .dense td, .dense th { padding-right: 12px; }
td:last-child, th:last-child { padding-right: 0; } .n { text-align: right; white-space: nowrap; }
.scroll + p { margin: 12px 0 0; } .charts + .scroll { margin-top: 16px; }
.win { color: var(--good); font-weight: 600; }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--c0); opacity: .8; vertical-align:
  middle; min-width: 1px; }
code, pre { font: 12.8px/1.55 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.samples { display: grid; gap: 14px; } .sample { padding: 14px 18px; max-height: 34em; overflow: auto; }
pre.code, pre.command { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px
  18px; }
pre i { font-style: normal; color: var(--muted); } pre em { font-style: normal; color: var(--accent); font-weight:
  600; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 40px; }
footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
@media (max-width: 760px) { :root { --bar: 44px; } main { padding: 26px 16px; } td, th { padding-right: 12px; }
  .broad { display: none; } .narrow { display: block; } .tile b { font-size: 21px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .charts, .two { grid-template-columns: minmax(0, 1fr); } }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --muted: #555; --line: #ccc; --accent: #1d4ea3;
  --good: #14602f;
  --c0: #2563c9; --c1: #d9730d; --c2: #0f8a7d; --c3: #a03fb5; --c4: #c22f4f; --c5: #7a6a12; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } section { margin-top: 22pt; } .sample {
  max-height: none; }
  .tile, figure, .sample, tr { break-inside: avoid; } h2 { break-after: avoid; } @page { margin: 16mm; } }
"""
