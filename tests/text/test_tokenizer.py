import inspect
import os
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.text import train
from lm.text.tokenizer import (
    Bytes,
    Characters,
    CharacterTokenizer,
    SentencePieceSpec,
    Tokenizer,
    TokenizerFile,
    load_tokenizer,
)
from lm.value import build, parse, plain

TEXTS = [inspect.getsource(textwrap), inspect.getsource(inspect), "Bücher über Größe, naïve cafés, 东京 😀\n" * 20]
BPE, UNIGRAM, BYTES = (
    spec.make(TEXTS) for spec in (SentencePieceSpec(600), SentencePieceSpec(600, "unigram"), Bytes())
)
ALL = pytest.mark.parametrize("tokenizer", [BPE, UNIGRAM, BYTES], ids=["bpe", "unigram", "bytes"])

# any text, and the pieces of text that tokenizers have trouble with
awkward = st.sampled_from(
    [
        "▁",
        " ",
        "   ",
        "\n",
        "\t",
        "\r\n",
        "\0",
        "\n    return",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "\ufeff",
        "▅",
        "é",
        "é",
    ]
)
any_text = st.lists(awkward | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=12).map("".join)


@ALL
@settings(max_examples=150, deadline=None)
@given(text=any_text)
def test_decoding_gives_back_every_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)


@ALL
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(any_text, max_size=4))
def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@ALL
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_streaming_gives_the_text_of_decode_in_whole_characters(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = tokenizer.incremental_decoder()
    parts = [stream.push(i) for i in ids] + [stream.close()]
    assert "".join(parts) == tokenizer.decode(ids)
    text = "é東😀"
    stream = tokenizer.incremental_decoder()
    assert "".join(part for i in tokenizer.encode(text) if "\ufffd" not in (part := stream.push(i))) == text


@ALL
def test_saved_is_loaded_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.vocab_size, again.bos, again.eos) == (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos)
    assert again.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


@ALL
def test_bos_and_eos_are_not_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos is not None and tokenizer.eos is not None
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode("a b"), tokenizer.eos]) == "a b"
    assert (tokenizer.piece(tokenizer.bos), tokenizer.piece(tokenizer.eos)) == ("<bos>", "<eos>")


@ALL
@pytest.mark.parametrize("bad", [-1, 100_000])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(ValueError, match=f"token id {bad} is outside the vocabulary: expected 0 to"):
        tokenizer.decode([bad])


def test_text_without_utf8_is_refused() -> None:
    for tokenizer in (BPE, BYTES, CharacterTokenizer("ab")):
        with pytest.raises(ValueError, match="lone surrogate .* at position 1"):
            tokenizer.encode("a\ud800")


def test_training_is_deterministic_and_follows_its_text() -> None:
    assert SentencePieceSpec(600).make(iter(TEXTS)).fingerprint == BPE.fingerprint
    assert SentencePieceSpec(600).make(TEXTS[1:]).fingerprint != BPE.fingerprint


def test_training_reads_no_further_than_its_cap() -> None:
    def texts():
        yield from TEXTS
        raise AssertionError("read on")

    cap = sum(len(t.encode()) for t in TEXTS)
    assert SentencePieceSpec(600, train_bytes=cap).make(texts()).fingerprint == BPE.fingerprint


def test_indentation_is_one_piece_and_the_word_after_it_is_the_usual_one() -> None:
    pieces = [BPE.piece(i) for i in BPE.encode("\n        return x return")]
    assert pieces[0] == "\n       "
    assert pieces[1] == pieces[-1] == " return"
    without = SentencePieceSpec(600, indentations=0).make(TEXTS)
    assert not any("\n " in without.piece(i) for i in range(600))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_text_with_a_character_that_the_trainer_reserves_is_trained_on_as_any_other(model_type: str) -> None:
    """U+2585, of progress bars: the pieces are those of text with U+2586 in its place."""
    text = "".join(f"{i % 7} epochs of training\nprogress {'▅' * (i % 5)} done\n" for i in range(400))
    spec = SentencePieceSpec(400, model_type)
    found, wanted = spec.make([text, TEXTS[0]]), spec.make([text.replace("▅", "▆"), TEXTS[0]])
    pieces = [found.piece(i) for i in range(400)]
    assert any("▅" in piece for piece in pieces)
    if model_type == "bpe":  # the other breaks ties by code point
        assert pieces == [wanted.piece(i).replace("▆", "▅") for i in range(400)]
        assert found.encode(text) == wanted.encode(text.replace("▅", "▆"))
    assert found.decode(ids := found.encode(text)) == text and len(ids) < len(text) / 2
    private = "".join(map(chr, range(0xE000, 0xE010))) + text
    assert spec.make([private, TEXTS[0]]).decode(spec.make([private, TEXTS[0]]).encode(private)) == private


