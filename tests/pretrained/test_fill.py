"""Gaps are filled with what the model says: masks, spans for sentinels, and what follows a prefix."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.decode.beam import BeamSearch
from lm.decode.sampling import Sampling
from lm.decode.speculative import PromptLookup
from lm.model.families import bert, t5
from lm.model.output import NoOutput
from lm.model.positions import LearnedAfter
from lm.pretrained import Pretrained
from lm.pretrained.fill import encode, fill_masks, fill_spans, has_sentinels
from lm.serve.conversation import engine_of
from lm.text.files import from_file
from lm.text.tokenizer import ByteTokenizer
from tests.model.reference import run
from tests.pretrained.test_model import SIZES, WRITER, ready

READER = replace(ready(bert(**SIZES | dict(vocab=259))), markers={"[MASK]": 258})
T5 = replace(ready(t5(**SIZES | dict(vocab=260, head_dim=4))), markers={"<extra_id_0>": 259, "<extra_id_1>": 258})
BOS, EOS = READER.encode("")[0], READER.tokenizer.eos if READER.tokenizer else None


def by_hand(model: Pretrained, ids: list[int], place: int) -> np.ndarray:
    logits = np.asarray(model.logits([ids]), np.float64)[0, place, :258]
    return np.exp(logits) / np.exp(logits).sum()


def test_each_mask_gets_its_likeliest_token() -> None:
    ids = [BOS, *b"a", 258, *b"cd", 258]
    chances = [by_hand(READER, ids, place) for place in (2, 5)]
    filled = fill_masks(READER, "a[MASK]cd[MASK]", 3)
    best = [int(chance.argmax()) for chance in chances]
    tokenizer = ByteTokenizer()
    assert filled.text == tokenizer.decode([BOS, *b"a", best[0], *b"cd", best[1]])
    for candidates, chance in zip(filled.candidates, chances, strict=True):
        order = np.argsort(-chance)[:3].tolist()
        assert [text for text, _ in candidates] == [tokenizer.decode([id]) for id in order]
        np.testing.assert_allclose([p for _, p in candidates], chance[order], rtol=1e-4)


def test_a_text_that_has_its_bos_gets_no_other() -> None:
    """As a chat template writes it."""
    assert encode(WRITER, "<bos>ab") == encode(WRITER, "ab") == [256, *b"ab"]
    assert encode(WRITER, "a<bos>") == [256, *b"a", 256]


def test_a_tokenizer_s_own_mask_is_read_by_its_name() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.mask = tokenizer.eos
    assert tokenizer.mask is not None
    model = replace(READER, tokenizer=tokenizer, markers={})
    filled = fill_masks(model, f"a{tokenizer.name(tokenizer.mask)}")
    assert filled.candidates[0][0][1] == pytest.approx(by_hand(model, [BOS, *b"a", tokenizer.mask], 2).max(), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        (READER, "a mask", r"the prompt has no \[MASK\]: an encoder fills masks, and continues no text"),
        (WRITER, "[MASK]", "this model fills no masks: expected an encoder that was trained on masks"),
        (replace(READER, markers={}), "[MASK]", "this model fills no masks"),
        (replace(READER, config=replace(READER.config, output=NoOutput())), "[MASK]", "this model fills no masks"),
        (replace(READER, tokenizer=None), "[MASK]", "this model came without a tokenizer"),
    ],
)
def test_what_has_no_masks_is_refused(model: Pretrained, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fill_masks(model, text)


@dataclass(frozen=True)
class Written(Pretrained):
    """A model that writes fixed ids, whatever it reads."""

    ids: Any = ()

    def stream_ids(self, *asked: Any, **others: Any) -> Iterator[list[list[int]]]:
        assert asked[0] == [[BOS, *b"a", 259, *b"b", 258, EOS]] * 2 and asked[1:] == (9, Sampling(0), 5)
        yield [[row[0]] for row in self.ids]
        yield [row[1:] for row in self.ids]


def test_what_is_written_for_a_sentinel_stands_in_its_place() -> None:
    ids = ([259, *b"xy", 258, *b"z"], [*b"q", 258, *b"w", 258, *b"v"])
    model = Written(**{**vars(T5), "ids": ids})
    assert fill_spans(model, "a<extra_id_0>b<extra_id_1>", 9, Sampling(0), 5, 2) == ["axybz", "a<extra_id_0>bwv"]
    assert has_sentinels(T5, "a<extra_id_0>") and not has_sentinels(T5, "a<extra_id_7>")
    assert not has_sentinels(WRITER, "a<extra_id_0>")


def test_sentinels_are_written() -> None:
    """A model's own ids may be those after the tokenizer's."""
    biased = Sampling(0, logit_bias=((259, 1e4),))
    assert fill_spans(T5, "a<extra_id_0>.", 3, biased) == ["a."]
    assert encode(T5, "<extra_id_0>") == [BOS, 259, EOS]


def test_a_prefix_is_read_in_both_directions() -> None:
    """By every way of decoding: the greedy tokens of the whole text, whose first tokens all see."""
    model, prompt = replace(WRITER, prefix=True), "abcab"
    ids = model.encode(prompt)
    first, row = len(ids), list(ids)
    for _ in range(7):
        padded, prefix = np.array([row + [0] * (32 - len(row))]), np.arange(32)[None] < first
        logits = run(model.model, model.params, padded, blocks=prefix)
        row.append(int(logits[0, len(row) - 1].argmax()))
    for found in (
        [id for rows in model.stream_ids([ids], 7, Sampling(0)) for id in rows[0]],
        model.beam_search_ids([ids], 7, BeamSearch(1))[0][0].ids,
        [id for rows in model.stream_ids([ids], 7, Sampling(0), 0, PromptLookup(2)) for id in rows[0]],
    ):
        assert found == row[first:]
    assert row[first:] != [id for rows in WRITER.stream_ids([ids], 7, Sampling(0)) for id in rows[0]]


def test_what_reads_prompts_causally_refuses_a_prefix_lm() -> None:
    with pytest.raises(ValueError, match="this model reads a prompt in both directions"):
        engine_of(replace(WRITER, prefix=True), 1)


ROBERTA = {  # as its tokenizer.json is: bytes, a <mask> that takes the space before it, pairs between two </s>
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        dict(id=i, content=c, single_word=False, lstrip=c == "<mask>", rstrip=False, normalized=False, special=True)
        for i, c in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    ],
    "normalizer": None,
    "pre_tokenizer": dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
    "post_processor": dict(
        type="RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0], trim_offsets=True, add_prefix_space=False
    ),
    "decoder": dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
    "model": dict(
        type="BPE",
        dropout=None,
        unk_token=None,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
        byte_fallback=False,
        ignore_merges=False,
        vocab={c: i for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "c", "Ġ", "Ġa"])},
        merges=["Ġ a"],
    ),
}


def test_a_mask_of_roberta_takes_the_space_before_it(tmp_path: Path) -> None:
    """Its tokenizer.json alone, whose control ids have the usual names."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(ROBERTA))
    tokenizer = from_file(tmp_path / "tokenizer.json")
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.mask) == (0, 1, 2, 4)
    cfg = bert(**SIZES | dict(vocab=10, token_types=1, positions=LearnedAfter(offset=2)))
    model = replace(ready(cfg), tokenizer=tokenizer, markers={})
    assert encode(model, "b <mask> a") == [0, 6, 4, 9, 2]
    filled = fill_masks(model, "b <mask> a", 2)
    logits = np.asarray(model.logits([[0, 6, 4, 9, 2]]), np.float64)[0, 2]
    best = int(logits.argmax())
    assert filled.text == tokenizer.decode([6, best, 9])
    assert filled.candidates[0][0][1] == pytest.approx((np.exp(logits) / np.exp(logits).sum()).max(), rel=1e-4)
    assert tokenizer.encode_pair("b", "c") == ([0, 6, 2, 2, 7, 2], [0] * 6)
