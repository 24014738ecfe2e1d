"""A loaded model: padding has no effect, texts go in and out, and unsupported input is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.sampling import Sampling
from lm.decode.speculative import Acceptance
from lm.model.families import bert, llama, t5_v1_1
from lm.model.int8 import Int8
from lm.model.native import has_kernel
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.score import score
from lm.text.gguf import from_gguf
from lm.text.tokenizer import ByteTokenizer, CharacterTokenizer
from tests.model.reference import SIMPLE, lively
from tests.pretrained.small import BERT, BY_NAME, T5, checkpoint

TOKENIZER = ByteTokenizer()
SIZES: dict[str, Any] = dict(vocab=258, layers=2, width=16, heads=2, mlp=24, context=48)


def ready(cfg: Any) -> Pretrained:
    from lm.model.transformer import Transformer

    return Pretrained(cfg, lively(cfg), TOKENIZER, Transformer(cfg, SIMPLE))


WRITER, READER = ready(llama(**SIZES)), ready(bert(**SIZES))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_means_nothing(side: str) -> None:
    """But that positions count from the left."""
    ids = np.random.default_rng(0).integers(0, 256, (2, 9))
    before, after = (4, 0) if side == "left" else (0, 4)
    junk = np.random.default_rng(1).integers(0, 256, (2, 2, 13))
    padded = [np.concatenate([j[:, :before], ids, j[:, :after]], 1) for j in junk]
    mask = np.pad(np.ones_like(ids), ((0, 0), (before, after)))
    one, other = (np.asarray(WRITER.logits(p, mask))[:, before : before + 9] for p in padded)
    np.testing.assert_array_equal(one, other)
    if side == "right":
        np.testing.assert_allclose(one, WRITER.logits(ids), rtol=1e-5, atol=1e-5)


def test_vectors_do_not_depend_on_what_is_beside_them() -> None:
    texts = ["a", "a longer text", "the end"]
    together = READER.embed(texts)
    assert together.shape == (3, 16) and together.dtype == np.float32
    np.testing.assert_allclose(together, np.concatenate([READER.embed([t]) for t in texts]), rtol=1e-5, atol=1e-6)
    assert np.isfinite(READER.embed(["x" * 200])).all()  # cut at the context's end


def test_vectors_are_means_of_normalised_states() -> None:
    """Of a decoder too, whose last norm is the head's."""
    ids = WRITER.encode("a text")
    x = WRITER.model.hidden(WRITER.params, np.array([ids])).x[0]
    wanted = x / np.sqrt((np.square(x)).mean(-1, keepdims=True) + 1e-5) * WRITER.params["head"]["norm_scale"]
    np.testing.assert_allclose(WRITER.embed(["a text"])[0], wanted.mean(0), rtol=1e-4, atol=1e-5)
    assert WRITER.embed([]).shape == (0, 16)


def test_many_vectors_are_as_few() -> None:
    texts = [f"text {i}" * (1 + i % 3) for i in range(70)]
    many = READER.embed(texts)
    np.testing.assert_allclose(many[[0, 31, 32, 69]], READER.embed([texts[i] for i in (0, 31, 32, 69)]), atol=1e-5)


def test_a_memory_is_read_without_its_padding() -> None:
    cfg = t5_v1_1(vocab=258, layers=1, width=8, heads=2, head_dim=4, mlp=8, context=64)
    model, prompts = ready(cfg), [[5, 6, 7], list(range(40))]
    alone, both = ([rows[0] for rows in model.stream_ids(asked, 5)] for asked in (prompts[:1], prompts))
    assert both == alone
    with pytest.raises(ValueError, match="a prompt of 65 tokens"):
        list(model.stream_ids([[1] * 65], 5))


