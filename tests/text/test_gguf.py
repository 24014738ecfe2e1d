import json
import re
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.text.gguf import PRE, from_gguf
from lm.text.published import Published
from lm.text.sentence import BYTE, CONTROL, NORMAL, UNK, USER_DEFINED, SentencePiece
from lm.text.tokenizer import SentencePieceSpec
from tests.text.test_published import REFERENCES, TEXTS, WORDS

MODEL = json.loads(REFERENCES["bytes"].to_str())["model"]
TOKENS = sorted(MODEL["vocab"], key=MODEL["vocab"].get)
PAIRS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*TOKENS, "<own>"],
    "tokenizer.ggml.token_type": [CONTROL, *[NORMAL] * (len(TOKENS) - 1), USER_DEFINED],
    "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in MODEL["merges"]],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ 1 }}",
}


def metadata(**changes: Any) -> dict[str, Any]:
    return PAIRS | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def test_byte_pairs_are_those_of_the_library() -> None:
    ours, theirs = from_gguf(metadata()), REFERENCES["bytes"]
    assert isinstance(ours, Published) and (ours.eos, ours.bos, ours.chat_template) == (0, None, "{{ 1 }}")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("a<own>b")[1] == len(TOKENS)  # a token of the user's is found in any text
    assert ours.encode("<end>", parse_special=True) == [0] and len(ours.encode("<end>")) > 1


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["IT", "'", "S", " 1234", "!\n\n"]),
        ("smollm", ["IT", "'", "S", " ", "1", "2", "3", "4", "!\n\n"]),
        ("llama-bpe", ["IT", "'S", " ", "123", "4", "!\n\n"]),
        ("qwen2", ["IT", "'S", " ", "1", "2", "3", "4", "!\n\n"]),
    ],
)
def test_pre_names_how_a_text_is_cut(pre: str, pieces: list[str]) -> None:
    backend = from_gguf(metadata(pre=pre))._backend
    text = "IT'S 1234!\n\n"
    cut = [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]
    # GPT-2's pattern leaves the newlines for themselves
    expected = [*pieces[:-1], "!", "\n\n"] if pre in ("gpt-2", "smollm") else pieces
    assert cut == expected


def test_without_pre_a_text_is_cut_by_llama_cpp_s_default(recwarn: pytest.WarningsRecorder) -> None:
    """Its four patterns in turn: signs, GPT-2's, numbers, three digits at a time."""

    def cut(backend: Any) -> list[str]:
        return [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]

    text = "f(x)='s 12345 <b>  it's\n\n"
    wanted = ["f", "(", "x", ")='", "s", " ", "123", "45", " ", "<", "b", ">", " ", " it", "'", "s", "\n\n"]
    assert cut(from_gguf(metadata(pre="default"))._backend) == wanted and not recwarn.list
    unsaid = {key: value for key, value in PAIRS.items() if not key.endswith(".pre")}
    with pytest.warns(UserWarning, match="does not say how a text is split .tokenizer.ggml.pre.: .* convert the model"):
        assert cut(from_gguf(unsaid)._backend) == wanted


ENDING = [*TOKENS, "<|eot_id|>", "<|end|>", "<|eom_id|>", "<|fim_pad|>", "<|begin_of_text|>"]


def test_ends_are_found_by_their_names() -> None:
    """And are control tokens, whatever type they have; in harmony's format <|end|> ends no turn."""
    first, kinds = len(TOKENS), [CONTROL, *[NORMAL] * (len(ENDING) - 1)]
    tokenizer = from_gguf(metadata(tokens=ENDING, token_type=kinds))
    assert tokenizer.stop_ids == (0, first, first + 1, first + 2, first + 3)
    assert tokenizer.encode("<|eot_id|>", parse_special=True) == [first] and first in tokenizer.controls
    assert first + 4 not in tokenizer.controls
    turns = [*ENDING, "<|return|>", "<|call|>"]
    kinds = [*kinds, NORMAL, NORMAL]
    assert first + 1 not in from_gguf(metadata(tokens=turns, token_type=kinds)).stop_ids
    assert from_gguf(metadata(tokens=turns, token_type=kinds)).stop_ids[-2:] == (first + 5, first + 6)
    assert from_gguf(metadata(eom_token_id=7, fim_sep_token_id=8)).stop_ids == (0, 7, 8)


