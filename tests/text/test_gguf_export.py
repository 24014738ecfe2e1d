"""Tokenizers as the metadata of GGUF files: read back they give the same ids, or what cannot be said is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lm.text.gguf import from_gguf
from lm.text.gguf_export import to_gguf
from lm.text.headers import gguf_header, read_gguf_header
from lm.text.protocol import Tokenizer
from lm.text.published import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, Published
from lm.text.ranks import CL100K_PATTERN, EncodingSpec, TiktokenTokenizer
from lm.text.sentence import SentencePiece, SentencePieceOptions, build_model
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec
from lm.text.vocabulary import BYTE, CONTROL, NORMAL, UNK, UNUSED, USER_DEFINED
from tests.text.test_published import REFERENCES, TEXTS, any_text

ASCII = "".join(map(chr, range(128)))
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab", "é"]
MERGES = [("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁a", "b")]


def ranked(pattern: str, end: int = 262) -> TiktokenTokenizer:
    """A few ranks, an id that nothing has, and an end."""
    import base64

    pieces = [*(bytes([b]) for b in range(256)), b"he", b"ll", b" a", b"hell", b"\xe6\x9d"]
    lines = [base64.b64encode(piece) + f" {rank}\n".encode() for rank, piece in enumerate(pieces)]
    roles = {"bos": end, "eos": end}
    return TiktokenTokenizer(b"".join(lines), EncodingSpec(pattern, {end: "<end>"}, roles, add_bos=True))


def pieces(merges: list[tuple[str, str]] = MERGES, **changes: Any) -> Published:
    """Llama 2's kind of tokenizer.json."""
    vocab = {piece: id for id, piece in enumerate(PIECES)}
    backend = Backend(models.BPE(vocab, merges, **{"byte_fallback": True, "unk_token": "<unk>", **changes}))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder, backend.post_processor = REFERENCES["fallback"].decoder, REFERENCES["fallback"].post_processor
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Published(backend, {"unk": 0, "bos": 1, "eos": 2})


def runs() -> Published:
    """Gemma 3's kind: runs of spaces and of newlines are user-defined, and have merges, the longest first, of which
    those of one token are not beside one another."""
    tokens = [*PIECES, "\n", "▁▁", "▁▁▁", "\n\n", "\n\n\n", "<td>"]
    merges = [("\n\n", "\n"), ("▁▁", "▁"), ("\n", "\n\n"), ("▁", "▁▁"), ("\n", "\n"), ("▁", "▁"), *MERGES]
    vocab = {token: id for id, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder, backend.post_processor = decoders.Sequence(steps), REFERENCES["fallback"].post_processor
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken(token, normalized=False) for token in tokens[len(PIECES) :]])
    return Published(backend, {"unk": 0, "bos": 1, "eos": 2})


def prefixed(legacy: bool = True) -> SentencePiece:
    """Llama 2's kind of SentencePiece model."""
    types = [UNK, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 7]
    model = build_model(PIECES, [-float(i) for i in range(len(PIECES))], types, ids={"unk": 0, "bos": 1, "eos": 2})
    return SentencePiece(model, SentencePieceOptions(legacy=legacy))


def byte_pairs(change: Any = None) -> Published:
    backend = Backend.from_str(REFERENCES["bytes"].to_str())
    if change:
        change(backend)
    return Published(backend, {"eos": 0})


KINDS: Mapping[str, Tokenizer] = {
    "bytes": Bytes().make([]),
    "characters": Characters().make([ASCII]),
    "SentencePiece BPE": SentencePieceSpec(400).make(TEXTS),
    "SentencePiece unigrams": SentencePieceSpec(150, "unigram", byte_fallback=False).make(TEXTS),
    "a space before a text": prefixed(),
    "ranks": ranked(GPT2_PATTERN),
    "ranks of Llama 3": ranked(LLAMA3_PATTERN),
    "ranks of Qwen": ranked(QWEN2_PATTERN),
    "tokenizer.json": byte_pairs(),
    "tokenizer.json of pieces": pieces(),
    "tokenizer.json with runs": runs(),
}


