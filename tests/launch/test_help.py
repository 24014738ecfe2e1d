"""Help is shown as it was written, and its examples are commands that there are."""

import argparse
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from launch.__main__ import main, parser
from launch.find import known, page_file


def parsers(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from parsers(one)


def examples(epilog: str) -> list[list[str]]:
    """The words of each example: what follows three spaces explains it."""
    lines = re.sub(r"\\\n\s*", "", epilog).splitlines()
    commands = [re.split(r"\s{3,}| \| | > ", line.strip())[0] for line in lines if line.startswith("  lm ")]
    return [shlex.split(command)[1:] for command in commands]


EXAMPLES = [words for one in parsers(parser()) for words in examples(one.epilog or "")]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_an_example_is_a_command(words: list[str]) -> None:
    top = parser()
    args = top.parse_args(words)
    named = [word for word in words if word.startswith("experiments.")]
    named += [args.experiment] if words[0] in ("train", "plan") and not args.experiment.endswith(".gguf") else []
    for module, _, name in (word.partition(":") for word in named):
        file = page_file(module)
        assert module in known() and file and re.search(rf"^{name or '(experiment|[a-z]+)'}\b", file.read_text(), re.M)


def test_titles_begin_with_a_capital(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Best-of-n, the texts of -n N by a reward model's score:" in shown and "\nOptions:" in shown


def test_every_verb_has_an_example() -> None:
    assert len(EXAMPLES) > 80 and {words[0] for words in EXAMPLES} >= {"train", "sample", "study", "launch", "show"}


def test_brackets_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, shown in (("plan", 'pip install -e ".[tpu]"'), ("evaluate", 'pip install -e ".[harness]"')):
        assert main([verb, "--help"]) == 0
        assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "unknown verb 'trian': did you mean train"),
        (["experiments.quickstart"], "expected a verb before experiments.quickstart, as in lm train experiments.quick"),
        (["./page.py"], "expected a verb before ./page.py"),
        (["page:small", "--smoke"], "expected a verb before page:small"),
        (["launch", "a.page"], "expected an engine before a.page, as in lm launch local -n 2 a.page; see lm launch"),
        (["tokenizer", "trian"], "unknown action 'trian': did you mean train"),
        (["launch", "slrum", "experiments.quickstart"], "unknown engine 'slrum': did you mean slurm"),
    ],
)
def test_what_is_unknown_is_named(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"lm \S+.*, jax \d+\.\S+, Python \d\.\d+\.\S+\n", capsys.readouterr().out)


def completer(of: argparse.ArgumentParser, verb: str, metavar: str) -> Any:
    (verbs,) = (one for one in of._actions if isinstance(one, argparse._SubParsersAction))
    return next(one.completer for one in verbs.choices[verb]._actions if one.metavar == metavar)  # type: ignore[attr-defined]


def test_the_shell_completes_names(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.completion import give_completers

    top = parser()
    give_completers(top)
    pages, runs = completer(top, "train", "EXPERIMENT"), completer(top, "sample", "MODEL")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    (tmp_path / "notes.txt").touch()
    assert pages("experiments.quick") == ["experiments.quickstart"]
    assert "experiments.llama:llama3_8b" in pages("experiments.llama:llama3")
    assert all(one.startswith("experiments.llama:llama3") for one in pages("experiments.llama:llama3"))
    assert pages("experiments.nowhere:") == []
    assert runs("") == ["model.gguf", "runs/"] and runs("runs/o") == ["runs/one/"] and "runs/one/" in runs("ru")


def test_completion_starts_no_jax() -> None:
    from tests.launch.test_imports import JAX, modules_after

    code = "from launch.__main__ import parser\nfrom launch.completion import *\ngive_completers(parser())\npages('e')"
    assert not modules_after(code) & set(JAX)


def test_argcomplete_answers_the_shell(tmp_path: Any) -> None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    pytest.importorskip("argcomplete", reason="of requirements.txt since November 2026")
    line, answer = "lm train experiments.quick", tmp_path / "answer"
    env = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\v"}
    env |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_COMP_WORDBREAKS": ":="}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "launch"], env=env, cwd=root, timeout=60, check=False)
    assert answer.read_text().strip() == "experiments.quickstart"
