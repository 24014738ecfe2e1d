"""A data set that every machine has: Python's own standard library, as two sources.

`code` is its .py files, one document each; `prose` the docstrings of those files, one document per module, and the
language reference in pydoc_data, one document per group of topics that share paragraphs. Both are split by file: the
files held out of one are held out of the other. Left out are tests (a third of the library, much of it tables), code
generated from tables (the encodings, HTML's entities), lib2to3 and installed packages: about 9 MB of code and 2 MB of
prose remain.
"""

import ast
import functools
import hashlib
import itertools
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.data.source import SPLITS, Documents, Source, held_out, is_train, not_empty

PARTS = ("code", "prose")
HELDOUT = 0.06  # of the files
LEFT_OUT = {
    "site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled", "__phello__",  # not its source
    "test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data", "entities.py",  # tests and tables
}  # fmt: skip
LEFT_OUT_STARTS = ("config-", "_sysconfigdata")
MIN_CHARACTERS = 64  # of a document
VERSION = 1  # raise it when this file makes other documents of the same library


@dataclass(frozen=True)
class Stdlib(Source):
    """The `part` ("code" or "prose") of the standard library in `folder` (None: that of the running Python).

    Raises ValueError where there is no library on disk."""

    part: str = "code"
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"Stdlib part={self.part!r}: expected code or prose")

    def documents(self, split: str) -> Documents:
        named = _named_texts(library(self.folder), self.part, SPLITS[not is_train(split)])
        return not_empty(Documents(len(named), lambda i: named[i][1], lambda i: named[i][0]), self, split)

    def fingerprint(self) -> str:
        return identity(library(self.folder), self.part)


def library(folder: str | None = None) -> Path:
    """The folder of the standard library's .py files. Raises ValueError where there are none (a zipped or stripped
    Python)."""
    root = Path(folder or sysconfig.get_paths()["stdlib"])
    if not (root / "textwrap.py").is_file() or not (root / "argparse.py").is_file():
        raise ValueError(
            f"no Python standard library in {root} (this Python may keep it in a zip file): "
            "train on text of your own with --text DIR, a folder of .txt files"
        )
    return root


def modules(root: Path) -> list[str]:
    """The paths of the library's files that are used, relative to `root`, sorted."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = filter(_is_used, folders)  # site-packages may be large: do not walk it
        names = (name for name in files if name.endswith(".py") and _is_used(name))
        found += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def _is_used(name: str) -> bool:
    return name not in LEFT_OUT and not name.startswith(LEFT_OUT_STARTS)


@functools.lru_cache(maxsize=4)
def _named_texts(root: Path, part: str, split: str) -> tuple[tuple[str, str], ...]:
    return tuple(documents_of(root, part, split))


def documents_of(root: Path, part: str, split: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents of one part and split, sorted by name."""

    files = decoded(root, (name for name in modules(root) if in_split(name, split)))
    if part == "prose":
        files = itertools.chain(
            ((n, docstrings(t)) for n, t in files), ((n, t) for n, t in topics(root) if in_split(n, split))
        )
    yield from ((name, text) for name, text in files if len(text) >= MIN_CHARACTERS)


def in_split(name: str, split: str) -> bool:
    """Whether the file `name` is in `split`."""
    return held_out(name, HELDOUT) == (split == "heldout")


def decoded(root: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of the files `names` that can be read as UTF-8."""
    for name in names:
        try:
            yield name, (root / name).read_bytes().decode()
        except (UnicodeDecodeError, OSError):  # another encoding, a dangling link
            continue


def docstrings(code: str) -> str:
    """The docstrings of a module, its classes and functions, in the order of the file; "" for what does not parse."""
    try:
        with warnings.catch_warnings():  # invalid escapes in the library's own files
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in _statements(tree) if isinstance(node, kinds))
    return "".join(text.strip() + "\n\n" for text in texts if text and text.strip())


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements under it, in the order of the file; not their expressions, which are most of a tree."""
    yield node
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield from _statements(child)


def topics(root: Path) -> list[tuple[str, str]]:
    """The language reference by topic. Topics that share a paragraph ("compound" contains "if") are one document with
    each paragraph once: so no held-out paragraph is trained on."""
    try:
        tree = ast.parse((root / "pydoc_data" / "topics.py").read_bytes())
    except (OSError, SyntaxError, ValueError):  # Debian has it in another package
        return []
    values = [
        n.value for n in tree.body if isinstance(n, (ast.Assign, ast.AnnAssign)) and isinstance(n.value, ast.Dict)
    ]
    by_topic: dict[str, str] = ast.literal_eval(values[0]) if values else {}
    paragraphs = {name: [p.strip("\n") for p in text.split("\n\n")] for name, text in by_topic.items()}
    groups = _groups({name: [p for p in own if len(p) > 60] for name, own in paragraphs.items()})
    texts = ["\n\n".join(dict.fromkeys(p for name in group for p in paragraphs[name])) for group in groups]
    return [(f"pydoc_data/topics.py:{group[0]}", text + "\n") for group, text in zip(groups, texts, strict=True)]


def _groups(paragraphs: dict[str, list[str]]) -> list[list[str]]:
    """The names, grouped so that no paragraph is in two groups."""
    group_of = {name: [name] for name in paragraphs}
    first: dict[str, str] = {}
    for name, own in paragraphs.items():
        for paragraph in own:
            other = group_of[first.setdefault(paragraph, name)]
            if other is not group_of[name]:
                other.extend(group_of[name])
                group_of.update(dict.fromkeys(other, other))
    return sorted({id(g): sorted(g) for g in group_of.values()}.values())


@functools.lru_cache(maxsize=8)
def identity(root: Path, part: str) -> str:
    """16 hex digits of what determines the documents: this file's version, the Python, and the library's files."""
    names = [*modules(root), *(["pydoc_data/topics.py"] if (root / "pydoc_data" / "topics.py").is_file() else [])]
    sizes = [
        (name, hashlib.sha256((root / name).read_bytes()).hexdigest()) for name in names if (root / name).is_file()
    ]
    return hashlib.sha256(repr((VERSION, HELDOUT, part, sys.version_info[:3], sizes)).encode()).hexdigest()[:16]
