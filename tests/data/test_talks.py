"""Talks about the standard library, made from its docstrings."""

import json
from pathlib import Path

import pytest

from lm.data.talks import StdlibPairs, StdlibTalks, talks_of

CODE = '''
def plain(a, b=1):
    """What it
    does.

    More."""

def bare(): "Nothing."
def _hidden(): "x"
def silent(): pass
class Kind(Base, ABC):
    "What it is."
'''


def test_a_talk_asks_what_it_does_and_what_it_takes() -> None:
    said = [[message["content"] for message in talk] for talk in talks_of("pkg/mod.py", CODE)]
    assert said == [
        ["What does plain in pkg.mod do?", "What it does.", "Which parameters does it have?", "a, b"],
        ["What does bare in pkg.mod do?", "Nothing.", "Which parameters does it have?", "It has none."],
        ["What is Kind in pkg.mod?", "What it is.", "What does it inherit from?", "Base, ABC"],
    ]
    assert [m["role"] for m in next(talks_of("a.py", CODE))] == ["user", "assistant"] * 2
    assert list(talks_of("a.py", "def broken(")) == []


def _module(talk: str) -> str:
    return str(json.loads(talk)["messages"][0]["content"].split()[4])


def test_files_are_held_out_with_all_of_their_talks(tmp_path: Path) -> None:
    for name in ("textwrap", "argparse", *map("m{}".format, range(40))):
        (tmp_path / f"{name}.py").write_text(f"def f{name}(x): 'It does {name}.'\ndef g(): 'And {name}.'\n" + "#" * 64)
    source = StdlibTalks(str(tmp_path))
    sides = [{_module(talk) for talk in source.documents(split)} for split in ("train", "heldout")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 42
    before = source.fingerprint()
    assert before == StdlibTalks(str(tmp_path)).fingerprint() and len(before) == 16
    with pytest.raises(ValueError, match="no Python standard library"):
        StdlibTalks(str(tmp_path / "none")).documents("train")


def test_an_answer_is_preferred_to_its_words_in_another_order(tmp_path: Path) -> None:
    for name in ("textwrap", "argparse", "other"):
        (tmp_path / f"{name}.py").write_text(f'def {name}(): "Answers what {name} does, in some words."\n' + "#" * 64)
    talks, pairs = (
        [json.loads(one) for one in source.documents("train")]
        for source in (StdlibTalks(str(tmp_path)), StdlibPairs(str(tmp_path)))
    )
    assert [pair["prompt"] + pair["chosen"] for pair in pairs] == [talk["messages"][:2] for talk in talks]
    for pair in pairs:
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert chosen["content"] != rejected["content"] and rejected["role"] == "assistant"
        assert sorted(chosen["content"].split()) == sorted(rejected["content"].split())
    assert list(StdlibPairs(str(tmp_path)).documents("train")) == [json.dumps(pair) for pair in pairs]
    assert StdlibPairs(str(tmp_path)).fingerprint() != StdlibTalks(str(tmp_path)).fingerprint()
