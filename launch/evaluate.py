"""`lm evaluate`: a run's newest checkpoint on the held-out text of each source, or any decoder on tasks."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from launch.find import filled
from launch.serve import add_adapter_option, add_step

COMPRESSORS = {"gzip": "gzip -9", "xz": "xz -9e"}
EPILOG = """\
The measures are those of the run's method. Of pretraining, loss is in nats a target of its objective (a masked token,
for MaskedLM), and accuracy is the fraction of targets predicted. Bits per byte, with those of gzip and xz on the same
held-out files, one by one, are reported where every token is predicted. Rows NAME/SOURCE are the experiment's extra
`evaluations`: longer rows, or another objective.

With --tasks the model is asked the tasks of lm-evaluation-harness (pip install -e ".[harness]"). Every text begins with
one bos, or the eos of a tokenizer without bos; under --bos tokenizer only where the tokenizer puts it there, and before
texts without a context. The harness downloads data; task files of your own, in --include-path, can name files:
dataset_path: json, dataset_kwargs: {data_files: {test: FILE}}.

examples:
  lm evaluate runs/quickstart
  lm evaluate runs/quickstart --json | jq .code.bits_per_byte
  lm evaluate model.gguf --text novel.txt
  lm evaluate model.gguf --tasks lambada_openai,blimp --limit 100 --output results.json
"""
TASK_OPTIONS = dict(include_path=None, limit=0, num_fewshot=None, output=None, length=0, slots=0, bos="")


def add(verbs: Any) -> None:
    """Declare `lm evaluate`."""
    verb = verbs.add_parser(
        "evaluate", help="the measures of a run on held-out text", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("run_folder", metavar="MODEL", help="a run's folder; with --text or --tasks also another model")
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
    add_tasks(verb)
    add_adapter_option(verb)
    add_step(verb)
    verb.set_defaults(run=run)


def add_tasks(verb: Any) -> None:
    """The options of lm-evaluation-harness's tasks."""
    verb.add_argument(
        "--tasks", default="", metavar="NAME,..", help="tasks of lm-evaluation-harness, or groups of them"
    )
    verb.add_argument("--include-path", metavar="DIR", help="a folder of task files, before the harness's own")
    verb.add_argument("--limit", type=int, default=0, metavar="N", help="documents of each task (default: all)")
    verb.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each (default: the task's)")
    verb.add_argument("--output", metavar="FILE", help="write the results as JSON: figures, settings, fingerprints")
    verb.add_argument("--length", type=int, default=0, metavar="T", help="tokens read at a time (default: the context)")
    verb.add_argument("--slots", type=int, default=0, metavar="N", help="texts that are drawn at a time (16)")
    verb.add_argument("--bos", default="", choices=("always", "tokenizer"), help="where texts begin with one (always)")


def run(args: argparse.Namespace) -> None:
    """Evaluate the model and print a table, or JSON."""
    if args.tasks:
        run_tasks(args)
        return
    if odd := [name for name, default in TASK_OPTIONS.items() if getattr(args, name) != default]:
        raise ValueError(f"--{odd[0].replace('_', '-')} is of tasks: name them with --tasks")
    from lm.machine import hardware

    hardware.prepare(args.devices)
    from lm.machine import buckets
    from lm.pretrained import is_run, load
    from lm.pretrained.score import score
    from lm.run.evaluate import evaluate

    folder = buckets.local_mirror(args.run_folder)
    if not args.text and not is_run(folder):
        raise ValueError(f"{args.run_folder} is no run, so it has no held-out text of its own: name files with --text")
    if args.adapter and not args.text:
        raise ValueError("--adapter is for --text or --tasks: a run is evaluated as it is")
    hardware.check_backend()
    if sys.stderr.isatty():
        print(f"lm: evaluating {args.run_folder}", file=sys.stderr, flush=True)
    # progress must not end up in the JSON
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        step = args.step
        measured = (
            score(load(folder, adapter=args.adapter, step=step), args.text) if args.text else evaluate(folder, step)
        )
    if args.json:
        print(json.dumps(measured))
    else:
        _show(measured)


def run_tasks(args: argparse.Namespace) -> None:
    """Ask the model what the tasks of lm-evaluation-harness ask; print a table, or JSON, and write a file."""
    from functools import partial
    from importlib.util import find_spec
    from pathlib import Path

    if args.text:
        raise ValueError("--text and --tasks: give one of them")
    if not find_spec("lm_eval"):
        raise ValueError('--tasks needs lm_eval, which is not installed: pip install -e ".[harness]"')
    for name, least in dict(limit=0, slots=0, length=0, num_fewshot=0).items():
        if (getattr(args, name) or 0) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {least}")
    if args.include_path and not Path(args.include_path).expanduser().is_dir():
        raise ValueError(f"--include-path {args.include_path}: no such folder")
    if args.output:  # before the hours, not after them
        Path(args.output).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
    from launch.serve import load

    model = load(args.run_folder, "", args.devices, None, args.adapter, step=args.step)
    from lm.run.harness import SLOTS, EngineModel, evaluate_tasks, tables
    from lm.serve.conversation import engine_of

    always, slots, names = args.bos != "tokenizer", args.slots or SLOTS, args.tasks.split(",")
    with _progress() as report, contextlib.redirect_stdout(sys.stderr):
        own = EngineModel(model, partial(engine_of, model), args.length, slots, always, report)
        found = evaluate_tasks(own, names, args.include_path, args.limit or None, args.num_fewshot)
    found["model"] = {"path": args.run_folder, **found["model"]}
    text = json.dumps(found, indent=2, default=str, ensure_ascii=False)
    if args.output:
        Path(args.output).expanduser().write_text(text + "\n", encoding="utf-8")
    print(text if args.json else tables(found))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that draws bars on standard error."""
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), refresh_per_second=2)
    with contextlib.ExitStack() as shown:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if not tasks:  # an empty one would print an empty line
                shown.enter_context(progress)
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield report


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
