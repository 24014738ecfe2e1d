"""`lm replay`: one step of a run computed again, and where in it a loss began that spiked or was not finite."""

import argparse
import contextlib
import sys
from typing import Any

from launch.diff import prepare_as

EPILOG = """\
The step is reached from the newest checkpoint before it, or from the start, and is the run's own where its metrics are
the logged ones to the bit, which is said. The first value that is not finite is named by tap, layer, head, row, token
and document, in the order of computation; of a step that is finite, the targets and rows with most of the loss, and the
first value that is out of line in that row. RUN/replay-N.html has the figures: losses of targets, the largest values by
place and layer, gradients. Rows, tokens and layers are counted from 0, steps from 1.

examples:
  lm replay runs/quickstart --step 120
"""


def add(verbs: Any) -> None:
    """Declare `lm replay`."""
    verb = verbs.add_parser(
        "replay", help="one step of a run again: where its loss comes from", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("run_folder", metavar="RUN", help="a run's folder")
    verb.add_argument("--step", type=int, required=True, metavar="N", help="the step, from 1")
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to compute (default: as the run)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compute the step again, say what was found, and write the page."""
    prepare_as(args.run_folder, args.devices)
    from lm.run.replay_report import replay

    with contextlib.redirect_stdout(sys.stderr):  # what preparing says
        report, path = replay(args.run_folder, args.step)
    print(f"{report.verdict}\n{report.proof}\n{path}")
