"""Tokens in the files beside a vocabulary: added_tokens.json, special tokens without an id, another format alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.text.token_fields import KINDS, MAX_ID
from lm.text.tokenizer import read
from tests.text.test_published import RANKED, TRAINED, WORDS, byte_pairs, rank_file, with_fallback

IM = {"<|im_start|>": 0, "<|im_end|>": 1}  # beyond the vocabulary
CHAT = "<|im_start|>user ab<|im_end|>"


def vocabulary(folder: Path, kind: str) -> int:
    """Write the files of a tokenizer into `folder`; returns the size of its vocabulary."""
    if kind == "pieces":
        (folder / "tokenizer.model").write_bytes(TRAINED["bpe"].files()["sentencepiece.model"])
        return 600
    backend = json.loads(byte_pairs().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in backend["merges"]))
    return len(backend["vocab"])


@pytest.mark.parametrize("kind", ["pieces", "pairs"])
@pytest.mark.parametrize(
    ("files", "ids", "roles"),
    [
        ({"added_tokens.json": IM}, IM, {}),
        (
            {"tokenizer_config.json": {"pad_token": "<pad>", "additional_special_tokens": [*IM]}},
            {"<pad>": 0, "<|im_start|>": 1, "<|im_end|>": 2},
            {"pad": 0},
        ),
        (
            {
                "added_tokens.json": IM,
                "special_tokens_map.json": {"pad_token": "<|im_end|>"},
                "tokenizer_config.json": {"eos_token": "<|im_end|>", "extra_special_tokens": {"new": "<new>"}},
            },
            {**IM, "<new>": 2},
            {"eos": 1, "pad": 1},
        ),
    ],
)
def test_tokens_beside_a_vocabulary_have_the_ids_of_transformers(
    kind: str, files: dict, ids: dict, roles: dict, tmp_path: Path
) -> None:
    """As its 5.24 gives them: the files', then special tokens by their roles, then the others."""
    size = vocabulary(tmp_path, kind)
    for name, content in files.items():
        given = {token: size + id for token, id in content.items()} if name == "added_tokens.json" else content
        (tmp_path / name).write_text(json.dumps(given))
    t = read(tmp_path)
    assert t.vocab_size == size + len(ids)
    for token, id in ids.items():
        assert t.encode(f"a{token}", parse_special=True)[-1] == size + id
    assert {role: getattr(t, role) for role in roles} == {role: size + id for role, id in roles.items()}
    t.save(tmp_path / "saved")
    (tmp_path / "exported").mkdir()
    for name, data in t.hugging_face_files().items():
        (tmp_path / "exported" / name).write_bytes(data)
    for again in (read(tmp_path / "saved"), read(tmp_path / "exported")):
        assert again.encode(CHAT, parse_special=True) == t.encode(CHAT, parse_special=True)
        assert (again.vocab_size, again.eos, again.pad) == (t.vocab_size, t.eos, t.pad)


