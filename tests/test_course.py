"""The course, docs/course: its commands run, what it quotes is what lm/ holds, its figures and links are there.

A command of a page is a line "$ COMMAND" of a block marked console. One that takes minutes says so, "# 3 min": it, and
those that look at what it trained, are looked up here, and run in full by `pytest -m slow`. All others are quick, and
look at the folder runs/course alone, where a smoke test of the course's model stands here, and the model itself under
`-m slow`.
"""

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main, parser
from launch.find import find, find_study
from lm.data.stdlib import library

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "docs" / "course"
PAGES = (
    *("tokens", "embeddings", "positions", "attention", "blocks", "output"),
    *("pretraining", "fine-tuning", "rlhf", "scaling"),
)
LINES = 175  # of a page: one sitting
FIGURE_BYTES = 150_000
BASE = "lm train experiments.course.base"
LIBRARY = ("[a-c]*.py", "t[er]*.py")  # of the standard library's modules: copyreg and traceback are held out
SMALLER = "--smoke --workdir runs/course --set prompts=() rows_per_device=1 steps=6 eval_every_steps=3 eval_tokens=512"
FOLDERS = [f"data.mixture.sources.{name}.folder=library" for name in ("code", "prose")]
MINUTES = re.compile(r"\s+# \d+ min.*$")
COMMANDS = ("lm", "python")
THERE = {"course", "tokenizer"}  # the latter is made by the one command that names it


def text_of(page: str) -> str:
    return (COURSE / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> Iterator[tuple[str, str]]:
    """(the line before it, what it holds) of each fenced block of a kind."""
    fence = re.compile(rf"([^\n]*)\n+^( *)```{kind}\n(.*?)^\2```$", re.DOTALL | re.MULTILINE)
    for before, _, block in fence.findall(text_of(page)):
        yield before, textwrap.dedent(block)


def commands(page: str) -> list[tuple[str, bool]]:
    """(command, whether it is quick)."""
    lines = [line[2:] for _, block in blocks(page, "console") for line in block.splitlines() if line[:2] == "$ "]
    return [(MINUTES.sub("", line), not MINUTES.search(line) and runs(line) <= THERE) for line in lines]


def runs(command: str) -> set[str]:
    """The folders in runs/ that a command names."""
    return set(re.findall(r"runs/(\w+)", command))


QUICK = [(page, command) for page in PAGES for command, quick in commands(page) if quick]
LONG = [(page, command) for page in PAGES for command, quick in commands(page) if not quick]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where quick commands run: with docs/course, and runs/course, of few steps on a part of the text."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("course")
        patch.chdir(path)
        shutil.copytree(COURSE, path / "docs" / "course")
        (path / "library").mkdir()
        for module in (module for pattern in LIBRARY for module in library().glob(pattern)):
            shutil.copy(module, path / "library")
        assert main([*shlex.split(BASE)[1:], *shlex.split(SMALLER), *FOLDERS]) == 0
        yield path


@pytest.mark.parametrize(("page", "command"), QUICK)
def test_a_quick_command_runs(page: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *argv = shlex.split(command)
    if program == "lm":
        assert main(argv) == 0
        return
    monkeypatch.setattr(sys, "argv", argv[1:])
    monkeypatch.delitem(sys.modules, argv[1], raising=False)  # of which runpy would warn
    runpy.run_module(argv[1], run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(("page", "command"), LONG)
def test_what_takes_minutes_is_there(page: str, command: str) -> None:
    program, *argv = shlex.split(command)
    if program == "python":
        assert argv[0] == "-m" and f"python -m {argv[1]}" in (importlib.import_module(argv[1]).__doc__ or "")
        return
    args = parser().parse_args(argv)
    if argv[0] == "train":
        assert find(args.experiment)[0].steps
    elif argv[0] == "study":
        study, _ = find_study(args.study)
        assert set(args.only or ()) <= {trial.arm for trial in study.trials()}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_commands_run_in_full(page: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In their order, in one folder for all pages, so that what an earlier one trained is there."""
    path = tmp_path_factory.getbasetemp() / "course-in-full"
    shutil.copytree(COURSE, path / "docs" / "course", dirs_exist_ok=True)
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # compiled as for a user
    own |= {"PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in ([] if (path / "runs" / "course").exists() else [BASE]) + [c for c, _ in commands(page)]:
        run = subprocess.run(["bash", "-c", command], cwd=path, env=own, capture_output=True, text=True)
        assert run.returncode == 0, f"{command}\n{run.stderr}"


def test_every_page_is_in_the_index_in_order_and_the_index_in_the_readme() -> None:
    assert re.findall(r"\]\(([\w-]+)\.md\)", text_of("README")) == list(PAGES)
    assert {path.stem for path in COURSE.glob("*.md")} == {*PAGES, "README"}
    assert "docs/course/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_parts(page: str) -> None:
    text = text_of(page)
    assert text.count("\n") <= LINES
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        *("The idea", "In the code", "See it", "Why it matters", "Found again?", "Exercises")
    ]
    _, exercises = text.split("## Exercises\n")
    assert 2 <= len(re.findall(r"^\d\. ", exercises, re.MULTILINE)) <= 3 and "$ " in exercises
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}|arxiv\.org/abs/\d{4}\.\d{4}", text)
    assert all(command.startswith(COMMANDS) for command, _ in commands(page))


@pytest.mark.parametrize("page", ["README", *PAGES])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(page)):
        assert target.startswith("https://") or (COURSE / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_a_figure_is_small_and_made_by_a_command_of_its_page(page: str) -> None:
    figures = re.findall(r"!\[[^\]]+\]\(([\w-]+\.(?:svg|png))\)", text_of(page))
    assert figures
    for figure in figures:
        assert (COURSE / figure).stat().st_size < FIGURE_BYTES
        assert any(f"docs/course/{figure}" in command for command, _ in commands(page))


def quoted(source: str, block: str) -> bool:
    """Whether `source` has the lines of `block`, less an indentation; a line "..." stands for any lines between."""
    lines, at = source.splitlines(), 0
    for piece in re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE):
        wanted = textwrap.dedent(piece).strip("\n").splitlines()
        ends = range(at + len(wanted), len(lines) + 1)
        found = next((e for e in ends if _dedented(lines[e - len(wanted) : e]) == wanted), None)
        if found is None:
            return False
        at = found
    return True


def _dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_quotes_stands_in_lm_today(page: str) -> None:
    found = list(blocks(page, "python"))
    assert found
    for before, block in found:
        named = re.search(r"\[(lm/[\w/.]+)\]\(\.\./\.\./(lm/[\w/.]+)\):$", before)
        assert named and named[1] == named[2], f"{page}: {before!r}"
        assert block.count("\n") <= 40
        assert quoted((ROOT / named[1]).read_text(encoding="utf-8"), block), f"{page}: {named[1]} has other lines"


def test_a_quote_that_differs_is_noticed() -> None:
    source = "class A:\n    def f(self):\n        x = 1\n\n        y = 2\n        return x\n"
    assert quoted(source, "def f(self):\n    x = 1\n\n    y = 2\n")
    assert quoted(source, "def f(self):\n    ...\n    return x\n")
    assert not quoted(source, "def f(self):\n    x = 2\n")
    assert not quoted(source, "y = 2\n...\nx = 1\n")
    assert not quoted(source, "def f(self):\nx = 1\n")
