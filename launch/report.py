"""`lm report`: rewrite the report of a run or a study from the files in its folder."""

import argparse
import sys
from pathlib import Path
from typing import Any

from launch import study

EPILOG = """\
Works for a run in progress, too.

examples:
  lm report runs/quickstart
  lm report runs/quickstart --inside             and inside.html beside it: the model's inside for its first sample
  lm report runs/positions                       a study: the page, and its tables as Markdown, LaTeX and CSV
"""


def add(verbs: Any) -> None:
    """Declare `lm report`."""
    verb = verbs.add_parser("report", help="rewrite the report of a run or a study", description=__doc__, epilog=EPILOG)
    verb.add_argument("run_folder", metavar="FOLDER", help="the folder of a run or a study")
    verb.add_argument(
        "--inside", action="store_true", help="write inside.html too, which the report links to: see lm inspect"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the report and print its path."""
    if (Path(args.run_folder) / "study.json").is_file():
        if args.inside:
            raise ValueError(f"--inside is of a run, and {args.run_folder} is a study's folder: name one of its runs")
        from lm.machine import hardware

        hardware.prepare("cpu")
        return study.write(Path(args.run_folder))
    from lm.machine import buckets
    from lm.page.run_record import RunRecord
    from lm.page.run_report import write_report

    folder = buckets.local_mirror(args.run_folder)
    if args.inside:
        from launch.serve import load
        from lm.run.inside import write_inside

        RunRecord(folder)  # a run, or it is said
        write_inside(folder, load(str(folder), "", "", None))
    report = write_report(folder)
    if damage := RunRecord(folder).damage:
        print(f"lm: {damage}", file=sys.stderr)
    buckets.upload(folder)
    print(f"{buckets.display_path(folder)}/{report.name}")
