"""Constitutional AI: what is asked and written, in which order; a judge's place counts nothing; what is of no use."""

import json
from typing import Any

import numpy as np
import pytest

from lm.data.conversations import encode_record, parse
from lm.data.preferences import parse_pair
from lm.tune.assistant import Assistant
from lm.tune.best_of import by_functions
from lm.tune.constitution import BEGUN, LABELS, Constitution, Principle, best_answers, compare, fault, revise
from lm.tune.reward_functions import Completion
from tests.tune.answering import assistant
from tests.tune.sums import Digits
from tests.tune.talks import assistant as said
from tests.tune.talks import user
from tests.tune.test_assistant import ENDS

PRINCIPLES = tuple(Principle(f"{x}?", f"{x}!", f"which, {x}?") for x in "xyz")
CONSTITUTION = Constitution(PRINCIPLES)
CONVERSATIONS = [[user(text)] for text in ("one", "two", "three", "four", "five")]


class Scripted(Assistant):
    """One whose answer is the last message's content and the draw; `asked` are the conversations that it answered."""

    asked: list[Any]

    def encode(self, conversation: Any, begun: str = "") -> Any:
        return [conversation, *[0] * len(begun)]

    def write(self, prompts: Any, indices: Any) -> list[Completion]:
        self.__dict__.setdefault("asked", []).extend(prompt[0] for prompt in prompts)
        texts = zip(prompts, indices, strict=True)
        return [Completion.of(f" <{prompt[0][-1]['content']} {draw}> ", 3, True) for prompt, draw in texts]


def scripted(**given: Any) -> Scripted:
    one = assistant(**given)
    return Scripted(one.engine, one.tokenizer, one.stop, one.max_new_tokens, one.sampling, one.seed)


def test_an_answer_is_criticised_and_revised_by_the_principle_that_was_drawn() -> None:
    one = scripted(seed=2)
    (found,) = revise(one, CONSTITUTION, CONVERSATIONS[:1], rounds=2, first=7)
    assert found.record
    p, q = (PRINCIPLES[CONSTITUTION.draw(2, 7, n)] for n in (0, 1))
    answer, critique, revision = "<one 448>", f"<{p.critique} 449>", f"<{p.revision} 450>"
    again, last = f"<{q.critique} 451>", f"<{q.revision} 452>"
    assert one.asked == [
        [user("one")],
        [user("one"), said(answer), user(p.critique)],
        [user("one"), said(answer), user(p.critique), said(critique), user(p.revision)],
        [user("one"), said(revision), user(q.critique)],
        [user("one"), said(revision), user(q.critique), said(again), user(q.revision)],
    ]
    assert found.record["messages"] == [user("one"), said(last)]
    rounds = found.record["trace"]["rounds"]
    assert found.record["trace"]["answer"] == answer and rounds[0]["critique"] == critique
    assert [PRINCIPLES[one["principle"]] for one in rounds] == [p, q] and rounds[1]["revision"] == last
    drawn = {CONSTITUTION.draw(2, number, 0) for number in range(30)}
    assert drawn == {0, 1, 2}


def test_what_comes_of_a_prompt_is_the_same_in_any_part() -> None:
    one = assistant(sampling=ENDS, seed=4, max_new_tokens=8)
    whole = revise(one, CONSTITUTION, CONVERSATIONS)
    assert revise(one, CONSTITUTION, CONVERSATIONS[2:4], first=2) == whole[2:4]
    pairs = compare(one, one, CONSTITUTION, CONVERSATIONS)
    assert compare(one, one, CONSTITUTION, CONVERSATIONS[2:4], first=2) == pairs[2:4]
    dropped = {outcome.dropped for outcome in (*whole, *pairs) if not outcome.record}
    assert dropped <= {f"{name}: {why}" for name in NAMES for why in ("empty", "not ended within 8 tokens")} | EQUAL
    assert any(outcome.record for outcome in pairs) and dropped


NAMES = ("answer", "critique", "revision", "first answer", "second answer")
EQUAL = {"the two answers are equal"}


def test_records_are_what_training_reads() -> None:
    one, judge = scripted(), assistant()
    for outcome in revise(one, CONSTITUTION, CONVERSATIONS):
        read = encode_record(parse(json.dumps(outcome.record), ("trace",)), judge.tokenizer)
        assert read.loss is not None and read.loss.any() and not read.loss.all()
    for outcome in compare(one, judge, CONSTITUTION, CONVERSATIONS):
        chosen, rejected, margin = parse_pair(json.dumps(outcome.record), ("judged",))
        assert chosen.answer != rejected.answer and chosen.prompt == rejected.prompt and margin == 0


