"""Conversations as data: which tokens carry loss, what is refused, and what becomes of those that are too long."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.data.conversations import Conversations, encode_record, parse
from lm.data.encoded import Encoded
from lm.data.examples import examples
from lm.data.loader import make_tokenizer, prepare
from lm.data.mixture import Data, Mixture
from lm.data.objective import CausalLM, PrefixLM, Replies
from lm.data.pack import Chunk, Pack
from lm.data.records import Jsonl, Parquet
from lm.data.source import TextFile
from lm.data.store import open_store
from lm.text.chat import render
from lm.text.ranks import EncodingSpec, TiktokenTokenizer
from lm.text.tokenizer import Bytes, Characters, Tokenizer
from tests.text.test_chat import CHATML, INST, MARKED
from tests.text.test_published import LLAMA3_PATTERN, RANKED, rank_file

CONTROLS = {300: "<|im_start|>", 301: "<|im_end|>", 302: "<s>"}
TURNS = [("system", "be kind"), ("user", "a b?"), ("assistant", "c d"), ("user", "e"), ("assistant", "f")]
TOOLS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "tool_calls": [{"name": "sum"}]}]
TOOLS += [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}]


def messages(turns: Any = TURNS) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def chatml(eos: int | None = 301, template: str = CHATML) -> Tokenizer:
    """A tokenizer whose end of turn is its eos, and its pad."""
    roles = {} if eos is None else {"eos": eos, "pad": eos}
    tokenizer = TiktokenTokenizer(rank_file(RANKED), EncodingSpec(LLAMA3_PATTERN, CONTROLS, roles))
    tokenizer.give_template(template)
    return tokenizer


def encoded(tokenizer: Tokenizer, **record: Any) -> Encoded:
    return encode_record(parse(json.dumps(record)), tokenizer)


def spelled(tokenizer: Tokenizer, ids: Any) -> str:
    return b"".join(tokenizer.controls.get(int(i), "").encode() or tokenizer.bytes_of(int(i)) for i in ids).decode()


def learned(tokenizer: Tokenizer, **record: Any) -> str:
    """What carries loss of a record, controls spelled out."""
    one = encoded(tokenizer, **record)
    assert one.loss is not None
    return spelled(tokenizer, one.ids[one.loss])


def test_only_the_assistant_carries_loss_and_so_does_its_end_of_turn_which_is_the_pad() -> None:
    tokenizer = chatml()
    assert learned(tokenizer, messages=messages()) == "c d<|im_end|>f<|im_end|>"
    assert learned(tokenizer, messages=messages(TURNS[1:3])) == "c d<|im_end|>"
    assert spelled(tokenizer, encoded(tokenizer, messages=messages()).ids) == render(CHATML, messages())


def test_the_marks_of_a_template_decide_where_it_has_them() -> None:
    assert learned(chatml(template=MARKED), messages=messages()) == "c d!f!"


def test_tools_and_their_results() -> None:
    template = "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content or m.tool_calls | tojson }}"
    template += "<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    tools = [{"name": "sum"}]
    for given in (tools, json.dumps(tools)):
        said = learned(chatml(template=template), messages=TOOLS, tools=given)
        assert said == '[{"name": "sum"}]<|im_end|>four<|im_end|>'
        whole = spelled(chatml(), encoded(chatml(template=template), messages=TOOLS, tools=given).ids)
        assert whole.startswith('[{"name": "sum"}]<user>2+2?') and "<tool>4" in whole


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_of_a_prompt_and_a_completion_of_messages_the_completion_alone_carries_loss(template: str) -> None:
    tokenizer, every = chatml(template=template), messages()
    whole = encoded(tokenizer, messages=every)
    parts = encoded(tokenizer, prompt=every[:4], completion=every[4:])
    np.testing.assert_array_equal(whole.ids, parts.ids)
    assert learned(tokenizer, prompt=every[:4], completion=every[4:]) == ("f<|im_end|>" if template == CHATML else "f!")


def test_of_texts_the_completion_and_the_eos_carry_loss_with_one_bos() -> None:
    one = encoded(Bytes().make([]), prompt="ab", completion="cd")
    assert one.loss is not None and one.ids.tolist() == [256, *b"abcd", 257]
    assert one.loss.tolist() == [False] * 3 + [True] * 3 and one.bytes == 4
    assert learned(chatml(), prompt="x", completion="y<|im_end|>") == "y<|im_end|>"  # the eos is there already
    text = encoded(Bytes().make([]), text="ab")
    assert text.loss is None and text.ids.tolist() == [256, *b"ab", 257]


def test_a_token_over_the_border_carries_loss() -> None:
    assert learned(chatml(), prompt="xa", completion="bcy") == "abcy<|im_end|>"  # "abc" is one token


def test_there_is_one_bos_whether_the_template_writes_it_or_not() -> None:
    tokenizer = Bytes().make([])
    for template in (INST, INST.replace("{{ bos_token }}", "")):
        tokenizer.give_template(template)
        one = encoded(tokenizer, messages=messages(TURNS[1:3]))
        assert one.loss is not None and (one.ids == tokenizer.bos).sum() == 1 and one.ids[0] == tokenizer.bos
        assert one.ids[-1] == tokenizer.eos and one.loss[-1] and not one.loss[0]


USER = {"role": "user", "content": "a"}
BAD = {
    "wrong role": (
        {"messages": [{"role": "human", "content": "a"}]},
        r"messages\[0\].role is 'human': expected one of",
    ),
    "shape": ({"messages": [{"from": "human", "value": "a"}]}, r"messages\[0\] is .*expected an object with a role"),
    "no assistant": ({"messages": [USER]}, "no message of the assistant"),
    "no assistant in the completion": ({"prompt": messages(), "completion": [USER]}, "completion has no message of"),
    "unknown field": ({"messages": messages(), "source": "x"}, "unknown field 'source' beside messages: remove it"),
    "unknown in a message": ({"messages": [{**USER, "extra": 1}]}, r"messages\[0\] has an unknown field 'extra'"),
    "no kind": ({"instruction": "a"}, "expected messages, or prompt and completion, or text: it has neither"),
    "two kinds": ({"messages": messages(), "text": "a"}, "it has messages and text"),
    "text and messages": ({"prompt": "a", "completion": messages()}, "expected two texts, or two lists of messages"),
    "content": ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content is '3': expected a text"),
    "no content": ({"messages": [{"role": "user"}]}, r"messages\[0\].content is 'None'"),
    "no list": ({"messages": "hello"}, "messages is 'hello': expected a list of messages"),
    "empty": ({"messages": []}, "expected a list of messages"),
    "text": ({"text": 3}, "text is '3': expected a text"),
    "tools": ({"messages": messages(), "tools": "{"}, "tools is '{': expected a list"),
    "reserved": ({"messages": messages(), "chat_template_kwargs": {"given": 1}}, "chat_template_kwargs.given"),
    "refused": ({"messages": [USER, USER, *messages()]}, "roles must alternate"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_one_clear_line_with_file_and_line(name: str, tmp_path: Path) -> None:
    record, message = BAD[name]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ({"messages": messages(TURNS[1:])}, record)))
    with pytest.raises(ValueError, match=message) as raised:
        open_store(Conversations(Jsonl(str(file), heldout=str(file))), "train", chatml(template=INST))
    assert f"{file}, line 2: " in str(raised.value) and "\n" not in str(raised.value)


def test_a_tokenizer_without_a_template_and_a_field_are_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"messages": messages()}])
    with pytest.raises(ValueError, match="line 1: this tokenizer has no chat template"):
        open_store(source, "train", Bytes().make([]))
    with pytest.raises(ValueError, match="records.field='messages': a conversation is a whole record"):
        Conversations(Jsonl("x", field="messages"))
    (tmp_path / "plain.txt").write_text("no record " * 10)
    with pytest.raises(ValueError, match="is not JSON"):
        open_store(Conversations(TextFile(str(tmp_path / "plain.txt"))), "train", chatml())


def jsonl(folder: Path, records: list[dict[str, Any]], **fields: Any) -> Conversations:
    file = folder / "chat.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Conversations(Jsonl(str(file), heldout=str(file)), **fields)


def test_fields_that_are_named_are_left_unread(tmp_path: Path) -> None:
    records = [{"messages": [{**USER, "id": 3}, {"role": "assistant", "content": "b"}], "id": 7, "prompt": "a"}]
    store = open_store(jsonl(tmp_path, records, other_fields=("id", "prompt")), "train", chatml())
    assert len(store) == 1


def test_parquet_has_the_same_tokens(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    records = [{"messages": messages(), "tools": None}, {"messages": messages(TURNS[1:3]), "tools": None}]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "chat.parquet")
    file = str(tmp_path / "chat.parquet")
    ours = open_store(Conversations(Parquet(file, heldout=file)), "train", chatml())
    lines = open_store(jsonl(tmp_path, records), "train", chatml())
    np.testing.assert_array_equal(ours.tokens, lines.tokens)
    np.testing.assert_array_equal(ours.loss, lines.loss)
    bad = [*records, {"messages": messages([("assistants", "a")])}]
    parquet.write_table(pyarrow.Table.from_pylist(bad), other := str(tmp_path / "bad.parquet"))
    with pytest.raises(ValueError, match=r"bad.parquet, row 2: messages\[0\].role is 'assistants'"):
        open_store(Conversations(Parquet(other, heldout=other)), "train", chatml())


def test_records_without_loss_are_left_out_and_told(tmp_path: Path) -> None:
    """A template that renders nothing of an empty answer, or of any."""
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}"
    silent += "{% endgeneration %}{% endif %}{% endfor %}"
    empty = {"messages": [USER, {"role": "assistant", "content": ""}]}
    source = jsonl(tmp_path, [{"messages": messages(TURNS[1:])}, empty, empty])
    data = Data(Mixture({"chat": source}, {"chat": 1.0}), packing=Pack())
    batches = prepare(data, 64, 1, objective=Replies(), tokenizer=chatml(template=silent))
    assert len(batches.stores["chat", "train"]) == 1
    told = f"left out: 2 of 3 documents have no token with loss (the first: {tmp_path / 'chat.jsonl'}, line 2)"
    assert f"source 'chat', train: {told}" in batches.remarks()
    with pytest.raises(ValueError, match="nothing to learn in the train split.*2 of 2 documents.*line 1"):
        open_store(jsonl(tmp_path, [empty, empty]), "train", chatml(template=silent))


def test_another_template_is_another_store(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"messages": messages(TURNS[1:])}])
    folders = {open_store(source, "train", chatml(template=t)).folder for t in (CHATML, MARKED, CHATML)}
    assert len(folders) == 2


# ---------------------------------------------------------------- rows


def long_and_short(folder: Path, seq_len: int) -> Any:
    """Batches of talks of 1 to 6 turns, a long first answer, and a text; each letter is a token."""
    talks = [[("user", f"{n}?"), ("assistant", "yes " * n)] * k for n in range(1, 8) for k in (1, 2, 3)]
    records: list[dict[str, Any]] = [{"messages": messages(turns)} for turns in talks]
    records += [{"messages": messages([("user", "x" * 200), ("assistant", "y")])}, {"text": "z" * 100}]
    tokenizer = Bytes().make([])
    tokenizer.give_template(INST)
    data = Data(Mixture({"chat": jsonl(folder, records)}, {"chat": 1.0}), packing=Pack())
    return prepare(data, seq_len, 4, objective=Replies(), tokenizer=tokenizer)


def test_each_epoch_has_every_turn_that_fits_and_the_rest_is_counted(tmp_path: Path) -> None:
    batches = long_and_short(tmp_path, 48)
    store, plan = batches.stores["chat", "train"], batches._plans["chat", "train"]
    rows = plan.rows(np.arange(plan.rows_per_epoch), 3)
    batch = Replies().batch(rows)
    asked = int(batch["weights"].sum())
    (told,) = [line for line in batches.remarks() if "train: " in line and "longer" in line]
    lost, of = (int(n.replace(",", "")) for n in told.split("together ")[1].split(" tokens")[0].split(" of "))
    texts = [i for i in range(len(store)) if store.loss[store.offsets[i] : store.offsets[i + 1]].all()]
    assert (
        len(texts) == 1 and of == store.loss.sum() and asked == of - lost - len(texts)
    )  # a text's first token has no predecessor
    kept = [store.tokens[store.offsets[i] :][: len(piece)] for i in range(len(store)) for piece in [store[i]]]
    for tokens, documents, loss in zip(rows.tokens, rows.documents, rows.loss, strict=True):
        for number in range(1, documents.max() + 1):
            piece, carried = tokens[documents == number], loss[documents == number]
            whole = any(len(piece) == len(d) and (piece == d).all() for d in kept)
            assert whole or piece[-1] == 257 or carried.all()  # cut after a turn of the assistant, or a text
            assert piece[0] == 256 or carried.all()  # a talk is read from its beginning


def test_the_targets_of_a_row_are_what_carries_loss(tmp_path: Path) -> None:
    data = Data(Mixture({"chat": jsonl(tmp_path, [{"messages": messages()}])}, {"chat": 1.0}), packing=Pack())
    batch = prepare(data, 128, 1, objective=Replies(), tokenizer=chatml()).batch(0)
    assert spelled(chatml(), batch["targets"][batch["weights"] > 0]) == "c d<|im_end|>f<|im_end|>"


def test_nothing_leaks_between_conversations_and_packed_is_unpacked(tmp_path: Path) -> None:
    batches = long_and_short(tmp_path, 64)
    plan = batches._plans["chat", "train"]
    batch = Replies().batch(plan.rows(np.arange(plan.rows_per_epoch), 0))
    segments = batch["segment_ids"]
    assert segments.max() > 1
    starts = np.diff(segments, axis=1, prepend=0) > 0
    assert (batch["positions"][starts] == 0).all() and (batch["weights"][:, :-1][starts[:, 1:]] == 0).all()


def test_conversations_that_do_not_fit_and_chunks_are_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"messages": messages(TURNS[1:])}])
    data = Data(Mixture({"chat": source}, {"chat": 1.0}), packing=Pack())
    with pytest.raises(ValueError, match="none of its 1 conversations fits in a row of 4 tokens: raise seq_len"):
        prepare(data, 4, 1, objective=Replies(), tokenizer=chatml())
    data = Data(data.mixture, packing=Chunk())
    with pytest.raises(ValueError, match=r"packing=Chunk\(\) would cut conversations anywhere: set data.packing=Pack"):
        prepare(data, 64, 1, objective=Replies(), tokenizer=chatml())


def test_plain_text_among_conversations_carries_loss_throughout(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("some text " * 30)
    sources = {
        "chat": jsonl(tmp_path, [{"messages": messages(TURNS[1:])}]),
        "text": TextFile(str(tmp_path / "plain.txt")),
    }
    data = Data(Mixture(sources, {"chat": 0.5, "text": 0.5}), packing=Pack())
    tokenizer = Bytes().make([])
    tokenizer.give_template(INST)
    batches = prepare(data, 64, 2, objective=Replies(), tokenizer=tokenizer)
    rows = batches._plans["text", "train"].rows(np.arange(3), 0)
    np.testing.assert_array_equal(Replies().batch(rows)["weights"], CausalLM().batch(rows)["weights"])
    trained = make_tokenizer(replace(data, tokenizer=Characters()))  # on what is said, not on JSON
    assert set(b"abcdef?") <= set(b"".join(trained.table)) and b'"' not in trained.table


def test_what_is_said_is_the_plain_text(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"messages": messages()}])
    assert source.plain_text(source.documents("train")[0]) == "be kind\n\na b?\n\nc d\n\ne\n\nf"
    source = jsonl(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert source.plain_text(source.documents("train")[0]) == "a\n\nb"


def test_examples_are_the_documents_of_the_first_batches_with_what_is_learned(tmp_path: Path) -> None:
    """Two of which share a row."""
    talks = [messages(TURNS[1:3]), messages([("user", "x"), ("assistant", "yy")])]
    data = Data(Mixture({"chat": jsonl(tmp_path, [{"messages": t} for t in talks])}, {"chat": 1.0}), packing=Pack())
    found = examples(prepare(data, 160, 1, objective=Replies(), tokenizer=chatml()), 3)
    assert sorted("".join(text for text, _ in one) for one in found[:2]) == sorted(render(CHATML, t) for t in talks)
    learned = [[text for text, loss in one if loss] for one in found]
    assert sorted(learned[:2]) == [["c d<|im_end|>"], ["yy<|im_end|>"]] and learned[2] in learned[:2]
    (start, rest), *_ = examples(prepare(data, 160, 1, tokenizer=chatml()), 1)  # all but the first token
    assert start == ("<|im_start|>", False) and rest[1]
    with pytest.raises(ValueError, match="examples show which next tokens are learned, and PrefixLM has"):
        examples(prepare(data, 160, 1, objective=PrefixLM(), tokenizer=chatml()), 1)
