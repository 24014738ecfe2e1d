"""`lm evaluate`: a run's newest checkpoint on the held-out text of each source."""

import argparse
import json
from typing import Any

from launch.find import filled

COMPRESSORS = {"gzip": "gzip -9", "xz": "xz -9e"}
EPILOG = """\
The measures are those of the run's method. Of pretraining, loss is in nats a target of its objective (a masked token,
for MaskedLM), and accuracy is the fraction of targets predicted. Bits per byte, with those of gzip and xz on the same
held-out files, one by one, are reported where every token is predicted. Rows NAME/SOURCE are the experiment's extra
`evaluations`: longer rows, or another objective.

examples:
  lm evaluate runs/quickstart
  lm evaluate runs/quickstart --json | jq .code.bits_per_byte
  lm evaluate model.gguf --text novel.txt
"""


def add(verbs: Any) -> None:
    """Declare `lm evaluate`."""
    verb = verbs.add_parser(
        "evaluate", help="the measures of a run on held-out text", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("run_folder", metavar="MODEL", help="a run's folder; with --text also a published model")
    verb.add_argument(
        "--text",
        nargs="+",
        default=[],
        type=filled,
        metavar="PATH",
        help="the held-out text of a published model: UTF-8, .jsonl or .parquet",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object: source -> measure -> number")
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate the run and print a table, or JSON."""
    import contextlib
    import sys

    from lm.machine import hardware

    hardware.prepare(args.devices)
    from lm.machine import buckets
    from lm.pretrained import is_run, load
    from lm.pretrained.score import score
    from lm.run.evaluate import evaluate

    folder = buckets.local_mirror(args.run_folder)
    if not args.text and not is_run(folder):
        raise ValueError(f"{args.run_folder} is no run, so it has no held-out text of its own: name files with --text")
    hardware.check_backend()
    # progress must not end up in the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        measured = score(load(folder), args.text) if args.text else evaluate(folder)
    if args.json:
        print(json.dumps(measured))
    else:
        _show(measured)


def _show(measured: dict[str, dict[str, float]]) -> None:
    """A table of source -> measure -> value."""
    from rich.table import Table
    from rich.text import Text

    from lm.machine.monitor import terminal

    names = list(dict.fromkeys(name for values in measured.values() for name in values))
    table = Table("source", *(COMPRESSORS.get(name, name.replace("_", " ")) for name in names))
    for column in table.columns[1:]:
        column.justify = "right"
    for source, values in measured.items():
        table.add_row(Text(source), *(f"{values[name]:.3f}" if name in values else "" for name in names))
    terminal().print(table)
