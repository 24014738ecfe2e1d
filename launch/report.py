"""`lm report`: write a run's report.html anew, from the files in its folder."""

import argparse
from typing import Any

EPILOG = """\
Works for a run that is under way, too.

example:
  lm report runs/quickstart
"""


def add(verbs: Any) -> None:
    """Declare `lm report`."""
    verb = verbs.add_parser("report", help="write a run's report.html anew", description=__doc__, epilog=EPILOG)
    verb.add_argument("run_folder", metavar="RUN", help="a run's folder")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the report and print its path."""
    from lm.report import write_report

    print(write_report(args.run_folder))