def test_both_orders_are_asked_and_a_place_counts_nothing() -> None:
    judge, one = assistant(), scripted()
    found = compare(one, judge, CONSTITUTION, CONVERSATIONS)
    for number, outcome in enumerate(found):
        record = outcome.record
        assert record
        first, second = (f"<{CONVERSATIONS[number][0]['content']} {64 * number + draw}>" for draw in (0, 1))
        asked = PRINCIPLES[CONSTITUTION.draw(0, number, 0)].compare
        questions = [
            f"Two answers to the same request are to be compared.\n\nUser: {CONVERSATIONS[number][0]['content']}\n\n"
            f"Answer A:\n{a}\n\nAnswer B:\n{b}\n\n{asked}"
            for a, b in ((first, second), (second, first))
        ]
        one_way, other_way = judge.choose([[user(text)] for text in questions], BEGUN, LABELS)
        better = np.array([one_way[0], other_way[1]])
        ahead = better.mean() > 0.5
        assert record["chosen"] == [said(first if ahead else second)]
        assert record["rejected"] == [said(second if ahead else first)]
        np.testing.assert_allclose(record["judged"]["probabilities"], better if ahead else 1 - better, atol=1e-5)
    draws = [int(one.record["chosen"][0]["content"].split()[1][:-1]) for one in found if one.record]
    assert {draw % 2 for draw in draws} == {0, 1}


class Blind(Assistant):
    """A judge that always likes the first place."""

    def choose(self, conversations: Any, begun: str, labels: Any) -> np.ndarray:
        return np.tile([0.75, 0.25], (len(conversations), 1))


def test_a_judge_that_likes_a_place_prefers_nothing() -> None:
    one, judge = scripted(), assistant()
    blind = Blind(judge.engine, judge.tokenizer, judge.stop)
    assert {outcome.dropped for outcome in compare(one, blind, CONSTITUTION, CONVERSATIONS)} == {"a tie"}


def test_what_has_no_room_is_dropped_and_said() -> None:
    one, long = assistant(max_new_tokens=8, sampling=ENDS), [user("x" * 596)]
    found = revise(one, CONSTITUTION, [long, CONVERSATIONS[0]])
    assert found[0].dropped == "answer: what is asked leaves no room in 600 tokens" != found[1].dropped
    (outcome,) = compare(scripted(), one, CONSTITUTION, [[user("x" * 500)]])
    assert outcome.dropped == "comparison: over 600 tokens"
    found = best_answers(one, [long, CONVERSATIONS[0]], 3, by_functions([Digits()]))
    assert found[0].dropped == "answer: what is asked leaves no room in 600 tokens" != found[1].dropped


def test_the_best_answer_has_an_end() -> None:
    one = assistant(sampling=ENDS, max_new_tokens=8)
    found = best_answers(one, CONVERSATIONS, 6, by_functions([Digits()]))
    for outcome in found:
        if outcome.record:
            rewards = outcome.record["rewards"]
            assert rewards == sorted(rewards, reverse=True) and outcome.record["messages"][-1]["content"].strip()
        else:
            assert outcome.dropped == "answer: none of 6 is usable"
    assert any(outcome.record for outcome in found)
    assert best_answers(one, CONVERSATIONS[3:], 6, by_functions([Digits()]), first=3) == found[3:]


def test_an_answer_that_is_empty_or_cut_is_of_no_use() -> None:
    assert fault("answer", Completion.of(" x ", 2, True)) == ""
    assert fault("answer", Completion.of(" \n", 2, True)) == "answer: empty"
    assert fault("critique", Completion.of("x", 9, False)) == "critique: not ended within 9 tokens"


def test_a_constitution_has_principles_and_these_have_words() -> None:
    with pytest.raises(ValueError, match="Constitution.principles is empty"):
        Constitution(())
    with pytest.raises(ValueError, match="Principle.revision is empty"):
        Principle("a", " ", "c")
    with pytest.raises(ValueError, match="rounds=99: expected 1 to 31"):
        revise(assistant(), CONSTITUTION, [], 99)