def test_text_with_the_reserved_character_in_every_block_is_enough() -> None:
    assert SentencePieceSpec(300).make(["loss ▅ of every one of these quick brown foxes\n" * 400]).vocab_size == 300


def test_what_the_trainer_warns_of_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="SentencePiece: too many"), train._warnings():
        os.write(2, b"W0000 00:00:1795765310.801639   24336 bpe_model_trainer.cc:405] too many\nanother thread\n")
        os.write(2, b"I0000 00:00:1795765310.801639   24336 trainer.cc:405] Done\n")
    said = capfd.readouterr().err
    assert "another thread" in said and "too many" not in said
    with pytest.raises(ValueError, match="cannot train 300 pieces on 4,800 characters: at most 2"):
        SentencePieceSpec(300).make(["loss ▅ down\n" * 400])
    assert capfd.readouterr().err == ""


def test_too_little_text_is_an_error_with_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"on 7 characters: at most 275, take more text or data.tokenizer.vocab_size=275$"
    ):
        SentencePieceSpec(4096).make(["abc def"])
    for spec in (SentencePieceSpec(), Characters()):
        with pytest.raises(ValueError, match="every training document is empty"):
            spec.make(["", ""])


@pytest.mark.parametrize(
    "change", [{"model_type": "wordpiece"}, {"vocab_size": 100}, {"train_bytes": 0}, {"indentations": -1}]
)
def test_impossible_specs_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        SentencePieceSpec(**change)


def test_characters_are_numbered_by_code_point_and_have_no_specials(tmp_path) -> None:
    tokenizer = Characters().make(["hello ", "wörld\n"])
    assert [tokenizer.piece(i) for i in range(tokenizer.vocab_size)] == sorted(set("hello wörld\n"))
    assert tokenizer.bos is None and tokenizer.eos is None
    assert tokenizer.decode(tokenizer.encode("drow ölleh")) == "drow ölleh"
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("wörld") == tokenizer.encode("wörld")
    with pytest.raises(ValueError, match="character 'x' at position 3 is not one of the 10 characters"):
        tokenizer.encode("helx")


def test_a_file_is_a_tokenizer_and_what_is_none_is_refused(tmp_path) -> None:
    BPE.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "sentencepiece.model"):
        assert TokenizerFile(str(path)).make([]).fingerprint == BPE.fingerprint
    (tmp_path / "other.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="other.model is not a SentencePiece model"):
        TokenizerFile(str(tmp_path / "other.model")).make([])
    with pytest.raises(ValueError, match="no tokenizer at .*missing"):
        TokenizerFile(str(tmp_path / "missing")).make([])
    (tmp_path / "saved" / "sentencepiece.model").write_bytes(b"half")
    with pytest.raises(ValueError, match="sentencepiece.model is damaged"):
        load_tokenizer(tmp_path / "saved")


def test_specs_are_plain_values() -> None:
    from lm.text.tokenizer import TokenizerSpec

    for spec in (SentencePieceSpec(512), Characters(), Bytes(), TokenizerFile("a.model")):
        assert build(TokenizerSpec, plain(spec)) == spec
    assert parse(SentencePieceSpec(), "vocab_size=512") == SentencePieceSpec(512)


def test_a_model_that_adds_a_space_decodes_without_it(tmp_path) -> None:
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].splitlines()),
        model_writer=out,
        vocab_size=500,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "theirs.model").write_bytes(out.getvalue())
    theirs = TokenizerFile(str(tmp_path / "theirs.model")).make([])
    ids = theirs.encode("wrap the text")
    stream = theirs.incremental_decoder()
    assert theirs.decode([1, *ids]) == "".join(map(stream.push, [1, *ids])) + stream.close() == "wrap the text"


def test_a_character_that_no_piece_has_is_one_unknown_token_of_its_own_place() -> None:
    """Without bytes for rare characters there are no bytes of the text to count by."""
    texts = ["the tea was warm and the tea was cold"] * 9
    tokenizer = SentencePieceSpec(vocab_size=24, model_type="bpe", byte_fallback=False, indentations=0).make(texts)
    text = "the tea Was cold"
    offsets = tokenizer.encode_with_offsets(text)
    assert [id for id, _, _ in offsets] == tokenizer.encode(text)
    assert "".join(text[a:b] for _, a, b in offsets) == text
    assert [text[a:b] for id, a, b in offsets if id == 0] == ["W"]
