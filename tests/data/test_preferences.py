"""Preference pairs and labelled completions as data: which tokens carry loss, what is refused, dropped and packed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.data.conversations import Conversations
from lm.data.encoded import BadDocument, Encoded
from lm.data.examples import examples
from lm.data.loader import Batches, make_tokenizer, prepare
from lm.data.mixture import Data, Mixture
from lm.data.objective import CausalLM, Objective, Replies
from lm.data.pack import Chunk, Pack
from lm.data.preferences import LabelledCompletions, PreferencePairs, Preferences, UnpairedPreferences, split_prompt
from lm.data.records import Jsonl
from lm.data.source import Source
from lm.data.store import TokenStore, open_store
from lm.text.tokenizer import Bytes, Characters, Tokenizer
from tests.data.test_conversations import chatml, messages, spelled
from tests.tune.talks import TEMPLATE, assistant

TALK = messages([("user", "a b?")])
GOOD, BAD = [assistant("c d")], [assistant("f")]


def tokenizer() -> Tokenizer:
    made = Bytes().make([])
    made.give_template(TEMPLATE)
    return made


def records(folder: Path, each: Sequence[Any], **fields: Any) -> Preferences:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in each))
    return Preferences(Jsonl(str(file), heldout=str(file)), **fields)


def unpaired(folder: Path, each: Sequence[Any]) -> UnpairedPreferences:
    return UnpairedPreferences(records(folder, each).records)


def sides(one: Encoded, of: Tokenizer) -> list[tuple[str, str]]:
    """Of both sides the text, and what of it carries loss."""
    assert one.loss is not None
    parts = np.split(one.ids, [one.second]), np.split(one.loss, [one.second])
    return [(spelled(of, ids), spelled(of, ids[loss])) for ids, loss in zip(*parts, strict=True)]


def encoded(source: Source, *each: Any, of: Tokenizer) -> list[Encoded]:
    return list(source.encode([json.dumps(one) for one in each], of))


def prepared(source: Source, objective: Objective, length: int, rows: int = 1) -> Batches:
    data = Data(Mixture({"pairs": source}, {"pairs": 1.0}), packing=Pack())
    return prepare(data, length, rows, objective=objective, tokenizer=tokenizer())


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": TALK, "chosen": GOOD, "rejected": BAD},
        {"chosen": TALK + GOOD, "rejected": TALK + BAD},
        {"prompt": "a b?=", "chosen": "c d", "rejected": "f"},
        {"chosen": "a b?= c d", "rejected": "a b?= f"},
        {"chosen": {"role": ["user", "assistant"], "content": ["a b?", "c d"]}, "rejected": TALK + BAD},
    ],
)
def test_of_each_side_the_answer_and_its_end_carry_loss(record: dict[str, Any], tmp_path: Path) -> None:
    of = tokenizer()
    (one,) = encoded(records(tmp_path, []), record, of=of)
    found = [tuple(text.replace("= ", "=").strip() for text in side) for side in sides(one, of)]
    begin, end = of.controls[256], of.controls[257]
    assert [(text.removeprefix(begin), loss) for text, loss in found] == [
        (text + end, loss + end) for text, loss in (("a b?=c d", "c d"), ("a b?=f", "f"))
    ]
    assert (one.ids[[0, one.second]] == of.bos).all() and not one.dropped


def test_without_a_prompt_it_is_what_both_begin_with() -> None:
    assert split_prompt("Human: a\n\nAssistant: I would", "Human: a\n\nAssistant: I will") == (
        "Human: a\n\nAssistant: I",
        " would",
        " will",
    )
    assert split_prompt("so: Sure", "so: Sure thing") == ("so:", " Sure", " Sure thing")
    assert split_prompt("yes", "no") == ("", "yes", "no")
    whole = messages([("user", "a"), ("assistant", "b"), ("user", "c")])
    assert split_prompt(whole + GOOD, whole + BAD) == (whole, GOOD, BAD)


def test_earlier_answers_are_the_prompt_and_carry_no_loss(tmp_path: Path) -> None:
    before = messages([("user", "x"), ("assistant", "y"), ("user", "z")])
    for record in (
        {"chosen": before + GOOD, "rejected": before + BAD},
        {"prompt": before, "chosen": GOOD, "rejected": BAD},
    ):
        (one,) = encoded(records(tmp_path, []), record, of=chatml())
        assert [loss for _, loss in sides(one, chatml())] == ["c d<|im_end|>", "f<|im_end|>"]


USER = {"role": "user", "content": "a"}
WRONG = {
    "neither": (
        {"prompt": "a", "completion": "b"},
        r"no chosen: expected chosen and rejected \(its fields: completion, p",
    ),
    "no rejected": ({"chosen": "a"}, "no rejected: expected chosen and rejected"),
    "unknown": (
        {"chosen": "a", "rejected": "b", "score": 1},
        "unknown field 'score' beside chosen/rejected: remove it",
    ),
    "mixed": (
        {"prompt": "a", "chosen": GOOD, "rejected": BAD},
        "prompt, chosen, rejected: expected texts alone, or lists of messages alone; where the others begin with the",
    ),
    "margin": ({"chosen": "a", "rejected": "b", "margin": "much"}, "margin is 'much': expected a number"),
    "shape": ({"chosen": {"from": "gpt", "value": "a"}, "rejected": BAD}, "chosen is .*: expected a list of messages"),
    "role": ({"chosen": [{"role": "bot", "content": "a"}], "rejected": BAD}, r"chosen\[0\].role is 'bot'"),
    "no assistant": ({"chosen": [USER], "rejected": BAD}, "chosen has no message of the assistant after the prompt"),
    "one goes on": ({"chosen": TALK, "rejected": TALK + BAD}, "chosen has no message of the assistant after"),
    "no object": ([1], "expected an object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_pair_is_one_clear_line_with_file_and_line(name: str, tmp_path: Path) -> None:
    record, message = WRONG[name]
    source = records(tmp_path, [{"chosen": "a b", "rejected": "a c"}, record])
    with pytest.raises(ValueError, match=message) as raised:
        open_store(source, "train", tokenizer())
    assert "line 2" in str(raised.value) and "\n" not in str(raised.value)


def test_a_bad_label_is_refused(tmp_path: Path) -> None:
    for label, message in (
        ("yes", "label is 'yes': expected true or false"),
        (None, "no label: expected prompt, comp"),
    ):
        bad = {"prompt": "a", "completion": "b", "label": label}
        with pytest.raises(BadDocument, match=message):
            encoded(unpaired(tmp_path, []), bad, of=tokenizer())


def test_fields_that_are_named_are_left_unread(tmp_path: Path) -> None:
    record = {"prompt": "a b?", "chosen": TALK + GOOD, "rejected": TALK + BAD, "score": 3}
    (one,) = encoded(records(tmp_path, [], other_fields=("prompt", "score")), record, of=chatml())
    assert [loss for _, loss in sides(one, chatml())] == ["c d<|im_end|>", "f<|im_end|>"]


def test_equal_sides_are_left_out_and_told(tmp_path: Path) -> None:
    equal = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"chosen": TALK + BAD, "rejected": TALK + BAD}]
    batches = prepared(records(tmp_path, [{"chosen": "a b", "rejected": "a c"}, *equal]), PreferencePairs(), 32)
    assert len(batches.stores["pairs", "train"]) == 1
    told = "left out: 2 of 3 documents have a chosen side that equals the rejected one (the first: "
    assert f"source 'pairs', train: {told}{tmp_path / 'pairs.jsonl'}, line 2)" in batches.remarks()
    with pytest.raises(ValueError, match="nothing to learn in the train split.*2 of 2 documents have a chosen side"):
        open_store(records(tmp_path, equal), "train", tokenizer())


def test_a_side_without_loss_is_left_out_and_told(tmp_path: Path) -> None:
    of = chatml(eos=None)
    records_ = [{"prompt": "x", "chosen": "y", "rejected": ""}, {"prompt": "x", "chosen": "y", "rejected": "z"}]
    store = open_store(records(tmp_path, records_), "train", of)
    assert len(store) == 1 and store.dropped.startswith("1 of 2 documents have a side without a token that carries")


PAIRS = [{"prompt": "x" * n, "chosen": "yes" * (n % 3 + 1), "rejected": "no" * (n % 2 + 1)} for n in range(1, 12)]


def by_pair(store: TokenStore) -> dict[bytes, int]:
    assert store.second is not None
    return {store[i].tobytes() + bytes([int(store.second[i])]): i for i in range(len(store))}


def test_a_pair_is_two_segments_of_one_row_and_all_are_there_once(tmp_path: Path) -> None:
    source = records(tmp_path, [{**one, "margin": i} for i, one in enumerate(PAIRS)])
    batches = prepared(source, PreferencePairs(), 63)
    store, plan = batches.stores["pairs", "train"], batches._plans["pairs", "train"]
    for seed in (None, 3):
        rows = plan.rows(np.arange(plan.rows_per_epoch), seed)
        assert plan.pairs == rows.documents.max() // 2 > 1
        found = []
        for tokens, documents, loss, values in zip(rows.tokens, rows.documents, rows.loss, rows.values, strict=True):
            for number in range(1, documents.max() + 1, 2):
                own = (documents == number) | (documents == number + 1)
                second = int((documents == number).sum())
                i = by_pair(store)[tokens[own].astype(store.tokens.dtype).tobytes() + bytes([second])]
                assert store.loss is not None and store.values is not None
                np.testing.assert_array_equal(loss[own], store.loss[store.offsets[i] : store.offsets[i + 1]])
                assert (values[own] == store.values[i]).all()
                found.append(i)
        assert sorted(found) == list(range(len(PAIRS)))
    assert store.values is not None and sorted(store.values) == list(range(len(PAIRS)))


def test_the_batch_of_a_row(tmp_path: Path) -> None:
    source = records(tmp_path, [{"prompt": "p", "chosen": "yes", "rejected": "n", "margin": 2}])
    batch = prepared(source, PreferencePairs(), 16).batch(0)
    #                tokens 256 p y e s 257  256 p n 257
    assert batch["tokens"][0, :10].tolist() == [256, *b"pyes", 257, 256, *b"pn", 257]
    assert batch["segment_ids"][0].tolist() == [1] * 6 + [2] * 4 + [0] * 6
    assert batch["positions"][0, :10].tolist() == [*range(6), *range(4)]
    assert batch["loss_mask"][0].tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 1] + [0] * 7
    assert batch["first_weights"][0].tolist() == [0, 1, 1, 1, 1] + [0] * 11
    assert batch["weights"].tolist() == [[1]] and batch["values"].tolist() == [[2]]
    assert batch["pair_ids"].shape == (1, 1, 2) and batch["pair_ids"].any()


def test_a_pair_has_one_id_wherever_it_is_packed(tmp_path: Path) -> None:
    found = []
    for length, seed in ((63, 0), (63, 1), (127, 0)):
        batches = prepared(records(tmp_path, PAIRS), PreferencePairs(), length, 3)
        plan = batches._plans["pairs", "train"]
        batch = PreferencePairs().batch(plan.rows(np.arange(plan.rows_per_epoch), seed), batches.context)
        assert batch["weights"].shape[1] == plan.pairs
        found.append(sorted(map(tuple, batch["pair_ids"][batch["weights"] > 0].tolist())))
    assert len(set(found[0])) == len(PAIRS) and all(one == found[0] for one in found)


def test_pairs_longer_than_a_row_are_left_out_and_told(tmp_path: Path) -> None:
    batches = prepared(
        records(tmp_path, [*PAIRS, {"prompt": "x" * 30, "chosen": "y", "rejected": "z"}]), PreferencePairs(), 63
    )
    plan = batches._plans["pairs", "train"]
    rows = plan.rows(np.arange(plan.rows_per_epoch), 0)
    assert sum(d.max() // 2 for d in rows.documents) == len(PAIRS)
    told = "1 of 12 pairs are longer than a row of 63 tokens, both sides together, and left out"
    assert f"source 'pairs', train: {told}" in batches.remarks()
    with pytest.raises(ValueError, match="none of its 11 pairs fits in a row of 8 tokens: raise seq_len"):
        prepared(records(tmp_path, PAIRS), PreferencePairs(), 8)
    with pytest.raises(ValueError, match=r"packing=Chunk\(\) would cut pairs anywhere"):
        Chunk().plan(open_store(records(tmp_path, PAIRS), "train", tokenizer()), 32)


def test_a_method_reads_its_own_kind_of_source_alone(tmp_path: Path) -> None:
    pairs = records(tmp_path, PAIRS)
    for objective in (Replies(), CausalLM(), LabelledCompletions()):
        with pytest.raises(ValueError, match="source 'pairs': Preferences has preference pairs, and the objective"):
            prepared(pairs, objective, 64)
    with pytest.raises(ValueError, match="UnpairedPreferences has labelled completions, .* PreferencePairs reads pref"):
        prepared(unpaired(tmp_path, PAIRS), PreferencePairs(), 64)
    with pytest.raises(ValueError, match="source 'pairs': Conversations has texts, and the objective PreferencePairs"):
        prepared(Conversations(pairs.records), PreferencePairs(), 64)


def test_a_completion_has_its_label_and_that_of_the_record_before(tmp_path: Path) -> None:
    each = [{"prompt": p, "completion": c, "label": label} for p, c, label in (("a", "x", True), ("b", "y", False))]
    found = encoded(unpaired(tmp_path, []), *each, {"prompt": "c", "completion": "z", "label": 1}, of=tokenizer())
    assert [one.value for one in found] == [1, 0, 1]
    texts = [[loss[0] for _, loss in sides(one, tokenizer())] for one in found]
    assert texts == [["x", "z"], ["y", "x"], ["z", "y"]]
    prompts = [[text.rpartition(loss)[0][-1] for text, loss in sides(one, tokenizer())] for one in found]
    assert prompts == [["a", "a"], ["b", "b"], ["c", "c"]]


def test_pairs_are_completions_with_both_labels_too(tmp_path: Path) -> None:
    source = unpaired(tmp_path, PAIRS[:3])
    store = open_store(source, "train", tokenizer())
    assert store.values is not None and store.values.tolist() == [1] * 3 + [0] * 3
    first = (
        [spelled(tokenizer(), store[i][: store.second[i]])[-8:] for i in range(6)] if store.second is not None else []
    )
    assert [("yes" in text, "no" in text) for text in first] == [(True, False)] * 3 + [(False, True)] * 3
    batch = prepared(source, LabelledCompletions(), 48).batch(0)
    assert set(batch["values"][batch["weights"] > 0].tolist()) <= {0, 1}
    wrong = unpaired(tmp_path, [*PAIRS[:3], {"chosen": "a"}])
    with pytest.raises(ValueError, match="line 4: no rejected"):
        open_store(wrong, "train", tokenizer())


def test_examples_show_both_sides_and_what_is_learned(tmp_path: Path) -> None:
    source = records(tmp_path, [{"prompt": TALK, "chosen": GOOD, "rejected": BAD}])
    (one,) = examples(prepared(source, PreferencePairs(), 32), 1)
    text = "".join(part for part, _ in one)
    assert text.startswith("chosen:\n") and "\nrejected:\n" in text
    assert [part[:3] for part, loss in one if loss] == ["c d", "f" + tokenizer().piece(257)[:2]]


def test_a_tokenizer_is_trained_on_what_is_said(tmp_path: Path) -> None:
    for source in (records(tmp_path, [{"prompt": TALK, "chosen": GOOD, "rejected": BAD}]), unpaired(tmp_path, PAIRS)):
        data = Data(Mixture({"pairs": source}, {"pairs": 1.0}), Characters(), Pack())
        table = make_tokenizer(data).table
        assert b'"' not in table and b"{" not in table and len(table) > 3


def test_the_same_records_as_conversations_and_as_pairs_are_two_stores(tmp_path: Path) -> None:
    source = records(tmp_path, PAIRS)
    folders = {open_store(one, "train", tokenizer()).folder for one in (source, UnpairedPreferences(source.records))}
    assert len(folders) == 2