def test_a_piece_that_is_named_special_is_a_control_id_and_a_gap_stays_one(tmp_path: Path) -> None:
    vocabulary(tmp_path, "pieces")
    piece = TRAINED["bpe"].name(400)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": [piece]}))
    (tmp_path / "added_tokens.json").write_text('{"<far>": 605}')
    t = read(tmp_path)
    assert t.controls[400] == piece and t.vocab_size == 606 and t.encode("<far>", parse_special=True) == [605]
    exported = tokenizers.Tokenizer.from_str(t.hugging_face_files()["tokenizer.json"].decode())
    assert exported.token_to_id("<far>") == 605 and exported.get_vocab_size() == 606


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"<a>": "x"}', "added_tokens.json is damaged: '<a>' has 'x', expected an id of at most 1000000"),
        ('{"<a>": 9000}', "added_tokens.json gives '<a>' the id 9000, the vocabulary 500"),
    ],
)
def test_ids_that_cannot_be_are_refused(content: str, says: str, tmp_path: Path) -> None:
    vocabulary(tmp_path, "pairs")
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**40)
    | st.floats()
    | st.sampled_from(["", "a", "<a>", "5", "content"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["content", "special", "name", "template", "5", "-1", "x"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")


@pytest.fixture(scope="module", params=["pieces", "pairs", "json", "words"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "json":
        with_fallback().save(str(made / "tokenizer.json"))
    elif request.param == "words":
        (made / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    else:
        vocabulary(made, request.param)
    return made


@settings(max_examples=80, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from([*KINDS]), ODD, max_size=3),
    added=ODD,
    stops=ODD,
    file=st.sampled_from(FILES[:2]),
)
def test_odd_fields_are_read_or_refused_in_one_line(
    folder: Path, fields: dict, added: Any, stops: Any, file: str
) -> None:
    contents = {file: fields, "added_tokens.json": added or {}, "generation_config.json": {"eos_token_id": stops}}
    for name in FILES:
        (folder / name).write_text(json.dumps(contents.get(name, {})))
    try:
        tokenizer = read(folder)
        if tokenizer.vocab_size < 10_000:
            tokenizer.hugging_face_files()
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert tokenizer.encode("a") and tokenizer.vocab_size <= 2 * MAX_ID


@pytest.mark.parametrize("name", KINDS)
def test_a_field_of_another_kind_is_named(name: str, tmp_path: Path) -> None:
    vocabulary(tmp_path, "pairs")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: 1.5}))
    with pytest.raises(ValueError, match=f"tokenizer_config.json is damaged: {name} is '1.5', expected"):
        read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: None}))
    assert read(tmp_path).encode("ab")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "characters.json",
            "[1]",
            r"characters.json is damaged: it holds '\[1\]', expected one text of all characters",
        ),
        ("characters.json", '""', "characters.json is damaged: it holds ''"),
        ("sentencepiece.model", "", "sentencepiece.model is damaged: the SentencePiece model is empty"),
        ("vocab.json", "[1]", "vocab.json is damaged: expected an object of pieces and their ids"),
        ("vocab.json", '{"a": "b"}', "vocab.json is damaged: 'a' has 'b', expected an id of at most"),
        ("ranks.json", "3", "ranks.json is damaged: 'int' object is not subscriptable"),
        ("ranks.json", '{"controls": {}}', "ranks.json is damaged: 'roles'"),
    ],
)
def test_what_a_damaged_file_lacks_is_said(name: str, content: str, says: str, tmp_path: Path) -> None:
    if name == "vocab.json":
        vocabulary(tmp_path, "pairs")
    if name == "ranks.json":
        (tmp_path / "ranks.tiktoken").write_bytes(rank_file(RANKED))
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel", "WordPiece"])
@pytest.mark.parametrize("piece", [2, 5])
@pytest.mark.parametrize("ids", [(3, 4), (4, 3), (6, 8), (3, 7), (8, 7)])
def test_the_ids_of_a_tokenizer_json_are_those_that_it_says(
    kind: str, piece: int, ids: tuple[int, int], tmp_path: Path
) -> None:
    if kind == "Unigram" and piece == 5:
        return  # a list has no gaps
    table = {"a": 0, "b": 1, "ab": piece}
    models: dict[str, Any] = dict(
        BPE=tokenizers.models.BPE(vocab=table, merges=[("a", "b")]),
        Unigram=tokenizers.models.Unigram([("a", -2.0), ("b", -2.0), ("ab", -1.0)], 0),
        WordLevel=tokenizers.models.WordLevel(table, "a"),
        WordPiece=tokenizers.models.WordPiece(table, unk_token="a"),
    )
    content = json.loads(tokenizers.Tokenizer(models[kind]).to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": id, "content": name, "special": True, **flags} for name, id in zip(("<x>", "<y>"), ids, strict=True)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = read(tmp_path / "tokenizer.json")
    assert tokenizer.encode("<y>ab<x>", parse_special=True) == [ids[1], piece, ids[0]]
    assert tokenizer.vocab_size == max(*ids, piece) + 1 and tokenizer.decode([piece]) == "ab"
    assert {tokenizer.controls[id] for id in ids} == {"<x>", "<y>"}
    tokenizer.save(tmp_path / "again")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert theirs.encode("<y>ab<x>").ids == [ids[1], piece, ids[0]]


@pytest.mark.parametrize(
    ("ids", "wanted"), [((9, 9), None), ((MAX_ID, 3), r"tokenizer\.json: its largest id is .* unused ids")]
)
def test_ids_that_no_vocabulary_has(ids: tuple[int, int], wanted: str | None, tmp_path: Path) -> None:
    content = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": id, "content": name, "special": True, **flags} for name, id in zip(("<x>", "<y>"), ids, strict=True)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if wanted is None:  # said twice: those of the library
        assert read(tmp_path / "tokenizer.json").controls == {1: "<x>", 2: "<y>"}
        return
    with pytest.raises(ValueError, match=wanted):
        read(tmp_path / "tokenizer.json")
