"""Sums as records: right, all of them, and held out in both orders."""

import json

import pytest

from lm.data.conversations import Conversations, encode_record, parse
from lm.data.prompts import Prompts
from lm.data.sums import Sums
from lm.text.tokenizer import Bytes


def test_every_sum_is_right_and_in_one_split_in_both_orders() -> None:
    sides = []
    for split in ("train", "heldout"):
        records = [json.loads(document) for document in Sums(20, 0.3).documents(split)]
        numbers = [tuple(map(int, record["prompt"].removesuffix("=").split("+"))) for record in records]
        for (a, b), record in zip(numbers, records, strict=True):
            assert record["answer"] == str(a + b) and record["completion"] == f"<{a + b}>"
        assert {(b, a) for a, b in numbers} == {*numbers}
        sides.append({*numbers})
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 400 and 60 < len(sides[1]) < 180
    assert len({Sums(20, 0.3).fingerprint(), Sums(21, 0.3).fingerprint(), Sums(20, 0.4).fingerprint()}) == 3
    with pytest.raises(ValueError, match="has no heldout documents"):
        Sums(2, 0.01).documents("heldout")
    with pytest.raises(ValueError, match="below=1"):
        Sums(1)


def test_they_are_conversations_and_prompts() -> None:
    document, tokenizer = Sums().documents("train")[0], Bytes().make([])
    one = encode_record(parse(document, ("answer",)), tokenizer, ("answer",))
    assert tokenizer.decode(one.ids.tolist()) == "0+0=<0>" and one.loss is not None
    assert tokenizer.decode(one.ids[one.loss].tolist()) == "<0>" and Conversations(Sums()).records == Sums()
    (read,) = Prompts(Sums()).encode([document], tokenizer)
    assert tokenizer.decode(read.ids.tolist()) == "0+0=" == Prompts(Sums()).plain_text(document)