def test_generate_is_greedy_and_seeds_reproduce() -> None:
    greedy = WRITER.generate("ab", max_new_tokens=9)
    ids = WRITER.encode("ab")
    for _ in range(9):
        ids.append(int(np.asarray(WRITER.logits([ids]))[0, -1].argmax()))
    assert greedy == TOKENIZER.decode(ids[len(WRITER.encode("ab")) :])
    drawn = [WRITER.generate("ab", 9, temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    streamed = list(WRITER.stream("ab", 9, Sampling(temperature=1.0), seed=3))
    assert "".join(rows[0] for rows in streamed) == drawn[0]


def test_a_stop_string_goes_over_the_borders_of_tokens_and_chunks() -> None:
    """Each text ends where a stop string is whole, and no part of it was shown; tokens are bytes here."""
    sampling = Sampling(1.0, logit_bias=tuple((id, -math.inf) for id in (*range(97), *range(123, 258))))  # a to z
    whole = ["".join(parts) for parts in zip(*WRITER.stream("ab", 40, sampling, 3, n=2), strict=True)]
    stop = whole[0][14:18]  # CHUNK tokens end within it
    assert [text.find(stop) for text in whole] == [14, -1]
    streamed = list(WRITER.stream("ab", 40, sampling, 3, n=2, stop=[whole[1][30:32], stop]))
    assert ["".join(parts) for parts in zip(*streamed, strict=True)] == [whole[0][:14], whole[1][:30]]
    assert streamed[0][0] + streamed[1][0] == whole[0][:14]
    assert len(streamed) == 3  # nothing is drawn once both have ended
    assert WRITER.generate("ab", 9, stop="\0") == WRITER.generate("ab", 9)


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    """Which a text of its own would not have."""
    words = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a", "b"],
        "scores": [0.0, 0.0, 0.0, -3.0, -2.0, -1.0, -4.0],
        "token_type": [2, 3, 3, 1, 1, 1, 1],
        "bos_token_id": 1,
    }
    tokenizer = from_gguf({f"tokenizer.ggml.{name}": value for name, value in words.items()})
    cfg = llama(vocab=7, layers=1, width=8, heads=1, mlp=8, context=16)
    model = Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, SIMPLE))
    always = Sampling(0.0, logit_bias=((5, 100.0),))
    assert "".join(text for (text,) in model.stream("ab", 2, always)) == " a a"
    assert tokenizer.decode([5, 5]) == "a a"


def test_a_draft_changes_no_greedy_text() -> None:
    small, found = ready(llama(**SIZES | dict(layers=1))), Acceptance()
    options: dict[str, Any] = dict(drafter=WRITER.draft_model(small), draft_params=small.params, acceptance=found)
    text = "".join(rows[0] for rows in WRITER.stream("ab", 9, Sampling(0), **options))
    assert text == WRITER.generate("ab", 9) and found.drafted > 0
    with pytest.raises(ValueError, match="^the draft model has another vocabulary"):
        WRITER.draft_model(replace(small, tokenizer=CharacterTokenizer("abc")))


def test_a_text_is_scored_by_hand(tmp_path: Path) -> None:
    text = "A little text to score, longer than one window of this model, so that windows are met."
    (tmp_path / "t.txt").write_text(text)
    found = score(WRITER, [tmp_path / "t.txt"])
    (measures,) = found.values()
    assert measures["perplexity"] == pytest.approx(np.exp(measures["loss"]))
    tokens = len(TOKENIZER.encode(text))
    assert measures["bits_per_byte"] == pytest.approx(measures["loss"] * tokens / len(text) / np.log(2), rel=0.1)


