"""The shape of the house: arrows point down, files stay short, and what must stay outside stays outside."""

import ast
import functools
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("lm", "experiments", "launch", "benchmarks")

# From the ground up. A room is a folder or a file; its files may import one another, and everything below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("lm.renamed",),
    ("lm.value", "lm.bounds", "lm.machine"),
    ("lm.page", "lm.sharding", "lm.text"),
    ("lm.model", "lm.data"),
    ("lm.train", "lm.decode"),
    ("lm.tune", "lm.inspect"),
    ("lm.experiment",),
    ("lm.legal", "lm.pretrained"),
    ("lm.plan",),
    ("lm.run", "lm.serve"),
    ("lm.study", "lm.coordinates"),
    ("experiments", "benchmarks"),
    ("launch",),
)
# Downward, and still never.
NEVER = (("lm.model", "lm.text"), ("lm.data", "lm.model"), ("benchmarks", "experiments"))
OUTSIDE = ("tensorflow", "torch", "transformers")
FLAX_LIVES_IN = ("lm.model",)
WAY_IN = "lm.pretrained"  # `from lm.pretrained import load` is the one function that a package itself holds
LINES = 450
FUNCTION_LINES, MEDIAN_LINES = 60, 9


@functools.cache
def text(path: Path) -> str:
    """What is in a file."""
    return path.read_text(encoding="utf-8")


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    """The nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(source)))


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room(module: str) -> str | None:
    return next((r for floor in FLOORS for r in floor if inside(module, r)), None)


def floor_of(module: str) -> int | None:
    return next((i for i, floor in enumerate(FLOORS) if any(inside(module, r) for r in floor)), None)


def files() -> dict[str, Path]:
    """Our modules by their dotted names."""
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = files()


def imports(source: str, module: str, package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, imported name) of every import in `source`, wherever it stands; relative ones are resolved."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def faults(source: str, module: str, package: bool = False) -> list[str]:
    """What the imports of `source` do that the house forbids."""
    found = []
    for line, name in imports(source, module, package):
        if name.split(".")[0] in OUTSIDE and not inside(module, "benchmarks"):
            found.append(f"{module}:{line} imports {name}: it belongs to no part of the house")
        if name.split(".")[0] == "flax" and room(module) not in FLAX_LIVES_IN:
            found.append(f"{module}:{line} imports {name}: flax is imported in {' and '.join(FLAX_LIVES_IN)} only")
        if name.split(".")[0] not in OURS:
            continue
        mine, theirs = floor_of(module), floor_of(name)
        if package and inside(module, "lm") and module != WAY_IN:
            found.append(f"{module}:{line} imports {name}: a package's __init__ is no façade")
        elif theirs is None:
            found.append(f"{module}:{line} imports {name}: it has no floor (see FLOORS)")
        elif room(name) != room(module) and (mine is None or theirs >= mine):
            found.append(f"{module}:{line} imports {name}: floor {theirs} from floor {mine}, an arrow points down")
        elif any(inside(module, a) and inside(name, b) for a, b in NEVER):
            found.append(f"{module}:{line} imports {name}: {room(module)} never imports {room(name)}")
    return found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lm.model.parts", "from lm.train.step import x"),
        ("lm.model.parts", "def f():\n    import lm.text.tokenizer"),
        ("lm.model.parts", "from ..train import step"),
        ("lm.model.parts", "from lm.data.pack import pack"),
        ("lm.data.pack", "from lm.model import config"),
        ("lm.run.course", "import experiments.quickstart"),
        ("lm.run.course", "from launch.train import main"),
        ("experiments.quickstart", "import launch"),
        ("lm.train.step", "from flax import linen"),
        ("lm.data.source", "import tensorflow as tf"),
        ("lm.tune.sft", "import lm.run.course"),
        ("lm.value", "from lm import sharding"),
        ("lm.run.course", "import lm.nowhere"),
    ],
)
def test_the_rules_catch_what_they_forbid(module: str, source: str) -> None:
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lm.model.transformer", "from lm.model.parts import Linear\nfrom . import positions\nfrom flax import linen"),
        ("lm.data.source", "import tensorflow_datasets as tfds\nfrom lm.text import tokenizer"),
        ("lm.run.course", "from lm.train.step import step\nfrom lm import value"),
        ("launch.train", "import lm.run.course\nfrom experiments import quickstart"),
        ("benchmarks.llama", "import torch"),
    ],
)
def test_the_rules_allow_what_they_should(module: str, source: str) -> None:
    assert faults(source, module) == []


def test_imports_point_down() -> None:
    found = (faults(text(path), module, path.name == "__init__.py") for module, path in MODULES.items())
    assert [fault for of_file in found for fault in of_file] == []


def test_every_file_has_a_floor() -> None:
    assert [module for module in MODULES if module != "lm" and floor_of(module) is None] == [], "give it one in FLOORS"


def test_the_readme_has_the_floors() -> None:
    """Its table of rooms is FLOORS, without those that have no file yet."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Structure\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if re.match(r"\| \d", line)]
    there = {i: [r for r in rooms if any(inside(m, r) for m in MODULES)] for i, rooms in enumerate(FLOORS)}
    expected = {i: rooms for i, rooms in there.items() if rooms}
    assert {int(floor): re.findall(r"`([^`]+)`", rooms) for floor, rooms in rows} == expected


def test_no_cycle_within_a_room() -> None:
    arrows = {
        module: {
            target
            for _, name in imports(text(path), module, path.name == "__init__.py")
            for target in (name, name.rpartition(".")[0])
            if target in MODULES and target != module and not inside(module, target)
        }
        for module, path in MODULES.items()
    }
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows, f"these import one another in a circle: {sorted(arrows)}"


def test_a_file_is_one_idea() -> None:
    paths = [path for top in (*OURS, "tests") for path in sorted((ROOT / top).rglob("*.py"))]
    assert [str(path) for path in paths if text(path).count("\n") > LINES] == [], f"over {LINES} lines it is two files"
    assert [str(path) for path in paths if path.stem == "utils"] == [], "name a file after what it is about"
    vague = re.compile(r"^ *class (Base\w*|\w*(?:Base|Manager|Factory|Helper|Utils))\b", re.MULTILINE)
    assert {str(path): found for path in paths if (found := vague.findall(text(path)))} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, path in MODULES.items()
        for node in nodes(text(path))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}
    assert statistics.median(lengths.values()) <= MEDIAN_LINES


def test_nothing_brings_tensorflow_or_torch_in() -> None:
    """Importing every module of the library and the command loads neither, not even through another package."""
    modules = [m for m in MODULES if inside(m, "lm") or inside(m, "launch") and not m.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {OUTSIDE!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_the_pinned_requirements_name_neither() -> None:
    pinned = [
        line.partition("==")[0].strip().lower()
        for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if "==" in line
    ]
    assert len(pinned) > 20 and not set(pinned) & {*OUTSIDE, "tensorflow-cpu", "tf-nightly"}
