"""Records of a model's own answers: the same bytes however often the file was begun."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.run import feedback
from lm.run.feedback import conversation, read_prompts, write_records
from lm.tune.constitution import Outcome

PROMPTS = [conversation(f"{i}") for i in range(7)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "BLOCK", 2)


def make(some: Any, first: int) -> list[Outcome]:
    """A record of each prompt, but for the third and the sixth."""
    assert [one[0]["content"] for one in some] == [f"{i}" for i in range(first, first + len(some))]
    return [Outcome(None, "odd") if (first + i) % 3 == 2 else Outcome({"é": first + i}) for i in range(len(some))]


def test_records_are_written_whole_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "new" / "records.jsonl"
    assert write_records(file, {"seed": 0}, PROMPTS, make) == {"odd": 2}
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"é": i} for i in (0, 1, 3, 4, 6)]
    assert [path.name for path in file.parent.iterdir()] == ["records.jsonl"]
    with pytest.raises(ValueError, match="is there already: choose another --output"):
        write_records(file, {"seed": 0}, PROMPTS, make)


@pytest.mark.parametrize("torn", ["", '[{"é": 4'])
def test_a_file_that_was_begun_goes_on(torn: str, tmp_path: Path) -> None:
    whole, file, made = tmp_path / "whole.jsonl", tmp_path / "records.jsonl", list[int]()
    write_records(whole, {"seed": 0}, PROMPTS, make)

    def killed(some: Any, first: int) -> list[Outcome]:
        if first == 4:
            raise KeyboardInterrupt
        return make(some, first)

    with pytest.raises(KeyboardInterrupt):
        write_records(file, {"seed": 0}, PROMPTS, killed)
    part = tmp_path / "records.jsonl.part"
    part.write_text(part.read_text() + torn)
    with pytest.raises(ValueError, match=r"was begun with seed=0, and it is 1 now: choose another --output"):
        write_records(file, {"seed": 1}, PROMPTS, make)
    with pytest.raises(ValueError, match=r"was begun with prompts="):
        write_records(file, {"seed": 0}, PROMPTS[:6], make)
    assert write_records(file, {"seed": 0}, PROMPTS, lambda some, n: made.append(n) or make(some, n)) == {"odd": 2}
    assert made == [4, 6] and file.read_bytes() == whole.read_bytes()


def test_prompts_are_texts_or_messages(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file.write_text(f'{{"prompt": "a", "answer": 1}}\n\n{json.dumps({"prompt": messages})}\n')
    assert read_prompts(file) == [[{"role": "user", "content": "a"}], messages]
    file.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 2: .*expected an object with a prompt"):
        read_prompts(file)
    with pytest.raises(ValueError, match="there are no prompts"):
        write_records(tmp_path / "r.jsonl", {}, [], make)
