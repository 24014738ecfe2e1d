"""`lm compare`: runs side by side: where their experiments differ, their curves, and what they reached."""

import argparse
import json
from typing import Any

from launch.find import filled

EPILOG = """\
The page has the curves of all runs in one chart: the training loss, and each measure of held-out text. Numbers of a run
that stands beside others of its experiment with other seeds, as those of a study do, have their deviation over seeds.
`lm diff` is for two runs that should be the same.

examples:
  lm train experiments.quickstart --workdir runs/small --set steps=100 model.layers=2
  lm compare runs/quickstart runs/small
  lm compare runs/quickstart runs/small --output both.html
  lm compare runs/heads/runs/grouped/* --json | jq .deviation        the seeds of an arm
"""


def add(verbs: Any) -> None:
    """Declare `lm compare`."""
    verb = verbs.add_parser(
        "compare", help="runs side by side: fields, curves, last values", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("runs", nargs="+", metavar="RUN", help="the runs' folders")
    verb.add_argument(
        "--output", type=filled, default="compare.html", metavar="FILE", help="the page (default: compare.html)"
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object, and write no page")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print what differs and what was reached, and write the page."""
    from pathlib import Path

    from launch.diff import show_table
    from lm.machine.monitor import terminal
    from lm.run.compare import as_data, fields_table, open_runs, values_table, verdict, write_page

    runs = open_runs(args.runs)
    if args.json:
        return print(json.dumps(as_data(runs), ensure_ascii=False))
    console = terminal()
    console.print(verdict(runs), style="bold", markup=False, soft_wrap=True)
    for table in (fields_table(runs), values_table(runs)):
        show_table(console, table)
    write_page(runs, file := Path(args.output).expanduser())
    print(f"page: {file}")
