"""`lm evaluate`: a run's newest checkpoint on the held-out text of each source."""

import argparse
import json
from typing import Any

COLUMNS = {
    "loss": "loss",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "next_sentence": "next sentence",
    "bits_per_byte": "bits per byte",
    "gzip": "gzip -9",
    "xz": "xz -9e",
}
EPILOG = """\
Loss is in nats a token: of those that the run's objective asks for (masked ones, for MaskedLM), and accuracy is the
share of them that are right. Bits per byte, and gzip and xz beside it (of the same held-out files, one by one), are
told where every token is predicted. Rows NAME/SOURCE are the experiment's extra `evaluations`: longer rows, or
another objective.

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
        "--text", nargs="+", default=[], metavar="FILE", help="the held-out text of a published model, in UTF-8"
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
    # what is told on the way must not end up in the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        found = score(load(folder), args.text) if args.text else evaluate(folder)
    if args.json:
        print(json.dumps(found))
    else:
        _show(found)


def _show(found: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    from lm.machine.monitor import terminal

    there = [k for k in COLUMNS if any(k in values for values in found.values())]
    table = Table("source", *(COLUMNS[k] for k in there))
    for column in table.columns[1:]:
        column.justify = "right"
    for source, values in found.items():
        table.add_row(source, *(f"{values[k]:.3f}" if k in values else "" for k in there))
    terminal().print(table)
