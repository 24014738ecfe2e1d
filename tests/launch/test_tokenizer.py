"""`lm tokenizer` trains on files of several kinds and shows what came out."""

import inspect
import json
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.tokenizer import fertility, split
from lm.text.tokenizer import ByteTokenizer, load_tokenizer

TEXT = "".join(inspect.getsource(m) for m in (inspect, json))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT)
    (folder / "inner" / "b.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3)))
    return folder


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_train_then_inspect(corpus: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        main(
            [
                "tokenizer",
                "train",
                "--text",
                str(corpus),
                "--vocab-size",
                "400",
                "--model-type",
                model,
                "--output",
                str(out),
            ]
        )
        == 0
    )
    assert load_tokenizer(out).decode(load_tokenizer(out).encode(TEXT)) == TEXT
    assert main(["tokenizer", "inspect", str(out), "the number [bold]"]) == 0
    shown = capsys.readouterr().out
    assert "400 pieces" in shown and "tokens a word" in shown and "·|[|b|o|l|d|]" in shown


def test_what_cannot_be_trained_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    for path, said in ((tmp_path / "bad.txt", "not UTF-8"), (tmp_path / "none", "no such file")):
        assert main(["tokenizer", "train", "--text", str(path), "--output", str(tmp_path / "o")]) == 1
        assert said in capsys.readouterr().err


def test_fertility_counts_words_and_bytes() -> None:
    assert (
        fertility(ByteTokenizer(), "ab cd é")
        == "2.667 tokens a word, 1.000 tokens a byte (1.00 bytes a token; 8 tokens)"
    )
    assert fertility(ByteTokenizer(), "") == "no text"


def test_the_split_shows_every_piece() -> None:
    assert split(ByteTokenizer(), "a b").plain == "a|·|b"
