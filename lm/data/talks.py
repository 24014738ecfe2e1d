"""Conversations about Python's standard library, made from its docstrings: what a function does, and its parameters.

For experiments that run with no download, as stdlib.py: Conversations(StdlibTalks()), Preferences(StdlibPairs()). A
file is held out with all of its talks.
"""

import ast
import functools
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.data.source import SPLITS, Documents, Source, is_train, not_empty
from lm.data.stdlib import decoded, identity, in_split, library, modules

LONGEST = 240  # characters of an answer


@dataclass(frozen=True)
class StdlibTalks(Source):
    """A talk of two turns, as JSON, for each public function and class with a docstring, of the library in `folder`
    (None: that of the running Python). Raises ValueError where there is no library on disk."""

    folder: str | None = None

    def documents(self, split: str) -> Documents:
        talks = _talks(library(self.folder), SPLITS[not is_train(split)])
        return not_empty(Documents(len(talks), lambda i: talks[i]), self, split)

    def fingerprint(self) -> str:
        return identity(library(self.folder), "talks 1")


@dataclass(frozen=True)
class StdlibPairs(StdlibTalks):
    """A preference pair, as JSON, for each of these talks: its first answer is better than the same words shuffled."""

    def documents(self, split: str) -> Documents:
        talks = super().documents(split)
        return Documents(len(talks), lambda i: _pair(talks[i]))

    def fingerprint(self) -> str:
        return identity(library(self.folder), "shuffled talks 1")


def _pair(talk: str) -> str:
    asked, answer, *_ = json.loads(talk)["messages"]
    words = answer["content"].split()
    random.Random(answer["content"]).shuffle(words)
    return json.dumps({"prompt": [asked], "chosen": [answer], "rejected": [{**answer, "content": " ".join(words)}]})


@functools.lru_cache(maxsize=4)
def _talks(root: Path, split: str) -> tuple[str, ...]:
    files = decoded(root, (name for name in modules(root) if in_split(name, split)))
    found = (json.dumps({"messages": talk}) for name, code in files for talk in talks_of(name, code))
    return tuple(dict.fromkeys(found))


def talks_of(name: str, code: str) -> Iterator[list[dict[str, str]]]:
    """The messages of each talk about the file `name`; none for what does not parse."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        with warnings.catch_warnings():  # invalid escapes in the library's own files
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if 0 < len(about) <= LONGEST:
                yield _talk(module, node, about)


def _talk(module: str, node: ast.FunctionDef | ast.ClassDef, about: str) -> list[dict[str, str]]:
    if isinstance(node, ast.ClassDef):
        asked, bases = f"What is {node.name} in {module}?", ", ".join(map(ast.unparse, node.bases))
        more = ("What does it inherit from?", bases or "object")
    else:
        asked, names = f"What does {node.name} in {module} do?", ", ".join(arg.arg for arg in node.args.args)
        more = ("Which parameters does it have?", names or "It has none.")
    turns = (asked, about, *more)
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=True)]