def test_an_end_of_sentencepiece_is_a_control_token() -> None:
    keys = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "a", "<end_of_turn>"],
        "scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        "token_type": [UNK, CONTROL, USER_DEFINED, NORMAL, USER_DEFINED],
        "add_bos_token": False,
    }
    t = from_gguf({f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    assert t.stop_ids == (4,) and 4 in t.controls and 2 not in t.controls


def test_templates_have_names() -> None:
    named = from_gguf(PAIRS | {"tokenizer.chat_template.tool_use": "{{ 2 }}"})
    assert named.chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}


def test_bos_and_eos_are_added_as_the_keys_say() -> None:
    a = from_gguf(metadata()).encode("a")
    assert from_gguf(metadata(bos_token_id=0)).encode_prompt("a") == a
    assert from_gguf(metadata(bos_token_id=0, add_bos_token=True)).encode_prompt("a") == [0, *a]
    assert from_gguf(metadata(bos_token_id=0, pre="llama-bpe")).encode_prompt("a") == [0, *a]
    assert from_gguf(metadata(add_eos_token=True, eot_token_id=5)).encode_prompt("a") == [*a, 0]
    assert from_gguf(metadata(eot_token_id=5)).stop_ids == (0, 5)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_is_rebuilt_from_its_pieces(kind: str) -> None:
    model = SentencePieceSpec(600, kind).make(TEXTS)
    assert isinstance(model, SentencePiece)
    pieces = model.proto().pieces
    keys = {
        "model": "llama" if kind == "bpe" else "t5",
        "tokens": [p.piece for p in pieces],
        "scores": [p.score for p in pieces],
        "token_type": [p.type for p in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": False,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    again = from_gguf({f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    for text in [*TEXTS, "▁ <s> \0 東"]:
        assert again.encode_prompt(text) == model.encode_prompt(text)
    assert {p.type for p in pieces} == {NORMAL, UNK, CONTROL, USER_DEFINED, BYTE}
    assert again.roles == model.roles and list(again.table) == list(model.table)
    with pytest.raises(ValueError, match="scores has 1 entries for 600 tokens"):
        from_gguf({f"tokenizer.ggml.{name}": value for name, value in {**keys, "scores": [0.0]}.items()})


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from([" ", "  ", "   ", "a", "b", " a", "\n", "\n\n", "<b>", "é"]), max_size=9))
def test_user_defined_pieces_are_found_before_all_others(parts: list[str]) -> None:
    """Runs of spaces too, as in Gemma 3, which llama.cpp writes with spaces and not with U+2581; the longest one
    first."""
    text = "".join(parts)
    spaces = text.replace(" ", "▁")
    found = re.findall("▁▁▁|▁▁|\n\n|<b>|▁(?=a)a|.", spaces, re.DOTALL)
    names = [name for part in found for name in ([part] if part in RUNS else [f"<0x{b:02X}>" for b in part.encode()])]
    ids = RUNS_TOKENIZER.encode(text)
    assert [RUNS[id] for id in ids] == names and RUNS_TOKENIZER.decode(ids) == text
    assert RUNS_EXPORTED.encode(text, add_special_tokens=False).ids == ids


RUNS = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "\n"]
RUNS += ["▁▁", "▁▁▁", "\n\n", "<b>"]
RUNS_TOKENIZER = from_gguf(
    {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*RUNS[:-4], "  ", "   ", "\n\n", "<b>"],
        "tokenizer.ggml.scores": [-float(i) for i in range(len(RUNS))],
        "tokenizer.ggml.token_type": [UNK, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 5, *[USER_DEFINED] * 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
    }
)
RUNS_EXPORTED = tokenizers.Tokenizer.from_str(RUNS_TOKENIZER.hugging_face_files()["tokenizer.json"].decode())


