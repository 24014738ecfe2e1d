"""`lm list`: what there is to train and to study, a line each."""

import argparse
import shutil
import sys
from typing import Any

from launch.find import DEFAULT, is_study, known, load

EPILOG = """\
The pages of the package experiments/ and those in the current folder that build an Experiment. A name is what the other
commands take: `lm train` and `lm plan` an experiment or a published size, `lm study` a study, a sweep or a ladder.

examples:
  lm list
  lm list llama                                  those whose name or line has llama
  lm show experiments.llama:llama3_8b            more of one of them
"""
EXPERIMENTS, SIZES = "Experiments, for lm train", "Published sizes, for lm train and lm plan"


def add(verbs: Any) -> None:
    """Declare `lm list`."""
    verb = verbs.add_parser(
        "list", help="experiments, studies, sweeps and published sizes", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("text", nargs="?", default="", metavar="TEXT", help="only lines that contain it")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read every page, and print what it has."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    modules: dict[str, Any] = {}
    faults = []
    for name in known():
        try:
            modules[name] = load(name)
        except ValueError as error:
            faults.append(str(error))
    entries = [entry for entry in found(modules) if args.text.lower() in " ".join(entry).lower()]
    faults = [fault for fault in faults if args.text.lower() in fault.lower()]
    if not entries and not faults:
        raise ValueError(f"nothing has {args.text!r} in its name or line: lm list shows all")
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for title in dict.fromkeys(kind for kind, _, _ in entries):
        print(f"\n{title}")
        rows = [(reference, line) for kind, reference, line in entries if kind == title]
        width = max(len(reference) for reference, _ in rows)
        for reference, line in rows:
            shown = f"  {reference:<{width}}  {line}"
            print(f"{shown[: columns - 1]}…" if columns and len(shown) > columns else shown)
    for fault in faults:
        print(f"\n{fault}")


def found(modules: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(kind, reference, line) of everything on the pages, kind by kind. What several pages import is listed once, where
    it is its page's own experiment if it is one."""
    own: dict[int, tuple[str, str, str]] = {}
    for module, page in modules.items():
        for name, value in vars(page).items():
            kind = kind_of(value)
            if kind and not name.startswith("_") and (id(value) not in own or name == DEFAULT):
                own[id(value)] = kind, module, name
    entries = []
    for kind, module, name in own.values():
        line = line_of(getattr(modules[module], name), modules[module])
        entries.append((kind, module if name == DEFAULT else f"{module}:{name}", line))
    kinds = [EXPERIMENTS, SIZES, *sorted({kind for kind, _, _ in entries})]
    return sorted(entries, key=lambda entry: kinds.index(entry[0]))


def kind_of(value: Any) -> str:
    """The title under which a value of a page stands; nothing for what is no experiment, model or study."""
    from lm.experiment import Experiment
    from lm.model.config import ModelConfig

    if isinstance(value, Experiment):
        return EXPERIMENTS
    if isinstance(value, ModelConfig):
        return SIZES
    return f"{type(value).__name__}, for lm study" if is_study(value) else ""


def line_of(value: Any, page: Any) -> str:
    """What a value is, in a line: an experiment as its page's docstring says, anything else by its sizes."""
    from lm.model.config import ModelConfig

    about = " ".join((page.__doc__ or "").partition("\n\n")[0].split())
    if isinstance(value, ModelConfig):
        return f"{value.layers} layers of width {value.width:,}, context {value.context:,}, {value.vocab:,} ids"
    summary = getattr(value, "summary", "")
    return f"{summary}: {about}" if summary else about
