"""A table on the terminal, and the same as a section of RESULTS.md that the next run replaces."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "RESULTS.md"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Print the table; the first column is text, the others are numbers."""
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"[dim]{note}[/]", highlight=False)


def markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The table as Markdown, under a heading, its notes as paragraphs below."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([f"## {title}", table, *notes])


def keep(name: str, section: str, path: Path = RESULTS) -> None:
    """Write `section` into the results file, in the place of an earlier one of this `name`, else at the end."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->\n"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2] if found else ""
    path.write_text(f"{before if found else text.rstrip() + chr(10) * 2}{begin}{section}{end}{after}", encoding="utf-8")


def setting(machine: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """The paragraph that says where the numbers were taken."""
    parts = [f"{k} {v}" for k, v in machine.items()] + [f"{k} {v}" for k, v in versions.items()]
    return f"Machine: {'; '.join(parts)}."
