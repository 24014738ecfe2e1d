"""`lm feedback` writes records that training reads, the same bytes each time, and says what it left out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.__main__ import main
from tests.tune.answering import model

PAGE = """
from lm.tune.constitution import Constitution, Principle

mine = Constitution((Principle("x?", "x!", "which is x?"),), prompts=("one", "two", "three"))
other = Constitution((Principle("y?", "y!", "which is y?"),))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a page, in which all models are the tiny random one, or its reward model."""
    (tmp_path / "feedback_page.py").write_text(PAGE)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "four"}\n{"prompt": "five"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.serve.load", lambda *options: model())
    monkeypatch.setattr("lm.pretrained.load", lambda path: model(scores=path.name == "r"))
    monkeypatch.setattr("lm.pretrained.open_model", lambda path: SimpleNamespace(fingerprint=lambda: path.name))
    return tmp_path


def asked(kind: str, output: str, *options: str) -> int:
    own = ("--output", output, "--constitution", "feedback_page:mine", "--max-new-tokens", "8", "--slots", "4")
    return main(["feedback", kind, "m", *own, *options])


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "fields"),
    [
        ("revise", (), {"messages", "trace"}),
        ("compare", ("--judge", "j"), {"prompt", "chosen", "rejected", "judged"}),
        ("best", ("--reward", "r", "-n", "5"), {"messages", "rewards"}),
    ],
)
def test_a_command_writes_the_same_bytes(
    kind: str, options: tuple[str, ...], fields: set[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(kind, "a.jsonl", *options, "--seed", "3") == 0
    said = capsys.readouterr().out
    assert asked(kind, "b.jsonl", *options, "--seed", "3") == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
    found = records(folder / "a.jsonl")
    assert f"a.jsonl: {len(found)} of 3 prompts" in said
    assert all(set(one) == fields for one in found)
    assert ("left out, " in said) == (len(found) < 3)
    assert asked(kind, "c.jsonl", *options, "--prompts", "prompts.jsonl") == 0
    assert "of 2 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("revise", "m", "--output", "a", "--rounds", "0"), "--rounds 0: expected at least 1"),
        (("revise", "m", "--output", "a", "--constitution", "feedback_page:their"), "did you mean other"),
        (("revise", "m", "--output", "a", "--constitution", "feedback_page:other"), "there are no prompts"),
        (("compare", "m", "--output", "feedback_page.py", "--constitution", "feedback_page:mine"), "is there already"),
        (("compare", "m", "--output", "a", "--prompts", "none.jsonl"), "none.jsonl"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(
    options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["feedback", *options]) == 1
    error = capsys.readouterr().err.strip()
    assert reason in error and "\n" not in error
