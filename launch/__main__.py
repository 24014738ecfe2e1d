"""`lm`, and `python -m launch`: runs a verb, and turns an error into one line and an exit code.

0 success; 1 failure; 2 a usage error; 128 + signal when interrupted; 75 when another process of the run was lost.
LM_DEBUG=1 or --debug shows the traceback; LM_TRUST=1 or --trust imports the modules that a run's files name.
"""

import argparse
import contextlib
import difflib
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from rich_argparse import RawDescriptionRichHelpFormatter

from launch import (
    catalogue,
    chat,
    compare,
    convert,
    diff,
    evaluate,
    feedback,
    inspect,
    launch,
    plan,
    replay,
    report,
    sample,
    score,
    serve,
    show,
    study,
    tokenizer,
    train,
)
from lm.value import TRUST, suggest

VERBS = {
    "list": catalogue,
    "train": train,
    "sample": sample,
    "chat": chat,
    "serve": serve,
    "evaluate": evaluate,
    "score": score,
    "inspect": inspect,
    "feedback": feedback,
    "show": show,
    "plan": plan,
    "study": study,
    "launch": launch,
    "report": report,
    "compare": compare,
    "diff": diff,
    "replay": replay,
    "convert": convert,
    "tokenizer": tokenizer,
}
BEFORE = {"verb": ("a verb", "lm train"), "engine": ("an engine", "lm launch local -n 2")}  # of a page
CURE = (  # of too little memory
    'a step takes less with fewer batch_tokens, a larger accumulate, compute.remat="full" or mesh.fsdp=-1 (lm plan '
    "tells how much), a model that is only read with --weights bfloat16"
)
FORMAT_WARNING = warnings.formatwarning
EPILOG = """\
examples:
  lm list                                        experiments, published sizes, studies: a line each
  lm show experiments.quickstart                 what it is, before anything runs
  lm train experiments.quickstart                train it (or resume it), sample, report
  lm train experiments.quickstart --workdir runs/small --set steps=100 model.layers=2
  lm sample runs/quickstart --prompt "def " -n 3
  lm serve runs/quickstart                       over HTTP, by the API of OpenAI
  lm evaluate runs/quickstart
  lm inspect runs/quickstart --text "def add(a, b):"      where its heads look, what each layer says: a page
  lm compare runs/quickstart runs/small          their fields, curves and last values side by side: a page
  lm diff runs/quickstart runs/small             what differs between two runs, and where they part
  lm plan experiments.llama:llama3_8b --topology v5p:4x4x4      what it would cost there
  lm study experiments.ablations.heads           which is better, by how much, how sure
  lm launch local -n 2 experiments.quickstart    on several processes, Slurm, Kubernetes, a TPU pod
  lm chat SmolLM2-135M-Instruct.Q4_1.gguf        a conversation in the terminal, with a file of yours

See also lm VERB --help. Completion in bash and zsh: eval "$(register-python-argcomplete lm)"
"""


class Usage(ValueError):
    """An error in the command line: exit code 2."""


def _capitalized(title: str) -> str:
    """`title` with a capital at its beginning alone."""
    return title[:1].upper() + title[1:]


class _Help(RawDescriptionRichHelpFormatter):
    """Help as it is written, brackets too, whose first column is wide enough for "tokenizer"."""

    text_markup = help_markup = False

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **{"max_help_position": 30, **options})