def test_a_dummy_prefix_is_written_and_taken_away() -> None:
    keys = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "b"],
        "scores": [0.0, 0.0, 0.0, -3.0, -2.0, -1.0, -4.0],
        "token_type": [UNK, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    t = from_gguf({f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    assert t.encode_prompt("ab a") == [1, 5, 6, 5] and t.decode([1, 5, 6, 5]) == "ab a"
    assert t.encode("a</s>a", parse_special=True) == [5, 2, 5] and t.decode([0]) == " ⁇ "


def test_word_pieces_are_written_without_their_marks() -> None:
    tokens = [w if w.startswith("[") else w[2:] if w.startswith("##") else "▁" + w for w in WORDS]
    types = [CONTROL if w.startswith("[") else NORMAL for w in WORDS]
    keys = {"model": "bert", "tokens": tokens, "token_type": types, "cls_token_id": 2, "seperator_token_id": 3}
    bert = from_gguf({f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    assert bert.encode_prompt("Unaffable CAFÉS, 东!") == [2, 5, 6, 7, 8, 12, 9, 10, 11, 3]
    assert (bert.cls, bert.sep, bert.mask, bert.pad) == (2, 3, 4, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "plamo2"}, "tokenizer.ggml.model is 'plamo2': expected one of gpt2, llama, t5, bert, rwkv"),
        (
            {"model": "rwkv", "tokens": ["a", "bc"]},
            "tokenizer.ggml.model is 'rwkv': expected one ASCII character a token",
        ),
        ({"model": "rwkv", "tokens": ["b", "a"]}, "tokenizer.ggml.model is 'rwkv': .* in their order"),
        ({"pre": "new"}, "tokenizer.ggml.pre is 'new': expected one of default"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges has 'ab'"),
        ({"merges": ["zz qq"]}, "tokenizer.ggml.merges do not fit"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type has 1 entries for"),
        ({"bos_token_id": 10**6}, "the bos id 1000000 of the GGUF file is outside its vocabulary"),
        ({"eot_token_id": 10**6}, "the eot id 1000000 of the GGUF file is outside its vocabulary"),
        ({"eos_token_id": "0"}, "the eos id '0' of the GGUF file is outside its vocabulary"),
        ({"model": ["gpt2"]}, "tokenizer.ggml.model is .'gpt2'.: expected one of"),
        ({"pre": 3}, "tokenizer.ggml.pre is '3': expected one of default"),
        ({"tokens": 3}, "tokenizer.ggml.tokens is 3: expected a list, each of type str"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is .1, 2.: expected a list, each of type str"),
        ({"merges": "a b"}, "tokenizer.ggml.merges is 'a b': expected a list, each of type str"),
        ({"token_type": [99] * (len(TOKENS) + 1)}, "tokenizer.ggml.token_type has 99: expected 1 to 6"),
        ({"model": "llama", "scores": [float("nan")] * (len(TOKENS) + 1)}, "scores has one that is not finite"),
        (
            {"model": "llama", "scores": [0] * (len(TOKENS) + 1)},
            "tokenizer.ggml.scores is .*: expected a list, .* float",
        ),
        (
            {"model": "llama", "scores": [0.0] * 2, "tokens": ["a", "a"], "token_type": [2, 1], "eos_token_id": None},
            "SentencePiece cannot load the vocabulary of the GGUF file: ",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        from_gguf(metadata(**changes))
    assert "\n" not in str(caught.value)
    assert "smollm" in PRE
    with pytest.raises(ValueError, match="tokenizer.chat_template is 3: expected a template"):
        from_gguf(PAIRS | {"tokenizer.chat_template": 3})
    with pytest.raises(ValueError, match="model is None: .* the first part of a split file has it"):
        from_gguf({"split.no": 1})


MORE = ("scores", "add_bos_token", "precompiled_charsmap", "mask_token_id")
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(["gpt2", "llama", "t5", "bert"]),
    key=st.sampled_from([*PAIRS, *map("tokenizer.ggml.{}".format, MORE)]),
    value=VALUES,
)
def test_any_value_is_read_or_refused(model: str, key: str, value: Any) -> None:
    scores = [0.0] * (len(TOKENS) + 1)
    try:
        from_gguf(metadata(model=model, scores=scores) | {key: value}).encode_prompt("a b")
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
