"""Tables as LaTeX. Nothing needs this file: without it a study writes no report.tex."""

from collections.abc import Iterable

from lm.page.tables import Table

ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{"<": "$<$", ">": "$>$", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}"},
        **{"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "–": "--", "’": "'", "…": r"\ldots{}"},
    }
)


def tables_document(title: str, tables: Iterable[Table]) -> str:
    """The tables, to be read with `\\input`."""
    head = f"% {escaped(title)}: tables of `lm report`. They need \\usepackage{{booktabs}}.\n"
    return "\n".join([head, *map(latex, tables)])


def latex(table: Table) -> str:
    """As a LaTeX table with the rules of booktabs."""
    title = table.title if table.title.endswith("?") else f"{table.title}."
    columns = "l" * table.text_columns + "r" * (len(table.head) - table.text_columns)
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{f'{escaped(title)} {escaped(table.note)}'.strip()}}}",
        rf"  \begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"    \toprule",
        *([_row(table.head), r"    \midrule"] if any(table.head) else []),
        *map(_row, table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    # a row that begins with a bracket would be taken as the option of the \\ before it
    return f"    {{}}{' & '.join(map(escaped, cells))} \\\\"


def escaped(text: str) -> str:
    """Text that LaTeX shows as it stands."""
    return " ".join(text.split()).translate(ESCAPES)