_Help.group_name_formatter = _capitalized


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises Usage, and suggests verbs (engines, actions) for an unknown one."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **options)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            if set("./:") & set(str(value)) and action.dest in BEFORE:
                what, example = BEFORE[action.dest]
                raise Usage(f"expected {what} before {value}, as in {example} {value}; see {self.prog} --help")
            raise Usage(f"unknown {action.dest} {value!r}: {suggest(str(value), action.choices)}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but what no verb knows is told by the one that was given it, with its options that are near."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            verb = self.innermost(found)
            near = difflib.get_close_matches(unknown[0].split("=")[0], verb._option_string_actions, n=2, cutoff=0.6)
            cure = f", did you mean {' or '.join(near)}" if near else ""
            verb.error(f"unrecognized arguments: {shlex.join(unknown)}{cure}")
        return found

    def innermost(self, found: argparse.Namespace) -> "Parser":
        """The parser of the verb (engine, action) that `found` names."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return cast(Parser, action.choices[getattr(found, action.dest)]).innermost(found)
        return self


class _Version(argparse.Action):
    """Prints the versions, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        def of(name: str) -> str:
            try:
                return version(name)
            except PackageNotFoundError:
                return "(not installed)"

        print(f"lm {of('lm')}, jax {of('jax')}, Python {sys.version.partition(' ')[0]}")
        parser.exit()


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="lm",
        description="A transformer language-model laboratory: an experiment is one page of Python.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the versions of lm, JAX and Python")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    top.add_argument(
        "--trust", action="store_true", help="import the modules of classes and studies that files of a run name"
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in VERBS.values():
        module.add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: the process's) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("LM_DEBUG", "") not in ("", "0")
    if "--trust" in argv:
        os.environ[TRUST] = "1"
    # both may be anywhere on the line
    argv = [a for a in argv if a not in ("--debug", "--trust")]
    warnings.formatwarning = format_warning
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for what may come next
        from launch.completion import complete

        complete(parser())
    try:
        if not argv:
            parser().print_help()
            return 2
        top = parser()
        args = top.parse_args(argv)
        args.top, args.command = top, command_line(argv)
        return args.run(args) or 0
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except BaseException as error:
        return failed(error, debug)


def failed(error: BaseException, debug: bool) -> int:
    """Print the error and return its exit code. An error that is not the user's is raised again. One that would come
    again is left in the file that LM_ERROR names, so that a job is not queued again for it."""
    if (file := os.environ.get("LM_ERROR")) and isinstance(error, Exception) and not resumable(error):
        with contextlib.suppress(OSError):
            Path(file).write_text(f"{type(error).__name__}: {error}\n")
    if debug and not isinstance(error, KeyboardInterrupt):
        raise error
    number = getattr(error, "signal", None)
    if code := getattr(error, "exit_code", 0):  # another process was lost: an orderly exit would wait for it
        os._exit(_say(str(error), code))
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", 130)
    if isinstance(error, BrokenPipeError):  # `lm show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    if number is not None:
        return _say(str(error), 128 + int(number))
    if isinstance(error, Usage):
        return _say(str(error), 2)
    if isinstance(error, ValueError | OSError):
        return _say(str(error) or type(error).__name__, 1)
    if lacking := out_of_memory(error):
        return _say(f"{lacking}: {CURE}", 1)
    raise error


def out_of_memory(error: BaseException) -> str:
    """What a device or this machine had no memory for, as XLA or Python say it; nothing where it is another error."""
    if isinstance(error, MemoryError):
        return "no memory is left on this machine"
    line = str(error).partition("\n")[0].strip().rstrip(".")  # of JaxRuntimeError; the allocator's blocks follow
    return line if line.startswith("RESOURCE_EXHAUSTED") and "memory" in line.lower() else ""


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning that is for the user as one line; others as Python writes them. The arguments are those of
    `warnings.formatwarning`."""
    if category is UserWarning:
        return f"lm: {message}\n"
    return FORMAT_WARNING(message, category, filename, lineno, line)


def resumable(error: Exception) -> bool:
    """Whether the same command goes on: another process was lost, or a signal ended this one."""
    return hasattr(error, "exit_code") or hasattr(error, "signal")


def _say(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"lm: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    return code


def command_line(argv: Sequence[str]) -> str:
    """The command as typed."""
    return shlex.join(["lm", *argv])


if __name__ == "__main__":
    sys.exit(main())