def test_bits_per_byte_are_those_of_the_predicted_bytes(tmp_path: Path) -> None:
    """Documents are read one by one; without a begin token each one's first token is not predicted."""
    lines = ["abcabc", "éa", "b"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    characters = Pretrained(WRITER.config, WRITER.params, CharacterTokenizer("abcé"), WRITER.model)
    for model, begin in ((WRITER, True), (characters, False)):
        documents = [model.encode(line) for line in lines]
        targets = sum(len(ids) - 1 for ids in documents)
        size = sum(len(line[0 if begin else 1 :].encode()) for line in lines)
        measures = score(model, [tmp_path / "t.jsonl"])[str(tmp_path / "t.jsonl")]
        logits = [np.asarray(model.logits([ids]))[0] for ids in documents]
        nats = [
            np.log(np.exp(row).sum()) - row[target]
            for ids, rows in zip(documents, logits, strict=True)
            for row, target in zip(rows, ids[1:], strict=False)
        ]
        assert measures["loss"] == pytest.approx(np.mean(nats), rel=1e-4) and len(nats) == targets
        assert measures["bits_per_byte"] == pytest.approx(np.sum(nats) / np.log(2) / size, rel=1e-4)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: WRITER.logits([[300]]), "token ids from 300 to 300: the vocabulary is 0 to 257"),
        (lambda: WRITER.logits([1, 2]), r"token ids of shape \(2,\): expected \[B, T\] with T from 1 to 48"),
        (lambda: WRITER.logits([[1] * 49]), r"token ids of shape \(1, 49\): expected \[B, T\] with T from 1 to 48"),
        (lambda: WRITER.logits([[1, 2]], [[1]]), r"attention_mask of shape \(1, 1\): expected that of the token ids"),
        (lambda: WRITER.logits([[1, 2]], [[1, 2]]), "attention_mask from 1 to 2: expected 0 to 1"),
        (lambda: WRITER.logits([[1]], decoder_input_ids=[[1]]), "this model has no encoder"),
        (lambda: WRITER.logits([[1], [1, 2]]), "token ids of several lengths: pad them to one"),
        (lambda: WRITER.logits([[1.5]]), "token ids of float64: expected integers"),
        (lambda: WRITER.logits([[]]), r"token ids of shape \(1, 0\): expected"),
        (lambda: WRITER.logits([[1]], token_type_ids=[[0]]), "this model has no token types"),
        (lambda: READER.logits([[1]], token_type_ids=[[2]]), "token_type_ids from 2 to 2: expected 0 to 1"),
        (lambda: READER.embed("a text"), r"embed takes a list of texts: give \[text\]"),
        (lambda: WRITER.generate("x", temperature=-1.0), "temperature"),
        (lambda: READER.beam_search("x"), "this model is an encoder: it has logits and embeddings, but generates"),
        (lambda: READER.generate("x"), "this model is an encoder: it has logits and embeddings, but generates no text"),
        (lambda: replace(WRITER, tokenizer=None).generate("x"), "this model came without a tokenizer"),
    ],
)
def test_what_it_cannot_take(ask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask()


def test_an_encoder_decoder_wants_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an encoder and a decoder: give decoder_input_ids too"):
        load(checkpoint(BY_NAME[T5], tmp_path)).logits([[1, 2]])


def test_the_weights_to_decode_by_are_the_decoder_s(tmp_path: Path) -> None:
    WRITER.save(tmp_path / "out")
    model = load(tmp_path / "out", weights="int8")
    assert isinstance(model.decoder.params["head"]["kernel"], Int8) == has_kernel() and len(model.generate("ab", 9)) > 0
    np.testing.assert_array_equal(model.logits([[1, 2]]), load(tmp_path / "out").logits([[1, 2]]))
    with pytest.raises(ValueError, match="weights='int8' are to decode by, and this model is an encoder: leave them"):
        load(checkpoint(BY_NAME[BERT], tmp_path / "bert"), weights="int8")
    with pytest.raises(ValueError, match="weights='q8': expected float32, bfloat16 or int8"):
        load("nowhere", weights="q8")


def test_a_tokenizer_goes_with_the_model(tmp_path: Path) -> None:
    WRITER.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.generate("ab", 9) == WRITER.generate("ab", 9) and again.stop_ids == WRITER.stop_ids
    jax.tree.map(np.testing.assert_array_equal, again.params, WRITER.params)
    assert load(checkpoint(BY_NAME[BERT], tmp_path / "bare")).tokenizer is None