def through_a_file(metadata: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`metadata` as it is read."""
    (folder / "x.gguf").write_bytes(gguf_header(metadata, {}))
    return read_gguf_header(folder / "x.gguf").metadata


@pytest.fixture(scope="session")
def again(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """KINDS, written and read."""
    folder = tmp_path_factory.mktemp("gguf")
    return {name: from_gguf(through_a_file(to_gguf(t, t.vocab_size), folder)) for name, t in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=any_text)
def test_read_back_it_gives_the_same_ids(kind: str, again: dict[str, Tokenizer], text: str) -> None:
    if kind == "characters":
        text = "".join(c for c in text if c.isascii())
    if kind == "tokenizer.json with runs":
        text = text.replace("▁", " ")  # in a row, its own character would be a run there, and single ones here
    ours, theirs = KINDS[kind], again[kind]
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.encode_prompt(text) == ours.encode_prompt(text)
    assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_read_back_it_has_the_same_controls(kind: str, again: dict[str, Tokenizer]) -> None:
    ours, theirs = KINDS[kind], again[kind]
    found = {id: name for id, name in theirs.controls.items() if id != ours.unk}
    assert found == {id: name for id, name in ours.controls.items() if id != ours.unk}
    assert (theirs.bos, theirs.eos, theirs.stop_ids) == (ours.bos, ours.eos, ours.stop_ids)
    assert theirs.vocab_size == ours.vocab_size
    named = [id for id in range(ours.vocab_size) if ours.bytes_of(id)]
    assert [theirs.bytes_of(id) for id in named] == [ours.bytes_of(id) for id in named] and len(named) > 100


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("bytes", {"model": "gpt2", "pre": "gpt-2", "merges": [], "eos_token_id": 257, "add_bos_token": True}),
        ("characters", {"model": "rwkv", "add_bos_token": False, "add_eos_token": False}),
        ("SentencePiece BPE", {"model": "llama", "add_space_prefix": False, "bos_token_id": 1, "unknown_token_id": 0}),
        ("SentencePiece unigrams", {"model": "t5", "remove_extra_whitespaces": False}),
        ("a space before a text", {"model": "llama", "add_space_prefix": True, "add_bos_token": True}),
        ("ranks of Llama 3", {"pre": "llama-bpe", "merges": ["h e", "l l", "Ġ a", "he ll", "æ Ŀ"]}),
        ("ranks of Qwen", {"pre": "qwen2"}),
        ("tokenizer.json of pieces", {"model": "llama", "add_space_prefix": True}),
    ],
)
def test_what_llama_cpp_is_told(kind: str, keys: dict[str, Any]) -> None:
    found = to_gguf(KINDS[kind], KINDS[kind].vocab_size)
    assert {key: found.get(f"tokenizer.ggml.{key}") for key in keys} == keys
    assert found["tokenizer.ggml.token_type"].dtype == np.int32
    assert len(found["tokenizer.ggml.tokens"]) == KINDS[kind].vocab_size


def test_indentations_stand_as_in_a_text() -> None:
    """llama.cpp looks for user-defined tokens before it turns spaces into U+2581."""
    model = SentencePieceSpec(400).make(TEXTS)
    keys = to_gguf(model, 400)
    types = keys["tokenizer.ggml.token_type"]
    own = [token for token, kind in zip(keys["tokenizer.ggml.tokens"], types, strict=True) if kind == USER_DEFINED]
    assert any(token.startswith("\n   ") for token in own) and not any("▁" in token for token in own)


def test_rows_beyond_the_ids_get_unused_tokens() -> None:
    tokenizer = Bytes().make([])
    keys = to_gguf(tokenizer, 264)
    assert keys["tokenizer.ggml.tokens"][257:] == ["<eos>", *(f"[PAD{i}]" for i in range(258, 264))]
    assert list(keys["tokenizer.ggml.token_type"][257:]) == [CONTROL] + [UNUSED] * 6
    read = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in keys.items()}
    assert from_gguf(read).vocab_size == 258
    read["tokenizer.ggml.eot_token_id"] = 260  # which is used
    assert from_gguf(read).vocab_size == 261


def test_ends_and_templates() -> None:
    tokenizer = Bytes().make([])
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    keys = to_gguf(tokenizer, 258, stop_ids=(257, 7, 9))
    assert (keys["tokenizer.ggml.eot_token_id"], keys["tokenizer.ggml.eom_token_id"]) == (7, 9)
    assert keys["tokenizer.chat_template"] == "{{ 1 }}" and keys["tokenizer.chat_template.tool_use"] == "{{ 2 }}"
    again = from_gguf({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in keys.items()})
    assert again.stop_ids == (257, 7, 9) and again.chat_template == tokenizer.chat_template
    with pytest.raises(ValueError, match="takes 2 ends beside eos .* and this model has 3: ĉ, Ċ, ċ|has 3: "):
        to_gguf(tokenizer, 258, stop_ids=(257, 7, 9, 11))


def test_a_sequence_of_patterns_has_a_name() -> None:
    def digits(backend: Backend) -> None:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)

    assert to_gguf(byte_pairs(digits), 500)["tokenizer.ggml.pre"] == "smollm"


@pytest.mark.parametrize(("ignore", "name"), [(True, "llama-bpe"), (False, "dbrx")])
def test_whether_words_that_are_tokens_are_merged_is_in_the_name(ignore: bool, name: str) -> None:
    def split(pattern: str) -> Published:
        def change(backend: Backend) -> None:
            last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            cut = pre_tokenizers.Split(Regex(pattern), "isolated")
            backend.pre_tokenizer, backend.model.ignore_merges = pre_tokenizers.Sequence([cut, last]), ignore

        return byte_pairs(change)

    assert to_gguf(split(LLAMA3_PATTERN), 500)["tokenizer.ggml.pre"] == name
    if ignore:
        with pytest.raises(ValueError, match="no name for how this tokenizer splits a text"):
            to_gguf(split(QWEN2_PATTERN), 500)


def test_what_normalises_a_text_is_told() -> None:
    def nfc(backend: Backend) -> None:
        backend.normalizer = normalizers.NFC()

    with pytest.warns(UserWarning, match="llama.cpp does not normalise a text, as this tokenizer does"):
        to_gguf(byte_pairs(nfc), 500)
    with pytest.warns(UserWarning, match="llama.cpp puts a space before a text after a control id too"):
        to_gguf(prefixed(legacy=False), len(PIECES))


def lower(backend: Backend) -> None:
    backend.normalizer = normalizers.Lowercase()


def new_pattern(backend: Backend) -> None:
    steps = [pre_tokenizers.Split(Regex("[ab]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def with_prefix(backend: Backend) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (lambda: Characters().make(["aé"]), "no vocabulary of single characters with any beyond ASCII, as 'é'"),
        (lambda: SentencePieceSpec(400, "unigram").make(TEXTS), "its unigrams without: train with SentencePieceSpec"),
        (lambda: SentencePieceSpec(150, byte_fallback=False).make(TEXTS), "SentencePiece's BPE with bytes"),
        (lambda: ranked(CL100K_PATTERN), "no name for how this tokenizer splits a text"),
        (lambda: byte_pairs(lower), "no vocabulary with the normalizer .'type': 'Lowercase'"),
        (lambda: byte_pairs(new_pattern), "no name for how this tokenizer splits a text .\\[ab\\] and 's"),
        (lambda: byte_pairs(with_prefix), "no vocabulary with the pre-tokenizer .'type': 'ByteLevel'"),
        (lambda: pieces([*MERGES[:2], MERGES[3]]), "would merge '▁' and 'ab', which this tokenizer does not"),
        (lambda: pieces([*MERGES[1:], MERGES[0], ("▁", "ab")][:4] + [MERGES[2]]), "'▁ab' has merges of two ranks"),
        (lambda: pieces(byte_fallback=False), "no BPE over characters without bytes"),
        (lambda: Published(REFERENCES["bytes"], {}), "the tokenizer has no end of text, and llama.cpp would take"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(tokenizer: Any, says: str) -> None:
    made = tokenizer()
    with pytest.raises(ValueError, match=says) as caught:
        to_gguf(made, made.vocab_size)
    assert "\n" not in str(caught.value)
