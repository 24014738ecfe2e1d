"""Completion of the command line in a shell, by argcomplete: verbs, options, experiments, folders of runs.

    eval "$(register-python-argcomplete lm)"          # in ~/.bashrc or ~/.zshrc; fish: see argcomplete

Names are read from the pages' text, since to import one takes JAX and seconds.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.find import known, page_file

ASSIGNED = re.compile(r"^([a-z]\w*)(?:: [^=]+)? = ", re.MULTILINE)
Complete = Callable[..., list[str]]


def complete(top: argparse.ArgumentParser) -> None:
    """Answer the shell, and end the process; a no-op where argcomplete is not installed."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    give_completers(top)
    argcomplete.autocomplete(top, always_complete_options="long")


def give_completers(parser: argparse.ArgumentParser) -> None:
    """Let the arguments of `parser` and of its verbs complete what they name."""
    by_metavar: dict[str, Complete] = {
        "EXPERIMENT": pages,
        "STUDY": pages,
        **dict.fromkeys(("MODEL", "RUN", "FOLDER", "SRC", "RUN_OR_DIR"), runs),
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                give_completers(one)
        elif completer := by_metavar.get(str(action.metavar)):
            action.completer = completer  # type: ignore[attr-defined]


def pages(prefix: str, **_: Any) -> list[str]:
    """Modules of pages; behind `module:` what the page assigns; and files."""
    module, colon, name = prefix.partition(":")
    if colon:
        file = page_file(module)
        names = ASSIGNED.findall(file.read_text(encoding="utf-8")) if file else []
        return [f"{module}:{one}" for one in names if one.startswith(name)]
    return [one for one in known() if one.startswith(prefix)] + (files(prefix, ".py") if "/" in prefix else [])


def runs(prefix: str, **_: Any) -> list[str]:
    """Folders of runs, studies and models, and files of models."""
    found = files(prefix, ".gguf")
    return found + (files("runs/", ".gguf") if prefix and "runs/".startswith(prefix) else [])


def files(prefix: str, suffix: str) -> list[str]:
    """Folders, and files that end in `suffix`."""
    folder = prefix.rpartition("/")[0]
    inside = sorted(Path(folder or ("/" if prefix.startswith("/") else ".")).expanduser().glob("[!.]*"))
    shown = [(f"{folder}/" if folder or prefix.startswith("/") else "") + p.name + "/" * p.is_dir() for p in inside]
    return [one for one in shown if one.startswith(prefix) and (one.endswith(("/", suffix)))]
