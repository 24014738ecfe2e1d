"""Prompts: which tokens, in which rows, with which records; and what is no prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.data.loader import Batches, prepare
from lm.data.mixture import Data, Mixture
from lm.data.objective import CausalLM
from lm.data.pack import OnePerRow, Pack
from lm.data.prompts import Prompts, Rollouts, parse, prompt_as_read, prompt_ids, prompt_text
from lm.data.records import Jsonl
from lm.text.tokenizer import Bytes
from tests.tune.talks import TEMPLATE, user

LENGTH, NEW = 20, 8
ONE_PER_ROW = OnePerRow()
OBJECTIVE = Rollouts(copies=3, new_tokens=NEW, per_token=("old",), per_row=("reward",))


def written(file: Path, rows: list[dict[str, Any]]) -> Prompts:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Prompts(Jsonl(str(file), heldout=0.3))


def batches(*sources: Prompts, rows: int = 6, objective: Any = OBJECTIVE, packing: Any = ONE_PER_ROW) -> Batches:
    named = {f"s{i}": source for i, source in enumerate(sources)}
    data = Data(Mixture(named, dict.fromkeys(named, 1.0)), Bytes(), packing, TEMPLATE)
    tokenizer = Bytes().make([])
    tokenizer.give_template(TEMPLATE)
    return prepare(data, LENGTH, rows, objective=objective, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    root = tmp_path_factory.mktemp("prompts")
    texts = [{"prompt": f"t{i}", "answer": i} for i in range(20)]
    talks = [{"prompt": [user(f"m{i}")], "answer": i} for i in range(20)]
    return batches(written(root / "texts.jsonl", texts), written(root / "talks.jsonl", talks))


def asked(data: Batches, batch: Any, row: int) -> str:
    there = batch["segment_ids"][row] > 0
    return data.tokenizer.decode(batch["tokens"][row][there].tolist())


def test_a_batch_has_each_prompt_in_copies_with_its_record(two: Batches) -> None:
    seen = set()
    for step in range(20):
        batch = two.batch(step)
        assert batch["tokens"].shape == batch["old"].shape == (6, LENGTH) and batch["reward"].shape == (6,)
        assert [len(set(batch["record"][i : i + 3].tolist())) for i in (0, 3)] == [1, 1]
        assert (batch["row_weights"] == 1).all() and not batch["weights"].any()
        for row in range(6):
            record = two.record(int(batch["record"][row]))
            said = asked(two, batch, row)
            prompt = record["prompt"]
            assert said == (prompt if isinstance(prompt, str) else f"{prompt[0]['content']}=")
            seen.add(said)
        part = two.batch(step, np.array([1, 4]))
        np.testing.assert_array_equal(part["record"], batch["record"][[1, 4]])
    everything = [record["prompt"] for _, record in two.records()]
    assert len(everything) == 40 and len(seen) == sum(len(two.stores[s, "train"]) for s in two.sources)


def test_held_out_prompts_come_once_and_are_not_trained_on(two: Batches) -> None:
    trained = {number for step in range(20) for number in two.batch(step)["record"].tolist()}
    for source in two.sources:
        held = list(two.heldout(source, 4))
        real = np.concatenate([batch["row_weights"] for batch in held]) > 0
        numbers = np.concatenate([batch["record"] for batch in held])[real]
        assert len(numbers) == len({*numbers.tolist()}) == len(two.stores[source, "heldout"])
        assert not trained & {*numbers.tolist()}
        assert all(len(batch["record"]) == 4 for batch in held)


def test_other_prompts_are_of_the_same_source(two: Batches) -> None:
    batch, rng = two.batch(3), np.random.default_rng(0)
    other = two.other_prompts(batch, rng)
    kinds = [[type(two.record(int(n))["prompt"]) for n in one["record"]] for one in (batch, other)]
    assert kinds[0] == kinds[1] and (other["record"] != batch["record"]).any()
    assert {name: array.shape for name, array in other.items()} == {name: array.shape for name, array in batch.items()}
    for row in range(6):
        assert str(two.record(int(other["record"][row]))["answer"]) in asked(two, other, row)


def test_messages_go_through_the_template_with_the_header_of_the_reply() -> None:
    tokenizer = Bytes().make([])
    tokenizer.give_template(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if tools %}[{{ tools[0].name }}]{% endif %}{% if short %}!{% endif %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    record = {"prompt": [user("a")], "tools": [{"name": "f"}], "chat_template_kwargs": {"short": True}}
    ids = prompt_ids(record, tokenizer)
    assert ids[0] == tokenizer.bos and tokenizer.decode(ids) == "a[f]!>"
    assert prompt_as_read(record, tokenizer) == "<bos>a[f]!>" and prompt_as_read({"prompt": "a"}, tokenizer) == "a"
    assert prompt_text(record["prompt"]) == "a" == Prompts(Jsonl("x")).plain_text(json.dumps(record))


def test_prompts_that_are_too_long_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * n} for n in range(4, 30)]
    data = batches(written(tmp_path / "long.jsonl", rows))
    assert any("documents are longer than 12 tokens, and left out" in remark for remark in data.remarks())
    assert max(int(data.batch(step)["segment_ids"].sum(1).max()) for step in range(20)) == LENGTH - NEW
    with pytest.raises(ValueError, match="none of its .* fits in 12 tokens, the shortest has"):
        batches(written(tmp_path / "longer.jsonl", [{"prompt": "x" * n} for n in range(20, 40)]))


def test_what_is_no_prompt_is_refused(tmp_path: Path) -> None:
    for text, reason in (("[1]", "expected an object with a prompt"), ("{}", "with a prompt"), ("{", "is not JSON")):
        with pytest.raises(ValueError, match=reason):
            parse(text)
    with pytest.raises(ValueError, match=r"source 's0': .*bad.jsonl, line \d: prompt\[0\].role is 'x'"):
        batches(written(tmp_path / "bad.jsonl", [{"prompt": [{"role": "x", "content": f"{i}"}]} for i in range(9)]))
    source = written(tmp_path / "good.jsonl", [{"prompt": f"{i}"} for i in range(30)])
    for objective, packing, reason in ((OBJECTIVE, Pack(), "OnePerRow"), (CausalLM(), Pack(), "has prompts, and")):
        with pytest.raises(ValueError, match=reason):
            batches(source, objective=objective, packing=packing)
    with pytest.raises(ValueError, match="leave field out"):
        Prompts(Jsonl("x", field="question"))
    with pytest.raises(ValueError, match="leave no room for prompts beside max_new_tokens=20"):
        batches(source, objective=Rollouts(new_tokens=LENGTH))
