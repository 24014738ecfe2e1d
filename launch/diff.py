"""`lm diff`: what differs between two runs, and where they part."""

import argparse
import contextlib
import json
import sys
from typing import Any

from launch.find import filled

EPILOG = """\
First a verdict; then what differs, in this order: fields of the experiment, the rows of the first step that has others,
versions, devices and flags, the program that was compiled, the losses (the first that differs by a bit, and by more
than rounding), the states that both have kept, and what is the first to differ when both are computed again: from a
checkpoint that is the same in both, or from the start.

The runs are computed again on the platform of the first, which is to be here; on another machine they may have other
bits than they logged, which is said. The folders stay as they are.

examples:
  lm train experiments.quickstart --workdir runs/small --set steps=100 model.layers=2
  lm diff runs/quickstart runs/small
  lm diff runs/quickstart runs/small --no-replay              from the files and the data alone
  lm diff runs/quickstart runs/small --output diff.html       a page too
"""


def add(verbs: Any) -> None:
    """Declare `lm diff`."""
    verb = verbs.add_parser(
        "diff", help="what differs between two runs, and where they part", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("first", metavar="RUN", help="a run's folder (A)")
    verb.add_argument("second", metavar="RUN", help="another's (B)")
    verb.add_argument("--no-replay", action="store_true", help="compute no steps again")
    verb.add_argument("--json", action="store_true", help="print one JSON object: the verdict, and tables by title")
    verb.add_argument("--output", type=filled, metavar="FILE", help="write a page (.html)")
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to compute (default: as the first run)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare the runs and print the verdict and the tables."""
    prepare_as(args.first, "cpu" if args.no_replay else args.devices)
    from lm.run.diff import compare, page

    with contextlib.redirect_stdout(sys.stderr):  # what preparing says
        found = compare(args.first, args.second, not args.no_replay)
    if args.output:
        from pathlib import Path

        from lm.page.markup import write

        write(Path(args.output).expanduser(), page(found, args.first, args.second))
    if args.json:
        tables = {one.title: {"note": one.note, "head": one.head, "rows": one.rows} for one in found.tables}
        print(json.dumps({"verdict": found.verdict, **tables}, ensure_ascii=False))
    else:
        _show(found)


def prepare_as(folder: str, devices: str) -> None:
    """Prepare JAX for the platform `devices`, or where that is empty for that of the run in `folder`."""
    from lm.machine import buckets, hardware
    from lm.page.run_record import RunRecord

    backend = RunRecord(buckets.local_mirror(folder)).about.get("environment", {}).get("backend", "")
    hardware.prepare(devices or (backend if backend in ("cpu", "gpu", "tpu") else ""))


def _show(found: Any) -> None:
    """The verdict, and each table under its title."""
    from rich.text import Text

    from lm.machine.monitor import terminal

    console = terminal()
    console.print(Text(found.verdict, style="bold"))
    for one in found.tables:
        show_table(console, one)


def show_table(console: Any, one: Any) -> None:
    """A table of lm.page.tables under its title."""
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(f"{one.title}. {one.note}".rstrip()))
    if one.rows:
        table = Table(*one.head)
        for column in table.columns[one.text_columns :]:
            column.justify = "right"
        for row in one.rows:
            table.add_row(*map(Text, row))
        console.print(table)
