"""Mistral's tekken.json, and rank files that share their ranks: control ids, texts, what is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Tokenizer as Backend

from lm.text.ranks import ENCODINGS, HARMONY, LLAMA3_PATTERN, NAMED, O200K_PATTERN, TiktokenTokenizer
from lm.text.tekken import UNLISTED
from lm.text.tokenizer import load_tokenizer, read
from tests.text.test_published import RANKED, rank_file

TEXTS = ("", "abc ab  123é", "</s>[INST] ab", " \n\n a\u3000é", "👩\u200d👧 ÀB I'll", "\x00\ufeff")
CONTROLS = 24


def tekken(folder: Path, listed: Any = None, **config: Any) -> Path:
    """A tekken.json of RANKED, and of two pieces more than its vocabulary has."""
    pieces = [*RANKED, b"zz", b"zzz"]
    vocab = [dict(rank=i, token_bytes=line.split()[0], token_str=None) for i, line in enumerate(_lines(pieces))]
    known = dict(pattern=LLAMA3_PATTERN, num_vocab_tokens=len(pieces), version="v3")
    known |= dict(default_vocab_size=CONTROLS + len(RANKED), default_num_special_tokens=CONTROLS)
    content = {"config": {**known, **config}, "vocab": vocab, **({} if listed is None else {"special_tokens": listed})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def _lines(pieces: list[bytes]) -> list[str]:
    return rank_file(pieces).decode().splitlines()


def test_pieces_follow_the_control_ids(tmp_path: Path) -> None:
    """The ids are tiktoken's of the pieces alone, after the control ids; names of those are text."""
    found = read(tekken(tmp_path))
    alone = tiktoken.Encoding("t", pat_str=LLAMA3_PATTERN, mergeable_ranks=dict(_ranks()), special_tokens={})
    assert found.vocab_size == CONTROLS + len(RANKED)
    for text in TEXTS:
        ids = [CONTROLS + id for id in alone.encode_ordinary(text)]
        assert found.encode_prompt(text) == [1, *ids] and found.decode([1, *ids, 2]) == text
    assert found.encode("</s>[INST]ab", parse_special=True) == [2, 3, CONTROLS + 256]
    assert [found.controls[i] for i in range(CONTROLS)] == [*UNLISTED, *(f"<SPECIAL_{i}>" for i in range(20, CONTROLS))]
    assert (found.unk, found.bos, found.eos, found.pad) == (0, 1, 2, 11)


def _ranks() -> list[tuple[bytes, int]]:
    return [(piece, i) for i, piece in enumerate(RANKED)]


def test_saved_and_exported_it_is_the_same(tmp_path: Path) -> None:
    found = read(tekken(tmp_path / "a"))
    found.save(tmp_path / "b")
    exported = Backend.from_str(found.hugging_face_files()["tokenizer.json"].decode())
    exported.encode_special_tokens = True
    for text in TEXTS:
        assert (
            load_tokenizer(tmp_path / "b").encode_prompt(text) == found.encode_prompt(text) == exported.encode(text).ids
        )


def test_listed_control_ids_have_their_names_and_the_others_are_fillers(tmp_path: Path) -> None:
    listed = [
        dict(rank=i, token_str=name, is_control=True) for i, name in enumerate(("<unk>", "<s>", "</s>", "[THINK]"))
    ]
    found = read(tekken(tmp_path, listed))
    assert found.controls[3] == "[THINK]" and found.controls[4] == "<SPECIAL_4>" and found.pad is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert read(tmp_path).chat_template == "{{ 1 }}"


@pytest.mark.parametrize(
    ("config", "listed", "said"),
    [
        (dict(pattern=3), None, "expected an object with a config that has a pattern"),
        (dict(default_vocab_size="a"), None, "config.default_vocab_size is 'a', expected a number"),
        (dict(default_vocab_size=400), None, "expected a vocab of 376 pieces or more"),
        (dict(default_num_special_tokens=9), None, "20 control ids, up to 19, of 9"),
        ({}, [3], "special_tokens is no list of objects with rank and token_str"),
        (dict(pattern="(?<"), None, r"pattern '\(\?<' is no regular expression"),
    ],
)
def test_what_is_damaged_is_said(config: Any, listed: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"tekken.json.*{said}"):
        read(tekken(tmp_path, listed, **config))


# ---------------------------------------------------------------- rank files


def many(count: int) -> bytes:
    """A rank file of `count` pieces."""
    return rank_file([bytes([b]) for b in range(256)] + [b"%07d" % i for i in range(count - 256)])


def test_o200k_is_harmony_s_by_its_name_or_the_model_beside_it(tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(many(199998))
    base = read(tmp_path)
    assert isinstance(base, TiktokenTokenizer) and base.spec == ENCODINGS[199998] and base.vocab_size == 200019
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    found = read(tmp_path)
    assert isinstance(found, TiktokenTokenizer) and found.spec == NAMED[HARMONY] and found.vocab_size == 201088
    assert found.encode("<|start|>a<|message|>", parse_special=True) == [200006, ord("a"), 200008]
    assert (found.bos, found.eos, found.pad) == (199998, 200002, 199999) and found.encode_prompt("a") == [97]
    (tmp_path / "config.json").unlink()
    (tmp_path / "o200k_base.tiktoken").rename(tmp_path / "o200k_harmony.tiktoken")
    again = read(tmp_path)
    assert isinstance(again, TiktokenTokenizer) and again.spec == NAMED[HARMONY]
    (tmp_path / "other.tiktoken").write_bytes(b"")
    with pytest.raises(ValueError, match="has o200k_harmony.tiktoken and other.tiktoken: leave the one"):
        read(tmp_path)


def test_llama_4_s_ranks_are_known_by_their_number(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(many(200000))
    found = read(tmp_path)
    assert isinstance(found, TiktokenTokenizer) and found.spec.pattern == O200K_PATTERN and found.vocab_size == 202048
    names = {200005: "<|header_start|>", 200008: "<|eot|>", 200018: "<|finetune_right_pad|>", 200080: "<|image_start|>"}
    names |= {200079: "<|text_post_train_reserved_special_token_68|>", 200092: "<|patch|>"}
    names |= {201133: "<|vision_reserved_special_token_1047|>", 201143: "<|reasoning_thinking_end|>"}
    assert {id: found.controls[id] for id in names} == names and len(set(found.controls.values())) == 2048
    assert found.encode_prompt("a") == [200000, 97] and (found.eos, found.pad) == (200001, 200018)
